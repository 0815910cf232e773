"""Files that no manifest names: what killed runs, lost races and finished checkpoints left behind."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fisa_platform import storage
from fisa_platform.manifest import MANIFEST_NAME, Manifest, open_version
from fisa_platform.pointer import VERSION_NAME

_FILE = r"(?:run-[0-9a-f]{12}|ray_train)/.+"
_IN_VERSION = re.compile(rf"(?P<version>(?:.*/)?{VERSION_NAME})/(?P<file>{_FILE})")
_THREADS = 16


@dataclass(frozen=True, slots=True)
class Garbage:
    """What is left over in the folder of one version."""

    version_uri: str
    files: dict[str, int]
    """Path within the version, and size in bytes."""

    unfinished: bool
    """There is no manifest yet: the same job, run again, would go on with these files."""

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    def remove(self) -> None:
        """Delete the files. Not while a job that writes this version runs."""
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda path: storage.remove(storage.join(self.version_uri, path)), self.files))


def find_garbage(uri: str) -> Iterator[Garbage]:
    """What is left over in every version at or below `uri`, in the order of their names."""
    versions: dict[str, dict[str, int]] = {}
    parent, _, last = uri.rstrip("/").rpartition("/")
    if re.fullmatch(VERSION_NAME, last):
        listed = {f"{last}/{path}": size for path, size in storage.list_files(uri).items()}
        uri = parent
    else:
        listed = storage.list_files(uri)
    for path, size in listed.items():
        if match := _IN_VERSION.fullmatch(path):
            versions.setdefault(match["version"], {})[match["file"]] = size
    for name, files in sorted(versions.items()):
        version_uri = storage.join(uri, name)
        unfinished = f"{name}/{MANIFEST_NAME}" not in listed
        left = files if unfinished else _unnamed(files, open_version(version_uri).manifest)
        if left:
            yield Garbage(version_uri, left, unfinished)


def _unnamed(files: dict[str, int], manifest: Manifest) -> dict[str, int]:
    named = {file.path for file in manifest.files}
    folders = tuple(f"{folder.path}/" for folder in manifest.folders)
    return {path: size for path, size in files.items() if path not in named and not path.startswith(folders)}
