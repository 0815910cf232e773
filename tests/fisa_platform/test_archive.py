"""Files in a zip: read as from a folder, in one request, and refused in one sentence where damaged."""

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fisa_platform import storage
from fisa_platform.sources import archive

CONTENT = {
    "a.bin": bytes(range(256)) * 40,
    "b/c.bin": b"",
    "d \u00e9.bin": np.random.default_rng(0).bytes(5000),
}


def pack(path: Path, *, method: int = zipfile.ZIP_DEFLATED, folder: str = "", extra: bytes = b"") -> str:
    with zipfile.ZipFile(path, "w", method) as packed:
        for name, data in CONTENT.items():
            info = zipfile.ZipInfo(folder + name)
            info.compress_type = method
            info.extra = extra
            packed.writestr(info, data)
    return str(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("folder", ["", "train2017/"])
@pytest.mark.parametrize("extra", [b"", struct.pack("<HH", 0x7777, 2000) + bytes(2000)])
def test_files_are_read_as_from_a_folder(tmp_path: Path, method: int, folder: str, extra: bytes) -> None:
    uri = pack(tmp_path / "x.zip", method=method, folder=folder, extra=extra)
    assert archive.list_names(uri) == list(CONTENT)
    assert archive.list_names(uri, "b") == ["c.bin"]
    assert {name: archive.read_bytes(uri, name) for name in CONTENT} == CONTENT


def test_a_zip_may_lie_in_a_bucket(s3_uri: str, tmp_path: Path) -> None:
    uri = f"{s3_uri}/x.zip"
    storage.upload(Path(pack(tmp_path / "x.zip", folder="f/")), uri)
    assert archive.split(f"{uri}/b/c.bin") == (uri, "b/c.bin")
    assert archive.read_bytes(uri, "a.bin") == CONTENT["a.bin"]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://b/x.zip", ("s3://b/x.zip", "")),
        ("/data/x.zip/sub/y.jpg", ("/data/x.zip", "sub/y.jpg")),
        ("/data/X.ZIP/y.jpg", ("/data/X.ZIP", "y.jpg")),
        ("/data/x.zipped/y.jpg", None),
        ("/data/y.jpg", None),
    ],
)
def test_a_location_says_whether_it_is_in_a_zip(uri: str, expected: tuple[str, str] | None) -> None:
    assert archive.split(uri) == expected


def test_a_folder_whose_name_ends_like_a_zips_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.zip").mkdir()
    assert archive.split(f"{tmp_path}/x.zip/y.jpg") is None
    uri = pack(tmp_path / "x.zip" / "z.zip")
    assert archive.split(f"{uri}/a.bin") == (uri, "a.bin")


def test_a_folder_in_a_zip_counts_by_its_zip(tmp_path: Path) -> None:
    uri = pack(tmp_path / "x.zip", folder="f/")
    digests = {archive.fingerprint(place) for place in (uri, f"{uri}/b", f"{uri}/a.bin")}
    assert len(digests) == 3
    assert archive.fingerprint(uri) == storage.fingerprint(uri)
    with pytest.raises(FileNotFoundError, match=r"x.zip/nowhere: nothing of this name is in the zip"):
        archive.fingerprint(f"{uri}/nowhere")


def test_refuses_what_is_not_there_or_not_whole(tmp_path: Path) -> None:
    uri = pack(tmp_path / "x.zip", method=zipfile.ZIP_STORED)
    with pytest.raises(FileNotFoundError, match=r"x.zip/nowhere: no such file in this zip"):
        archive.read_bytes(uri, "nowhere")
    path = Path(uri)
    data = bytearray(path.read_bytes())
    data[data.index(CONTENT["a.bin"][:100]) + 50] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a.bin: damaged in the zip \(its checksum differs\)"):
        archive.read_bytes(uri, "a.bin")
    with pytest.raises(ValueError, match="not a zip that can be read"):
        (tmp_path / "y.zip").write_bytes(b"404")
        archive.list_names(str(tmp_path / "y.zip"))


def test_refuses_what_it_cannot_unpack(tmp_path: Path) -> None:
    uri = pack(tmp_path / "x.zip", method=zipfile.ZIP_BZIP2)
    with pytest.raises(ValueError, match=r"a.bin: compressed by method 12 or encrypted"):
        archive.read_bytes(uri, "a.bin")


def test_a_file_that_leads_out_of_its_zip_is_refused(tmp_path: Path) -> None:
    uri = pack(tmp_path / "x.zip", folder="a/../../")
    with pytest.raises(ValueError, match=r"x.zip: holds 'a/../../a.bin', which leads out of it"):
        archive.list_names(uri)
