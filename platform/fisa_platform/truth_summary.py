"""What the ground truth of a table holds, in a sentence: wrong values of label maps show there at once."""

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


def summarise_truth(files: Sequence[str], vocabulary: Vocabulary) -> str:
    """Of files of the images table: how many classes occur, how much is void, and what there is most of.

    Raises:
        ValueError: no image has a segment.
    """
    areas: Counter[int] = Counter()
    pixels = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for of_file, of_images in pool.map(_count, files):
            areas.update(of_file)
            pixels += of_images
    if not areas:
        raise ValueError(
            "no image has a segment, all is void; check the ground truth, and of label maps the classes, "
            "`values` and `offset`"
        )
    names = dict(zip(vocabulary.ids, vocabulary.names, strict=True))
    # The areas of a JSON may count pixels that others cover.
    void = max(0.0, 1 - areas.total() / pixels)
    most = ", ".join(f"{names[id_]} {area / pixels:.0%}" for id_, area in areas.most_common(_LARGEST))
    return f"{len(areas)} of {len(vocabulary)} classes, {void:.0%} void, most of all {most}"


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
