"""Stage `pretrain`: a small CLIP from scratch, on single objects of the toy world captioned with all names.

It makes the CLIP that ships with `fisa_model`, which the quickstart adapts as a team adapts OpenAI's.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fisa_platform.compute import Compute
from fisa_platform.job import StageContext, StageResult
from fisa_platform.training.optim import OptimizerConfig, ScheduleConfig

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    architecture_uri: str
    """Folder with `open_clip_config.json` and `bpe.txt.gz`; its weights, if any, are not read."""

    output_uri: str
    """Where the trained open_clip folder goes."""

    iterations: int
    """Optimizer steps."""

    batch_size: int = 128
    """Pictures of one step."""

    seed: int = 0
    """Seed of the pictures and of the start."""

    evaluation_pictures: int = 1_000
    """Pictures, never trained on, for the final accuracy."""

    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3, max_grad_norm=1.0)
    )
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(kind="cosine", warmup_steps=50))

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "evaluation_pictures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")


def run(config: PretrainConfig, compute: Compute, context: StageContext) -> StageResult:
    """Train in one Ray task, then write the folder that open_clip loads."""
    import ray

    train = ray.remote(_pretrain).options(**compute.ray_options())
    accuracy = ray.get(train.remote(config, context.output.uri))
    return StageResult(
        rows=config.iterations * config.batch_size,
        extra={"accuracy": accuracy},
        message=f"names {accuracy:.1%} of {config.evaluation_pictures} new single objects right",
    )


def _pretrain(config: PretrainConfig, output_uri: str) -> float:
    import open_clip
    import torch
    from accelerate import Accelerator
    from safetensors.torch import save_file
    from torch.utils.data import DataLoader

    from fisa_platform import storage
    from fisa_platform.training.contrastive import ContrastiveObjective, ObjectPictures, zero_shot_accuracy
    from fisa_platform.training.loop import LoopConfig, TrainingState, log_progress, train
    from fisa_platform.training.optim import build_optimizer, build_schedule

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("fisa_platform").setLevel(logging.INFO)
    torch.manual_seed(config.seed)
    torch.set_num_threads(max(torch.get_num_threads(), 2))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in ("open_clip_config.json", "bpe.txt.gz"):
            storage.download(storage.join(config.architecture_uri, name), folder / name)
        clip = open_clip.create_model(f"local-dir:{folder}", load_weights=False).train()
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}", bpe_path=str(folder / "bpe.txt.gz"))
        optimizer = build_optimizer(_groups(clip, config.optimizer), betas=(0.9, 0.98))
        state = TrainingState(
            ContrastiveObjective(clip, tokenizer),
            optimizer,
            build_schedule(optimizer, config.schedule, config.iterations),
        )
        pictures = ObjectPictures(config.seed, config.iterations * config.batch_size)
        train(
            state,
            DataLoader(pictures, batch_size=config.batch_size, num_workers=1, prefetch_factor=4),
            LoopConfig(
                iterations=config.iterations, max_grad_norm=config.optimizer.max_grad_norm, log_interval=50
            ),
            accelerator=Accelerator(),
            report=log_progress(config.iterations),
        )
        clip = clip.cpu().eval()
        accuracy = zero_shot_accuracy(clip, tokenizer, config.seed + 1, config.evaluation_pictures)
        halves = {
            name: t.half().contiguous() if t.is_floating_point() else t
            for name, t in clip.state_dict().items()
        }
        save_file(halves, folder / "open_clip_model.safetensors")
        for path in folder.iterdir():
            storage.upload(path, storage.join(output_uri, path.name))
    return accuracy


def _groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Weight decay on matrices only, as in CLIP's own training."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [
        {"params": matrices, "lr": config.learning_rate, "weight_decay": config.weight_decay},
        {"params": others, "lr": config.learning_rate, "weight_decay": 0.0},
    ]
