"""Local folders and buckets behind one set of functions; every location is a `str` that ends in `_uri`.

Control files (manifests, pointers, weights) go through fsspec; rows in bulk through `pyarrow_filesystem`.
`buckets` has the clients of a bucket.
"""

import hashlib
import json
import os
import re
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow.fs

from fisa_platform.buckets import open_s3, pyarrow_s3
from fisa_platform.storage_errors import StorageError as StorageError
from fisa_platform.storage_errors import clear_errors

_ONE_SLASH = re.compile(r"(?:file|s3):(?!//)")


def make_absolute(uri: str) -> str:
    """The same location without dependence on the current directory; a bucket's address is left as it is.

    Raises:
        ValueError: it is empty, or an address with one slash, which would be a strange folder here.
    """
    if uri.startswith("file://"):
        uri = uri.removeprefix("file://")
    if not uri or _ONE_SLASH.match(uri):
        raise ValueError(f"{uri!r} is no location; write a path, file:///path or s3://bucket/path")
    return uri.rstrip("/") if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def join(uri: str, *names: str) -> str:
    """`uri/name/name`; a name may come from a stranger's file, so it must stay below."""
    for name in names:
        if leads_out(name):
            raise ValueError(f"{name!r} leads out of {uri}; a name in it must not hold '..'")
    return "/".join([uri.rstrip("/"), *(name.strip("/") for name in names)])


def leads_out(name: str) -> bool:
    """Whether a name would reach beyond the folder that it is in."""
    return ".." in name.split("/")


def check_apart(output_uri: str, images_uri: str) -> None:
    """Raises ValueError where what is written would be read as pictures the next time."""
    if f"{make_absolute(output_uri)}/".startswith(f"{make_absolute(images_uri)}/"):
        raise ValueError(
            f"output_uri {output_uri} lies in a folder that this job reads, {images_uri}; "
            "choose a folder beside it"
        )


def is_local(uri: str) -> bool:
    """True when the location is on a mounted disk."""
    return "://" not in uri or uri.startswith("file://")


def is_folder_here(uri: str) -> bool:
    """True for a folder on a mounted disk."""
    return is_local(uri) and os.path.isdir(make_absolute(uri))


def exists(uri: str) -> bool:
    """True when a file, or a folder with something in it, is there; a missing bucket is an error."""
    with _clear_errors(uri):
        filesystem, path = _open_filesystem(uri)
        try:
            found = bool(filesystem.exists(path))
        except PermissionError:
            # A HEAD request does not say why; a listing does.
            filesystem.call_s3("list_objects_v2", Bucket=path.split("/")[0], MaxKeys=1)
            raise
        if not found and uri.startswith("s3://"):
            filesystem.call_s3("list_objects_v2", Bucket=path.split("/")[0], MaxKeys=1)
        return found


def list_folders(uri: str) -> list[str]:
    """Names of the folders directly below a folder, sorted; empty for one that is absent."""
    with _clear_errors(uri):
        filesystem, path = _open_filesystem(uri)
        found = filesystem.ls(path, detail=True) if filesystem.exists(path) else []
    folders = (info["name"].rstrip("/") for info in found if info["type"] == "directory")
    return sorted(name.rsplit("/", 1)[-1] for name in folders)


def list_files(uri: str) -> dict[str, int]:
    """Every file below a folder at any depth: path relative to it, and size in bytes."""
    return {path: size for path, (size, _) in _stamps(uri).items()}


def list_paths(uri: str, *, recursive: bool) -> list[str]:
    """Paths of the files in a folder, or also below it, relative to it; for a million of them."""
    exists(uri)  # says clearly what is wrong with a bucket
    if is_local(uri):
        return [os.path.relpath(path, make_absolute(uri)) for path in _walk(uri, recursive=recursive)]
    filesystem, path = pyarrow_filesystem(uri)
    with _clear_errors(uri):
        selector = pyarrow.fs.FileSelector(path, recursive=recursive, allow_not_found=True)
        found = filesystem.get_file_info(selector)
    root = f"{path.strip('/')}/"
    file = pyarrow.fs.FileType.File
    return [info.path.strip("/").removeprefix(root) for info in found if info.type == file]


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A file as a local path: its own, or that of a copy that is removed afterwards."""
    if is_local(uri):
        path = Path(make_absolute(uri))
        if not path.is_file():
            raise FileNotFoundError(f"{uri}: no such file; check the path")
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield download(uri, Path(folder) / "copy")


def read_bytes(uri: str) -> bytes:
    """The whole content of a file."""
    with _clear_errors(uri):
        filesystem, path = _open_filesystem(uri)
        return cast(bytes, filesystem.cat_file(path))


def read_range(uri: str, start: int, length: int) -> bytes:
    """Bytes of a file from `start` on, as many as there are up to `length`."""
    with _clear_errors(uri):
        filesystem, path = _open_filesystem(uri)
        return cast(bytes, filesystem.cat_file(path, start=start, end=start + length))


def open_input(uri: str) -> BinaryIO:
    """A file opened for reading, for what is too large for `read_bytes`."""
    with _clear_errors(uri):
        filesystem, path = _open_filesystem(uri)
        return cast(BinaryIO, filesystem.open(path, "rb"))


def write_bytes(uri: str, data: bytes, *, exclusive: bool = False) -> None:
    """Write a file whole or not at all.

    Raises:
        FileExistsError: with `exclusive`, when the file is already there.
    """
    with _clear_errors(uri):
        if is_local(uri):
            _write_local(Path(make_absolute(uri)), data, exclusive=exclusive)
            return
        filesystem, path = _open_filesystem(uri)
        if exclusive and filesystem.exists(path):
            raise FileExistsError(uri)
        # Between the look above and the write, If-None-Match decides, on servers that know it.
        filesystem.pipe_file(path, data, mode="create" if exclusive else "overwrite")


def read_json(uri: str) -> Any:
    """The content of a JSON file."""
    try:
        return json.loads(read_bytes(uri))
    except json.JSONDecodeError as error:
        raise ValueError(f"{uri}: not valid JSON ({error}); was the file cut or edited by hand?") from error


def write_json(uri: str, value: object, *, exclusive: bool = False) -> None:
    """Write `value` as indented JSON; `exclusive` as in `write_bytes`."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(uri, text.encode() + b"\n", exclusive=exclusive)


def download(uri: str, path: Path) -> Path:
    """Copy a file to a local path."""
    with _clear_errors(uri):
        filesystem, remote_path = _open_filesystem(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        filesystem.get_file(remote_path, str(path))
    return path


def upload(path: Path, uri: str) -> None:
    """Copy a local file to a location, replacing what is there."""
    with _clear_errors(uri):
        filesystem, remote_path = _open_filesystem(uri)
        if is_local(uri):
            filesystem.makedirs(remote_path.rsplit("/", 1)[0], exist_ok=True)
        filesystem.put_file(str(path), remote_path)


def remove(uri: str) -> None:
    """Delete a file."""
    with _clear_errors(uri):
        filesystem, path = _open_filesystem(uri)
        filesystem.rm_file(path)


def fingerprint(uri: str) -> str:
    """Hex digest that changes when the data there changes, without reading it.

    A file counts by its size and its time of change (or ETag), a folder by the names and that of its files,
    but for those with a dot first, as Finder and editors leave.

    Raises:
        FileNotFoundError: nothing is there, or an empty folder.
    """
    if not exists(uri):
        raise FileNotFoundError(f"{uri}: nothing is there; check the path, or write it first")
    with _clear_errors(uri):
        filesystem, path = _open_filesystem(uri)
        info = filesystem.info(path)
        if info["type"] == "directory":
            stamps = sorted(_stamps(uri).items())
            marks: list[Any] = [s for s in stamps if not os.path.basename(s[0]).startswith(".")]
        else:
            marks = [info["size"], _stamp_of(info)]
    if not marks:
        raise FileNotFoundError(f"{uri}: is an empty folder; check the path, or write to it first")
    return hashlib.sha256(json.dumps(marks).encode()).hexdigest()


def sha256_of(uri: str) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open_input(uri) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def pyarrow_filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The pyarrow filesystem of a location, and its path there."""
    filesystem, path = _open_filesystem(uri)
    if uri.startswith("s3://"):
        with _clear_errors(uri):
            return pyarrow_s3(path.partition("/")[0]), path
    if is_local(uri):
        return pyarrow.fs.LocalFileSystem(), path
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), filesystem._strip_protocol(path)


def _stamps(uri: str) -> dict[str, tuple[int, str]]:
    """Every file below a folder: path relative to it, its size, and what changes when it changes."""
    with _clear_errors(uri):
        if is_local(uri):
            found = {path: os.stat(path) for path in _walk(uri, recursive=True)}
            root = make_absolute(uri)
            return {
                os.path.relpath(path, root): (stat.st_size, str(stat.st_mtime))
                for path, stat in sorted(found.items())
            }
        filesystem, path = _open_filesystem(uri)
        prefix = filesystem._strip_protocol(path).rstrip("/")
        infos = filesystem.find(prefix, detail=True) if filesystem.exists(prefix) else {}
        return {
            name[len(prefix) :].lstrip("/"): (int(info["size"]), _stamp_of(info))
            for name, info in sorted(infos.items())
        }


def _stamp_of(info: Mapping[str, Any]) -> str:
    return str(info.get("ETag") or info.get("mtime") or info.get("created"))


def _walk(uri: str, *, recursive: bool) -> Iterator[str]:
    """Paths of the files in a local folder, or also below it; links are followed, a loop of them once."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(make_absolute(uri), followlinks=True):
        yield from (path for name in files if os.path.isfile(path := os.path.join(folder, name)))
        seen.add(os.path.realpath(folder))
        folders[:] = [
            name for name in folders if recursive and os.path.realpath(os.path.join(folder, name)) not in seen
        ]


def _open_filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec filesystem of a location, and its path there.

    fsspec keeps one filesystem a process and forgets it after a fork, which s3fs would not survive.
    """
    if is_local(uri):
        return fsspec.filesystem("file"), make_absolute(uri)
    protocol, path = uri.split("://", 1)
    if protocol == "memory":
        return fsspec.filesystem("memory"), "/" + path
    if protocol != "s3":
        raise ValueError(
            f"{uri}: unknown kind of location {protocol!r}; write a local path, file:// or s3://"
        )
    return open_s3(), path


def _write_local(path: Path, data: bytes, *, exclusive: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid.uuid4().hex}")  # a name as long as a disk allows has no room for more
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            os.link(partial, path)
        else:
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _clear_errors(uri: str) -> AbstractContextManager[None]:
    return clear_errors(uri, local=is_local(uri))
