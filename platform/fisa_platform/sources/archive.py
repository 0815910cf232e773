"""Files inside a zip, read from where it lies, without unpacking it: `s3://coco/train2017.zip/000000000009.jpg`.

A file in a zip is one range of its bytes, so that a bucket is asked for no more than the image.
"""

import hashlib
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache

from fisa_platform import storage

_HEADER = struct.Struct("<4s22xHH")
"""A file's own header: signature, and the lengths of the name and of the extra field that follow it."""

_END_OF_ZIP = re.compile(r"\.zip(?=/)", re.IGNORECASE)

_EXTRA = 512
"""Bytes that are read for an extra field, whose length only the header tells; a longer one is read again."""

_ENCRYPTED = 0x1


@dataclass(frozen=True, slots=True)
class Member:
    """Where a file is in its zip."""

    name: str
    offset: int
    stored_bytes: int
    method: int
    checksum: int


def split(uri: str) -> tuple[str, str] | None:
    """The zip and the name in it that a location means; None for a location outside of any zip."""
    path = f"{uri}/"
    for end in _END_OF_ZIP.finditer(path):
        archive = path[: end.end()]
        if not storage.is_folder_here(archive):
            return archive, path[end.end() :].strip("/")
    return None


def fingerprint(uri: str) -> str:
    """As `storage.fingerprint`, where a folder in a zip counts by the zip that it is in."""
    place = split(uri)
    if place is None:
        return storage.fingerprint(uri)
    archive, folder = place
    digest = storage.fingerprint(archive)
    if not folder:
        return digest
    if folder not in _members(archive) and not list_names(archive, folder):
        raise FileNotFoundError(f"{uri}: nothing of this name is in the zip; check the path")
    return hashlib.sha256(f"{digest}/{folder}".encode()).hexdigest()


def list_names(archive_uri: str, folder: str = "") -> list[str]:
    """Names of the files in a zip's folder or below, relative to it."""
    prefix = f"{folder}/" if folder else ""
    return [name.removeprefix(prefix) for name in _members(archive_uri) if name.startswith(prefix)]


def read_bytes(archive_uri: str, name: str) -> bytes:
    """The content of a file in a zip.

    Raises:
        FileNotFoundError: the zip has no such file.
        ValueError: it is damaged, encrypted, or compressed by other than deflate.
    """
    uri = storage.join(archive_uri, name)
    member = _members(archive_uri).get(name)
    if member is None:
        raise FileNotFoundError(f"{uri}: no such file in this zip; check the name")
    if member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{uri}: compressed by method {member.method} or encrypted; pack it with deflate")
    extra = _EXTRA
    start = -1
    while start < 0:
        length = _HEADER.size + len(member.name.encode()) + extra + member.stored_bytes
        data = storage.read_range(archive_uri, member.offset, length)
        header = data[: _HEADER.size].ljust(_HEADER.size, b"\0")
        signature, name_length, extra_length = _HEADER.unpack(header)
        if signature != b"PK\3\4":
            raise ValueError(f"{uri}: the zip is damaged at byte {member.offset}; fetch it again")
        if extra_length > extra:
            extra = extra_length
            continue
        start = _HEADER.size + name_length + extra_length
    content = data[start : start + member.stored_bytes]
    try:
        content = zlib.decompress(content, wbits=-15) if member.method == zipfile.ZIP_DEFLATED else content
    except zlib.error as error:
        raise ValueError(f"{uri}: damaged in the zip ({error}); fetch it again") from error
    if zlib.crc32(content) != member.checksum:
        raise ValueError(f"{uri}: damaged in the zip (its checksum differs); fetch it again")
    return content


@lru_cache(maxsize=4)
def _members(archive_uri: str) -> dict[str, Member]:
    """Files of a zip by name. Where all lie in one folder, as in COCO's zips, names are relative to that."""
    try:
        with storage.open_input(archive_uri) as file, zipfile.ZipFile(file) as archive:
            found = [info for info in archive.infolist() if not _is_left_out(info.filename)]
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ValueError(f"{archive_uri}: not a zip that can be read ({error}); fetch it again") from error
    for info in found:
        if storage.leads_out(info.filename):
            raise ValueError(
                f"{archive_uri}: holds {info.filename!r}, which leads out of it; pack it without '..'"
            )
    folders = {info.filename.partition("/")[0] if "/" in info.filename else "" for info in found}
    common = f"{folders.pop()}/" if len(folders) == 1 else "/"
    return {info.filename.removeprefix(common).removeprefix("./"): _member(info) for info in found}


def _member(info: zipfile.ZipInfo) -> Member:
    method = -1 if info.flag_bits & _ENCRYPTED else info.compress_type
    return Member(info.orig_filename, info.header_offset, info.compress_size, method, info.CRC)


def _is_left_out(name: str) -> bool:
    """Folders, and what macOS puts beside the files."""
    return name.endswith("/") or name.startswith("__MACOSX/")
