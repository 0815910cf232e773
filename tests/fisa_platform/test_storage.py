import hashlib
import os
import secrets
import socket
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fisa_platform import storage


@pytest.fixture(params=["local", "file", "memory", "s3"])
def folder_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder in every kind of location."""
    if request.param == "s3":
        return str(request.getfixturevalue("s3_uri"))
    places = {
        "local": str(tmp_path),
        "file": f"file://{tmp_path}",
        "memory": f"memory://{secrets.token_hex(6)}",
    }
    return places[request.param]


def test_what_is_written_is_read(folder_uri: str) -> None:
    uri = storage.join(folder_uri, "a", "b.json")
    assert not storage.exists(uri)
    storage.write_json(uri, {"name": "Sofa é"})
    assert storage.exists(uri)
    assert storage.exists(storage.join(folder_uri, "a"))
    assert storage.read_json(uri) == {"name": "Sofa é"}
    storage.write_json(uri, [])
    assert storage.read_json(uri) == []


def test_exclusive_write_keeps_what_is_there(folder_uri: str) -> None:
    uri = storage.join(folder_uri, "once")
    storage.write_bytes(uri, b"first", exclusive=True)
    with pytest.raises(FileExistsError):
        storage.write_bytes(uri, b"second", exclusive=True)
    assert storage.read_bytes(uri) == b"first"


def test_listing(folder_uri: str) -> None:
    storage.write_bytes(storage.join(folder_uri, "b", "c", "two"), b"22")
    storage.write_bytes(storage.join(folder_uri, "b", "one"), b"1")
    assert storage.list_folders(storage.join(folder_uri, "b")) == ["c"]
    assert storage.list_files(folder_uri) == {"b/c/two": 2, "b/one": 1}
    assert storage.list_folders(storage.join(folder_uri, "absent")) == []
    assert storage.list_files(storage.join(folder_uri, "absent")) == {}


def test_reading_what_is_absent_names_it(folder_uri: str) -> None:
    with pytest.raises(FileNotFoundError, match="absent: no such file; check the path"):
        storage.read_bytes(storage.join(folder_uri, "absent"))
    with pytest.raises(FileNotFoundError, match="absent: nothing is there"):
        storage.fingerprint(storage.join(folder_uri, "absent"))


def test_fingerprint_follows_the_content(folder_uri: str) -> None:
    uri = storage.join(folder_uri, "f", "x")
    storage.write_bytes(uri, b"1")
    file_before = storage.fingerprint(uri)
    folder_before = storage.fingerprint(storage.join(folder_uri, "f"))
    assert file_before == storage.fingerprint(uri)
    storage.write_bytes(uri, b"22")
    assert file_before != storage.fingerprint(uri)
    assert folder_before != storage.fingerprint(storage.join(folder_uri, "f"))


def test_hidden_files_do_not_count(folder_uri: str) -> None:
    storage.write_bytes(storage.join(folder_uri, "f", "x"), b"1")
    before = storage.fingerprint(storage.join(folder_uri, "f"))
    for name in (".DS_Store", "sub/._y"):
        storage.write_bytes(storage.join(folder_uri, "f", name), b"1")
    assert storage.fingerprint(storage.join(folder_uri, "f")) == before
    storage.write_bytes(storage.join(folder_uri, "f", ".exported/y"), b"1")  # COCO's JSON may name this one
    assert storage.fingerprint(storage.join(folder_uri, "f")) != before


def test_upload_and_download_are_inverse(folder_uri: str, tmp_path: Path) -> None:
    (tmp_path / "from").write_bytes(b"weights\0\0")
    storage.upload(tmp_path / "from", storage.join(folder_uri, "deep", "w"))
    assert storage.download(storage.join(folder_uri, "deep", "w"), tmp_path / "sub" / "to").read_bytes() == (
        b"weights\0\0"
    )
    digest = hashlib.sha256(b"weights\0\0").hexdigest()
    assert storage.sha256_of(storage.join(folder_uri, "deep", "w")) == digest


def test_bulk_rows_go_through_pyarrow(folder_uri: str) -> None:
    uri = storage.join(folder_uri, "rows.parquet")
    storage.write_bytes(storage.join(folder_uri, "marker"), b"")
    filesystem, path = storage.pyarrow_filesystem(uri)
    pq.write_table(pa.table({"image_id": ["a", "b"]}), path, filesystem=filesystem)
    assert storage.exists(uri)
    assert pq.read_table(path, filesystem=filesystem).column("image_id").to_pylist() == ["a", "b"]


def test_a_killed_writer_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        storage.write_bytes(str(tmp_path / "manifest.json"), b"{}", exclusive=True)
    assert list(tmp_path.iterdir()) == []


def test_absolute_locations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.make_absolute("runs/../a/") == str(tmp_path / "a")
    assert storage.make_absolute("file:///data/x/") == "/data/x"
    assert storage.make_absolute("s3://bucket/x/") == "s3://bucket/x"
    assert storage.join("s3://bucket/x/", "y", "/z") == "s3://bucket/x/y/z"


@pytest.mark.parametrize("uri", ["", "s3:/bucket/x", "file:/data/x"])
def test_what_is_no_location_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=f"'{uri}' is no location; write a path, file:///path or s3://"):
        storage.make_absolute(uri)


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="is a folder, not a file; check the path"):
        storage.read_bytes(str(tmp_path))


def test_an_unknown_kind_of_location_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ftp://h/x: unknown kind of location 'ftp'; write a local path"):
        storage.exists("ftp://h/x")


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("changes", "bucket", "reason"),
    [
        ({}, "missing", "there is no such bucket; check its name or create it"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, "bucket", "the access key was refused"),
        ({"AWS_ACCESS_KEY_ID": "wrong-key"}, "bucket", "the access key was refused"),
        (
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            "bucket",
            "no credentials were found; set AWS_",
        ),
        ({"AWS_ENDPOINT_URL": "nowhere"}, "bucket", "the server does not answer; check AWS_ENDPOINT_URL"),
        ({"AWS_PROFILE": "nobody"}, "bucket", "AWS_PROFILE names a profile that"),
    ],
)
def test_a_bucket_that_cannot_be_used_says_why(
    s3_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    bucket: str,
    reason: str,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in changes.items():
        if value == "nowhere":
            value = f"http://127.0.0.1:{unused_port()}"
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(storage.StorageError, match=f"s3://{bucket}/x: {reason}"):
        storage.exists(f"s3://{bucket}/x")


def test_a_name_stays_below_its_folder() -> None:
    assert storage.join("s3://b/a/", "c/", "d..e.jpg") == "s3://b/a/c/d..e.jpg"
    for name in ("..", "c/../../d.jpg", "../d.jpg"):
        with pytest.raises(ValueError, match=r"leads out of s3://b/a; a name in it must not hold"):
            storage.join("s3://b/a", "c", name)


def test_output_lies_beside_the_pictures() -> None:
    for beside, images_uri in (("/a/bc", "/a/b"), ("s3://x/yz", "s3://x/y"), ("/a", "/a/b")):
        storage.check_apart(beside, images_uri)
    for inside, images_uri in (("/a/b/c", "/a/b"), ("/a/b", "/a/b/"), ("s3://x/y/z", "s3://x/y")):
        with pytest.raises(ValueError, match="lies in a folder that this job reads"):
            storage.check_apart(inside, images_uri)


def test_links_are_followed_and_a_loop_of_them_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").write_bytes(b"a")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "folder" / "loop").symlink_to(tmp_path / "folder")
    uri = str(tmp_path / "folder")
    before = storage.fingerprint(uri)
    assert storage.list_paths(uri, recursive=True) == ["link/a.jpg"] == list(storage.list_files(uri))
    assert storage.list_paths(uri, recursive=False) == []
    (tmp_path / "real" / "b.jpg").write_bytes(b"b")
    assert storage.fingerprint(uri) != before


def test_a_folder_changes_when_a_file_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"1")
    before = storage.fingerprint(str(tmp_path))
    assert storage.fingerprint(str(tmp_path)) == before
    path.write_bytes(b"2")
    os.utime(path, ns=(0, 10**18))
    assert storage.fingerprint(str(tmp_path)) != before
