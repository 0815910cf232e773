"""Random access to the rows of a table of Parquet files, in an order that does not depend on how they were written."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fisa_model.mask_generators import MaskProposals
from fisa_platform import storage
from fisa_platform.manifest import open_version
from fisa_platform.mask_codec import decode_proposals


class TableRows(Sequence[dict[str, Any]]):
    """Rows of a table sorted by `image_id`. Only the ids are read ahead; a row group is read when a row of it is.

    Args:
        files: URIs of the Parquet files.
        columns: what a row holds.
        cached_groups: row groups kept in memory, the least recently used is dropped.
    """

    def __init__(self, files: Sequence[str], columns: Sequence[str], *, cached_groups: int = 64) -> None:
        self.files = list(files)
        self.columns = list(columns)
        self.cached_groups = cached_groups
        self._cache: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._open: dict[int, pq.ParquetFile] = {}
        ids: list[str] = []
        places: list[tuple[int, int, int]] = []
        for file in range(len(self.files)):
            parquet = self._parquet(file)
            for group in range(parquet.num_row_groups):
                group_ids = parquet.read_row_group(group, columns=["image_id"])["image_id"].to_pylist()
                ids += group_ids
                places += [(file, group, row) for row in range(len(group_ids))]
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

    def _parquet(self, file: int) -> pq.ParquetFile:
        if file not in self._open:
            filesystem, path = storage.pyarrow_filesystem(self.files[file])
            self._open[file] = pq.ParquetFile(path, filesystem=filesystem)
        return self._open[file]

    def _group(self, file: int, group: int) -> pa.Table:
        key = (file, group)
        if key not in self._cache:
            self._cache[key] = self._parquet(file).read_row_group(group, columns=self.columns)
            if len(self._cache) > self.cached_groups:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}, "_cache": OrderedDict()}  # file handles do not cross processes


class ProposalRows:
    """The proposals of an image by its id, decoded."""

    def __init__(self, proposals_uri: str) -> None:
        files = open_version(proposals_uri).files(prefix="proposals/", suffix=".parquet")
        if not files:
            raise ValueError(f"{proposals_uri}: holds no table of proposals; was another stage's output meant?")
        self.rows = TableRows(files, ["image_id", "height", "width", "masks"])
        self.positions = self.rows.positions()

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.positions

    def __getitem__(self, image_id: str) -> MaskProposals:
        """Raises ValueError for an image that has no row."""
        if image_id not in self.positions:
            raise ValueError("the proposals table has no row for this image; run `propose` on this images table")
        return decode_proposals(self.rows[self.positions[image_id]])
