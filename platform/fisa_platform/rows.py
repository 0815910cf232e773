"""Rows of a table of Parquet files: where each one is, and random access in an order that no writer chose."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fisa_model.mask_generators import MaskProposals, ProposalForm
from fisa_platform import storage
from fisa_platform.manifest import open_version
from fisa_platform.mask_codec import FORM_OF, decode_proposals

PLACES = pa.schema(
    [
        ("image_id", pa.string()),
        ("uri", pa.dictionary(pa.int32(), pa.string())),
        ("group", pa.int32()),
        ("row", pa.int32()),
    ]
)
"""A row of a table, as its file, its row group there, and its position in that."""

_THREADS = 16
_OPEN_FILES = 256
"""Of a table that has more, the one that was opened first is closed."""

_AGAIN = "delete the folder of its version and run its job again"


class TableRows(Sequence[dict[str, Any]]):
    """Rows of a table sorted by `image_id`. Only the ids are read ahead; a row group when a row of it is.

    Threads may share it; one reads at a time.

    Args:
        files: URIs of the Parquet files.
        columns: what a row holds.
        cached_groups: row groups kept in memory; the least recently used is dropped.
    """

    def __init__(self, files: Sequence[str], columns: Sequence[str], *, cached_groups: int = 64) -> None:
        self.columns = list(columns)
        self.cached_groups = cached_groups
        self._cache: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._open: dict[str, pq.ParquetFile] = {}
        self._lock = threading.Lock()
        self._places = find_rows(files).sort_by("image_id")
        self.ids: list[str] = self._places["image_id"].to_pylist()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        place = self._places.slice(index, 1).to_pylist()[0]
        with self._lock:
            group = self._group(place["uri"], place["group"])
        return group.slice(place["row"], 1).to_pylist()[0]

    def positions(self) -> dict[str, int]:
        """Where each id is."""
        return {image_id: position for position, image_id in enumerate(self.ids)}

    def _group(self, uri: str, group: int) -> pa.Table:
        key = (uri, group)
        if key not in self._cache:
            if uri not in self._open:
                while len(self._open) >= _OPEN_FILES:
                    self._open.pop(next(iter(self._open))).close()
                self._open[uri] = _open_parquet(uri)
            with _whole(uri):
                self._cache[key] = self._open[uri].read_row_group(group, columns=self.columns)
            if len(self._cache) > self.cached_groups:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def __getstate__(self) -> dict[str, Any]:
        # File handles and locks do not cross processes.
        return {**self.__dict__, "_open": {}, "_cache": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


class ProposalRows:
    """The proposals of an image by its id, decoded."""

    def __init__(self, proposals_uri: str) -> None:
        files = open_version(proposals_uri).files(prefix="proposals/", suffix=".parquet")
        if not files:
            raise ValueError(f"{proposals_uri}: holds no table of proposals; give what `propose` wrote")
        self.rows = TableRows(files, ["image_id", "height", "width", "encoding", "masks"])
        self.positions = self.rows.positions()

    @property
    def form(self) -> ProposalForm | None:
        """What is known of the masks' logits; None of an empty table. One `propose` wrote all rows."""
        return FORM_OF.get(self.rows[0]["encoding"]) if len(self.rows) else None

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.positions

    def __getitem__(self, image_id: str) -> MaskProposals:
        """Raises ValueError for an image that has no row."""
        if image_id not in self.positions:
            raise ValueError(
                "the proposals table has no row for this image; run `propose` on this images table"
            )
        return decode_proposals(self.rows[self.positions[image_id]])


class TruthRows:
    """The ground truth of an image by its id: `panoptic` and `segments_info` of an images table."""

    def __init__(self, images_uri: str) -> None:
        files = open_version(images_uri).files(prefix="images/", suffix=".parquet")
        self.rows = TableRows(files, ["panoptic", "segments_info"])
        self.positions = self.rows.positions()

    def __getitem__(self, image_id: str) -> dict[str, Any]:
        row: dict[str, Any] = self.rows[self.positions[image_id]]
        return row


def find_rows(files: Sequence[str]) -> pa.Table:
    """PLACES of all rows of these files, in their order. Reads the ids, some tens of bytes a row."""
    if not files:
        return PLACES.empty_table()
    with ThreadPoolExecutor(_THREADS) as pool:
        return pa.concat_tables(pool.map(_places_in, files)).unify_dictionaries()


def read_places(places: pa.Table, *, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows at PLACES, as one table for each run of them in one row group."""
    for (uri, group), run in groupby(places.to_pylist(), key=itemgetter("uri", "group")):
        with _whole(uri):
            table = _open_parquet(uri).read_row_group(group, columns=list(columns))
        yield table.take([place["row"] for place in run])


def _places_in(uri: str) -> pa.Table:
    file = _open_parquet(uri)
    counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    with _whole(uri):
        ids = file.read(columns=["image_id"])["image_id"]
    columns = [
        ids,
        pa.repeat(uri, sum(counts)).dictionary_encode(),
        pa.array(np.repeat(np.arange(len(counts)), counts)),
        pa.array([row for count in counts for row in range(count)]),
    ]
    return pa.Table.from_arrays(columns, names=PLACES.names).cast(PLACES)


def _open_parquet(uri: str) -> pq.ParquetFile:
    filesystem, path = storage.pyarrow_filesystem(uri)
    with _whole(uri):
        return pq.ParquetFile(path, filesystem=filesystem, pre_buffer=True)


@contextmanager
def _whole(uri: str) -> Iterator[None]:
    """Say which file it was that Arrow could not read."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{uri}: its version names this file, but it is gone; {_AGAIN}") from None
    except (pa.ArrowInvalid, OSError) as error:
        reason = " ".join(str(error).split())
        raise storage.StorageError(
            f"{uri}: cannot be read as Parquet ({reason}); if it is damaged, {_AGAIN}"
        ) from error
