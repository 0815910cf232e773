"""Writing tables from Ray Data tasks: a row that succeeded goes to its table, one that failed to `rejected`.

Each task writes its own Parquet files under unique names and returns their URIs; only those reach the manifest, so
that the files of a task that died or was retried are never part of a version.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fisa_platform import storage
from fisa_platform.manifest import open_version
from fisa_platform.schema import COMPRESSION, REJECTED

if TYPE_CHECKING:
    from ray.data import Dataset

REJECTED_TABLE = "rejected"
ROWS_PER_GROUP = 32
"""Rows of a Parquet row group: what training reads to get at one image."""

_WRITTEN = pa.schema([("uri", pa.string()), ("table", pa.string()), ("rows", pa.int64())])


def failable(schema: pa.Schema) -> pa.Schema:
    """The rows of a table on their way to it: every field may be null, and `reason` says why when they are."""
    names = {"image_id", "file_name"}
    fields = [pa.field(f.name, f.type) for f in schema]
    fields += [pa.field("file_name", pa.string())] if "file_name" not in schema.names else []
    assert names <= {f.name for f in fields}
    return pa.schema([*fields, pa.field("reason", pa.string())])


def failable_table(schema: pa.Schema, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows of `schema`, or rows with image_id, file_name and reason, as one table."""
    return pa.Table.from_pylist(list(rows), schema=failable(schema))


def write_batch(batch: pa.Table, *, output_uri: str, name: str, schema: pa.Schema) -> pa.Table:
    """Write failable rows as `<name>/<unique>.parquet` and `rejected/<unique>.parquet`; one row for each file."""
    failed = pc.is_valid(batch["reason"])
    parts = {
        name: batch.filter(pc.invert(failed)).select(schema.names).cast(schema),
        REJECTED_TABLE: batch.filter(failed).select(REJECTED.names).cast(REJECTED),
    }
    written = []
    for table_name, part in parts.items():
        if part.num_rows:
            uri = storage.join(output_uri, table_name, f"{uuid.uuid4().hex}.parquet")
            write_parquet(uri, part)
            written.append({"uri": uri, "table": table_name, "rows": part.num_rows})
    return pa.Table.from_pylist(written, schema=_WRITTEN)


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

    @classmethod
    def of(cls, parts: Iterable[Mapping[str, Any]], name: str) -> Written:
        """Add up the rows that `write_batch` returned."""
        rows = {name: 0, REJECTED_TABLE: 0}
        files = []
        for part in parts:
            rows[part["table"]] += part["rows"]
            files.append(part["uri"])
        return cls(sorted(files), rows[name], rows[REJECTED_TABLE])

    def check(self, max_rejected_fraction: float) -> None:
        """Fail a job that lost too much.

        Raises:
            ValueError: nothing was written, or more than this fraction was rejected.
        """
        total = self.rows + self.rejected
        if not self.rows or self.rejected > max_rejected_fraction * total:
            places = [uri for uri in self.files if f"/{REJECTED_TABLE}/" in uri]
            raise ValueError(
                f"{self.rejected} of {total} images were rejected, more than max_rejected_fraction "
                f"({max_rejected_fraction:g}) allows; the reasons are in {', '.join(places[:3]) or 'no file'}"
            )

    @property
    def summary(self) -> str:
        """One line for the end of a job."""
        return f"{self.rows} images, {self.rejected} rejected"


def read_rows(uri: str, *, columns: Sequence[str], prefix: str = "images") -> Dataset:
    """A version's table as a Ray dataset; only files that its manifest names are read."""
    import ray.data

    version = open_version(uri)
    files = version.files(prefix=prefix + "/", suffix=".parquet")
    if not files:
        raise ValueError(f"{uri}: holds no table {prefix!r} (it was written by {version.manifest.stage!r})")
    filesystem, _ = storage.pyarrow_filesystem(files[0])
    paths = [storage.pyarrow_filesystem(file)[1] for file in files]
    return ray.data.read_parquet(paths, filesystem=filesystem, columns=list(columns))


def write_tables(rows: Dataset, output_uri: str, name: str, schema: pa.Schema, *, rows_per_file: int) -> Written:
    """Run a dataset of failable rows and write it; the driver holds only the names of the files."""
    parts = rows.map_batches(
        write_batch,
        fn_kwargs={"output_uri": output_uri, "name": name, "schema": schema},
        batch_size=rows_per_file,
        batch_format="pyarrow",
    ).take_all()
    return Written.of(parts, name)
