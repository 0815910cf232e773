"""Stage `propose`: the frozen mask generator over every image, once; its output is data for later runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from fisa_platform.compute import Compute
from fisa_platform.job import StageContext, StageResult

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True, slots=True)
class ProposeConfig:
    images_uri: str
    """Table of images, written by `shard`."""

    output_uri: str
    """Where the table of proposals goes."""

    generator: Literal["felzenszwalb", "mask2former"]
    """The frozen mask generator."""

    generator_weights: str | None = None
    """Folder or hub name of the generator's weights; none for a generator that has none."""

    batch_size: int = 8
    """Images that a worker takes at once."""

    rows_per_file: int = 512
    """Images of one Parquet file."""

    max_rejected_fraction: float = 0.01
    """The job fails when more than this part of the images cannot be used."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.rows_per_file < 1:
            raise ValueError(f"rows_per_file must be at least 1, got {self.rows_per_file}")
        if not 0 <= self.max_rejected_fraction <= 1:
            raise ValueError(f"max_rejected_fraction must be 0 to 1, got {self.max_rejected_fraction}")


class Proposer:
    """Loads the generator once for each actor, then turns encoded images into mask proposals."""

    def __init__(self, generator: str, weights: str | None, device: str) -> None:
        from fisa_model.mask_generators import load_mask_generator

        self.generator = load_mask_generator(generator, weights=weights, device=device)

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
        except ValueError as error:
            return {**key, "reason": str(error)}
        return {**key, **encode_proposals(self.generator(image), *image.shape[:2])}


def run(config: ProposeConfig, compute: Compute, context: StageContext) -> StageResult:
    """Read images and propose on a pool of actors, write proposals in tasks."""
    from fisa_platform.schema import PROPOSALS
    from fisa_platform.tables import WRITER, Written, collect, read_rows, write_batch

    images, pool = read_rows(
        config.images_uri,
        columns=["image_id", "file_name", "image"],
        batch_size=config.batch_size,
        compute=compute,
    )
    device = "cuda" if compute.gpus_per_worker else "cpu"
    proposals = images.map_batches(
        Proposer,
        fn_constructor_args=(config.generator, config.generator_weights, device),
        batch_size=config.batch_size,
        batch_format="pyarrow",
        compute=pool,
        **compute.ray_options(),
    )
    write = partial(write_batch, output_uri=context.output.uri, name="proposals", schema=PROPOSALS)
    parts = proposals.map_batches(write, batch_size=config.rows_per_file, **WRITER)
    written = Written.of(collect(parts, context.progress), "proposals")
    written.check(config.max_rejected_fraction)
    return StageResult(
        rows=written.rows, extra={"rejected": written.rejected}, files=written.files, message=written.summary
    )
