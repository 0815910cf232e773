"""What all of COCO's JSON files share: sections of entries, and images in a folder beside them."""

import posixpath
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ijson
import pyarrow as pa

from fisa_platform import storage
from fisa_platform.schema import INDEX
from fisa_platform.sources.index import RowBuffer, list_names

COCO_IMAGE = pa.schema([INDEX.field(name) for name in ("image_id", "file_name", "height", "width")])
"""One image of the JSON."""

IMAGE_KEYS = ("id", "file_name", "height", "width")


@dataclass(frozen=True, slots=True)
class COCOJSON:
    """The JSON, read from a disk entry by entry: COCO's would take a GB of memory as a whole."""

    uri: str
    path: Path

    form: tuple[str, str]
    """What it must be, and what that has."""

    keys: Mapping[str, tuple[str, ...]]
    """Sections that are read, and what their entries must have."""

    def entries(self, section: str) -> Iterator[dict[str, Any]]:
        """Raises ValueError where the file is no JSON, has no such section, or an entry lacks something."""
        position = -1
        with self.path.open("rb") as file:
            try:
                for position, entry in enumerate(ijson.items(file, f"{section}.item", use_float=True)):
                    lacking = [k for k in self.keys[section] if not isinstance(entry, dict) or k not in entry]
                    if lacking:
                        raise self._refusal(f"{section}[{position}] has no {' and no '.join(lacking)}")
                    yield entry
            except (ijson.JSONError, UnicodeDecodeError, OverflowError) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(
                    f"{self.uri}: not valid JSON ({reason}); was the file cut or edited by hand?"
                ) from error
        if position < 0:
            raise self._refusal(f"it has no `{section}`, or none in it")

    def _refusal(self, problem: str) -> ValueError:
        name, has = self.form
        return ValueError(f"{self.uri}: not {name}: {problem}; expected {has}")


def read_images(document: COCOJSON, wanted: Collection[str] | None = None) -> pa.Table:
    """Its images, as COCO_IMAGE; of ids that are wanted alone, where these are given."""
    rows = RowBuffer(COCO_IMAGE)
    for image in document.entries("images"):
        row = {"image_id": str(image["id"]), "file_name": str(image["file_name"])}
        if wanted is not None and row["image_id"] not in wanted:
            continue
        sizes = {key: image[key] for key in ("height", "width")}
        if any(type(size) is not int or not 0 < size < 2**31 for size in sizes.values()):
            raise ValueError(
                f"{document.uri}: image {row['image_id']} has height {sizes['height']!r} and width "
                f"{sizes['width']!r}; they must be pixels"
            )
        rows.append({**row, **sizes})
    return rows.table()


def missing_file(
    kind: str, folder_uri: str, file_name: str, listing: Callable[[str], Collection[str]]
) -> str | None:
    """A reason where `file_name`, which may name a folder too, is not there; one listing serves a folder."""
    if storage.leads_out(file_name):
        return f"{kind} {file_name!r} leads out of its folder, {folder_uri}"
    subfolder, name = posixpath.split(file_name)
    parent = storage.join(folder_uri, subfolder) if subfolder else folder_uri
    return None if name in listing(parent) else f"{kind} {storage.join(folder_uri, file_name)} does not exist"


def names_in(folder_uri: str) -> frozenset[str]:
    """Names of the files in a folder or zip, none where it is absent."""
    try:
        return frozenset(list_names(folder_uri))
    except ValueError:
        return frozenset()
