"""Stage `evaluate_referring`: which proposal each expression about an image means, and how much it is right.

The paper's table 3 (f) compares a CLIP before and after FISA so: run it with a frozen CLIP, and with weights.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fisa_platform.classifier import ClassifierConfig
from fisa_platform.compute import Compute
from fisa_platform.job import StageContext, StageResult

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from fisa_model.mask_generators import MaskProposals

TABLE = "referents"
BATCH_SIZE = 8
"""Images that a worker takes at once. They go through the model one by one: each has words of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateReferringConfig:
    images_uri: str
    """Table of images with referring expressions, as `shard` writes it from `refcoco`."""

    proposals_uri: str
    """Table of proposals for these images."""

    output_uri: str
    """Where the chosen masks and the scores go."""

    classifier: ClassifierConfig
    """What compares masks and expressions."""

    rows_per_file: int = 512
    """Images of one Parquet file."""

    max_rejected_fraction: float = 0.0
    """The job fails when more than this part of the images cannot be used: a score over fewer is another."""

    def __post_init__(self) -> None:
        if self.rows_per_file < 1:
            raise ValueError(f"rows_per_file must be at least 1, got {self.rows_per_file}")
        if not 0 <= self.max_rejected_fraction <= 1:
            raise ValueError(f"max_rejected_fraction must be 0 to 1, got {self.max_rejected_fraction}")
        if self.classifier.ensemble is not None:
            raise ValueError(
                "classifier.ensemble is given, but an expression is no class, seen or not; leave it out"
            )


def run(config: EvaluateReferringConfig, compute: Compute, context: StageContext) -> StageResult:
    """Choose on a pool of actors, write in tasks, and score what was written."""
    from fisa_platform.classifier import check_weights
    from fisa_platform.evaluation.referring import summarise
    from fisa_platform.rows import TableRows
    from fisa_platform.schema import REFERENTS
    from fisa_platform.tables import WRITER, Loaded, Written, collect, image_places, read_rows, write_batch
    from fisa_platform.text_table import text_table

    check_weights(config.classifier)
    places = image_places(config.images_uri)
    _check_expressions(config.images_uri)
    images, blocks = read_rows(
        places,
        columns=["image_id", "file_name", "height", "width", "image", "referred"],
        batch_size=BATCH_SIZE,
        rows_per_file=config.rows_per_file,
        compute=compute,
    )
    referred = images.map_batches(
        Loaded,
        fn_constructor_args=(partial(Referrer, config),),
        batch_size=BATCH_SIZE,
        batch_format="pyarrow",
        compute=compute.actor_pool(blocks=blocks),
        **compute.ray_options(),
    )
    write = partial(write_batch, output_uri=context.output.uri, name=TABLE, schema=REFERENTS)
    files = referred.map_batches(write, batch_size=config.rows_per_file, **WRITER)
    written = Written.of(collect(files, places.num_rows, context.progress), TABLE)
    written.check(config.max_rejected_fraction)
    rows = TableRows([uri for uri in written.files if f"/{TABLE}/" in uri], [TABLE])
    referents = [referent for row in rows for referent in row[TABLE]]
    scores = summarise(referents)
    cells = [f"{score:.1f}" for score in scores.values()]
    lines = text_table([("expressions", *scores), (str(len(referents)), *cells)])
    return StageResult(
        rows=written.rows,
        extra={"scores": scores, "expressions": len(referents), "rejected": written.rejected},
        files=written.files,
        message="\n".join([*lines, "best: if each expression chose the best of the proposals"]),
    )


class Referrer:
    """Loads the classifier once for each actor; rows of the images table in, failable referents out."""

    def __init__(self, config: EvaluateReferringConfig) -> None:
        from fisa_platform.classifier import load_predictor
        from fisa_platform.rows import ProposalRows

        self.in_model = threading.Lock()
        self.proposals = ProposalRows(config.proposals_uri)
        # Each image has a vocabulary of its own, which would be a file on the disk.
        self.predictor = load_predictor(config.classifier, caches_words=False)

    def __call__(self, batch: pa.Table) -> pa.Table:
        from fisa_model.pictures import decode_image
        from fisa_platform.schema import REFERENTS
        from fisa_platform.tables import failable_table

        done: list[dict[str, Any]] = []
        for row in batch.to_pylist():
            key = {name: row[name] for name in ("image_id", "file_name", "height", "width")}
            try:
                image, proposals = decode_image(row["image"]), self.proposals[row["image_id"]]
                referents = self._refer(image, proposals, row["referred"] or [])
                done.append({**key, "referents": referents})
            except ValueError as error:
                done.append({**key, "reason": str(error)})
        return failable_table(REFERENTS, done)

    def _refer(
        self, image: NDArray[np.uint8], proposals: MaskProposals, referred: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Values of `schema.REFERENT`, one for each expression."""
        from fisa_model.device import own_stream
        from fisa_model.referring import encode_expressions, find_referents
        from fisa_platform.evaluation.referring import best_ious, overlap

        meant = [(text, place) for place, item in enumerate(referred) for text in item["expressions"]]
        if not meant:
            return []
        expressions = [text for text, _ in meant]
        with self.in_model:
            tokens = encode_expressions(self.predictor, expressions)
            [prediction] = self.predictor.predict([image], [proposals], tokens)
        truths = [item["counts"] for item in referred]
        with own_stream(self.predictor.model.device):
            found = find_referents(prediction, expressions)
            best = best_ious(prediction.masks(), truths)
        rows = []
        for (text, place), referent in zip(meant, found, strict=True):
            common = overlap(referent.mask, truths[place])
            rows.append(
                {
                    "expression": text,
                    "counts": common.counts,
                    "similarity": referent.similarity,
                    "intersection": common.intersection,
                    "union": common.union,
                    "best_iou": best[place],
                }
            )
        return rows


def _check_expressions(images_uri: str) -> None:
    from fisa_platform.manifest import open_version

    images = open_version(images_uri).dataset("images/")
    # Tables of an older release have no such column.
    columns = [name for name in images.schema.names if name == "referred"]
    if not any(len(found) > found.null_count for found in images.to_table(columns=columns).columns):
        raise ValueError(
            f"{images_uri}: has no referring expressions; give what `shard` wrote from `refcoco`"
        )
