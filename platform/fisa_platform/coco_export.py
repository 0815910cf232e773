"""COCO's forms, written: the JSON that goes with a folder of panoptic PNGs, and that of instances."""

import json
import posixpath
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fisa_platform import storage


def png_name(file_name: str) -> str:
    """The panoptic PNG of an image file; both may lie in folders."""
    return posixpath.splitext(file_name)[0] + ".png"


def write_coco_json(
    uri: str,
    form: Literal["panoptic", "instances"],
    image_ids: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    categories: Sequence[Mapping[str, Any]],
) -> None:
    """Write the JSON of predictions as the field's tools read it, entry by entry: a million fit no memory.

    COCO's ids are whole numbers. Ids that read as such go back as those (a photo of COCO's that was read from
    a folder, 000000142238, has COCO's own id); where any is a name, images are counted from 1, and their file
    names tell which they are.

    Args:
        uri: of the JSON.
        form: `panoptic`, whose masks are PNGs beside it, or `instances`, which has a mask in it for each
            segment, stuff too.
        image_ids: of the rows, in their order.
        rows: of the predictions table, less `panoptic`; read twice.
        categories: COCO's list of the classes that the rows' category ids belong to.

    Raises:
        ValueError: two images would share a PNG.
    """
    ids = _json_ids(image_ids)
    sections: dict[str, Iterable[Mapping[str, Any]]] = {
        "images": (
            {"id": i, "file_name": row["file_name"], "height": row["height"], "width": row["width"]}
            for i, row in zip(ids, rows, strict=True)
        ),
        "annotations": _panoptic(ids, rows) if form == "panoptic" else _instances(ids, rows),
        "categories": categories,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "coco.json"
        with path.open("w", encoding="utf-8") as file:
            file.writelines(_json_text(sections))
        storage.upload(path, uri)


def _json_text(sections: Mapping[str, Iterable[Mapping[str, Any]]]) -> Iterator[str]:
    """A JSON object of lists, an entry a line."""
    for number, (name, entries) in enumerate(sections.items()):
        yield f'{"," if number else "{"}\n"{name}": ['
        for position, entry in enumerate(entries):
            yield ("," if position else "") + "\n"
            yield json.dumps(entry, ensure_ascii=False, allow_nan=False)
        yield "\n]"
    yield "\n}\n"


def _panoptic(ids: Sequence[int], rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    written: set[str] = set()
    for image_id, row in zip(ids, rows, strict=True):
        name = png_name(row["file_name"])
        if name in written:
            raise ValueError(f"two images would be written as {name}; rename {row['file_name']!r}")
        written.add(name)
        segments = [
            {
                "id": segment["id"],
                "category_id": segment["category_id"],
                "area": segment["area"],
                "bbox": segment["bbox"],
                "iscrowd": 0,
                "isthing": int(segment["isthing"]),
                "score": round(float(segment["score"]), 6),
            }
            for segment in row["segments_info"]
        ]
        yield {"image_id": image_id, "file_name": name, "segments_info": segments}


def _instances(ids: Sequence[int], rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    number = 0
    for image_id, row in zip(ids, rows, strict=True):
        for segment in row["segments_info"]:
            number += 1
            yield {
                "id": number,
                "image_id": image_id,
                "category_id": segment["category_id"],
                "segmentation": {
                    "size": [row["height"], row["width"]],
                    "counts": segment["counts"].decode("ascii"),
                },
                "area": segment["area"],
                "bbox": segment["bbox"],
                "iscrowd": 0,
                "score": round(float(segment["score"]), 6),
            }


def _json_ids(names: Sequence[str]) -> list[int]:
    """Our ids are strings: the numbers that they read as, or, if not all do or two are the same, from 1."""
    if all(re.fullmatch(r"-?[0-9]+", name) for name in names):
        ids = [int(name) for name in names]
        if len(set(ids)) == len(ids):
            return ids
    return list(range(1, len(names) + 1))
