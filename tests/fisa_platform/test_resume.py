"""What a run that goes on takes over, and what it does not."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pytest

from fisa_platform import manifest, storage
from fisa_platform.manifest import PendingVersion
from fisa_platform.resume import check_once, earlier_work, without
from fisa_platform.schema import PROPOSALS, REJECTED
from fisa_platform.tables import failable_table, write_batch, write_parquet


@pytest.fixture
def attempts(tmp_path: Path) -> tuple[PendingVersion, PendingVersion]:
    """Two attempts at one version."""
    first, second = (manifest.new_version(str(tmp_path / "proposals"), "f1" * 8) for _ in range(2))
    return first, second


def write(pending: PendingVersion, images: str, failed: str = "") -> list[str]:
    """A batch of images with names of one letter; URIs of its files."""
    common = {"height": 2, "width": 3, "encoding": "rle", "masks": []}
    rows = [{"image_id": name, "file_name": f"{name}.jpg", **common} for name in images]
    rows += [{"image_id": name, "file_name": f"{name}.jpg", "reason": "cut short"} for name in failed]
    batch = failable_table(PROPOSALS, rows)
    parts = write_batch(batch, output_uri=pending.uri, name="proposals", schema=PROPOSALS)
    return parts["uri"].to_pylist()


def test_files_of_other_attempts_are_taken_over(attempts: tuple[PendingVersion, PendingVersion]) -> None:
    killed, current = attempts
    assert earlier_work(current, "proposals").parts == []
    files = [*write(killed, "ab", failed="c"), *write(killed, "d")]
    write(current, "x")
    earlier = earlier_work(current, "proposals")
    assert earlier.ids == {"a", "b", "c", "d"}
    assert {part["uri"] for part in earlier.parts} == set(files)
    assert sorted((part["table"], part["rows"]) for part in earlier.parts) == [
        ("proposals", 1),
        ("proposals", 2),
        ("rejected", 1),
    ]
    assert {part["example"] for part in earlier.parts} == {None, "c.jpg: cut short"}


def test_a_damaged_file_is_work_that_is_not_done(attempts: tuple[PendingVersion, PendingVersion]) -> None:
    killed, current = attempts
    (whole,) = write(killed, "ab")
    (cut,) = write(killed, "cd")
    data = storage.read_bytes(cut)
    for damaged in (data[:-20], b"", b"404"):
        storage.write_bytes(cut, damaged)
        assert [part["uri"] for part in earlier_work(current, "proposals").parts] == [whole]


def test_a_task_that_is_done_again_writes_the_same_file(
    attempts: tuple[PendingVersion, PendingVersion],
) -> None:
    killed, _ = attempts
    assert write(killed, "ab") == write(killed, "ab") != write(killed, "abc")


def test_of_two_files_that_share_an_image_one_is_taken(
    attempts: tuple[PendingVersion, PendingVersion], tmp_path: Path
) -> None:
    killed, current = attempts
    other = manifest.new_version(killed.output_uri, killed.fingerprint)
    for pending, images in ((killed, "ab"), (other, "bc"), (killed, "de"), (other, "f")):
        write(pending, images)
    earlier = earlier_work(current, "proposals")
    assert earlier.ids in ({"a", "b", "d", "e", "f"}, {"b", "c", "d", "e", "f"})
    check_once(ids_of(earlier.ids), [part["uri"] for part in earlier.parts])


def test_other_files_are_left_alone(attempts: tuple[PendingVersion, PendingVersion]) -> None:
    killed, current = attempts
    write_parquet(storage.join(killed.uri, "images", "1.parquet"), pa.table({"image_id": ["a"]}))
    index = pa.Table.from_pylist([{"image_id": "b", "file_name": "b", "reason": "twice"}], schema=REJECTED)
    write_parquet(storage.join(killed.uri, "rejected", "index.parquet"), index)
    storage.write_bytes(storage.join(killed.uri, "proposals", "note.txt"), b"")
    storage.write_bytes(storage.join(killed.version_uri, "ray_train", "proposals", "1.parquet"), b"")
    assert earlier_work(current, "proposals").ids == frozenset()


def ids_of(names: Iterable[str]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(names, pa.string())])


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ("abcd", "1 images are in no file, 'd' among them"),
        ("ab", "1 images were not asked for, 'c' among them"),
    ],
)
def test_every_image_must_be_there(
    attempts: tuple[PendingVersion, PendingVersion], expected: str, message: str
) -> None:
    files = [*write(attempts[0], "a", failed="b"), *write(attempts[0], "c")]
    with pytest.raises(RuntimeError, match=message):
        check_once(ids_of(expected), files)


def test_every_image_must_be_there_once(attempts: tuple[PendingVersion, PendingVersion]) -> None:
    files = [*write(attempts[0], "a", failed="b"), *write(attempts[0], "c")]
    check_once(ids_of("abc"), files)
    with pytest.raises(RuntimeError, match="1 images are in more than one row, 'c' among them"):
        check_once(ids_of("abc"), [*files, files[-1]])


def test_only_what_is_not_done_is_left() -> None:
    table = pa.table({"image_id": ["a", "b", "c"], "row": [0, 1, 2]})
    assert without(table, {"b", "x"})["row"].to_pylist() == [0, 2]
    assert without(table, frozenset()) == table
