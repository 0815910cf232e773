"""What stage `label` writes: tables, a picture or two for each image beside them, and COCO's JSON."""

import posixpath
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data

from fisa_model.vocabulary import Vocabulary
from fisa_platform import storage
from fisa_platform.coco_export import png_name, write_coco_json
from fisa_platform.evaluation.label_maps import class_labels, encode_label_map
from fisa_platform.panoptic_png import decode_panoptic
from fisa_platform.rendering import class_colour
from fisa_platform.rows import TableRows
from fisa_platform.schema import PREDICTIONS
from fisa_platform.tables import BLOCKS_PER_WORKER, WRITER, write_batch

TABLE = "predictions"
PNGS, OVERLAYS, MAPS = "panoptic", "overlays", "semantic"
"""Folders with a picture for each image."""

_PICTURED = ["file_name", "panoptic", "segments_info"]
_THREADS = 16


def write_labels(batch: pa.Table, *, output_uri: str, maps_of: Vocabulary | None = None) -> pa.Table:
    """Write the pictures of a batch, and then its file of predictions: where that is, they are, too.

    With a vocabulary there are label maps among them, of its class indices.
    """
    labelled = batch.filter(pc.is_null(batch["reason"]))
    _write_pictures(labelled.select([*_PICTURED, "overlay"]).to_pylist(), output_uri, maps_of)
    return write_batch(batch, output_uri=output_uri, name=TABLE, schema=PREDICTIONS)


def take_over(
    parts: Sequence[dict[str, Any]],
    output_uri: str,
    *,
    overlays: bool,
    maps_of: Vocabulary | None,
    workers: int,
) -> None:
    """Put the pictures of an earlier run's predictions into this run's folder, in so many tasks at a time."""
    files = pa.table({"uri": [part["uri"] for part in parts if part["table"] == TABLE]})
    size = max(1, -(-files.num_rows // (workers * BLOCKS_PER_WORKER)))
    blocks = [files.slice(start, size) for start in range(0, files.num_rows, size)]
    if not blocks:
        return
    copies = ray.data.from_arrow(blocks).map_batches(
        partial(_copy_pictures, output_uri=output_uri, overlays=overlays, maps_of=maps_of),
        batch_size=None,
        # Nothing else holds these tasks back: without a core to wait for, all would start together.
        compute=ray.data.TaskPoolStrategy(size=workers),
        **WRITER,
    )
    for _ in copies.iter_rows():
        pass


def write_json(
    output_uri: str, files: Sequence[str], vocabulary: Vocabulary, *, instances: bool
) -> list[str]:
    """COCO's panoptic JSON of files of predictions and, where asked for, that of instances."""
    # panopticapi takes colours from the file, and COCO's own categories have groups.
    categories = [
        {**category, "supercategory": category["name"], "color": list(class_colour(index))}
        for index, category in enumerate(vocabulary.to_json())
    ]
    rows = TableRows(files, [name for name in PREDICTIONS.names if name != "panoptic"])
    forms: list[Literal["panoptic", "instances"]] = ["panoptic", "instances"] if instances else ["panoptic"]
    uris = [storage.join(output_uri, f"{form}.json") for form in forms]
    for uri, form in zip(uris, forms, strict=True):
        write_coco_json(uri, form, rows.ids, rows, categories)
    return uris


def check_names(file_names: Iterable[str], *, overlays: bool) -> None:
    """Raises ValueError where a picture's labels would lie where another one's need a folder."""
    names = list(file_names)
    folders: set[str] = set()
    for name in names:
        while (name := posixpath.dirname(name)) and name not in folders:
            folders.add(name)
    for name in names:
        for written in [png_name(name), *([_overlay_name(name)] if overlays else [])]:
            if written in folders:
                raise ValueError(
                    f"labels of {name!r} and of what is in the folder {written!r} would lie in one place; "
                    "rename one of them"
                )


def _write_pictures(rows: Sequence[dict[str, Any]], output_uri: str, maps_of: Vocabulary | None) -> None:
    def write(row: dict[str, Any]) -> None:
        name = png_name(row["file_name"])
        storage.write_bytes(storage.join(output_uri, PNGS, name), row["panoptic"])
        if maps_of is not None:
            labels = class_labels(decode_panoptic(row["panoptic"]), row["segments_info"], maps_of)
            storage.write_bytes(storage.join(output_uri, MAPS, name), encode_label_map(labels, len(maps_of)))
        if row["overlay"] is not None:
            storage.write_bytes(_overlay_uri(output_uri, row["file_name"]), row["overlay"])

    # A bucket answers in tens of milliseconds.
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(write, rows))


def _copy_pictures(
    files: pa.Table, *, output_uri: str, overlays: bool, maps_of: Vocabulary | None
) -> pa.Table:
    for file in files["uri"].to_pylist():
        filesystem, path = storage.pyarrow_filesystem(file)
        table = pq.read_table(path, columns=_PICTURED, filesystem=filesystem, partitioning=None)
        rows = table.to_pylist()
        names = [_overlay_uri(file.rsplit("/", 2)[0], row["file_name"]) for row in rows]
        try:
            with ThreadPoolExecutor(_THREADS) as pool:
                pictures = list(pool.map(storage.read_bytes, names)) if overlays else [None] * len(rows)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{file}: a picture that belongs to it is gone ({error}); delete this file, and its images "
                "are labelled again"
            ) from error
        drawn = [{**row, "overlay": picture} for row, picture in zip(rows, pictures, strict=True)]
        _write_pictures(drawn, output_uri, maps_of)
    return files


def _overlay_uri(run_uri: str, file_name: str) -> str:
    return storage.join(run_uri, OVERLAYS, _overlay_name(file_name))


def _overlay_name(file_name: str) -> str:
    return posixpath.splitext(file_name)[0] + ".jpg"
