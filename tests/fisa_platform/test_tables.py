"""Tables on disk: what succeeds and what fails go apart, and rows come back by id."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fisa_platform import tables
from fisa_platform.rows import TableRows, find_rows, read_places
from fisa_platform.schema import PROPOSALS, REJECTED
from fisa_platform.tables import (
    Written,
    collect,
    failable_table,
    rows_per_block,
    write_batch,
    write_parquet,
)


def proposals_row(image_id: str) -> dict[str, object]:
    return {
        "image_id": image_id,
        "file_name": f"{image_id}.jpg",
        "height": 2,
        "width": 3,
        "encoding": "rle",
        "masks": [],
    }


def test_failed_rows_go_to_their_own_table(tmp_path: Path) -> None:
    rows = [proposals_row("a"), {"image_id": "b", "file_name": "b.jpg", "reason": "cut short"}]
    parts = write_batch(
        failable_table(PROPOSALS, rows), output_uri=str(tmp_path), name="proposals", schema=PROPOSALS
    ).to_pylist()
    tables = {part["table"]: pq.read_table(part["uri"]) for part in parts}
    assert tables["proposals"].schema.equals(PROPOSALS)
    assert tables["proposals"]["image_id"].to_pylist() == ["a"]
    assert tables["rejected"].schema.equals(REJECTED)
    assert tables["rejected"].to_pylist() == [{"image_id": "b", "file_name": "b.jpg", "reason": "cut short"}]
    written = Written.of(parts, "proposals")
    assert (written.rows, written.rejected) == (1, 1)
    assert written.examples == ("b.jpg: cut short",)


def test_too_many_failures_fail_the_job() -> None:
    examples = ("a.jpg: empty", "b.jpg: cut short")
    written = Written(["/x/rejected/1.parquet"], rows=9, rejected=1, examples=examples)
    written.check(0.1)
    with pytest.raises(ValueError) as caught:
        written.check(0.05)
    assert str(caught.value) == (
        "1 of 10 images were rejected, max_rejected_fraction is 0.05; "
        "all reasons are in /x/rejected, for example a.jpg: empty; b.jpg: cut short; remove these "
        "images, or raise config.max_rejected_fraction"
    )


def test_a_job_that_is_left_with_nothing_fails_whatever_the_fraction() -> None:
    with pytest.raises(ValueError, match=r"2 of 2 images were rejected, .* for example a\.jpg: cut short"):
        Written(["/x/rejected/1.parquet"], rows=0, rejected=2, examples=("a.jpg: cut short",)).check(1.0)
    with pytest.raises(ValueError, match="there was no image to work on"):
        Written([], rows=0, rejected=0).check(1.0)


def test_rows_are_sorted_by_id_however_they_were_written(tmp_path: Path) -> None:
    files = []
    for name, ids in {"z": ["d", "a"], "y": ["c", "b"]}.items():
        uri = str(tmp_path / f"{name}.parquet")
        write_parquet(uri, pa.table({"image_id": ids, "value": [f"value of {i}" for i in ids]}))
        files.append(uri)
    rows = TableRows(files, ["image_id", "value"])
    assert rows.ids == ["a", "b", "c", "d"]
    assert [rows[i]["value"] for i in range(4)] == [f"value of {i}" for i in "abcd"]
    assert rows.positions()["c"] == 2


def test_places_lead_back_to_rows(tmp_path: Path) -> None:
    files = [str(tmp_path / f"{name}.parquet") for name in "xy"]
    for uri, ids in zip(files, (range(70, 0, -1), range(71, 74)), strict=True):
        names = [f"{i:02}" for i in ids]
        write_parquet(uri, pa.table({"image_id": names, "value": [f"value of {name}" for name in names]}))
    places = find_rows(files)
    assert places.num_rows == 73
    assert places["group"].to_pylist() == [0] * 32 + [1] * 32 + [2] * 6 + [0] * 3

    def values(chosen: pa.Table) -> list[str]:
        return [v for part in read_places(chosen, columns=["value"]) for v in part["value"].to_pylist()]

    assert values(places.slice(30, 4)) == [f"value of {i}" for i in (40, 39, 38, 37)]
    assert values(places.slice(69, 2)) == ["value of 01", "value of 71"]
    assert values(find_rows(files).sort_by("image_id").slice(0, 3)) == [
        "value of 01",
        "value of 02",
        "value of 03",
    ]


@pytest.mark.parametrize(
    ("most", "least", "rows_per_file", "expected"),
    [
        (512, 16, 100, 500),
        (512, 16, 512, 512),
        (512, 16, 1000, 500),
        (50, 16, 512, 32),
        (50, 16, 1009, 1009),
        (3, 16, 512, 16),
        (60, 4, 8, 56),
        (9, 16, 8, 16),
        (8, 16, 10, 10),
        (8, 16, 20, 20),
        (2, 2, 5, 5),
    ],
)
def test_blocks_and_files_leave_no_rest(most: int, least: int, rows_per_file: int, expected: int) -> None:
    assert rows_per_block(most, least=least, rows_per_file=rows_per_file) == expected


def test_rows_cross_process_borders(tmp_path: Path) -> None:
    import pickle

    uri = str(tmp_path / "x.parquet")
    write_parquet(uri, pa.table({"image_id": ["a"]}))
    rows = TableRows([uri], ["image_id"])
    assert rows[0] == pickle.loads(pickle.dumps(rows))[0]


def test_threads_share_a_table(tmp_path: Path) -> None:
    """With room for one row group, whatever a thread reads throws out what another one has just read."""
    uri = str(tmp_path / "x.parquet")
    write_parquet(uri, pa.table({"image_id": [f"{i:03}" for i in range(320)]}))
    rows = TableRows([uri], ["image_id"], cached_groups=1)
    order = np.random.default_rng(0).permutation(np.tile(np.arange(320), 8)).tolist()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: rows[index]["image_id"], order))
    assert found == [f"{index:03}" for index in order]


def test_tables_lie_in_buckets_too(s3_uri: str) -> None:
    uri = f"{s3_uri}/x.parquet"
    write_parquet(uri, pa.table({"image_id": [f"{i:02}" for i in range(40)]}))
    parts = read_places(find_rows([uri]).slice(30, 5), columns=["image_id"])
    assert [i for part in parts for i in part["image_id"].to_pylist()] == ["30", "31", "32", "33", "34"]
    assert TableRows([uri], ["image_id"])[39] == {"image_id": "39"}


@pytest.mark.parametrize("damage", ["cut", "overwritten", "gone"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "part.parquet"
    write_parquet(str(path), pa.table({"image_id": [str(n) for n in range(40)], "value": range(40)}))
    rows = TableRows([str(path)], ["image_id", "value"])
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-20] if damage == "cut" else data[:4] + b"?" * (len(data) - 12) + data[-8:])
    with pytest.raises(OSError, match=f"{path}: .*delete the folder of its version"):
        rows[0]
    with pytest.raises(OSError, match=f"{path}: .*delete the folder of its version"):
        find_rows([str(path)])


@pytest.mark.usefixtures("ray_cluster")
def test_a_long_job_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.data

    monkeypatch.setattr(tables, "SECONDS_BETWEEN_LINES", 0.0)
    written = [{"uri": "/x/1.parquet", "rows": 30}, {"uri": "/x/2.parquet", "rows": 10}]
    lines: list[str] = []
    assert collect(ray.data.from_items(written), 40, lines.append) == written
    assert lines == ["30 of 40 images done", "40 of 40 images done, about 0:00:00 left"]
