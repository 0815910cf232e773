"""What `fisa gc` finds, and what it leaves alone."""

from pathlib import Path

import pytest

from fisa_platform import manifest, storage
from fisa_platform.cli import main
from fisa_platform.garbage import find_garbage
from fisa_platform.manifest import Version


@pytest.fixture
def version(tmp_path: Path) -> Version:
    """A committed version beside what a killed attempt, a checkpoint and an unfinished job left."""
    killed, committed = (manifest.new_version(str(tmp_path / "a" / "out"), "0123456789abcdef") for _ in "12")
    unfinished = manifest.new_version(str(tmp_path / "b"), "fedcba9876543210")
    for pending in (killed, committed, unfinished):
        storage.write_bytes(storage.join(pending.uri, "images", "1.bin"), b"12345")
    storage.write_bytes(storage.join(committed.version_uri, "ray_train", "run", "checkpoint.pt"), b"123")
    storage.write_bytes(str(tmp_path / "photos" / "1.jpg"), b"not ours")
    return manifest.commit(committed, stage="test", config={}, inputs={}, seconds=0)


def files_below(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_files_that_no_manifest_names_are_found(version: Version, tmp_path: Path) -> None:
    replaced, unfinished = find_garbage(str(tmp_path))
    assert replaced.version_uri == version.uri
    assert sorted(replaced.files.values()) == [3, 5]
    assert not replaced.unfinished
    assert unfinished.version_uri.endswith("b/fedcba9876543210")
    assert (unfinished.unfinished, unfinished.bytes) == (True, 5)
    for place in (version.uri.rpartition("/")[0], version.uri, f"{version.uri}/"):
        assert list(find_garbage(place)) == [replaced]


def test_they_go_when_asked_for(version: Version, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main_ok("gc", str(tmp_path))
    assert "nothing was deleted" in capsys.readouterr().out
    assert len(list(find_garbage(str(tmp_path)))) == 2
    main_ok("gc", str(tmp_path), "--remove")
    (unfinished,) = find_garbage(str(tmp_path))
    assert unfinished.unfinished
    main_ok("gc", str(tmp_path), "--remove", "--unfinished")
    assert list(find_garbage(str(tmp_path))) == []
    assert all(storage.exists(uri) for uri in version.files())
    assert files_below(tmp_path) == {"manifest.json", "latest.json", "1.bin", "1.jpg"}
    capsys.readouterr()
    main_ok("gc", str(tmp_path))
    assert "nothing is left over" in capsys.readouterr().out


def main_ok(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 0
