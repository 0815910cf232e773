"""Stage `shard`: images and their ground truth, as found, into a table of encoded images."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fisa_platform.compute import Compute
from fisa_platform.job import StageContext, StageResult
from fisa_platform.stages.shard_sources import (
    CocoPanoptic,
    ImageFolder,
    RefCOCO,
    SemanticMaps,
    Source,
    ToyWorld,
)
from fisa_platform.storage import check_apart

if TYPE_CHECKING:
    import pyarrow as pa

    from fisa_model.vocabulary import Vocabulary
    from fisa_platform.sources.semantic import LabelValues

READERS = 8
"""Images that one task reads at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardConfig:
    """Exactly one of the sources `coco`, `semantic`, `refcoco`, `folder` and `toyworld` must be given."""

    output_uri: str
    """Where the table of images goes."""

    coco: CocoPanoptic | None = None
    """Images with panoptic ground truth."""

    semantic: SemanticMaps | None = None
    """Images with semantic ground truth."""

    refcoco: RefCOCO | None = None
    """Images with objects that sentences refer to."""

    folder: ImageFolder | None = None
    """Images without ground truth."""

    toyworld: ToyWorld | None = None
    """Generated scenes with ground truth."""

    rows_per_file: int = 512
    """Images of one Parquet file; about 80 MB for COCO."""

    max_rejected_fraction: float = 0.01
    """The job fails when more than this part of the images cannot be used."""

    def __post_init__(self) -> None:
        sources = ("coco", "semantic", "refcoco", "folder", "toyworld")
        given = [name for name in sources if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of {', '.join(sources)} must be given, got {' and '.join(given) or 'none'}"
            )
        for folder_uri in self.source.folders():
            check_apart(self.output_uri, folder_uri)
        if self.rows_per_file < 1:
            raise ValueError(f"rows_per_file must be at least 1, got {self.rows_per_file}")
        if not 0 <= self.max_rejected_fraction <= 1:
            raise ValueError(f"max_rejected_fraction must be 0 to 1, got {self.max_rejected_fraction}")

    @property
    def source(self) -> Source:
        """The one that is given."""
        source = self.coco or self.semantic or self.refcoco or self.folder or self.toyworld
        assert source is not None
        return source


def run(config: ShardConfig, compute: Compute, context: StageContext) -> StageResult:
    """Index the source on the driver; each task then reads, checks and writes the images of one file.

    A run that was killed is gone on with.
    """
    import ray.data

    from fisa_platform.resume import check_once, earlier_work, without
    from fisa_platform.tables import Written, collect

    index = config.source.read()
    missing = f", {index.rejected.num_rows} cannot be used" if index.rejected.num_rows else ""
    left_out = f", {index.left_out} without ground truth are left out" if index.left_out else ""
    context.progress(f"{index.rows.num_rows} images found{missing}{left_out}")
    labels = None if config.semantic is None else config.semantic.label_values()
    earlier = earlier_work(context.output, "images")
    if earlier.ids:
        context.progress(f"{len(earlier.ids)} images were done by a run that did not end")
    left = without(index.rows, earlier.ids)
    size = max(1, min(config.rows_per_file, -(-left.num_rows // compute.workers.max)))
    blocks = [left.slice(start, size) for start in range(0, left.num_rows, size)] or [left]
    parts = ray.data.from_arrow(blocks).map_batches(
        partial(write_images, output_uri=context.output.uri, labels=labels),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=min(compute.workers.max, len(blocks))),
        **compute.ray_options(),
    )
    done = [*earlier.parts, *collect(parts, left.num_rows, context.progress)]
    check_once(index.rows["image_id"], [part["uri"] for part in done])
    files = [part["uri"] for part in done if part["table"] == "images"]
    written = Written.of([*done, *write_rejected(index.rejected, context.output.uri)], "images")
    written.check(config.max_rejected_fraction)
    truth = _summarise_truth(config, files, index.vocabulary)
    return StageResult(
        rows=written.rows,
        vocabulary=index.vocabulary.to_json() if index.vocabulary else None,
        extra={"rejected": written.rejected},
        files=written.files,
        message=f"{written.summary}; {truth}" if truth else written.summary,
    )


def _summarise_truth(config: ShardConfig, files: list[str], vocabulary: Vocabulary | None) -> str | None:
    """The ground truth of the files that were written; None where the source has none."""
    from fisa_platform.segment_summary import summarise_referred, summarise_segments

    if config.refcoco is not None:
        return summarise_referred(files)
    if vocabulary is None:
        return None
    truth = summarise_segments(files, vocabulary)
    if truth is None:
        raise ValueError(
            "no image has a segment, all is void; check the ground truth, and of label maps the classes, "
            "`values` and `offset`"
        )
    return truth


def write_rejected(rejected: pa.Table, output_uri: str) -> list[dict[str, Any]]:
    """A file of what an index rejects, whose ids may be those of images that are used; its part, if any."""
    from fisa_platform import storage
    from fisa_platform.resume import INDEX_FILE
    from fisa_platform.tables import REJECTED_TABLE, part_row, write_parquet

    if not rejected.num_rows:
        return []
    uri = storage.join(output_uri, REJECTED_TABLE, INDEX_FILE)
    write_parquet(uri, rejected)
    return [part_row(uri, REJECTED_TABLE, rejected)]


def write_images(batch: pa.Table, *, output_uri: str, labels: LabelValues | None = None) -> pa.Table:
    """Index rows to a file of the images table, and one of those that were rejected."""
    from fisa_platform.schema import IMAGES
    from fisa_platform.tables import write_batch

    return write_batch(load_images(batch, labels), output_uri=output_uri, name="images", schema=IMAGES)


def load_images(batch: pa.Table, labels: LabelValues | None = None) -> pa.Table:
    """Index rows to failable rows of the images table; with `labels`, their ground truth is label maps."""
    from concurrent.futures import ThreadPoolExecutor

    from fisa_platform.schema import IMAGES
    from fisa_platform.tables import failable_table

    # A bucket answers in tens of milliseconds, and decoding to check the pixels lets other threads run.
    with ThreadPoolExecutor(max_workers=READERS) as pool:
        return failable_table(IMAGES, pool.map(partial(_load_image, labels=labels), batch.to_pylist()))


def _load_image(row: dict[str, Any], *, labels: LabelValues | None) -> dict[str, Any]:
    from dataclasses import asdict

    from fisa_model.pictures import inspect_image
    from fisa_platform.panoptic_png import decode_panoptic, encode_panoptic, panoptic_problem
    from fisa_platform.sources import toyworld
    from fisa_platform.sources.index import read_file

    if row["image_uri"].startswith(toyworld.URI_PREFIX):
        return {**row, **_draw(row["image_uri"])}
    try:
        image = read_file(row["image_uri"])
        facts = inspect_image(image)
        if row["height"] is not None and (facts.height, facts.width) != (row["height"], row["width"]):
            stated = f"{row['height']} x {row['width']}"
            found = f"{facts.height} x {facts.width}"
            raise ValueError(f"image is {found} pixels (height x width), the JSON says {stated}")
        loaded = {**row, **asdict(facts), "image": image}
        if row["panoptic_uri"] is not None:
            truth = read_file(row["panoptic_uri"])
            if labels is None:
                ids, segments = decode_panoptic(truth), row["segments_info"]
            else:
                ids, segments = labels.read(truth)
                truth = encode_panoptic(ids)
            loaded |= {"panoptic": truth, "segments_info": segments}
            problem = panoptic_problem(ids, segments, size=(facts.height, facts.width))
            if problem:
                raise ValueError(problem)
    except (ValueError, FileNotFoundError) as error:
        return {**row, "reason": str(error)}
    return loaded


def _draw(uri: str) -> dict[str, Any]:
    import numpy as np
    from PIL import Image

    from fisa_platform.panoptic_png import encode_panoptic
    from fisa_platform.sources import toyworld

    scene = toyworld.draw_uri(uri)
    buffer = io.BytesIO()
    Image.fromarray(scene.image).save(buffer, format="JPEG", quality=95, subsampling=0)
    areas = np.bincount(scene.ids.ravel())
    segments = [
        {"id": id_, "category_id": category, "area": int(areas[id_]), "iscrowd": False}
        for id_, category in scene.category_ids.items()
    ]
    return {
        "orientation": 1,
        "image": buffer.getvalue(),
        "panoptic": encode_panoptic(scene.ids),
        "segments_info": segments,
    }
