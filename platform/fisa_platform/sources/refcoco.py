"""RefCOCO, RefCOCO+ and RefCOCOg, read: images of COCO, and sentences each of which means an object in one.

Of each data set there is a file of references, `refs(unc).p` or `refs(umd).p`, and `instances.json` with the
objects' masks (https://github.com/lichengunc/refer).
"""

import json
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class _Image:
    """The objects that are referred to in one image."""

    expressions: dict[str, list[str]] = field(default_factory=dict)
    """By the object's annotation id, in the file's order."""

    segmentations: dict[str, Any] = field(default_factory=dict)


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
        images = _group(_read_references(refs_uri, path), refs_uri, split)
    with storage.local_copy(instances_uri) as path:
        document = COCOJSON(instances_uri, path, _FORM, _KEYS)
        _add_segmentations(document, images)
        found = read_images(document, images)
    list_names(images_uri)  # refuses a folder that is not there
    return _index(found, images, images_uri, instances_uri)


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, texts and numbers, and no name of anything that could be run."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_references(uri: str, path: Path) -> list[Any]:
    with path.open("rb") as file:
        start = file.read(64).lstrip()
        file.seek(0)
        try:
            if start.startswith((b"[", b"{")):
                references = json.load(file)
            else:
                # Python 2 wrote them, whose texts are bytes.
                references = _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
        # What pickle raises over bytes that are no pickle is nearly anything.
        except Exception as error:
            raise ValueError(
                f"{uri}: cannot be read ({error}); expected refs(unc).p or refs(umd).p as published, or the "
                "same list as JSON"
            ) from error
    if not isinstance(references, list) or not references:
        raise ValueError(f"{uri}: holds no list of references, but {type(references).__name__}")
    return references


def _group(references: list[Any], uri: str, split: str) -> dict[str, _Image]:
    """Expressions of a split by image id, then by annotation id."""
    images: dict[str, _Image] = {}
    splits: Counter[str] = Counter()
    for position, reference in enumerate(references):
        place = f"{uri}: reference {position}"
        if not isinstance(reference, Mapping):
            raise ValueError(f"{place} is {type(reference).__name__}, expected a mapping")
        if lacking := [key for key in _REFERENCE_KEYS if key not in reference]:
            raise ValueError(f"{place} has no {' and no '.join(lacking)}")
        splits[str(reference["split"])] += 1
        if reference["split"] == split:
            image = images.setdefault(str(reference["image_id"]), _Image())
            expressions = image.expressions.setdefault(str(reference["ann_id"]), [])
            expressions += _sentences(reference["sentences"], place)
    if not images:
        found = ", ".join(f"{name} ({count})" for name, count in sorted(splits.items()))
        raise ValueError(f"{uri}: no reference is of split {split!r}; it has {found}")
    return images


def _sentences(sentences: Any, place: str) -> Iterator[str]:
    for sentence in sentences if isinstance(sentences, list) else [sentences]:
        text = sentence.get("sent") if isinstance(sentence, Mapping) else None
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{place} has a sentence without text, {sentence!r}; expected `sent` with words")
        yield text.strip()


def _add_segmentations(document: COCOJSON, images: Mapping[str, _Image]) -> None:
    image_of = {annotation: image for image in images.values() for annotation in image.expressions}
    for annotation in document.entries("annotations"):
        image = image_of.get(str(annotation["id"]))
        if image is not None:
            image.segmentations[str(annotation["id"])] = annotation["segmentation"]


def _index(found: pa.Table, images: Mapping[str, _Image], images_uri: str, instances_uri: str) -> Index:
    rows, rejected = RowBuffer(INDEX), RowBuffer(REJECTED)
    listing = cache(names_in)
    left = dict(images)
    for row in found.to_pylist():
        image = left.pop(row["image_id"], None)
        try:
            if image is None:
                raise ValueError(f"image id {row['image_id']} occurs more than once in {instances_uri}")
            if problem := missing_file("image", images_uri, row["file_name"], listing):
                raise ValueError(problem)
            referred = _referred(image, row["height"], row["width"])
        except ValueError as error:
            rejected.append({**row, "reason": str(error)})
            continue
        rows.append({**row, "image_uri": storage.join(images_uri, row["file_name"]), "referred": referred})
    for image_id in left:
        reason = f"{instances_uri} has no image of this id"
        rejected.append({"image_id": image_id, "file_name": image_id, "reason": reason})
    return Index(rows=rows.table(), rejected=rejected.table(), vocabulary=None)


def _referred(image: _Image, height: int, width: int) -> list[dict[str, Any]]:
    """Values of `schema.REFERRED`."""
    referred = []
    for annotation, expressions in image.expressions.items():
        if annotation not in image.segmentations:
            raise ValueError(f"annotation {annotation}, which is referred to, is not among the instances")
        counts = _run_lengths(image.segmentations[annotation], height, width, annotation)
        referred.append({"expressions": expressions, "counts": counts})
    return referred


def _run_lengths(segmentation: Any, height: int, width: int, annotation: str) -> bytes:
    """COCO's compressed run lengths of polygons [[x, y, x, y, ...], ...] or of a list of run lengths."""
    try:
        if isinstance(segmentation, list):
            _check_polygons(segmentation, height, width)
            run = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        else:
            _check_runs(segmentation, height, width)
            run = coco_mask.frPyObjects(segmentation, height, width)
        if not coco_mask.area(run):
            raise ValueError("it has no pixel")
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"the segmentation of annotation {annotation} cannot be used: {error}") from error
    counts: bytes = run["counts"]
    return counts


def _check_polygons(polygons: list[Any], height: int, width: int) -> None:
    if not polygons or any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        raise ValueError("a polygon needs three points or more, [x, y, x, y, x, y, ...]")
    # pycocotools walks along the edges of a polygon, however far away they lead.
    far = 2 * max(height, width)
    if odd := [value for polygon in polygons for value in polygon if not -far <= value <= far]:
        raise ValueError(f"a polygon has the coordinate {odd[0]!r}, in an image of {height} x {width} pixels")


def _check_runs(segmentation: Any, height: int, width: int) -> None:
    counts = segmentation["counts"]
    if list(segmentation["size"]) != [height, width] or not isinstance(counts, list):
        raise ValueError(f"expected polygons, or `counts` as a list and `size` [{height}, {width}]")
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError(f"its run lengths are not those of {height} x {width} pixels")
