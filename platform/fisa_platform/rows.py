"""Rows of a table of Parquet files: where each one is, and random access in an order that no writer chose."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fisa_model.mask_generators import MaskProposals
from fisa_platform import storage
from fisa_platform.manifest import open_version
from fisa_platform.mask_codec import decode_proposals

PLACES = pa.schema([("uri", pa.string()), ("group", pa.int32()), ("row", pa.int32())])
"""A row of a table, as its file, its row group there, and its position in that."""

_THREADS = 16


class TableRows(Sequence[dict[str, Any]]):
    """Rows of a table sorted by `image_id`. Only the ids are read ahead; a row group when a row of it is.

    Args:
        files: URIs of the Parquet files.
        columns: what a row holds.
        cached_groups: row groups kept in memory; the least recently used is dropped.
    """

    def __init__(self, files: Sequence[str], columns: Sequence[str], *, cached_groups: int = 64) -> None:
        self.files = list(files)
        self.columns = list(columns)
        self.cached_groups = cached_groups
        self._cache: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._open: dict[int, pq.ParquetFile] = {}
        ids: list[str] = []
        places: list[tuple[int, int, int]] = []
        with ThreadPoolExecutor(_THREADS) as pool:
            for file, (file_ids, groups) in enumerate(pool.map(_read_ids, self.files)):
                ids += file_ids
                places += [(file, group, row) for group, rows in enumerate(groups) for row in range(rows)]
        order = np.argsort(np.asarray(ids, dtype=object), kind="stable")
        self.ids: list[str] = [ids[i] for i in order]
        self._places = [places[i] for i in order]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        file, group, row = self._places[index]
        return self._group(file, group).slice(row, 1).to_pylist()[0]

    def positions(self) -> dict[str, int]:
        """Where each id is."""
        return {image_id: position for position, image_id in enumerate(self.ids)}

    def places(self) -> list[dict[str, Any]]:
        """Where each row is, as rows of PLACES, in the order of ids."""
        return [{"uri": self.files[file], "group": group, "row": row} for file, group, row in self._places]

    def _group(self, file: int, group: int) -> pa.Table:
        key = (file, group)
        if key not in self._cache:
            if file not in self._open:
                self._open[file] = _open_parquet(self.files[file])
            self._cache[key] = self._open[file].read_row_group(group, columns=self.columns)
            if len(self._cache) > self.cached_groups:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def __getstate__(self) -> dict[str, Any]:
        # File handles do not cross processes.
        return {**self.__dict__, "_open": {}, "_cache": OrderedDict()}


class ProposalRows:
    """The proposals of an image by its id, decoded."""

    def __init__(self, proposals_uri: str) -> None:
        files = open_version(proposals_uri).files(prefix="proposals/", suffix=".parquet")
        if not files:
            raise ValueError(f"{proposals_uri}: holds no table of proposals; give what `propose` wrote")
        self.rows = TableRows(files, ["image_id", "height", "width", "encoding", "masks"])
        self.positions = self.rows.positions()

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.positions

    def __getitem__(self, image_id: str) -> MaskProposals:
        """Raises ValueError for an image that has no row."""
        if image_id not in self.positions:
            raise ValueError(
                "the proposals table has no row for this image; run `propose` on this images table"
            )
        return decode_proposals(self.rows[self.positions[image_id]])


def row_places(
    files: Sequence[str], *, limit: int | None = None, done: Collection[str] = frozenset()
) -> pa.Table:
    """PLACES of all rows in the order of the files; or, with `limit` or `done`, of the first others by id."""
    if limit is not None or done:
        rows = TableRows(files, [])
        places = zip(rows.ids, rows.places(), strict=True)
        left = [place for image_id, place in places if image_id not in done]
        return pa.Table.from_pylist(left[:limit], schema=PLACES)
    with ThreadPoolExecutor(_THREADS) as pool:
        metadata = list(pool.map(lambda uri: _open_parquet(uri).metadata, files))
    counts = [[file.row_group(group).num_rows for group in range(file.num_row_groups)] for file in metadata]
    columns = [
        [uri for uri, groups in zip(files, counts, strict=True) for _ in range(sum(groups))],
        [group for groups in counts for group, rows in enumerate(groups) for _ in range(rows)],
        [row for groups in counts for rows in groups for row in range(rows)],
    ]
    return pa.Table.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, PLACES, strict=True)], schema=PLACES
    )


def read_places(places: pa.Table, *, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows at PLACES, as one table for each run of them in one row group."""
    for (uri, group), run in groupby(places.to_pylist(), key=itemgetter("uri", "group")):
        table = _open_parquet(uri).read_row_group(group, columns=list(columns))
        yield table.take([place["row"] for place in run])


def _read_ids(uri: str) -> tuple[list[str], list[int]]:
    """The ids of a file, and how many rows each of its groups has."""
    file = _open_parquet(uri)
    groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return file.read(columns=["image_id"])["image_id"].to_pylist(), groups


def _open_parquet(uri: str) -> pq.ParquetFile:
    filesystem, path = storage.pyarrow_filesystem(uri)
    return pq.ParquetFile(path, filesystem=filesystem, pre_buffer=True)
