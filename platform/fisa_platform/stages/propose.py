"""Stage `propose`: the frozen mask generator over every image, once; its output is data for later runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fisa_model.mask_generators import BATCH_PIXELS, GeneratorName, Precision, check_generator
from fisa_platform.compute import Compute
from fisa_platform.job import StageContext, StageResult
from fisa_platform.mask_codec import MaskEncoding

if TYPE_CHECKING:
    import pyarrow as pa

    from fisa_model.mask_generators import BatchMaskGenerator, MaskProposals


TRUTH = ("panoptic", "segments_info")
"""Columns of the images table that only the oracle reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProposeConfig:
    images_uri: str
    """Table of images, written by `shard`."""

    output_uri: str
    """Where the table of proposals goes."""

    generator: Literal[GeneratorName, "oracle"]
    """The frozen mask generator; `oracle` proposes the segments of the ground truth."""

    generator_weights: str | None = None
    """Folder or hub name of the generator's weights; none is the hub's Swin-B of COCO for Mask2Former, and
    right for a generator that has none."""

    generator_uri: str | None = None
    """In place of generator_weights: what `train` wrote when its Mask2Former learnt."""

    generator_size: tuple[int, int] | None = None
    """Test size of a generator that is a network, [shorter side, longest side] in pixels; none is its own."""

    encoding: MaskEncoding = "rle"
    """How masks are stored: run lengths, bits, or 16 or 256 levels at a quarter of the image's side."""

    precision: Precision = "fp32"
    """`bf16` is faster on a GPU, and moves the borders of masks a little."""

    batch_size: int = 16
    """Images that a worker takes at once; decoded, they are in its memory together."""

    batch_pixels: int = BATCH_PIXELS
    """Pixels of these that go through the network together, at its own test size; what fits its memory."""

    rows_per_file: int = 512
    """Images of one Parquet file."""

    max_rejected_fraction: float = 0.01
    """The job fails when more than this part of the images cannot be used."""

    def __post_init__(self) -> None:
        if self.generator == "oracle" and self.generator_weights is not None:
            raise ValueError(
                f"generator_weights: 'oracle' has none, got {self.generator_weights!r}; remove it"
            )
        if self.generator == "oracle" and self.generator_size is not None:
            raise ValueError(
                f"generator_size: 'oracle' has no test size, got {list(self.generator_size)}; remove it"
            )
        if self.generator_uri is not None and (
            self.generator != "mask2former" or self.generator_weights is not None
        ):
            raise ValueError(
                "generator_uri names a Mask2Former: generator must be 'mask2former' and generator_weights "
                f"none, got {self.generator!r} and {self.generator_weights!r}"
            )
        if self.generator != "oracle":
            check_generator(self.generator, self.generator_weights, self.generator_size, self.precision)
        for name in ("batch_size", "batch_pixels", "rows_per_file"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.max_rejected_fraction <= 1:
            raise ValueError(f"max_rejected_fraction must be 0 to 1, got {self.max_rejected_fraction}")


def decode_images(batch: pa.Table, *, rows_at_once: int, needs_truth: bool) -> Iterator[pa.Table]:
    """Rows of the images table to failable rows of `schema.DECODED`, a few at a time."""
    from fisa_platform.schema import DECODED
    from fisa_platform.tables import failable_table

    for start in range(0, batch.num_rows, rows_at_once):
        rows = batch.slice(start, rows_at_once).to_pylist()
        yield failable_table(DECODED, [_decode(row, needs_truth=needs_truth) for row in rows])


def _decode(row: dict[str, Any], *, needs_truth: bool) -> dict[str, Any]:
    from fisa_model.pictures import decode_image

    if needs_truth and (row["panoptic"] is None or row["segments_info"] is None):
        return {**row, "reason": "generator 'oracle' needs ground truth, which this image lacks"}
    try:
        image = decode_image(row["image"])
    except ValueError as error:
        return {**row, "reason": str(error)}
    return {**row, "height": image.shape[0], "width": image.shape[1], "pixels": image.tobytes()}


class Proposer:
    """Loads the generator once for each actor, then turns decoded images into mask proposals."""

    def __init__(self, config: ProposeConfig, device: str) -> None:
        self.encoding = config.encoding
        self.generator = None if config.generator == "oracle" else load_generator(config, device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        from fisa_platform.mask_codec import encode_proposals
        from fisa_platform.schema import PROPOSALS
        from fisa_platform.tables import failable_table

        rows = batch.to_pylist()
        decoded = [row for row in rows if row["reason"] is None]
        for row, masks in zip(decoded, self._propose(decoded), strict=True):
            row.update(encode_proposals(masks, row["height"], row["width"], self.encoding))
        return failable_table(PROPOSALS, rows)

    def _propose(self, rows: list[dict[str, Any]]) -> list[MaskProposals]:
        import numpy as np

        if self.generator is None:
            return [true_proposals_of(row) for row in rows]
        images = [
            np.frombuffer(row["pixels"], np.uint8).reshape(row["height"], row["width"], 3) for row in rows
        ]
        return self.generator.batch(images)


def load_generator(config: ProposeConfig, device: str) -> BatchMaskGenerator:
    """The network that a config names, on a device."""
    from fisa_model.mask_generators import load_mask_generator

    with tempfile.TemporaryDirectory() as folder:
        weights = config.generator_weights
        if config.generator_uri is not None:
            weights = fetch_trained_generator(config.generator_uri, Path(folder))
        return load_mask_generator(
            config.generator,
            weights=weights,
            size=config.generator_size,
            device=device,
            precision=config.precision,
            batch_pixels=config.batch_pixels,
        )


def fetch_trained_generator(uri: str, folder: Path) -> str:
    """Copy the Mask2Former that learnt in a run of `train` to a folder, and return that.

    Raises:
        ValueError: none did.
    """
    from fisa_platform import storage
    from fisa_platform.manifest import open_version
    from fisa_platform.stages.train import GENERATOR_NAME

    files = open_version(uri).files(prefix=f"{GENERATOR_NAME}/")
    if not files:
        raise ValueError(
            f"generator_uri: {uri}: no generator learnt in this run; give its training generator_weights, or "
            "name the frozen generator here"
        )
    for file in files:
        storage.download(file, folder / file.rpartition("/")[2])
    return str(folder)


def true_proposals_of(row: dict[str, Any]) -> MaskProposals:
    """The ground-truth segments of a row of the images table."""
    from fisa_model.mask_generators.oracle import true_proposals
    from fisa_platform.panoptic_png import decode_panoptic

    return true_proposals(decode_panoptic(row["panoptic"]), row["segments_info"])


def run(config: ProposeConfig, compute: Compute, context: StageContext) -> StageResult:
    """Read, decode, propose, write; go on where a run was killed.

    Tasks read and decode, ahead of the actors that hold a generator, on their cores or, where they have a
    GPU, on others. Tasks write.
    """
    from fisa_platform.resume import check_once, earlier_work, without
    from fisa_platform.schema import PROPOSALS
    from fisa_platform.tables import (
        WRITER,
        Loaded,
        Written,
        collect,
        image_places,
        read_rows,
        reader_options,
        write_batch,
    )

    earlier = earlier_work(context.output, "proposals")
    if earlier.ids:
        context.progress(f"{len(earlier.ids)} images were done by a run that did not end")
    places = image_places(config.images_uri)
    left = without(places, earlier.ids)
    images, blocks = read_rows(
        left,
        columns=["image_id", "file_name", "image", *(TRUTH if config.generator == "oracle" else ())],
        batch_size=config.batch_size,
        rows_per_file=config.rows_per_file,
        compute=compute,
    )
    decode = partial(decode_images, rows_at_once=config.batch_size, needs_truth=config.generator == "oracle")
    device = "cuda" if compute.gpus_per_worker else "cpu"
    proposals = images.map_batches(
        decode, batch_size=None, batch_format="pyarrow", **reader_options(compute)
    ).map_batches(
        Loaded,
        fn_constructor_args=(partial(Proposer, config, device),),
        batch_size=config.batch_size,
        batch_format="pyarrow",
        compute=compute.actor_pool(blocks=blocks),
        **compute.ray_options(),
    )
    write = partial(write_batch, output_uri=context.output.uri, name="proposals", schema=PROPOSALS)
    parts = proposals.map_batches(write, batch_size=config.rows_per_file, **WRITER)
    done = [*earlier.parts, *collect(parts, left.num_rows, context.progress)]
    written = Written.of(done, "proposals")
    written.check(config.max_rejected_fraction)
    check_once(places["image_id"], written.files)
    return StageResult(
        rows=written.rows, extra={"rejected": written.rejected}, files=written.files, message=written.summary
    )
