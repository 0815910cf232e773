"""What a run is made of: the model with its criterion and optimizer, its examples and their batches."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator

from fisa_model import text_cache
from fisa_model.criterion import Criterion
from fisa_model.device import avoid_cudnn_attention
from fisa_model.fisa import FISA, build_fisa
from fisa_model.mask_generators.mask2former import LearningMask2Former
from fisa_model.matcher import HungarianMatcher
from fisa_model.objective import FISAObjective, TrainingBatch
from fisa_model.simo import ParameterGroup, parameter_groups, split_by_decay
from fisa_model.text_encoder import ClassTokens
from fisa_model.transforms import Jitter
from fisa_model.vocabulary import Vocabulary, get_templates
from fisa_platform.manifest import open_version
from fisa_platform.rows import ProposalRows, TableRows
from fisa_platform.training.batches import TrainingExamples, load_batches
from fisa_platform.training.loop import LoopConfig, TrainingState
from fisa_platform.training.optim import OptimizerConfig, build_optimizer, build_schedule
from fisa_platform.training.sampler import Sampler

if TYPE_CHECKING:
    from fisa_platform.stages.train import TrainConfig


def loop_config(config: TrainConfig) -> LoopConfig:
    """What the training loop needs of the config."""
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
    device = accelerator.device
    avoid_cudnn_attention(device)
    torch.manual_seed(config.seed)
    model, text_encoder = build_fisa(config.model, text_cache_path=text_cache.default_path())
    text_encoder.to(device)
    named, templates = vocabulary.in_preset(config.templates), get_templates(config.templates)

    def encode_classes() -> ClassTokens:
        return text_encoder.encode(named, templates, config.void)

    matcher = HungarianMatcher(num_points=config.loss.points)
    criterion = Criterion(
        no_object_weight=config.loss.no_object_weight,
        num_points=config.loss.points,
        mask_losses=config.model.trains_masks or config.generator_weights is not None,
    )
    model.to(device).train()
    groups = parameter_groups(
        model,
        learning_rate=config.optimizer.learning_rate,
        weight_decay=config.optimizer.weight_decay,
        query_scale=config.optimizer.query_scale,
    )
    generator = None
    if config.generator_weights is not None:
        generator = LearningMask2Former.load(
            config.generator_weights, mean=model.clip.mean, std=model.clip.std
        ).to(device)
        groups += _generator_groups(generator, config.optimizer)
    optimizer = build_optimizer([dict(group) for group in groups])
    schedule = build_schedule(optimizer, config.schedule, config.iterations)
    mean = partial(_mean_over_ranks, accelerator)
    class_tokens = encode_classes if config.model.trains_text else encode_classes()
    objective = FISAObjective(
        model,
        matcher,
        criterion,
        class_tokens,
        generator=generator,
        classes_per_batch=config.classes_per_batch,
        mean_over_ranks=mean,
    )
    return TrainingState(objective, optimizer, schedule)


def _generator_groups(generator: LearningMask2Former, config: OptimizerConfig) -> list[ParameterGroup]:
    group = ParameterGroup(
        name="mask_generator",
        params=[parameter for parameter in generator.parameters() if parameter.requires_grad],
        lr=config.learning_rate * config.generator_scale,
        weight_decay=config.weight_decay,
    )
    return split_by_decay(group, generator)


def _mean_over_ranks(accelerator: Accelerator, value: float) -> float:
    if accelerator.num_processes == 1:
        return float(value)
    return float(accelerator.reduce(torch.tensor(float(value), device=accelerator.device), reduction="mean"))


def build_examples(config: TrainConfig, vocabulary: Vocabulary, model: FISA) -> TrainingExamples:
    """Access to what a run trains on."""
    images = open_version(config.images_uri).files(prefix="images/", suffix=".parquet")
    jitter = Jitter(
        image_size=model.image_size,
        mean=model.clip.mean,
        std=model.clip.std,
        scale=config.batches.jitter_scale,
        flip=config.batches.flip,
        keep_empty=config.batches.keep_empty,
        resize=model.resize,
    )
    return TrainingExamples(
        TableRows(images, ["image_id", "image", "panoptic", "segments_info"]),
        None if config.proposals_uri is None else ProposalRows(config.proposals_uri),
        vocabulary,
        jitter,
        seed=config.seed,
        fraction=config.data_fraction,
    )


def build_batches(
    config: TrainConfig, examples: TrainingExamples, first_step: int, accelerator: Accelerator
) -> Iterable[TrainingBatch]:
    """What this rank learns from, from a step on."""
    sampler = Sampler(rows=len(examples), batch_size=config.batches.size, seed=config.seed)
    micro_batches = sampler.micro_batches(
        first_step=first_step,
        last_step=config.iterations,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        accumulation=config.batches.accumulation,
    )
    return load_batches(examples, list(micro_batches), config.batches.loader_processes)
