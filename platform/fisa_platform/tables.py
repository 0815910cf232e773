"""Tables through Ray Data: a row that succeeded goes to its table, one that failed to `rejected`.

Each task writes its own Parquet files and returns their URIs. Only those reach the manifest, so the files of
a task that died or was retried are part of a version once at most. A file is named by the images in it, so
that a task which is done again writes the same file.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fisa_platform import storage
from fisa_platform.compute import Compute
from fisa_platform.manifest import open_version
from fisa_platform.rows import find_rows, read_places
from fisa_platform.schema import COMPRESSION, REJECTED

if TYPE_CHECKING:
    from ray.data import Dataset

REJECTED_TABLE = "rejected"
ROWS_PER_GROUP = 32
"""Rows of a Parquet row group: what training reads to get at one image."""

MAX_ROWS_PER_BLOCK = 512
"""Rows that a worker reads at once; about 80 MB of COCO's images."""

BLOCKS_PER_WORKER = 4
"""Blocks of a table that is small for its workers, and more where one has several batches in hand: enough
that none waits long for the last one."""

WRITER: dict[str, Any] = {"batch_format": "pyarrow", "num_cpus": 0}
"""Options of tasks that write; needing no core, they never wait for actors that hold them all."""

EXAMPLES = 3
"""Rejected files that a failed job names; one at most of each file of the table."""

SECONDS_BETWEEN_LINES = 5.0
"""How often a long job says how far it is."""

_WRITTEN = pa.schema(
    [("uri", pa.string()), ("table", pa.string()), ("rows", pa.int64()), ("example", pa.string())]
)


def failable_table(schema: pa.Schema, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows of `schema`, and rows of image_id, file_name and a reason, as one table; any value may be null."""
    fields = [pa.field(column.name, column.type) for column in schema]
    fields += [pa.field("file_name", pa.string())] if "file_name" not in schema.names else []
    return pa.Table.from_pylist(list(rows), schema=pa.schema([*fields, pa.field("reason", pa.string())]))


def write_batch(batch: pa.Table, *, output_uri: str, name: str, schema: pa.Schema) -> pa.Table:
    """Write failable rows as a file of `<name>` and one of `rejected`, and return a row for each file."""
    failed = pc.is_valid(batch["reason"])
    parts = {
        name: batch.filter(pc.invert(failed)).select(schema.names).cast(schema),
        REJECTED_TABLE: batch.filter(failed).select(REJECTED.names).cast(REJECTED),
    }
    written = []
    for table_name, part in parts.items():
        if part.num_rows:
            digest = hashlib.sha256("\n".join(part["image_id"].to_pylist()).encode()).hexdigest()[:32]
            uri = storage.join(output_uri, table_name, f"{digest}.parquet")
            write_parquet(uri, part)
            written.append(part_row(uri, table_name, part))
    return pa.Table.from_pylist(written, schema=_WRITTEN)


def part_row(uri: str, table: str, rows: pa.Table) -> dict[str, Any]:
    """What a driver is told about a file of `rejected` or of another table."""
    first = rows.slice(0, 1).to_pylist() if table == REJECTED_TABLE else []
    example = f"{first[0]['file_name']}: {first[0]['reason']}" if first else None
    return {"uri": uri, "table": table, "rows": rows.num_rows, "example": example}


def write_parquet(uri: str, table: pa.Table) -> None:
    """One Parquet file, whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression=COMPRESSION, row_group_size=ROWS_PER_GROUP)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())


@dataclass(frozen=True, slots=True)
class Written:
    """What a stage wrote."""

    files: list[str]
    rows: int
    rejected: int
    examples: tuple[str, ...] = ()
    """Some of the files that were rejected, each with the reason."""

    @classmethod
    def of(cls, parts: Iterable[Mapping[str, Any]], name: str) -> Written:
        """Add up the rows that `write_batch` returned."""
        rows = {name: 0, REJECTED_TABLE: 0}
        files, examples = [], []
        for part in parts:
            rows[part["table"]] += part["rows"]
            files.append(part["uri"])
            examples += [part["example"]] if part["example"] else []
        return cls(sorted(files), rows[name], rows[REJECTED_TABLE], tuple(sorted(examples)[:EXAMPLES]))

    def check(self, max_rejected_fraction: float) -> None:
        """Fail a job that lost too much.

        Raises:
            ValueError: nothing was written, or more than this fraction was rejected.
        """
        total = self.rows + self.rejected
        if not total:
            raise ValueError("there was no image to work on; check that the input is not empty")
        if self.rows and self.rejected <= max_rejected_fraction * total:
            return
        places = {uri.rpartition("/")[0] for uri in self.files if f"/{REJECTED_TABLE}/" in uri}
        raise ValueError(
            f"{self.rejected} of {total} images were rejected, max_rejected_fraction is "
            f"{max_rejected_fraction:g}; all reasons are in {', '.join(sorted(places))}, for example "
            f"{'; '.join(self.examples)}; remove these images, or raise config.max_rejected_fraction"
        )

    @property
    def summary(self) -> str:
        """One line for the end of a job."""
        return f"{self.rows} images, {self.rejected} rejected"


def image_places(uri: str) -> pa.Table:
    """Where the images of a version are, as `rows.PLACES`; only files that the manifest names count.

    Raises:
        ValueError: the version holds no table of images.
    """
    version = open_version(uri)
    files = version.files(prefix="images/", suffix=".parquet")
    if not files:
        raise ValueError(f"{uri}: holds no table of images (it was written by {version.manifest.stage!r})")
    return find_rows(files)


class Loaded:
    """An actor: what `load` makes, once, works on every batch.

    What goes wrong while it loads is raised with the first batch. From a constructor it would arrive as the
    death of an actor, with a traceback for each attempt.
    """

    def __init__(self, load: Callable[[], Callable[[pa.Table], pa.Table]]) -> None:
        self.problem: Exception | None = None
        try:
            self.work = load()
        except (ValueError, OSError) as error:
            self.problem = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self.problem is not None:
            raise self.problem
        return self.work(batch)


def read_rows(
    places: pa.Table, *, columns: Sequence[str], batch_size: int, rows_per_file: int, compute: Compute
) -> tuple[Dataset, int]:
    """The rows at `rows.PLACES` as a Ray dataset, and the number of its blocks.

    Ray's own reader starts actors and tasks that cost a small job many seconds, and it cuts at files, so that
    a table of few files keeps few workers busy. Here the driver only says where the rows are.

    Args:
        places: of the rows.
        columns: what a row holds.
        batch_size: rows that a worker will take at once; a block has at least as many.
        rows_per_file: rows that a writer will put into a file; see `rows_per_block`.
        compute: of the workers that the rows are for.
    """
    import ray.data

    of_worker = -(-places.num_rows // (compute.workers.max * BLOCKS_PER_WORKER))
    # Parts of a row group would each read all of it.
    fair = max(of_worker // compute.calls_per_worker, min(of_worker, ROWS_PER_GROUP))
    size = rows_per_block(min(fair, MAX_ROWS_PER_BLOCK), least=batch_size, rows_per_file=rows_per_file)
    # A block would carry the names of all files with it.
    named = places.set_column(places.schema.get_field_index("uri"), "uri", places["uri"].cast(pa.string()))
    blocks = [named.slice(start, size) for start in range(0, named.num_rows, size)] or [named]
    read = partial(read_places, columns=list(columns))
    rows = ray.data.from_arrow(blocks).map_batches(
        read, batch_size=None, batch_format="pyarrow", **reader_options(compute)
    )
    return rows, len(blocks)


def rows_per_block(most: int, *, least: int, rows_per_file: int) -> int:
    """A size of blocks that leaves no rest: a block fills whole files, or a file takes whole blocks.

    Ray writes what is left of a block, or of the blocks that it gathered for a file, into a file of its own.
    The size is at most `most` where that can be, and no less than `least` where a file is no smaller.
    """
    if max(most, least) >= rows_per_file:
        return max(most, least) // rows_per_file * rows_per_file
    sizes: list[int] = [*range(most, least - 1, -1), *range(max(most, least), rows_per_file)]
    return next((size for size in sizes if rows_per_file % size == 0), rows_per_file)


def reader_options(compute: Compute) -> dict[str, Any]:
    """What a task reserves that reads for workers: the same as a worker, so that Ray lets the worker do it.

    A GPU must not wait for a bucket, so those who have one are read for by tasks without.
    """
    return compute.ray_options() if compute.gpus_per_worker == 0 else {"num_cpus": 1}


def collect(parts: Dataset, images: int, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """Run a dataset whose rows are the files that its tasks wrote, of so many images; hold nothing else."""
    collected: list[dict[str, Any]] = []
    done = at_start = 0
    started = said = time.monotonic()
    for part in parts.iter_rows():
        collected.append(part)
        done += part["rows"]
        now = time.monotonic()
        if not at_start:
            started, at_start = now, done  # what came before was mostly the start of the workers
        if now - said >= SECONDS_BETWEEN_LINES:
            said = now
            left = _time_left(images - done, done - at_start, now - started)
            progress(f"{done} of {images} images done{left}")
    return collected


def _time_left(images: int, done: int, seconds: float) -> str:
    """For so many images, where others were done in so many seconds."""
    return f", about {timedelta(seconds=round(images * seconds / done))} left" if done else ""
