"""Stage `evaluate`: classify cached proposals of images with ground truth, and score the result."""

from __future__ import annotations

import pickle
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from fisa_model.config import PanopticConfig
from fisa_platform.classifier import ClassifierConfig
from fisa_platform.compute import Compute
from fisa_platform.job import StageContext, StageResult

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from fisa_model.mask_generators import MaskProposals
    from fisa_model.prediction import Prediction
    from fisa_model.predictor import FISAPredictor
    from fisa_model.vocabulary import Vocabulary
    from fisa_platform.evaluation.mask_accuracy import TrueMasks
    from fisa_platform.evaluation.summary import Metrics

METRICS_NAME = "metrics.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    images_uri: str
    """Table of images with ground truth; its vocabulary is what is named."""

    proposals_uri: str
    """Table of proposals for these images."""

    output_uri: str
    """Where predictions and metrics go."""

    classifier: ClassifierConfig | None = None
    """What names the masks; none is the oracle, which knows the truth: the most that these masks allow."""

    seen_uri: str | None = None
    """Table whose vocabulary counts as seen, usually the one trained on; none gives no such split."""

    panoptic: PanopticConfig = field(default_factory=PanopticConfig)

    other_rules: dict[str, PanopticConfig] = field(default_factory=dict)
    """Further rules by name, scored on the same class scores; the predictions are those of `panoptic`."""

    instance_ap: bool = True
    """Also the average precision of things, as instances with a score each whose masks may overlap. Truth is
    the things of the panoptic ground truth, which do not, and not COCO's own file of instances."""

    mask_accuracy: Literal["segments", "classes"] | None = None
    """Also how many ground-truth masks the classifier names right: one mask a segment, or a class."""

    batch_size: int = 8
    """Images of one forward pass."""

    rows_per_file: int = 512
    """Images of one Parquet file."""

    max_rejected_fraction: float = 0.0
    """The job fails when more than this part of the images cannot be used: a score over fewer is another."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "rows_per_file"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.max_rejected_fraction <= 1:
            raise ValueError(f"max_rejected_fraction must be 0 to 1, got {self.max_rejected_fraction}")
        if "" in self.other_rules:
            raise ValueError("other_rules must have names, got an empty one; its scores are printed under it")
        if self.mask_accuracy is not None and self.classifier is None:
            raise ValueError(
                f"mask_accuracy is {self.mask_accuracy!r}, but without a classifier nothing names masks; "
                "give one, or leave it out"
            )


def run(config: EvaluateConfig, compute: Compute, context: StageContext) -> StageResult:
    """Predict on a pool of actors; write and score in tasks; add the scores up here."""
    from fisa_model.vocabulary import Vocabulary
    from fisa_platform import storage
    from fisa_platform.classifier import check_weights
    from fisa_platform.evaluation.summary import standard_subsets
    from fisa_platform.manifest import open_version
    from fisa_platform.tables import WRITER, Loaded, Written, collect, image_places, read_rows

    if config.classifier is not None:
        check_weights(config.classifier)
    categories = open_version(config.images_uri).manifest.vocabulary
    if categories is None:
        raise ValueError(
            f"{config.images_uri}: has no ground truth to score against; evaluate a table that has"
        )
    vocabulary = Vocabulary.from_json(categories)
    places = image_places(config.images_uri)
    images, blocks = read_rows(
        places,
        columns=["image_id", "file_name", "image", "panoptic", "segments_info"],
        batch_size=config.batch_size,
        rows_per_file=config.rows_per_file,
        compute=compute,
    )
    evaluated = images.map_batches(
        Loaded,
        fn_constructor_args=(partial(Evaluator, config, vocabulary),),
        batch_size=config.batch_size,
        batch_format="pyarrow",
        compute=compute.actor_pool(blocks=blocks),
        **compute.ray_options(),
    )
    sets_of_rules = 1 + len(config.other_rules)
    write = partial(
        write_and_score,
        output_uri=context.output.uri,
        vocabulary=vocabulary,
        sets_of_rules=sets_of_rules,
    )
    files = evaluated.map_batches(write, batch_size=config.rows_per_file, **WRITER)
    parts = collect(files, places.num_rows, context.progress)
    written = Written.of(parts, "predictions")
    written.check(config.max_rejected_fraction)
    metrics = _add_up(parts, vocabulary, sets_of_rules)
    subsets = standard_subsets(vocabulary, _seen_vocabulary(config))
    scores, *others = (counts.result(subsets) for counts in metrics)
    by_other_rules = dict(zip(config.other_rules, others, strict=True))
    all_scores = {"scores": scores, "scores_by_other_rules": by_other_rules}
    metrics_uri = storage.join(context.output.uri, METRICS_NAME)
    storage.write_json(metrics_uri, {**all_scores, "classes": metrics[0].per_class()})
    return StageResult(
        rows=written.rows,
        vocabulary=categories,
        extra={**all_scores, "rejected": written.rejected},
        files=[*written.files, metrics_uri],
        message="\n".join(
            [
                _score_table(scores),
                *(f"{name}\n{_score_table(by)}" for name, by in by_other_rules.items()),
                f"scores of each class: {metrics_uri}",
            ]
        ),
    )


class Evaluator:
    """Loads the classifier once for each actor; rows of the images table in, failable predictions out."""

    def __init__(self, config: EvaluateConfig, vocabulary: Vocabulary) -> None:
        from fisa_platform.classifier import load_predictor
        from fisa_platform.rows import ProposalRows

        self.config = config
        self.vocabulary = vocabulary
        self.in_model = threading.Lock()
        self.proposals = ProposalRows(config.proposals_uri)
        self.predictor = load_predictor(config.classifier) if config.classifier else None
        self.class_tokens = self.predictor.encode_vocabulary(vocabulary) if self.predictor else None

    def __call__(self, batch: pa.Table) -> pa.Table:
        from fisa_model.pictures import decode_image
        from fisa_platform.schema import EVALUATED
        from fisa_platform.tables import failable_table

        done: list[dict[str, Any]] = []
        rows: list[dict[str, Any]] = []
        images: list[NDArray[np.uint8]] = []
        proposals: list[MaskProposals] = []
        for row in batch.to_pylist():
            try:
                image, masks = decode_image(row["image"]), self.proposals[row["image_id"]]
            except ValueError as error:
                done.append(
                    {"image_id": row["image_id"], "file_name": row["file_name"], "reason": str(error)}
                )
                continue
            rows.append(row)
            images.append(image)
            proposals.append(masks)
        if rows:
            done += self._evaluate(rows, images, proposals)
        return failable_table(EVALUATED, done)

    def _evaluate(
        self, rows: list[dict[str, Any]], images: list[NDArray[np.uint8]], proposals: list[MaskProposals]
    ) -> list[dict[str, Any]]:
        from fisa_model.device import own_stream

        if self.predictor is None:
            return [
                self._row(row, self._oracle(row, masks)) for row, masks in zip(rows, proposals, strict=True)
            ]
        truths = [] if self.config.mask_accuracy is None else [self._true_masks(row) for row in rows]
        with self.in_model:
            predictions, names = self._classify(self.predictor, images, proposals, truths)
        with own_stream(self.predictor.model.device):
            done = [self._row(row, prediction) for row, prediction in zip(rows, predictions, strict=True)]
        for place, (truth, of_masks) in enumerate(zip(truths, names, strict=True)):
            done[place] |= {"mask_classes": truth.classes, "mask_names": of_masks}
        return done

    def _classify(
        self,
        predictor: FISAPredictor,
        images: list[NDArray[np.uint8]],
        proposals: list[MaskProposals],
        truths: list[TrueMasks],
    ) -> tuple[list[Prediction], list[list[int]]]:
        """What each image's proposals are, and which class index each of its true masks gets.

        The images' features, some GB of a GPU, are gone when it returns.
        """
        assert self.class_tokens is not None
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        features = predictor.encode_images(images)
        predictions = predictor.classify(features, predictor.prepare(proposals, sizes), self.class_tokens)
        if not truths:
            return predictions, []
        masks = predictor.prepare([truth.as_proposals() for truth in truths], sizes)
        named = predictor.classify(features, masks, self.class_tokens)
        return predictions, [prediction.class_probs.argmax(dim=-1).tolist() for prediction in named]

    def _true_masks(self, row: dict[str, Any]) -> TrueMasks:
        from fisa_platform.evaluation.mask_accuracy import true_masks
        from fisa_platform.panoptic_png import decode_panoptic

        assert self.config.mask_accuracy is not None
        ids = decode_panoptic(row["panoptic"])
        return true_masks(ids, row["segments_info"], self.vocabulary, merge=self.config.mask_accuracy)

    def _oracle(self, row: dict[str, Any], proposals: MaskProposals) -> Prediction:
        import torch

        from fisa_model.prediction import Prediction
        from fisa_platform.evaluation.oracle import oracle_class_probs
        from fisa_platform.panoptic_png import decode_panoptic

        ids = decode_panoptic(row["panoptic"])
        probs = oracle_class_probs(proposals.mask_logits >= 0, ids, row["segments_info"], self.vocabulary)
        return Prediction(
            torch.from_numpy(probs),
            torch.from_numpy(proposals.mask_logits),
            torch.ones(len(proposals)),
            (ids.shape[0], ids.shape[1]),
        )

    def _row(self, row: dict[str, Any], prediction: Prediction) -> dict[str, Any]:
        from fisa_platform.classifier import prediction_row
        from fisa_platform.evaluation.instances import found_instances
        from fisa_platform.panoptic_png import encode_panoptic

        sets_of_rules = [self.config.panoptic, *self.config.other_rules.values()]
        # Semantic labels and instances depend on objectness alone.
        by_objectness = {
            objectness: {
                "semantic": encode_panoptic(prediction.semantic(objectness=objectness)),
                "instances": found_instances(prediction, self.vocabulary, objectness)
                if self.config.instance_ap
                else None,
            }
            for objectness in {rules.objectness for rules in sets_of_rules}
        }
        first, *others = (
            {**prediction_row(prediction, self.vocabulary, rules), **by_objectness[rules.objectness]}
            for rules in sets_of_rules
        )
        return {
            "image_id": row["image_id"],
            "file_name": row["file_name"],
            **first,
            "by_other_rules": others,
            "true_panoptic": row["panoptic"],
            "true_segments_info": row["segments_info"],
            "mask_classes": None,
            "mask_names": None,
        }


def write_and_score(
    batch: pa.Table, *, output_uri: str, vocabulary: Vocabulary, sets_of_rules: int
) -> pa.Table:
    """Write a file of predictions, and count its metrics while ground truth is at hand."""
    import pyarrow as pa

    from fisa_platform.evaluation.summary import Metrics, score_image
    from fisa_platform.schema import PREDICTIONS
    from fisa_platform.tables import write_batch

    metrics = [Metrics(vocabulary) for _ in range(sets_of_rules)]
    for row in batch.to_pylist():
        if row["reason"] is None:
            score_image(row, vocabulary, metrics)
    written = write_batch(batch, output_uri=output_uri, name="predictions", schema=PREDICTIONS)
    # The counts belong to the whole batch, so they stand in its first row.
    counts = [pickle.dumps(metrics), *[None] * written.num_rows][: written.num_rows]
    return written.append_column("metrics", pa.array(counts, pa.large_binary()))


def _add_up(parts: list[dict[str, Any]], vocabulary: Vocabulary, sets_of_rules: int) -> list[Metrics]:
    """The counts of all files, for each set of rules."""
    from fisa_platform.evaluation.summary import Metrics

    metrics = [Metrics(vocabulary) for _ in range(sets_of_rules)]
    for part in parts:
        if part["metrics"] is not None:
            # Safe to unpickle: our own task made it a moment ago.
            for counts, counted in zip(metrics, pickle.loads(part["metrics"]), strict=True):
                counts.merge(counted)
    return metrics


def _seen_vocabulary(config: EvaluateConfig) -> Vocabulary | None:
    from fisa_model.vocabulary import Vocabulary
    from fisa_platform.manifest import open_version

    if config.seen_uri is None:
        return None
    return Vocabulary.from_json(open_version(config.seen_uri).manifest.vocabulary or [])


def _score_table(scores: dict[str, dict[str, float]]) -> str:
    from fisa_platform.evaluation.summary import METRICS

    columns = [name for name in METRICS if any(name in values for values in scores.values())]
    lines = [f"{'':8}" + "".join(f"{name:>9}" for name in columns)]
    for subset, values in scores.items():
        cells = "".join(f"{values[name]:9.1f}" if name in values else f"{'-':>9}" for name in columns)
        lines.append(f"{subset:8}{cells}")
    return "\n".join(lines)
