"""What every source yields: an index of images, and the images it had to leave out with the reason."""

import posixpath
from dataclasses import dataclass
from typing import TypedDict

from fisa_model.vocabulary import Vocabulary
from fisa_platform import storage

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""What counts as an image in a folder, in any case."""


class SegmentInfo(TypedDict):
    """One ground-truth segment; the fields of `schema.SEGMENT`."""

    id: int
    category_id: int
    area: int
    iscrowd: bool


class IndexRow(TypedDict):
    """Where one image and its ground truth are; the fields of `schema.INDEX`."""

    image_id: str
    file_name: str
    image_uri: str
    panoptic_uri: str | None
    height: int | None
    width: int | None
    segments_info: list[SegmentInfo] | None


class RejectedRow(TypedDict):
    """An image that was left out; the fields of `schema.REJECTED`."""

    image_id: str
    file_name: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """A source, read: which images there are, before any of them is opened."""

    rows: list[IndexRow]
    """Images in the source's order, each id once."""

    rejected: list[RejectedRow]
    """Images that the source names but that cannot be used."""

    vocabulary: Vocabulary | None
    """The classes of the ground truth; None without ground truth."""


def read_image_folder(images_uri: str) -> Index:
    """Every image directly in a folder, without ground truth; its id is its file name less the suffix."""
    names = [name for name in sorted(list_names(images_uri)) if name.lower().endswith(IMAGE_SUFFIXES)]
    if not names:
        raise ValueError(
            f"{images_uri}: no image in this folder; expected files ending in {', '.join(IMAGE_SUFFIXES)}"
        )
    rows: dict[str, IndexRow] = {}
    rejected: list[RejectedRow] = []
    for name in names:
        image_id = posixpath.splitext(name)[0]
        if image_id in rows:
            reason = (
                f"has the same name, less its suffix, as {rows[image_id]['file_name']}; rename one of them"
            )
            rejected.append({"image_id": image_id, "file_name": name, "reason": reason})
            continue
        rows[image_id] = {
            "image_id": image_id,
            "file_name": name,
            "image_uri": storage.join(images_uri, name),
            "panoptic_uri": None,
            "height": None,
            "width": None,
            "segments_info": None,
        }
    return Index(rows=list(rows.values()), rejected=rejected, vocabulary=None)


def list_names(folder_uri: str) -> frozenset[str]:
    """Names of what lies directly in a folder, less the hidden ones."""
    names = frozenset(name for name in storage.list_dir(folder_uri) if not name.startswith("."))
    if not names:
        raise ValueError(f"{folder_uri}: this folder is absent or empty; check the path")
    return names
