"""Stage `train`: fit the mask classifier on cached proposals, with Ray Train, and Accelerate in its workers.

A checkpoint goes into the version's folder `ray_train`, and belongs to no manifest; the same job, run again,
goes on from the last one.
"""

from __future__ import annotations

import json
import logging
import tempfile
import traceback
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from fisa_model.config import FISAConfig
from fisa_platform.classifier import WEIGHTS_NAME
from fisa_platform.compute import Compute, Workers, is_embedded
from fisa_platform.job import StageContext, StageResult
from fisa_platform.training.batches import BatchConfig
from fisa_platform.training.optim import OptimizerConfig, ScheduleConfig

if TYPE_CHECKING:
    from collections.abc import Iterable

    from accelerate import Accelerator

    from fisa_model.fisa import FISA
    from fisa_model.objective import FISAObjective, TrainingBatch
    from fisa_model.text_encoder import ClassTokens
    from fisa_model.vocabulary import Vocabulary
    from fisa_platform.training.batches import TrainingExamples
    from fisa_platform.training.loop import LoopConfig, TrainingState

logger = logging.getLogger(__name__)

METRICS_NAME = "metrics.jsonl"


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

    proposals_uri: str
    """Table of proposals for these images, written by `propose`."""

    output_uri: str
    """Where the weights go."""

    model: FISAConfig
    """The CLIP, and what is added to it."""

    iterations: int
    """Optimizer steps."""

    templates: Literal["vild", "photo", "literal"] = "vild"
    """Sentences that class names are put into."""

    void: str | None = "other"
    """The word for none of the classes, a row of the classifier while training; none leaves it out."""

    seed: int = 42
    """Order of the images, their jitter, and the start of what is new."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward pass; losses are always fp32."""

    batches: BatchConfig = field(default_factory=BatchConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    checkpoint_interval: int = 500
    """Steps between two checkpoints, from which a run that was stopped goes on; 0 writes none."""

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")
        if self.checkpoint_interval < 0:
            raise ValueError(f"checkpoint_interval must be 0 or more, got {self.checkpoint_interval}")
        if self.model.trained == "none":
            raise ValueError("model.trained is 'none', so there is nothing to train; choose 'simo'")
        if self.loss.no_object_weight > 0 and self.void is None:
            raise ValueError("loss.no_object_weight is above 0 but void is none; name a word such as 'other'")


def run(config: TrainConfig, compute: Compute, context: StageContext) -> StageResult:
    """Run the workers; a run that was stopped goes on from its last checkpoint."""
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig

    from fisa_platform import storage
    from fisa_platform.manifest import open_version

    check_workers(compute.workers, config.batches)
    images = open_version(config.images_uri)
    if images.manifest.vocabulary is None:
        raise ValueError(f"{config.images_uri}: has no ground truth; train on a table that has")
    run_config: Any = RunConfig  # typed as in the former API, which has no logging_config
    filesystem, path = storage.pyarrow_filesystem(storage.join(context.output.version_uri, "ray_train"))
    workers = compute.workers
    trainer = trainer_class()(
        cast(Any, _train_worker),  # Ray's signature lacks the value that a worker may return
        train_loop_config={"config": config, "output_uri": context.output.uri},
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
    if result.return_value is not None:
        raise ValueError(result.return_value)
    last = json.loads(storage.read_bytes(storage.join(context.output.uri, METRICS_NAME)).splitlines()[-1])
    return StageResult(
        rows=config.iterations * config.batches.size,
        vocabulary=images.manifest.vocabulary,
        extra={"final": last},
        message=f"{config.iterations} iterations, final loss {last['loss']:.3f}",
        files=[storage.join(context.output.uri, name) for name in (WEIGHTS_NAME, METRICS_NAME)],
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


def check_workers(workers: Workers, batches: BatchConfig) -> None:
    """Refuse a number of workers that Ray may choose but that cannot share a batch equally."""
    for count in range(workers.min or workers.max, workers.max + 1):
        if batches.size % (count * batches.accumulation):
            raise ValueError(
                f"batches.size ({batches.size}) cannot be shared by {count} workers with accumulation "
                f"{batches.accumulation}; make it a multiple, or set compute.workers.min and max to a number "
                "that divides it"
            )


def _train_worker(arguments: dict[str, Any]) -> str | None:
    """What each Ray Train worker does; a mistake of the spec is returned, since Ray would retry an error."""
    try:
        _train(arguments)
    except ValueError as error:
        place = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if not {"fisa_platform", "fisa_model"}.intersection(place.parts):
            raise
        return str(error)
    return None


def _train(arguments: dict[str, Any]) -> None:
    import ray.train.torch
    from accelerate import Accelerator

    from fisa_model.vocabulary import Vocabulary
    from fisa_platform.manifest import open_version
    from fisa_platform.training.loop import log_progress, train

    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    logging.getLogger("fisa_platform").setLevel(logging.INFO)
    config: TrainConfig = arguments["config"]
    world = ray.train.get_context().get_world_size()
    accelerator = Accelerator(
        # Unless told, Accelerate takes each of several workers without a GPU for a run of its own.
        cpu=world > 1 and ray.train.torch.get_device().type == "cpu",
        mixed_precision="bf16" if config.precision == "bf16" else "no",
    )
    assert accelerator.num_processes == world
    vocabulary = Vocabulary.from_json(open_version(config.images_uri).manifest.vocabulary or [])
    state = build_state(config, vocabulary, accelerator)
    history: list[dict[str, float]] = []
    _resume(state, history)
    examples = build_examples(config, vocabulary, state.objective.model)
    missing = len(examples.images) - len(examples)
    if missing and accelerator.is_main_process:
        logger.warning("%d of %d images have no proposals: not trained on", missing, len(examples.images))
    log = log_progress(config.iterations)

    def report(row: dict[str, float]) -> None:
        history.append(row)
        if accelerator.is_main_process:
            log(row)
        ray.train.report(row)

    train(
        state,
        build_batches(config, examples, state.step, accelerator),
        loop_config(config),
        accelerator=accelerator,
        report=report,
        save=lambda: _save(state, history, is_main=accelerator.is_main_process),
    )
    if accelerator.is_main_process:
        _write_outputs(arguments["output_uri"], config, state.objective.model, vocabulary, history)


def loop_config(config: TrainConfig) -> LoopConfig:
    """What the training loop needs of the config."""
    from fisa_platform.training.loop import LoopConfig

    return LoopConfig(
        iterations=config.iterations,
        max_grad_norm=config.optimizer.max_grad_norm,
        accumulation=config.batches.accumulation,
        checkpoint_interval=config.checkpoint_interval,
        seed=config.seed,
    )


def build_state(
    config: TrainConfig, vocabulary: Vocabulary, accelerator: Accelerator
) -> TrainingState[FISAObjective]:
    """The model, its criterion, its optimizer and its schedule, as they are before the first step."""
    import torch

    from fisa_model.criterion import Criterion
    from fisa_model.fisa import build_fisa
    from fisa_model.matcher import HungarianMatcher
    from fisa_model.objective import FISAObjective
    from fisa_model.simo import parameter_groups
    from fisa_model.vocabulary import get_templates
    from fisa_platform.training.loop import TrainingState
    from fisa_platform.training.optim import build_optimizer, build_schedule

    device = accelerator.device
    torch.manual_seed(config.seed)
    model, text_encoder = build_fisa(config.model)
    named, templates = vocabulary.in_preset(config.templates), get_templates(config.templates)

    def encode_classes() -> ClassTokens:
        return text_encoder.encode(named, templates, config.void).to(device)

    matcher = HungarianMatcher(num_points=config.loss.points)
    criterion = Criterion(
        no_object_weight=config.loss.no_object_weight,
        num_points=config.loss.points,
        mask_losses=config.model.trains_masks,
    )
    model.to(device).train()
    groups = parameter_groups(
        model,
        learning_rate=config.optimizer.learning_rate,
        weight_decay=config.optimizer.weight_decay,
        query_scale=config.optimizer.query_scale,
    )
    optimizer = build_optimizer([dict(group) for group in groups])
    schedule = build_schedule(optimizer, config.schedule, config.iterations)
    mean = partial(_mean_over_ranks, accelerator)
    class_tokens = encode_classes if config.model.trains_text else encode_classes()
    objective = FISAObjective(model, matcher, criterion, class_tokens, mean_over_ranks=mean)
    return TrainingState(objective, optimizer, schedule)


def _mean_over_ranks(accelerator: Accelerator, value: float) -> float:
    import torch

    if accelerator.num_processes == 1:
        return float(value)
    return float(accelerator.reduce(torch.tensor(float(value), device=accelerator.device), reduction="mean"))


def _resume(state: TrainingState[FISAObjective], history: list[dict[str, float]]) -> None:
    import ray.train

    from fisa_platform.training.checkpoint import load_checkpoint

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            load_checkpoint(Path(folder), state)
            history += _read_history(Path(folder) / METRICS_NAME)


def _save(state: TrainingState[FISAObjective], history: list[dict[str, float]], *, is_main: bool) -> None:
    """Every rank calls this, since reporting to Ray Train is a barrier; the first one brings the files."""
    import ray.train

    from fisa_platform.training.checkpoint import save_checkpoint

    if not is_main:
        ray.train.report({"step": state.step})
        return
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), state)
        (Path(folder) / METRICS_NAME).write_text(_history_text(history))
        ray.train.report({"step": state.step}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def build_examples(config: TrainConfig, vocabulary: Vocabulary, model: FISA) -> TrainingExamples:
    """Access to what a run trains on."""
    from fisa_model.transforms import Jitter
    from fisa_platform.manifest import open_version
    from fisa_platform.rows import ProposalRows, TableRows
    from fisa_platform.training.batches import TrainingExamples

    images = open_version(config.images_uri).files(prefix="images/", suffix=".parquet")
    jitter = Jitter(
        image_size=model.image_size,
        mean=model.clip.mean,
        std=model.clip.std,
        scale=config.batches.jitter_scale,
        flip=config.batches.flip,
    )
    return TrainingExamples(
        TableRows(images, ["image_id", "image", "panoptic", "segments_info"]),
        ProposalRows(config.proposals_uri),
        vocabulary,
        jitter,
        seed=config.seed,
    )


def build_batches(
    config: TrainConfig, examples: TrainingExamples, first_step: int, accelerator: Accelerator
) -> Iterable[TrainingBatch]:
    """What this rank learns from, from a step on."""
    from fisa_platform.training.batches import load_batches
    from fisa_platform.training.sampler import Sampler

    sampler = Sampler(rows=len(examples), batch_size=config.batches.size, seed=config.seed)
    micro_batches = sampler.micro_batches(
        first_step=first_step,
        last_step=config.iterations,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        accumulation=config.batches.accumulation,
    )
    return load_batches(examples, list(micro_batches), config.batches.loader_processes)


def _write_outputs(
    output_uri: str, config: TrainConfig, model: FISA, vocabulary: Vocabulary, history: list[dict[str, float]]
) -> None:
    from fisa_model.predictor import TEMPLATES_KEY, VOCABULARY_KEY
    from fisa_model.weights import save_fisa
    from fisa_platform import storage

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / WEIGHTS_NAME
        seen = json.dumps(vocabulary.to_json(), ensure_ascii=False)
        save_fisa(path, model, config.model, {TEMPLATES_KEY: config.templates, VOCABULARY_KEY: seen})
        storage.write_bytes(storage.join(output_uri, WEIGHTS_NAME), path.read_bytes())
    storage.write_bytes(storage.join(output_uri, METRICS_NAME), _history_text(history).encode())


def _history_text(history: list[dict[str, float]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in history)


def _read_history(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
