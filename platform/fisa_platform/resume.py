"""What earlier attempts at a version have done, so that a run that was killed loses only what it had in hand.

A file of a table is written whole or not at all, so that a file which is there is work that is done. Of two
files that share an image one is left out: readers see every image once, whatever was killed and when.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fisa_platform import storage
from fisa_platform.manifest import PendingVersion
from fisa_platform.rows import find_rows
from fisa_platform.tables import REJECTED_TABLE, part_row

INDEX_FILE = "index.parquet"
"""What a source's index rejects, before any image is opened; every attempt writes it anew."""

_THREADS = 16


@dataclass(frozen=True, slots=True)
class EarlierWork:
    """What need not be done again."""

    parts: list[dict[str, Any]]
    """The files, as `write_batch` returned them to a driver that is gone."""

    ids: frozenset[str]
    """The images in these files."""


def earlier_work(pending: PendingVersion, name: str) -> EarlierWork:
    """Files that other attempts wrote below `<name>` and `rejected`, without those that repeat an image."""
    found = [path for path in storage.list_files(pending.version_uri) if _is_part(path, pending, name)]
    uris = [storage.join(pending.version_uri, path) for path in found]
    with ThreadPoolExecutor(_THREADS) as pool:
        read = list(pool.map(_read_part, uris))
    parts: list[dict[str, Any]] = []
    ids: set[str] = set()
    for part, part_ids in filter(None, read):
        if ids.isdisjoint(part_ids):
            parts.append(part)
            ids.update(part_ids)
    return EarlierWork(parts, frozenset(ids))


def check_once(expected: pa.ChunkedArray, files: Sequence[str]) -> None:
    """Make sure that every image is in exactly one row of these files.

    Raises:
        RuntimeError: an image is lost, is there twice, or was not asked for.
    """
    found = find_rows(files)["image_id"]
    counts = found.value_counts()
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    for problem, ids in {
        "are in no file": expected.filter(pc.invert(pc.is_in(expected, value_set=found))),
        "are in more than one row": repeated,
        "were not asked for": found.filter(pc.invert(pc.is_in(found, value_set=expected))),
    }.items():
        if len(ids):
            raise RuntimeError(
                f"{len(ids)} images {problem}, {pc.min(ids).as_py()!r} among them; report this, and run again"
            )


def without(places: pa.Table, done: Collection[str]) -> pa.Table:
    """The rows of a table whose `image_id` is not done."""
    ids = pa.array(done, pa.string())
    return places.filter(pc.invert(pc.is_in(places["image_id"], value_set=ids)))


def _is_part(path: str, pending: PendingVersion, name: str) -> bool:
    attempt, _, rest = path.partition("/")
    table, _, file = rest.partition("/")
    return (
        attempt.startswith("run-")
        and attempt != pending.run_id
        and table in (name, REJECTED_TABLE)
        and file.endswith(".parquet")
        and file != INDEX_FILE
    )


def _read_part(uri: str) -> tuple[dict[str, Any], list[str]] | None:
    """What a file holds; None for one that is damaged, whose images are done again."""
    table = uri.rsplit("/", 2)[-2]
    columns = ["image_id", "file_name", "reason"] if table == REJECTED_TABLE else ["image_id"]
    filesystem, path = storage.pyarrow_filesystem(uri)
    try:
        rows = pq.read_table(path, columns=columns, filesystem=filesystem, partitioning=None)
    except pa.ArrowInvalid:
        return None
    return part_row(uri, table, rows), rows["image_id"].to_pylist()
