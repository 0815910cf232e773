"""COCO panoptic form, read: a folder of images, a folder of panoptic PNGs and one JSON."""

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fisa_model.vocabulary import Vocabulary
from fisa_platform import storage
from fisa_platform.schema import INDEX, REJECTED
from fisa_platform.sources.coco_json import (
    COCO_IMAGE,
    COCOJSON,
    IMAGE_KEYS,
    missing_file,
    names_in,
    read_images,
)
from fisa_platform.sources.index import Index, RowBuffer, list_names

_TRUTH = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("png_name", pa.string()),
        INDEX.field("segments_info"),
        # Why the image cannot be used; null where it can.
        pa.field("problem", pa.string()),
    ]
)
"""One annotation of the JSON."""


def read_coco_panoptic(images_uri: str, panoptic_uri: str, json_uri: str) -> Index:
    """The index of a data set in COCO panoptic form.

    Reads the JSON entry by entry and lists the folders; opens no image.

    Args:
        images_uri: folder or zip that the JSON's image file names are relative to.
        panoptic_uri: folder or zip of the panoptic PNGs.
        json_uri: `panoptic_val2017.json` or alike.

    Raises:
        ValueError: the JSON is no JSON or has another form; a folder is empty.
    """
    with storage.local_copy(json_uri) as path:
        document = COCOJSON(json_uri, path, _FORM, _KEYS)
        vocabulary = Vocabulary.from_json(list(document.entries("categories")))
        truths = _read_truths(document, set(vocabulary.ids))
        images = read_images(document)
    joined = _join(images, truths)
    problems = _find_problems(joined, images_uri, panoptic_uri)
    usable = pc.is_null(problems)
    rejected = joined.select(["image_id", "file_name"]).append_column("reason", problems)
    return Index(
        rows=_with_uris(joined.filter(usable), images_uri, panoptic_uri),
        rejected=rejected.filter(pc.invert(usable)).cast(REJECTED),
        vocabulary=vocabulary,
    )


_FORM = (
    "COCO panoptic JSON",
    "`images`, `categories`, and `annotations` whose entries have image_id, file_name and segments_info",
)
_KEYS = {
    "images": IMAGE_KEYS,
    "annotations": ("image_id", "file_name", "segments_info"),
    "categories": ("id", "name", "isthing"),
}
"""Sections of the JSON, and what their entries must have."""


def _read_truths(document: COCOJSON, category_ids: set[int]) -> pa.Table:
    rows = RowBuffer(_TRUTH)
    for annotation in document.entries("annotations"):
        row = {"image_id": str(annotation["image_id"]), "png_name": annotation["file_name"]}
        problem = _annotation_problem(annotation["segments_info"], category_ids)
        if problem:
            rows.append({**row, "problem": problem})
        else:
            segments = [_segment_info(segment) for segment in annotation["segments_info"]]
            rows.append({**row, "segments_info": segments})
    return rows.table()


def _join(images: pa.Table, truths: pa.Table) -> pa.Table:
    """Images with the first annotation of each, nulls where there is none, and how many there are."""
    ids = truths["image_id"].to_pylist()
    first = {image_id: row for row, image_id in reversed(list(enumerate(ids)))}
    counts = Counter(ids)
    names = images["image_id"].to_pylist()
    found = truths.drop_columns("image_id").take(pa.array([first.get(name) for name in names], pa.int64()))
    columns = [*COCO_IMAGE.names, *_TRUTH.names[1:]]
    joined = pa.Table.from_arrays([*images.columns, *found.columns], names=columns)
    return joined.append_column("annotations", pa.array([counts[name] for name in names]))


def _find_problems(joined: pa.Table, images_uri: str, panoptic_uri: str) -> pa.Array:
    """Why each image cannot be used; null where it can."""
    for folder_uri in (images_uri, panoptic_uri):
        list_names(folder_uri)  # refuses a folder that is not there; a file's own subfolder may be absent
    listing = cache(names_in)
    seen: set[str] = set()
    problems: list[str | None] = []
    for row in joined.drop_columns("segments_info").to_pylist():
        image_id, count = row["image_id"], row["annotations"]
        problem = None
        if image_id in seen:
            problem = f"image id {image_id} occurs more than once in the JSON"
        elif count != 1:
            problem = f"the JSON has {count or 'no'} annotations for this image; expected one"
        problem = (
            problem
            or row["problem"]
            or missing_file("image", images_uri, row["file_name"], listing)
            or missing_file("panoptic PNG", panoptic_uri, row["png_name"], listing)
        )
        problems.append(problem)
        if problem is None:
            seen.add(image_id)
    return pa.array(problems, pa.string())


def _with_uris(joined: pa.Table, images_uri: str, panoptic_uri: str) -> pa.Table:
    for column, folder_uri, name in (
        ("image_uri", images_uri, "file_name"),
        ("panoptic_uri", panoptic_uri, "png_name"),
    ):
        uris = [storage.join(folder_uri, file_name) for file_name in joined[name].to_pylist()]
        joined = joined.append_column(column, pa.array(uris, pa.string()))
    joined = joined.append_column(
        INDEX.field("referred"), pa.nulls(len(joined), INDEX.field("referred").type)
    )
    return joined.select(INDEX.names).cast(INDEX)


def _annotation_problem(segments: Any, category_ids: set[int]) -> str | None:
    if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
        return "segments_info of this image is no list of segments"
    seen: set[int] = set()
    for segment in segments:
        lacking = [key for key in ("id", "category_id", "area") if key not in segment]
        if lacking:
            return f"a segment of this image has no {' and no '.join(lacking)}"
        for key in ("id", "category_id", "area", "iscrowd"):
            value = segment.get(key, 0)
            number = isinstance(value, int) or (key == "area" and isinstance(value, float))
            if not number or not 0 <= value < 2**31:
                return f"a segment of this image has {key} {value!r}; it must be a number of 0 or more"
        if segment["id"] in seen:
            return f"segment id {segment['id']} occurs more than once in this image"
        if segment["category_id"] not in category_ids:
            return (
                f"segment {segment['id']} has category id {segment['category_id']}, which `categories` lacks"
            )
        seen.add(segment["id"])
    return None


def _segment_info(segment: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": int(segment["id"]),
        "category_id": int(segment["category_id"]),
        "area": int(segment["area"]),
        "iscrowd": bool(segment.get("iscrowd", 0)),
    }
