"""What every source yields: an index of images, and the images it had to leave out with the reason."""

import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from fisa_model.vocabulary import Vocabulary
from fisa_platform import storage
from fisa_platform.schema import INDEX, REJECTED
from fisa_platform.sources import archive

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""What counts as an image in a folder, in any case."""

_ROWS_PER_BATCH = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """A source, read: which images there are, before any of them is opened."""

    rows: pa.Table
    """Of `schema.INDEX`: images in the source's order, each id once."""

    rejected: pa.Table
    """Of `schema.REJECTED`: images that the source names but that cannot be used."""

    vocabulary: Vocabulary | None
    """The classes of the ground truth; None without ground truth."""

    left_out: int = 0
    """Images that are no part of the source, for want of ground truth."""


class RowBuffer:
    """Rows of a schema, collected as Arrow: some hundred bytes an image, where objects take thousands."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._pending: list[Any] = []
        self._batches: list[pa.RecordBatch] = []

    def append(self, row: Mapping[str, Any]) -> None:
        self._pending.append(row)
        if len(self._pending) == _ROWS_PER_BATCH:
            self._flush()

    def table(self) -> pa.Table:
        """All rows so far."""
        self._flush()
        return pa.Table.from_batches(self._batches, schema=self.schema)

    def _flush(self) -> None:
        if self._pending:
            self._batches.append(pa.RecordBatch.from_pylist(self._pending, schema=self.schema))
            self._pending = []


def read_image_folder(images_uri: str, *, suffix: str | None = None) -> Index:
    """Every image in a folder, in those below it, or in a zip, without ground truth.

    Its id is its path there less the suffix, which is any of IMAGE_SUFFIXES or the given end of its name. Of
    two images with one id the second is rejected.
    """
    paths = list_names(images_uri, recursive=True)
    endings = IMAGE_SUFFIXES if suffix is None else (suffix,)
    names = with_ending(paths, endings)
    if not names:
        raise ValueError(f"{images_uri}: no image in this folder; {found_instead(paths, endings)}")
    rows, rejected = RowBuffer(INDEX), RowBuffer(REJECTED)
    taken: dict[str, str] = {}
    for name in names:
        shown = as_text(name)
        image_id = less_suffix(shown, suffix)
        if shown != name:
            reason = "its name is not UTF-8; rename it"
            rejected.append({"image_id": image_id, "file_name": shown, "reason": reason})
            continue
        if image_id in taken:
            reason = f"has the same name, less its suffix, as {taken[image_id]}; rename one of them"
            rejected.append({"image_id": image_id, "file_name": name, "reason": reason})
            continue
        taken[image_id] = name
        uri = storage.join(images_uri, name)
        rows.append({"image_id": image_id, "file_name": name, "image_uri": uri})
    return Index(rows=rows.table(), rejected=rejected.table(), vocabulary=None)


def with_ending(paths: Sequence[str], endings: Sequence[str]) -> list[str]:
    """Paths of files whose names have more than one of these endings, in any case."""
    lowered = tuple(ending.lower() for ending in endings)
    return [
        path
        for path in paths
        if path.lower().endswith(lowered) and posixpath.basename(path).lower() not in lowered
    ]


def found_instead(paths: Sequence[str], endings: Sequence[str]) -> str:
    """What was expected of the files of a folder, and what there is."""
    found = f"{len(paths)} such as {as_text(paths[0])!r}"
    return f"expected files ending in {', '.join(endings)}, found {found}; check the folder and the suffix"


def as_text(name: str) -> str:
    """A file's name, with `\\xff` for bytes that are not UTF-8, which Python keeps as lone surrogates."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def less_suffix(name: str, suffix: str | None) -> str:
    """A file's name without a suffix that it ends in; None is what follows its last dot."""
    return posixpath.splitext(name)[0] if suffix is None else name[: len(name) - len(suffix)]


def list_names(uri: str, *, recursive: bool = False) -> list[str]:
    """Names of the files in a folder, or paths of those below, less hidden ones; the folder may be a zip."""
    place = archive.split(uri)
    paths = storage.list_paths(uri, recursive=recursive) if place is None else archive.list_names(*place)
    names = sorted(path for path in paths if not path.startswith(".") and "/." not in path)
    if not names:
        if place is None and os.path.isfile(storage.make_absolute(uri)):
            raise ValueError(f"{uri}: is a file, not a folder or a zip; give the folder that it is in")
        raise ValueError(f"{uri}: this folder is absent or empty; check the path")
    return names


def read_file(uri: str) -> bytes:
    """The content of a file of a source, which may lie in a zip."""
    place = archive.split(uri)
    return storage.read_bytes(uri) if place is None else archive.read_bytes(*place)
