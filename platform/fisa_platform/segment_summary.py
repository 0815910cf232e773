"""What the segments of a table are, in a sentence: wrong values of label maps, or wrong words, show there."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fisa_model.vocabulary import Vocabulary
from fisa_platform import storage

_THREADS = 16
_LARGEST = 3
"""Classes that are named."""


def summarise_segments(files: Sequence[str], vocabulary: Vocabulary) -> str | None:
    """How many classes occur, how much is void, and what there is most of; None where no image has a segment.

    Args:
        files: of the images table, whose ground truth is meant, or of the predictions table.
        vocabulary: of the table.
    """
    areas: Counter[int] = Counter()
    pixels = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for of_file, of_images in pool.map(_count, files):
            areas.update(of_file)
            pixels += of_images
    if not areas:
        return None
    names = {category.id: category.short_name for category in vocabulary.categories}
    # The areas of a JSON may count pixels that others cover.
    void = max(0.0, 1 - areas.total() / pixels)
    most = ", ".join(f"{names[id_]} {area / pixels:.0%}" for id_, area in areas.most_common(_LARGEST))
    return f"{len(areas)} of {len(vocabulary)} classes, {void:.0%} void, most of all {most}"


def summarise_referred(files: Sequence[str]) -> str:
    """How many objects the sentences of an images table mean, and how many sentences there are."""
    with ThreadPoolExecutor(_THREADS) as pool:
        columns = [pc.list_flatten(table["referred"]) for table in pool.map(_referred, files)]
    objects = sum(len(column) for column in columns)
    expressions = sum(len(pc.list_flatten(pc.struct_field(column, "expressions"))) for column in columns)
    return f"{objects} objects, meant by {expressions} expressions"


def _referred(uri: str) -> pa.Table:
    filesystem, path = storage.pyarrow_filesystem(uri)
    return pq.read_table(path, filesystem=filesystem, columns=["referred"])


def _count(uri: str) -> tuple[dict[int, int], int]:
    """Area of each category, and pixels of the images."""
    filesystem, path = storage.pyarrow_filesystem(uri)
    table = pq.read_table(path, filesystem=filesystem, columns=["height", "width", "segments_info"])
    segments = pc.list_flatten(table["segments_info"])
    columns = [pc.struct_field(segments, name) for name in ("category_id", "area")]
    sums = (
        pa.table(columns, names=["category_id", "area"]).group_by("category_id").aggregate([("area", "sum")])
    )
    pixels = pc.sum(pc.multiply(table["height"].cast(pa.int64()), table["width"])).as_py() or 0
    return dict(zip(sums["category_id"].to_pylist(), sums["area_sum"].to_pylist(), strict=True)), pixels
