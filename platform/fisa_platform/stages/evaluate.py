"""Stage `evaluate`: classify cached proposals of images with ground truth, and score the result."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from fisa_model.config import PanopticConfig
from fisa_platform.classifier import ClassifierConfig
from fisa_platform.compute import Compute
from fisa_platform.job import StageContext, StageResult

if TYPE_CHECKING:
    from fisa_model.vocabulary import Vocabulary
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

    other_truth_uris: dict[str, str] = field(default_factory=dict)
    """Further tables of the same images by name, with other ground truth over other classes, scored in the
    same pass of the image tower; the predictions that are kept are those of `images_uri`."""

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
        for name in ("other_rules", "other_truth_uris"):
            if "" in getattr(self, name):
                raise ValueError(f"{name} must have names, got an empty one; its scores are printed under it")
        if self.mask_accuracy is not None and self.classifier is None:
            raise ValueError(
                f"mask_accuracy is {self.mask_accuracy!r}, but without a classifier nothing names masks; "
                "give one, or leave it out"
            )


def run(config: EvaluateConfig, compute: Compute, context: StageContext) -> StageResult:
    """Predict on a pool of actors; write and score in tasks; add the scores up here."""
    from fisa_platform import storage
    from fisa_platform.classifier import check_weights
    from fisa_platform.evaluation.summary import standard_subsets
    from fisa_platform.stages.evaluate_worker import Evaluator, write_and_score
    from fisa_platform.tables import WRITER, Loaded, Written, collect, image_places, read_rows

    if config.classifier is not None:
        check_weights(config.classifier)
    names = list(config.other_truth_uris)
    vocabularies = [_vocabulary(uri) for uri in (config.images_uri, *config.other_truth_uris.values())]
    seen = None if config.seen_uri is None else _vocabulary(config.seen_uri)
    places = image_places(config.images_uri)
    _check_same_images(config)
    images, blocks = read_rows(
        places,
        columns=["image_id", "file_name", "image", "panoptic", "segments_info"],
        batch_size=config.batch_size,
        rows_per_file=config.rows_per_file,
        compute=compute,
    )
    evaluated = images.map_batches(
        Loaded,
        fn_constructor_args=(partial(Evaluator, config, vocabularies),),
        batch_size=config.batch_size,
        batch_format="pyarrow",
        compute=compute.actor_pool(blocks=blocks),
        **compute.ray_options(),
    )
    rules = list(config.other_rules)
    write = partial(
        write_and_score,
        output_uri=context.output.uri,
        vocabularies=vocabularies,
        sets_of_rules=1 + len(rules),
    )
    files = evaluated.map_batches(write, batch_size=config.rows_per_file, **WRITER)
    parts = collect(files, places.num_rows, context.progress)
    written = Written.of(parts, "predictions")
    written.check(config.max_rejected_fraction)
    counts = _add_up(parts, vocabularies, 1 + len(rules))
    first, *others = (
        Scored.of(metrics, rules, standard_subsets(vocabulary, seen))
        for metrics, vocabulary in zip(counts, vocabularies, strict=True)
    )
    by_truth = dict(zip(names, others, strict=True))
    metrics_uri = storage.join(context.output.uri, METRICS_NAME)
    in_full = {name: scored.in_full() for name, scored in by_truth.items()}
    storage.write_json(metrics_uri, {**first.in_full(), "by_other_truth": in_full})
    tables = [first.text(), *(scored.text(name) for name, scored in by_truth.items())]
    return StageResult(
        rows=written.rows,
        vocabulary=vocabularies[0].to_json(),
        extra={
            **first.scores,
            "by_other_truth": {name: scored.scores for name, scored in by_truth.items()},
            "rejected": written.rejected,
        },
        files=[*written.files, metrics_uri],
        message="\n".join([*tables, f"scores of each class: {metrics_uri}"]),
    )


@dataclass(frozen=True, slots=True)
class Scored:
    """What came of one ground truth."""

    scores: dict[str, Any]
    """`scores` by subset and metric, and `scores_by_other_rules`, the same by their names."""

    classes: list[dict[str, Any]]

    @classmethod
    def of(
        cls, metrics: Sequence[Metrics], rules: Sequence[str], subsets: Mapping[str, Collection[int]]
    ) -> Scored:
        """From the counts of each set of rules, all but the first of which have names."""
        first, *others = (counts.result(subsets) for counts in metrics)
        by_rules = dict(zip(rules, others, strict=True))
        return cls({"scores": first, "scores_by_other_rules": by_rules}, metrics[0].per_class())

    def in_full(self) -> dict[str, Any]:
        """With what each class got."""
        return {**self.scores, "classes": self.classes}

    def text(self, truth: str = "") -> str:
        """A table for each set of rules, under their names and that of the ground truth."""
        from fisa_platform.evaluation.summary import score_table

        by_rules = self.scores["scores_by_other_rules"].items()
        tables = {truth: self.scores["scores"]}
        tables |= {f"{truth}, {name}" if truth else name: scores for name, scores in by_rules}
        return "\n".join(f"{title}\n{score_table(scores)}".lstrip("\n") for title, scores in tables.items())


def _vocabulary(images_uri: str) -> Vocabulary:
    from fisa_model.vocabulary import Vocabulary
    from fisa_platform.manifest import open_version

    categories = open_version(images_uri).manifest.vocabulary
    if categories is None:
        raise ValueError(
            f"{images_uri}: has no ground truth to score against, and so no classes; give a table that has"
        )
    return Vocabulary.from_json(categories)


def _check_same_images(config: EvaluateConfig) -> None:
    """Makes sure that further ground truths are of the same images: a score over fewer would be another."""
    from fisa_platform.manifest import open_version

    def read(uri: str) -> dict[str, str]:
        columns = ["image_id", "file_name", "height", "width"]
        rows = open_version(uri).dataset("images/").to_table(columns=columns).to_pylist()
        return {r["image_id"]: f"{r['file_name']} of {r['height']} x {r['width']} pixels" for r in rows}

    wanted = read(config.images_uri) if config.other_truth_uris else {}
    for name, uri in config.other_truth_uris.items():
        found = read(uri)
        for image_id in [*wanted, *found]:
            here, there = (images.get(image_id, "not there") for images in (wanted, found))
            if here != there:
                raise ValueError(
                    f"other_truth_uris.{name}: image {image_id} is {here} in {config.images_uri} and {there} "
                    f"in {uri}; give ground truth of the same images"
                )


def _add_up(
    parts: list[dict[str, Any]], vocabularies: Sequence[Vocabulary], sets_of_rules: int
) -> list[list[Metrics]]:
    """The counts of all files, for each ground truth and each set of rules."""
    from fisa_platform.evaluation.summary import Metrics

    metrics = [[Metrics(vocabulary) for _ in range(sets_of_rules)] for vocabulary in vocabularies]
    for part in parts:
        if part["metrics"] is not None:
            # Safe to unpickle: our own task made it a moment ago.
            for of_truth, counted in zip(metrics, pickle.loads(part["metrics"]), strict=True):
                for counts, of_part in zip(of_truth, counted, strict=True):
                    counts.merge(of_part)
    return metrics
