"""RefCOCO, RefCOCO+ and RefCOCOg, read: images of COCO, and sentences each of which means an object in one.

Of each data set there is a file of references, `refs(unc).p` or `refs(umd).p`, and `instances.json` with the
objects' masks (https://github.com/lichengunc/refer).
"""

import io
import json
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from pycocotools import mask as coco_mask

from fisa_platform import storage
from fisa_platform.schema import INDEX, REJECTED
from fisa_platform.sources.coco_json import COCOJSON, IMAGE_KEYS, missing_file, names_in, read_images
from fisa_platform.sources.index import Index, RowBuffer, list_names

_FORM = ("the instances of RefCOCO", "`images`, and `annotations` whose entries have id and segmentation")
_KEYS = {"images": IMAGE_KEYS, "annotations": ("id", "segmentation")}
_REFERENCE_KEYS = ("ann_id", "image_id", "split", "sentences")


_Expressions = dict[str, dict[str, list[str]]]
"""Of a split: by image id, and then by the annotation id of the object that is meant."""


@dataclass(frozen=True, slots=True)
class _Annotation:
    image_id: str | None
    """None where the file does not say."""

    segmentation: Any


def read_refcoco(images_uri: str, refs_uri: str, instances_uri: str, split: str) -> Index:
    """The index of one split; opens no image.

    Args:
        images_uri: folder or zip of COCO's train2014 images.
        refs_uri: the references, as they are published (`refs(unc).p`) or the same list as JSON.
        instances_uri: `instances.json` of the same data set.
        split: `train`, `val`, `test`, `testA` or `testB`, as the references name them.

    Raises:
        ValueError: a file has another form, or there is no such split.
    """
    with storage.local_copy(refs_uri) as path:
        expressions = _group(_read_references(refs_uri, path), refs_uri, split)
    wanted = {annotation for of_image in expressions.values() for annotation in of_image}
    with storage.local_copy(instances_uri) as path:
        document = COCOJSON(instances_uri, path, _FORM, _KEYS)
        annotations = {
            str(entry["id"]): _Annotation(_text_of(entry.get("image_id")), entry["segmentation"])
            for entry in document.entries("annotations")
            if str(entry["id"]) in wanted
        }
        images = read_images(document, expressions)
    list_names(images_uri)  # refuses a folder that is not there
    return _index(images, expressions, annotations, images_uri, instances_uri)


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, texts and numbers, and no name of anything that could be run."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_references(uri: str, path: Path) -> list[Any]:
    data = path.read_bytes()
    try:
        if data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"[", b"{")):
            references = json.loads(data.decode("utf-8-sig"))
        else:
            # Python 2 wrote them, whose texts are bytes.
            references = _PlainUnpickler(io.BytesIO(data), encoding="utf-8", errors="replace").load()
    # What pickle raises over bytes that are no pickle is nearly anything.
    except Exception as error:
        raise ValueError(
            f"{uri}: cannot be read ({error}); expected refs(unc).p or refs(umd).p as published, or the same "
            "list as JSON"
        ) from error
    if not isinstance(references, list) or not references:
        raise ValueError(f"{uri}: holds no list of references, but {type(references).__name__}")
    return references


def _group(references: list[Any], uri: str, split: str) -> _Expressions:
    """In the order of the file."""
    grouped: _Expressions = {}
    splits: Counter[str] = Counter()
    for position, reference in enumerate(references):
        place = f"{uri}: reference {position}"
        if not isinstance(reference, Mapping):
            raise ValueError(f"{place} is {type(reference).__name__}, expected a mapping")
        if lacking := [key for key in _REFERENCE_KEYS if key not in reference]:
            raise ValueError(f"{place} has no {' and no '.join(lacking)}")
        splits[str(reference["split"])] += 1
        if reference["split"] == split and (said := list(_sentences(reference["sentences"], place))):
            of_image = grouped.setdefault(str(reference["image_id"]), {})
            of_image.setdefault(str(reference["ann_id"]), []).extend(said)
    if split not in splits:
        found = ", ".join(f"{name} ({count})" for name, count in sorted(splits.items()))
        raise ValueError(f"{uri}: no reference is of split {split!r}; it has {found}")
    return grouped


def _sentences(sentences: Any, place: str) -> Iterator[str]:
    """Those that have a word, in one line."""
    for sentence in sentences if isinstance(sentences, list) else [sentences]:
        text = sentence.get("sent") if isinstance(sentence, Mapping) else None
        if not isinstance(text, str):
            raise ValueError(f"{place} has the sentence {sentence!r}; expected a mapping with text as `sent`")
        # JSON may hold half of a pair of surrogates, which no text on a disk can.
        if words := " ".join(text.encode("utf-8", "replace").decode().split()):
            yield words


def _text_of(value: Any) -> str | None:
    return None if value is None else str(value)


def _index(
    images: pa.Table,
    expressions: _Expressions,
    annotations: Mapping[str, _Annotation],
    images_uri: str,
    instances_uri: str,
) -> Index:
    rows, rejected = RowBuffer(INDEX), RowBuffer(REJECTED)
    listing = cache(names_in)
    left = dict(expressions)
    for row in images.to_pylist():
        of_image = left.pop(row["image_id"], None)
        try:
            if of_image is None:
                raise ValueError(f"image id {row['image_id']} occurs more than once in {instances_uri}")
            if problem := missing_file("image", images_uri, row["file_name"], listing):
                raise ValueError(problem)
            referred = [
                {"expressions": said, "counts": _counts(annotation, annotations.get(annotation), row)}
                for annotation, said in of_image.items()
            ]
        except ValueError as error:
            rejected.append({**row, "reason": str(error)})
            continue
        rows.append({**row, "image_uri": storage.join(images_uri, row["file_name"]), "referred": referred})
    for image_id in left:
        reason = f"{instances_uri} has no image of this id"
        rejected.append({"image_id": image_id, "file_name": image_id, "reason": reason})
    return Index(rows=rows.table(), rejected=rejected.table(), vocabulary=None)


def _counts(id_: str, annotation: _Annotation | None, image: Mapping[str, Any]) -> bytes:
    """The mask of an object of an image, as COCO's compressed run lengths."""
    if annotation is None:
        raise ValueError(f"annotation {id_}, which is referred to, is not among the instances")
    if annotation.image_id not in (None, image["image_id"]):
        raise ValueError(
            f"annotation {id_}, which is referred to, is of image {annotation.image_id} among the instances; "
            "are they of another data set?"
        )
    return _run_lengths(annotation.segmentation, image["height"], image["width"], id_)


def _run_lengths(segmentation: Any, height: int, width: int, annotation: str) -> bytes:
    """COCO's compressed run lengths of polygons [[x, y, x, y, ...], ...] or of a list of run lengths."""
    try:
        if isinstance(segmentation, list):
            polygons = _usable_polygons(segmentation, height, width)
            run = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
        else:
            _check_runs(segmentation, height, width)
            run = coco_mask.frPyObjects(segmentation, height, width)
        if not coco_mask.area(run):
            raise ValueError("it has no pixel")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"the segmentation of annotation {annotation} cannot be used: {error}") from error
    counts: bytes = run["counts"]
    return counts


def _usable_polygons(polygons: list[Any], height: int, width: int) -> list[Any]:
    """Those of three points or more, as detectron2 takes them."""
    usable = [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]
    if not usable:
        raise ValueError("it has no polygon of three points or more, [x, y, x, y, x, y, ...]")
    # pycocotools walks along the edges of a polygon, however far away they lead.
    far = 2 * max(height, width)
    if odd := [value for polygon in usable for value in polygon if not -far <= value <= far]:
        raise ValueError(f"a polygon has the coordinate {odd[0]!r}, in an image of {height} x {width} pixels")
    return usable


def _check_runs(segmentation: Any, height: int, width: int) -> None:
    """pycocotools believes them, and ends at no sum that is too small."""
    counts = segmentation["counts"]
    if list(segmentation["size"]) != [height, width] or not isinstance(counts, list):
        raise ValueError(f"expected polygons, or `counts` as a list and `size` [{height}, {width}]")
    whole = all(type(count) is int and count >= 0 for count in counts)
    if not whole or sum(counts) != height * width:
        raise ValueError(f"its run lengths are not those of {height} x {width} pixels")
