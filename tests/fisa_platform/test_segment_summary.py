"""What a table's segments are, in a sentence."""

from pathlib import Path

import pyarrow as pa

from fisa_model.vocabulary import Vocabulary
from fisa_platform.schema import IMAGES
from fisa_platform.segment_summary import summarise_segments
from fisa_platform.tables import write_parquet

WORDS = Vocabulary.from_names(["cat"], stuff=["road, route", "sky", "sea", "sand"])


def write(folder: Path, name: str, *areas: dict[int, int]) -> str:
    """A file of images of 10 x 20 pixels with these areas of categories."""
    schema = pa.schema([IMAGES.field(name) for name in ("height", "width", "segments_info")])
    rows = [
        {
            "height": 10,
            "width": 20,
            "segments_info": [
                {"id": number, "category_id": category, "area": area, "iscrowd": False}
                for number, (category, area) in enumerate(of_image.items(), start=1)
            ],
        }
        for of_image in areas
    ]
    write_parquet(str(folder / name), pa.Table.from_pylist(rows, schema))
    return str(folder / name)


def test_classes_void_and_the_largest_are_said(tmp_path: Path) -> None:
    files = [write(tmp_path, "a", {2: 100, 1: 20}, {3: 40}), write(tmp_path, "b", {4: 10, 2: 60})]
    # 230 of 600 pixels.
    assert summarise_segments(files, WORDS) == (
        "4 of 5 classes, 62% void, most of all road 27%, sky 7%, cat 3%"
    )


def test_areas_that_others_cover_make_no_negative_void(tmp_path: Path) -> None:
    files = [write(tmp_path, "a", {2: 180, 3: 180})]
    assert summarise_segments(files, WORDS).startswith("2 of 5 classes, 0% void, ")


def test_a_table_of_void_alone_has_no_summary(tmp_path: Path) -> None:
    assert summarise_segments([write(tmp_path, "a", {}, {})], WORDS) is None
