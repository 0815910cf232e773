"""COCO panoptic form, in and out: a folder of images, a folder of panoptic PNGs and one JSON."""

import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from typing import Any

from fisa_model.vocabulary import Vocabulary
from fisa_platform import storage
from fisa_platform.panoptic_png import bounding_box, decode_panoptic
from fisa_platform.sources.index import Index, IndexRow, RejectedRow, SegmentInfo, list_names


def read_coco_panoptic(images_uri: str, panoptic_uri: str, json_uri: str) -> Index:
    """The index of a data set in COCO panoptic form. Opens the JSON and lists the folders; reads no image.

    Args:
        images_uri: folder that the JSON's image file names are relative to.
        panoptic_uri: folder of the panoptic PNGs.
        json_uri: `panoptic_val2017.json` or alike.
    """
    document = _read_panoptic_json(json_uri)
    vocabulary = Vocabulary.from_json(document["categories"])
    category_ids = set(vocabulary.ids)
    annotations: dict[str, list[dict[str, Any]]] = {}
    for annotation in document["annotations"]:
        annotations.setdefault(str(annotation["image_id"]), []).append(annotation)
    listing = cache(list_names)
    rows: dict[str, IndexRow] = {}
    rejected: list[RejectedRow] = []
    for image in document["images"]:
        image_id, file_name = str(image["id"]), image["file_name"]
        found = annotations.get(image_id, [])
        problem = (
            (f"image id {image_id} occurs more than once in the JSON" if image_id in rows else None)
            or _annotation_problem(found, category_ids)
            or _missing_file("image", images_uri, file_name, listing)
            or _missing_file("panoptic PNG", panoptic_uri, found[0]["file_name"], listing)
        )
        if problem:
            rejected.append({"image_id": image_id, "file_name": file_name, "reason": problem})
            continue
        rows[image_id] = {
            "image_id": image_id,
            "file_name": file_name,
            "image_uri": storage.join(images_uri, file_name),
            "panoptic_uri": storage.join(panoptic_uri, found[0]["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "segments_info": [_segment_info(segment) for segment in found[0]["segments_info"]],
        }
    return Index(rows=list(rows.values()), rejected=rejected, vocabulary=vocabulary)


def write_panoptic(folder_uri: str, rows: Iterable[Mapping[str, Any]], vocabulary: Vocabulary) -> int:
    """Write predictions as `panoptic.json` and a folder `panoptic/` of PNGs, as the field's tools read them.

    Args:
        folder_uri: where the two go.
        rows: rows of the predictions table; read once, so a generator will do.
        vocabulary: the classes that the rows' category ids belong to.

    Returns:
        The number of images written.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    written: set[str] = set()
    for row in rows:
        png_name = posixpath.splitext(row["file_name"])[0] + ".png"
        if png_name in written:
            raise ValueError(f"two images would be written as {png_name}; rename {row['file_name']!r}")
        written.add(png_name)
        storage.write_bytes(storage.join(folder_uri, "panoptic", png_name), row["panoptic"])
        image_id = _json_id(row["image_id"])
        size = {"height": row["height"], "width": row["width"]}
        images.append({"id": image_id, "file_name": row["file_name"], **size})
        annotations.append(
            {"image_id": image_id, "file_name": png_name, "segments_info": _exported_segments(row)}
        )
    document = {"images": images, "annotations": annotations, "categories": vocabulary.to_json()}
    storage.write_json(storage.join(folder_uri, "panoptic.json"), document)
    return len(images)


def _read_panoptic_json(json_uri: str) -> dict[str, Any]:
    document = storage.read_json(json_uri)
    problem = _form_problem(document)
    if problem:
        raise ValueError(
            f"{json_uri}: not COCO panoptic JSON: {problem}; expected `images`, `categories`, and "
            "`annotations` whose entries have image_id, file_name and segments_info"
        )
    assert isinstance(document, dict)
    return document


def _form_problem(document: object) -> str | None:
    if not isinstance(document, dict):
        return f"it holds a {type(document).__name__}, not an object"
    for section, keys in {
        "images": ("id", "file_name", "height", "width"),
        "annotations": ("image_id", "file_name", "segments_info"),
        "categories": ("id", "name", "isthing"),
    }.items():
        entries = document.get(section)
        if not isinstance(entries, list):
            return f"it has no list `{section}`"
        for position, entry in enumerate(entries):
            lacking = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if lacking:
                return f"{section}[{position}] has no {' and no '.join(lacking)}"
    return None


def _annotation_problem(annotations: list[dict[str, Any]], category_ids: set[int]) -> str | None:
    if len(annotations) != 1:
        return f"the JSON has {len(annotations) or 'no'} annotations for this image; expected one"
    seen: set[int] = set()
    for segment in annotations[0]["segments_info"]:
        lacking = [key for key in ("id", "category_id", "area") if key not in segment]
        if lacking:
            return f"a segment of this image has no {' and no '.join(lacking)}"
        if segment["id"] in seen:
            return f"segment id {segment['id']} occurs more than once in this image"
        if segment["category_id"] not in category_ids:
            return (
                f"segment {segment['id']} has category id {segment['category_id']}, which `categories` lacks"
            )
        seen.add(segment["id"])
    return None


def _missing_file(
    kind: str, folder_uri: str, file_name: str, listing: Callable[[str], Collection[str]]
) -> str | None:
    """A reason where `file_name`, which may name a folder too, is not there; one listing serves a folder."""
    subfolder, name = posixpath.split(file_name)
    parent = storage.join(folder_uri, subfolder) if subfolder else folder_uri
    return None if name in listing(parent) else f"{kind} {storage.join(folder_uri, file_name)} does not exist"


def _segment_info(segment: Mapping[str, Any]) -> SegmentInfo:
    return {
        "id": int(segment["id"]),
        "category_id": int(segment["category_id"]),
        "area": int(segment["area"]),
        "iscrowd": bool(segment.get("iscrowd", 0)),
    }


def _exported_segments(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    ids = decode_panoptic(row["panoptic"])
    return [
        {
            "id": segment["id"],
            "category_id": segment["category_id"],
            "area": segment["area"],
            "bbox": bounding_box(ids == segment["id"]),
            "iscrowd": 0,
            "isthing": int(segment["isthing"]),
            "score": round(float(segment["score"]), 6),
        }
        for segment in row["segments_info"]
    ]


def _json_id(image_id: str) -> int | str:
    """COCO's ids are ints; ours are strings, so what reads as an int goes back as one."""
    return int(image_id) if re.fullmatch(r"0|-?[1-9][0-9]*", image_id) else image_id
