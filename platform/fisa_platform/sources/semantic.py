"""Data sets for semantic segmentation, read: a folder of images, and one of label maps, a value a pixel.

ADE20K, PASCAL Context, COCO-Stuff, Cityscapes and others come like this, and as detectron2 and mmsegmentation
prepare them.
"""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fisa_model.pictures import MAX_PIXELS
from fisa_model.vocabulary import Vocabulary
from fisa_platform import storage
from fisa_platform.schema import INDEX, REJECTED
from fisa_platform.sources.index import (
    Index,
    as_text,
    found_instead,
    less_suffix,
    list_names,
    read_image_folder,
    with_ending,
)

LABEL_SUFFIXES = (".png", ".tif", ".tiff")
"""What counts as a label map in a folder, in any case; other formats lose values."""

LARGEST_VALUE = 65_535

VOID_VALUES = (255, LARGEST_VALUE)
"""Pixels of no class in maps of 8 and of 16 bits, where no class has that value."""

_LAYOUTS = ("1", "L", "L;2", "L;4", "P", "P;1", "P;2", "P;4", "I;16", "I;16B", "I;16N")
"""How one value a pixel lies in a file, in PIL's words. Others are inverted, or in another order."""

_SPREAD = {"L;2": 85, "L;4": 17}
"""By what PIL multiplies grey of 2 and 4 bits, as optimisers of PNGs pack it, to spread it over 0 to 255."""


@dataclass(frozen=True, slots=True)
class LabelValues:
    """What the values of label maps mean."""

    category_ids: Mapping[int, int]
    """The category of each value."""

    others_are_void: bool = False
    """Whether every other value is void; otherwise VOID_VALUES are, and 0 where classes start above it."""

    def read(self, data: bytes) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
        """An encoded label map -> ids [H, W] as in a panoptic PNG and their `segments_info`.

        A class of an image is one segment, whose id is its category's plus one: 0 is void.

        Raises:
            ValueError: not an image of one value a pixel, or with a value of no class.
        """
        values = decode_labels(data)
        areas = np.bincount(values.ravel())
        ids = np.zeros(len(areas), np.int32)
        segments = []
        for value in areas.nonzero()[0].tolist():
            category_id = self.category_ids.get(value)
            if category_id is None:
                self._check_void(value)
                continue
            ids[value] = category_id + 1
            area = int(areas[value])
            segments.append(
                {"id": category_id + 1, "category_id": category_id, "area": area, "iscrowd": False}
            )
        return ids[values], segments

    def _check_void(self, value: int) -> None:
        first, last = min(self.category_ids), max(self.category_ids)
        void = VOID_VALUES if first == 0 else (0, *VOID_VALUES)
        if not (self.others_are_void or value in void):
            raise ValueError(
                f"label map has the value {value}; the classes are {first} to {last}, and void is "
                f"{' or '.join(map(str, void))}; check the class list, `values` and `offset`"
            )


def read_semantic(
    images_uri: str,
    labels_uri: str,
    vocabulary: Vocabulary,
    *,
    image_suffix: str | None = None,
    label_suffix: str | None = None,
) -> Index:
    """The index of every label map and its image; images without a label map are left out.

    A label map belongs to the image of the same path, suffixes aside.

    Args:
        images_uri: folder or zip of images.
        labels_uri: folder or zip of label maps.
        vocabulary: the classes.
        image_suffix: what names of images end in; None is any suffix of an image.
        label_suffix: what names of label maps end in; None is any of LABEL_SUFFIXES.

    Raises:
        ValueError: a folder is empty, no image has a label map, or one has two.
    """
    images = read_image_folder(images_uri, suffix=image_suffix)
    labels = _by_image(labels_uri, label_suffix)
    ids = images.rows["image_id"].to_pylist()
    rows = images.rows.filter(pa.array([image_id in labels for image_id in ids]))
    if not rows.num_rows:
        raise ValueError(
            f"{labels_uri}: no label map has the name of an image; images are called {_some(ids)}, "
            f"label maps {_some(labels)}; set image_suffix and label_suffix to what follows the shared name"
        )
    known = {*ids, *images.rejected["image_id"].to_pylist()}
    uris = [storage.join(labels_uri, labels[image_id]) for image_id in rows["image_id"].to_pylist()]
    rows = rows.set_column(
        INDEX.get_field_index("panoptic_uri"), INDEX.field("panoptic_uri"), pa.array(uris, pa.string())
    )
    without = [
        {
            "image_id": image_id,
            "file_name": labels[image_id],
            "reason": f"no image of this name in {images_uri}",
        }
        for image_id in sorted(labels.keys() - known)
    ]
    rejected = images.rejected.filter(
        pa.array([image_id in labels for image_id in images.rejected["image_id"].to_pylist()], pa.bool_())
    )
    return Index(
        rows=rows,
        rejected=pa.concat_tables([rejected, pa.Table.from_pylist(without, REJECTED)]),
        vocabulary=vocabulary,
        left_out=len(set(ids) - labels.keys()),
    )


def decode_labels(data: bytes) -> NDArray[np.integer[Any]]:
    """The values [H, W] of an encoded label map: grey of 1 to 16 bits, or the indices of a palette.

    Raises:
        ValueError: not an image, cut short, too large, or of colours.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG", "TIFF"]) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(
                    f"label map has {picture.width} x {picture.height} pixels, more than {MAX_PIXELS:,}; "
                    "scale it down"
                )
            layout = _layout_of(picture)
            if layout not in _LAYOUTS:
                raise ValueError(
                    f"label map has mode {picture.mode} ({layout}), which says no class; save a PNG of one "
                    "value a pixel: grey of 8 or 16 bits, or a palette"
                )
            values = np.asarray(picture)
    except UnidentifiedImageError as error:
        raise ValueError(f"label map cannot be read: {len(data)} bytes that are no PNG or TIFF") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"label map cannot be read: {error}") from error
    if values.dtype == bool:
        return values.astype(np.uint8)
    return values // np.uint8(_SPREAD[layout]) if layout in _SPREAD else values


def _layout_of(picture: Image.Image) -> str:
    """How pixels lie in the file, in PIL's words, such as 'L;4'; only a damaged file has no tile."""
    tiles = getattr(picture, "tile", None)
    if not tiles:
        return "unknown"
    arguments = tiles[0].args
    return arguments if isinstance(arguments, str) else str(arguments[0])


def _by_image(labels_uri: str, suffix: str | None) -> dict[str, str]:
    """Label maps by the path that they share with their image."""
    found: dict[str, str] = {}
    endings = LABEL_SUFFIXES if suffix is None else (suffix,)
    paths = list_names(labels_uri, recursive=True)
    for name in map(as_text, with_ending(paths, endings)):
        image_id = less_suffix(name, suffix)
        if image_id in found:
            raise ValueError(
                f"{labels_uri}: {found[image_id]} and {name} are both label maps of {image_id}; set "
                "label_suffix to what the right ones end in"
            )
        found[image_id] = name
    if not found:
        raise ValueError(f"{labels_uri}: no label map in this folder; {found_instead(paths, endings)}")
    return found


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(repr(name) for name in ordered[:2]) + (", ..." if len(ordered) > 2 else "")
