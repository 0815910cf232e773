import json
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fisa_platform import manifest, pointer, storage
from fisa_platform.manifest import Input, PendingVersion, Version


@pytest.fixture
def output_uri() -> str:
    return f"memory://{secrets.token_hex(6)}/rows"


def write_rows(pending: PendingVersion, ids: list[str]) -> None:
    filesystem, path = storage.pyarrow_filesystem(storage.join(pending.uri, "rows", "0.parquet"))
    storage.write_bytes(storage.join(pending.uri, "rows", "note.txt"), b"kept")
    pq.write_table(pa.table({"image_id": ids}), path, filesystem=filesystem)


def commit(pending: PendingVersion, **given: object) -> Version:
    facts = {"stage": "shard", "config": {"seed": 1}, "inputs": {}, "seconds": 1.0, **given}
    return manifest.commit(pending, **facts)  # type: ignore[arg-type]


def test_a_version_exists_when_its_manifest_does(output_uri: str) -> None:
    pending = manifest.new_version(output_uri, "aa" * 8)
    write_rows(pending, ["x", "y"])
    assert manifest.find_version(output_uri) is None
    version = commit(pending, rows=2, extra={"note": "é"}, vocabulary=[{"id": 1, "name": "cat"}])
    assert version.uri == storage.join(output_uri, "aa" * 8)
    found = manifest.open_version(output_uri)
    assert found == version == manifest.open_version(version.uri)
    assert found.manifest.rows == 2
    assert found.manifest.vocabulary == [{"id": 1, "name": "cat"}]
    assert found.manifest.extra == {"note": "é"}


def test_the_manifest_describes_every_file(output_uri: str) -> None:
    pending = manifest.new_version(output_uri, "aa" * 8)
    write_rows(pending, ["x", "y"])
    version = commit(pending)
    by_name = {file.path.split("/", 1)[1]: file for file in version.manifest.files}
    assert by_name["rows/0.parquet"].rows == 2
    note = by_name["rows/note.txt"]
    assert (note.bytes, note.rows) == (4, None)
    assert note.sha256 == storage.sha256_of(version.file("rows/note.txt"))
    assert [uri.rsplit("/", 1)[-1] for uri in version.files(suffix=".parquet")] == ["0.parquet"]


def test_files_of_a_killed_run_are_never_read(output_uri: str) -> None:
    write_rows(manifest.new_version(output_uri, "aa" * 8), ["stray"])
    second = manifest.new_version(output_uri, "aa" * 8)
    write_rows(second, ["x"])
    version = commit(second)
    write_rows(manifest.new_version(output_uri, "aa" * 8), ["late"])
    assert version.dataset("rows").to_table().column("image_id").to_pylist() == ["x"]


def test_the_second_of_two_racing_runs_accepts_the_first(output_uri: str) -> None:
    first, second = (manifest.new_version(output_uri, "aa" * 8) for _ in range(2))
    write_rows(first, ["first"])
    write_rows(second, ["second"])
    winner = commit(first)
    assert commit(second) == winner
    assert winner.dataset().to_table().column("image_id").to_pylist() == ["first"]


def test_of_many_runs_that_end_at_one_moment_one_commits(tmp_path: Path) -> None:
    runs = [manifest.new_version(str(tmp_path), "aa" * 8) for _ in range(16)]
    for pending in runs:
        storage.write_bytes(storage.join(pending.uri, "data"), pending.run_id.encode())
    together = Barrier(len(runs))

    def end(pending: PendingVersion) -> Version:
        together.wait()
        return commit(pending)

    with ThreadPoolExecutor(len(runs)) as pool:
        versions = list(pool.map(end, runs))
    assert len(set(version.digest for version in versions)) == 1
    (file,) = versions[0].files()
    assert storage.read_bytes(file).decode() == versions[0].manifest.run_id


def test_latest_points_to_the_last_commit_and_can_be_moved_back(output_uri: str) -> None:
    names = ["aa" * 8, "bb" * 8]
    old, new = (commit(manifest.new_version(output_uri, name)) for name in names)
    assert manifest.open_version(output_uri) == new
    manifest.publish(output_uri, old)
    assert manifest.open_version(output_uri) == old
    assert {v.fingerprint for v in manifest.list_versions(output_uri)} == set(names)


def test_a_stage_may_name_its_files_itself(output_uri: str) -> None:
    pending = manifest.new_version(output_uri, "aa" * 8)
    kept = storage.join(pending.version_uri, "resumable", "0.bin")
    storage.write_bytes(kept, b"0")
    storage.write_bytes(storage.join(pending.version_uri, "resumable", "1.bin"), b"1")
    assert commit(pending, files=[kept]).files() == [kept]
    with pytest.raises(FileNotFoundError, match=r"'absent' was named by the stage but is not there"):
        other = manifest.new_version(output_uri, "bb" * 8)
        commit(other, files=[f"{other.version_uri}/absent"])


def test_fingerprints_follow_stage_config_and_inputs() -> None:
    one = {"images_uri": Input(uri="/a", digest="1")}
    moved = {"images_uri": Input(uri="/b", digest="1")}
    changed = {"images_uri": Input(uri="/a", digest="2")}
    base = manifest.fingerprint_of("train", {"seed": 1, "rate": 0.1}, one)
    assert base == manifest.fingerprint_of("train", {"rate": 0.1, "seed": 1}, moved)
    others = [
        manifest.fingerprint_of("train", {"seed": 2, "rate": 0.1}, one),
        manifest.fingerprint_of("label", {"seed": 1, "rate": 0.1}, one),
        manifest.fingerprint_of("train", {"seed": 1, "rate": 0.1}, changed),
    ]
    assert len({base, *others}) == 4
    assert len(base) == 16


def test_absent_versions_and_files_say_what_to_do(output_uri: str) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"holds no committed version .*; run the stage that writes it"
    ):
        manifest.open_version(output_uri)
    pending = manifest.new_version(output_uri, "aa" * 8)
    write_rows(pending, ["x"])
    version = commit(pending)
    with pytest.raises(FileNotFoundError, match=r"has no file 'w'; it has rows/0.parquet, rows/note.txt"):
        version.file("w")
    with pytest.raises(FileNotFoundError, match=r"has no Parquet files below 'images'"):
        version.dataset("images")


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text('{"schema_version": 1, "stage": "shard"}')
    with pytest.raises(ValueError, match="not a manifest of this platform"):
        manifest.open_version(str(tmp_path))
    path.write_text('{"schema_ver')
    with pytest.raises(ValueError, match="not a manifest of this platform"):
        manifest.open_version(str(tmp_path))
    path.write_text(json.dumps({"schema_version": 9}))
    with pytest.raises(ValueError, match="schema_version is 9, expected 1"):
        manifest.open_version(str(tmp_path))


@pytest.mark.parametrize("text", ["not json", '{"name": "app"}', '{"version": "1.2.3"}', "[]"])
def test_somebody_elses_files_are_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "latest.json").write_text(text)
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"name": "my app"}')
    with pytest.raises(ValueError, match=r"latest.json: not written by this platform, .* choose another"):
        pointer.check(str(tmp_path))
    assert manifest.find_version(str(tmp_path)) is None
    assert manifest.list_versions(str(tmp_path)) == []
    assert manifest.find_datasets(str(tmp_path)) == []
    pointer.check(str(tmp_path / "web"))


def test_datasets_are_found_below_a_folder(tmp_path: Path) -> None:
    names = ("other", "quick/shard", "quick/train", "study/cells/fisa-1/weights")
    for name in names[::-1]:
        commit(manifest.new_version(str(tmp_path / name), "aa" * 8))
    assert manifest.find_datasets(str(tmp_path)) == [str(tmp_path / name) for name in names]


def test_versions_live_in_buckets_too(s3_uri: str) -> None:
    pending = manifest.new_version(s3_uri, "aa" * 8)
    write_rows(pending, ["x"])
    version = commit(pending)
    assert manifest.open_version(s3_uri) == version == commit(manifest.new_version(s3_uri, "aa" * 8))
    assert version.dataset().to_table().column("image_id").to_pylist() == ["x"]
