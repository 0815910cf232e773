"""Stage `train`: fit the mask classifier on cached proposals, with Ray Train, and Accelerate in its workers.

A checkpoint goes into the version's folder `ray_train`, and belongs to no manifest; the same job, run again,
goes on from the last one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from fisa_model.config import FISAConfig
from fisa_model.mask_generators import Precision
from fisa_platform.classifier import WEIGHTS_NAME
from fisa_platform.compute import Compute, is_embedded
from fisa_platform.job import StageContext, StageResult
from fisa_platform.tracking import TrackingConfig, check_installed
from fisa_platform.training.batches import BatchConfig
from fisa_platform.training.optim import OptimizerConfig, ScheduleConfig

METRICS_NAME = "metrics.jsonl"
GENERATOR_NAME = "generator"
"""Folder of a mask generator that learnt, as transformers saves it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    no_object_weight: float = 0.0
    """Weight of unmatched proposals, whose class is void; 0 leaves them out, as MaskCLIP does."""

    points: int = 12_544
    """Points at which masks are compared."""

    def __post_init__(self) -> None:
        if self.no_object_weight < 0:
            raise ValueError(f"no_object_weight must be 0 or more, got {self.no_object_weight}")
        if self.points < 1:
            raise ValueError(f"points must be at least 1, got {self.points}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    images_uri: str
    """Table of images with ground truth, written by `shard`; its vocabulary is what is learnt."""

    output_uri: str
    """Where the weights go."""

    model: FISAConfig
    """The CLIP, and what is added to it."""

    iterations: int
    """Optimizer steps."""

    proposals_uri: str | None = None
    """Table of proposals for these images, written by `propose`."""

    generator_weights: str | None = None
    """In place of proposals_uri: a Mask2Former, folder or hub name, that proposes in training, and learns."""

    templates: Literal["vild", "photo", "literal"] = "vild"
    """Sentences that class names are put into."""

    void: str | None = "other"
    """The word for none of the classes, a row of the classifier while training; none leaves it out."""

    classes_per_batch: int | None = None
    """Classes that a forward pass learns among: those of its images, and others at random; none means all."""

    seed: int = 42
    """Order of the images, their jitter, and the start of what is new."""

    data_fraction: float = 1.0
    """Part of the images that is trained on. With one seed, those of a smaller part are in a larger one."""

    precision: Precision = "fp32"
    """Arithmetic of the forward pass; losses are always fp32."""

    batches: BatchConfig = field(default_factory=BatchConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    checkpoint_interval: int = 500
    """Steps between two checkpoints, from which a run that was stopped goes on; 0 writes none."""

    tracking: TrackingConfig | None = None
    """Trackers that show the run while it trains; none writes `metrics.jsonl` alone."""

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")
        if self.classes_per_batch is not None and self.classes_per_batch < 1:
            raise ValueError(
                f"classes_per_batch must be at least 1, got {self.classes_per_batch}; leave it out for all"
            )
        if not 0 < self.data_fraction <= 1:
            raise ValueError(f"data_fraction must be above 0 and at most 1, got {self.data_fraction}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")
        if self.checkpoint_interval < 0:
            raise ValueError(f"checkpoint_interval must be 0 or more, got {self.checkpoint_interval}")
        if (self.proposals_uri is None) == (self.generator_weights is None):
            raise ValueError(
                "exactly one of proposals_uri and generator_weights must be given; proposals_uri is what "
                "`propose` wrote"
            )
        if self.model.trained == "none":
            raise ValueError("model.trained is 'none', so there is nothing to train; choose 'simo'")
        if self.loss.no_object_weight > 0 and self.void is None:
            raise ValueError("loss.no_object_weight is above 0 but void is none; name a word such as 'other'")


def run(config: TrainConfig, compute: Compute, context: StageContext) -> StageResult:
    """Run the workers; a run that was stopped goes on from its last checkpoint."""
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig

    from fisa_platform import storage
    from fisa_platform.manifest import open_version
    from fisa_platform.stages.train_worker import train_worker

    check_workers(compute, config.batches)
    if config.tracking is not None:
        check_installed(config.tracking)
    images = open_version(config.images_uri)
    if images.manifest.vocabulary is None:
        raise ValueError(f"{config.images_uri}: has no ground truth; train on a table that has")
    known = len(images.manifest.vocabulary)
    if config.classes_per_batch is not None and config.classes_per_batch > known:
        raise ValueError(
            f"classes_per_batch is {config.classes_per_batch}, but the vocabulary of {config.images_uri} has "
            f"{known} classes; give at most these, or leave it out for all"
        )
    run_config: Any = RunConfig  # typed as in the former API, which has no logging_config
    filesystem, path = storage.pyarrow_filesystem(storage.join(context.output.version_uri, "ray_train"))
    workers = compute.workers
    trainer = trainer_class()(
        cast(Any, train_worker),  # Ray's signature lacks the value that a worker may return
        train_loop_config={
            "config": config,
            "output_uri": context.output.uri,
            "version_uri": context.output.version_uri,
        },
        scaling_config=ScalingConfig(
            # A range is elastic; Ray's own signature lacks it.
            num_workers=workers.max if workers.min in (0, workers.max) else (workers.min, workers.max),  # type: ignore[arg-type]
            use_gpu=compute.gpus_per_worker > 0,
            resources_per_worker=compute.bundle(),
        ),
        run_config=run_config(
            name="run",
            storage_path=path,
            storage_filesystem=filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=3),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    result: Any = trainer.fit()
    # Ray's own, of no use afterwards; beside a finished version it would be litter.
    marker = storage.join(context.output.version_uri, "ray_train/run/.validate_storage_marker")
    if storage.exists(marker):
        storage.remove(marker)
    if result.return_value is not None:
        raise ValueError(result.return_value)
    generator_uri = storage.join(context.output.uri, GENERATOR_NAME)
    last = json.loads(storage.read_bytes(storage.join(context.output.uri, METRICS_NAME)).splitlines()[-1])
    return StageResult(
        rows=config.iterations * config.batches.size,
        vocabulary=images.manifest.vocabulary,
        extra={"final": last},
        message=f"{config.iterations} iterations, final loss {last['loss']:.3f}",
        files=[
            *(storage.join(context.output.uri, name) for name in (WEIGHTS_NAME, METRICS_NAME)),
            *(storage.join(generator_uri, name) for name in storage.list_files(generator_uri)),
        ],
    )


def trainer_class() -> Any:
    """Ray's TorchTrainer without actors that are of no use here, each of which costs seconds of imports.

    There are no Ray datasets to manage. What cleans up after a controller that was killed asks the dashboard,
    and prints a traceback where there is none.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    useless = (DatasetsCallback, PlacementGroupCleanerCallback) if is_embedded() else (DatasetsCallback,)
    base: Any = TorchTrainer

    class Trainer(base):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            return [c for c in super()._create_default_callbacks() if not isinstance(c, useless)]

    return Trainer


def check_workers(compute: Compute, batches: BatchConfig) -> None:
    """Refuse a number of workers that Ray may choose but that cannot share a batch equally, or GPUs."""
    if compute.gpus_per_worker not in (0, 1):
        raise ValueError(
            f"compute.gpus_per_worker is {compute.gpus_per_worker:g}, but a worker is one process "
            "on one GPU; write 1, and the number of GPUs as compute.workers.min and max"
        )
    workers = compute.workers
    for count in range(workers.min or workers.max, workers.max + 1):
        if batches.size % (count * batches.accumulation):
            raise ValueError(
                f"batches.size ({batches.size}) cannot be shared by {count} workers with accumulation "
                f"{batches.accumulation}; make it a multiple, or set compute.workers.min and max to a number "
                "that divides it"
            )
