"""Stage `propose`: the frozen mask generator over every image, once; its output is data for later runs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fisa_model.mask_generators import GeneratorName
from fisa_platform.compute import Compute
from fisa_platform.job import StageContext, StageResult
from fisa_platform.mask_codec import MaskEncoding

if TYPE_CHECKING:
    import pyarrow as pa

    from fisa_model.mask_generators import MaskGenerator, MaskProposals

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
    """Folder or hub name of the generator's weights; none for a generator that has none."""

    generator_uri: str | None = None
    """In place of generator_weights: what `train` wrote when its Mask2Former learnt."""

    encoding: MaskEncoding = "rle"
    """How masks are stored: run lengths, bits, or 16 or 256 levels at a quarter of the image's side."""

    batch_size: int = 8
    """Images that a worker takes at once."""

    rows_per_file: int = 512
    """Images of one Parquet file."""

    max_rejected_fraction: float = 0.01
    """The job fails when more than this part of the images cannot be used."""

    def __post_init__(self) -> None:
        if self.generator == "oracle" and self.generator_weights is not None:
            raise ValueError(
                f"generator_weights: 'oracle' has none, got {self.generator_weights!r}; remove it"
            )
        if self.generator_uri is not None and (
            self.generator != "mask2former" or self.generator_weights is not None
        ):
            raise ValueError(
                "generator_uri names a Mask2Former: generator must be 'mask2former' and generator_weights "
                f"none, got {self.generator!r} and {self.generator_weights!r}"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.rows_per_file < 1:
            raise ValueError(f"rows_per_file must be at least 1, got {self.rows_per_file}")
        if not 0 <= self.max_rejected_fraction <= 1:
            raise ValueError(f"max_rejected_fraction must be 0 to 1, got {self.max_rejected_fraction}")


class Proposer:
    """Loads the generator once for each actor, then turns encoded images into mask proposals."""

    def __init__(self, config: ProposeConfig, device: str) -> None:
        from fisa_model.mask_generators import load_mask_generator

        self.encoding = config.encoding
        self.generator: MaskGenerator | None = None
        if config.generator_uri is not None:
            self.generator = load_trained_generator(config.generator_uri, device)
        elif config.generator != "oracle":
            self.generator = load_mask_generator(
                config.generator, weights=config.generator_weights, device=device
            )

    def __call__(self, batch: pa.Table) -> pa.Table:
        from fisa_platform.schema import PROPOSALS
        from fisa_platform.tables import failable_table

        return failable_table(PROPOSALS, [self._propose(row) for row in batch.to_pylist()])

    def _propose(self, row: dict[str, Any]) -> dict[str, Any]:
        from fisa_platform.images import decode_image
        from fisa_platform.mask_codec import encode_proposals

        key = {"image_id": row["image_id"], "file_name": row["file_name"]}
        try:
            image = decode_image(row["image"])
            proposals = true_proposals_of(row) if self.generator is None else self.generator(image)
        except ValueError as error:
            return {**key, "reason": str(error)}
        return {**key, **encode_proposals(proposals, image.shape[0], image.shape[1], self.encoding)}


def load_trained_generator(uri: str, device: str) -> MaskGenerator:
    """The Mask2Former that learnt in a run of `train`.

    Raises:
        ValueError: none did.
    """
    from fisa_model.mask_generators import load_mask_generator
    from fisa_platform import storage
    from fisa_platform.manifest import open_version
    from fisa_platform.stages.train import GENERATOR_NAME

    files = open_version(uri).files(prefix=f"{GENERATOR_NAME}/")
    if not files:
        raise ValueError(
            f"generator_uri: {uri}: no generator learnt in this run; give its training generator_weights, or "
            "name the frozen generator here"
        )
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            storage.download(file, Path(folder) / file.rpartition("/")[2])
        return load_mask_generator("mask2former", weights=folder, device=device)


def true_proposals_of(row: dict[str, Any]) -> MaskProposals:
    """The ground-truth segments of a row of the images table; refuses a row without."""
    from fisa_model.mask_generators.oracle import true_proposals
    from fisa_platform.panoptic_png import decode_panoptic

    if row["panoptic"] is None or row["segments_info"] is None:
        raise ValueError("generator 'oracle' needs ground truth, which this image lacks")
    return true_proposals(decode_panoptic(row["panoptic"]), row["segments_info"])


def run(config: ProposeConfig, compute: Compute, context: StageContext) -> StageResult:
    """Read images and propose on a pool of actors, write proposals in tasks; go on where a run was killed."""
    from fisa_platform.resume import check_once, earlier_work, without
    from fisa_platform.schema import PROPOSALS
    from fisa_platform.tables import WRITER, Written, collect, image_places, read_rows, write_batch

    earlier = earlier_work(context.output, "proposals")
    if earlier.ids:
        context.progress(f"{len(earlier.ids)} images were done by a run that did not end")
    places = image_places(config.images_uri)
    images, pool = read_rows(
        without(places, earlier.ids),
        columns=["image_id", "file_name", "image", *(TRUTH if config.generator == "oracle" else ())],
        batch_size=config.batch_size,
        compute=compute,
    )
    device = "cuda" if compute.gpus_per_worker else "cpu"
    proposals = images.map_batches(
        Proposer,
        fn_constructor_args=(config, device),
        batch_size=config.batch_size,
        batch_format="pyarrow",
        compute=pool,
        **compute.ray_options(),
    )
    write = partial(write_batch, output_uri=context.output.uri, name="proposals", schema=PROPOSALS)
    parts = proposals.map_batches(write, batch_size=config.rows_per_file, **WRITER)
    written = Written.of([*earlier.parts, *collect(parts, context.progress)], "proposals")
    written.check(config.max_rejected_fraction)
    check_once(places["image_id"], written.files)
    return StageResult(
        rows=written.rows, extra={"rejected": written.rejected}, files=written.files, message=written.summary
    )
