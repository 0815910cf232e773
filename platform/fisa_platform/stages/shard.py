"""Stage `shard`: images and their ground truth, as found, into a table of encoded images."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fisa_platform.compute import Compute
from fisa_platform.job import StageContext, StageResult
from fisa_platform.storage import check_apart

if TYPE_CHECKING:
    import pyarrow as pa

    from fisa_platform.sources.index import Index

READERS = 8
"""Images that one task reads at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoPanoptic:
    """A data set in COCO panoptic form."""

    images_uri: str
    """Folder or zip of the images."""

    panoptic_uri: str
    """Folder or zip of the panoptic PNGs."""

    json_uri: str
    """The JSON file with images, annotations and categories."""

    class_list: (
        Literal["coco_panoptic", "coco_stuff", "ade20k_150", "mapillary_vistas", "cityscapes"] | None
    ) = None
    """The shipped list whose words are prompted with, in place of raw names such as 'wall-other-merged'."""

    prompt_names_uri: str | None = None
    """A file of other words for that list, in the form of FC-CLIP's `*_with_prompt_eng.txt`."""

    def __post_init__(self) -> None:
        if self.prompt_names_uri is not None and self.class_list is None:
            raise ValueError(
                f"prompt_names_uri is {self.prompt_names_uri!r} but class_list is none; "
                "name the list it is for"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolder:
    """Images without ground truth."""

    images_uri: str
    """Folder of the images, which may have folders; or a zip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyWorld:
    """Generated scenes."""

    scenes: int
    """How many."""

    names: Literal["seen", "all"]
    """Which names appear: those that training may use, or all."""

    seed: int = 0
    """Another seed, other scenes."""

    def __post_init__(self) -> None:
        if self.scenes < 1:
            raise ValueError(f"scenes must be at least 1, got {self.scenes}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardConfig:
    """Exactly one of `coco`, `folder` and `toyworld` says where the images come from."""

    output_uri: str
    """Where the table of images goes."""

    coco: CocoPanoptic | None = None
    """Images with ground truth."""

    folder: ImageFolder | None = None
    """Images without ground truth."""

    toyworld: ToyWorld | None = None
    """Generated scenes with ground truth."""

    rows_per_file: int = 512
    """Images of one Parquet file; about 80 MB for COCO."""

    max_rejected_fraction: float = 0.01
    """The job fails when more than this part of the images cannot be used."""

    def __post_init__(self) -> None:
        given = [name for name in ("coco", "folder", "toyworld") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of coco, folder and toyworld must be given, got {' and '.join(given) or 'none'}"
            )
        if self.folder is not None:
            check_apart(self.output_uri, self.folder.images_uri)
        if self.coco is not None:
            check_apart(self.output_uri, self.coco.images_uri)
            check_apart(self.output_uri, self.coco.panoptic_uri)
        if self.rows_per_file < 1:
            raise ValueError(f"rows_per_file must be at least 1, got {self.rows_per_file}")
        if not 0 <= self.max_rejected_fraction <= 1:
            raise ValueError(f"max_rejected_fraction must be 0 to 1, got {self.max_rejected_fraction}")


def run(config: ShardConfig, compute: Compute, context: StageContext) -> StageResult:
    """Index the source on the driver; each task then reads, checks and writes the images of one file.

    A run that was killed is gone on with.
    """
    import ray.data

    from fisa_platform.resume import check_once, earlier_work, without
    from fisa_platform.tables import Written, collect

    index = read_index(config)
    missing = f", {index.rejected.num_rows} cannot be used" if index.rejected.num_rows else ""
    context.progress(f"{index.rows.num_rows} images found{missing}")
    earlier = earlier_work(context.output, "images")
    if earlier.ids:
        context.progress(f"{len(earlier.ids)} images were done by a run that did not end")
    left = without(index.rows, earlier.ids)
    size = max(1, min(config.rows_per_file, -(-left.num_rows // compute.workers.max)))
    blocks = [left.slice(start, size) for start in range(0, left.num_rows, size)] or [left]
    parts = ray.data.from_arrow(blocks).map_batches(
        partial(write_images, output_uri=context.output.uri),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=compute.workers.max),
        **compute.ray_options(),
    )
    done = [*earlier.parts, *collect(parts, left.num_rows, context.progress)]
    check_once(index.rows["image_id"], [part["uri"] for part in done])
    written = Written.of([*done, *write_rejected(index.rejected, context.output.uri)], "images")
    written.check(config.max_rejected_fraction)
    return StageResult(
        rows=written.rows,
        vocabulary=index.vocabulary.to_json() if index.vocabulary else None,
        extra={"rejected": written.rejected},
        files=written.files,
        message=written.summary,
    )


def read_index(config: ShardConfig) -> Index:
    """What the source holds, before any image is opened."""
    from fisa_platform.sources import coco, index, toyworld

    if config.coco is not None:
        source = config.coco
        found = coco.read_coco_panoptic(source.images_uri, source.panoptic_uri, source.json_uri)
        return found if source.class_list is None else _with_words(found, source)
    if config.folder is not None:
        return index.read_image_folder(config.folder.images_uri)
    assert config.toyworld is not None
    return toyworld.index(config.toyworld.seed, config.toyworld.scenes, config.toyworld.names)


def _with_words(index: Index, source: CocoPanoptic) -> Index:
    """The same index with the words of a class list."""
    from fisa_model.class_lists import load_class_list
    from fisa_platform import storage

    assert index.vocabulary is not None
    assert source.class_list is not None
    with tempfile.TemporaryDirectory() as folder:
        path = None
        if source.prompt_names_uri is not None:
            path = storage.download(source.prompt_names_uri, Path(folder) / "prompt_names.txt")
        class_list = load_class_list(source.class_list, path)
    return replace(index, vocabulary=index.vocabulary.prompted_by(class_list))


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


def write_images(batch: pa.Table, *, output_uri: str) -> pa.Table:
    """Index rows to a file of the images table, and one of those that were rejected."""
    from fisa_platform.schema import IMAGES
    from fisa_platform.tables import write_batch

    return write_batch(load_images(batch), output_uri=output_uri, name="images", schema=IMAGES)


def load_images(batch: pa.Table) -> pa.Table:
    """Index rows to failable rows of the images table."""
    from concurrent.futures import ThreadPoolExecutor

    from fisa_platform.schema import IMAGES
    from fisa_platform.tables import failable_table

    # A bucket answers in tens of milliseconds, and decoding to check the pixels lets other threads run.
    with ThreadPoolExecutor(max_workers=READERS) as pool:
        return failable_table(IMAGES, pool.map(_load_image, batch.to_pylist()))


def _load_image(row: dict[str, Any]) -> dict[str, Any]:
    from dataclasses import asdict

    from fisa_model.pictures import inspect_image
    from fisa_platform.panoptic_png import decode_panoptic, panoptic_problem
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
            loaded["panoptic"] = read_file(row["panoptic_uri"])
            ids = decode_panoptic(loaded["panoptic"])
            problem = panoptic_problem(ids, row["segments_info"], size=(facts.height, facts.width))
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
