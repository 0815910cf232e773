"""Optimizer and learning-rate schedule of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    learning_rate: float = 1e-4
    """Peak rate of AdamW for what is new (SEVE, Distribution Adapter)."""

    query_scale: float = 0.1
    """Factor on the rate of CLIP's query projections, already trained (the paper's for the backbone)."""

    generator_scale: float = 0.1
    """Factor on the rate of a mask generator that learns."""

    weight_decay: float = 0.05
    """Decoupled weight decay of AdamW; norm layers and embeddings, where they learn, have none."""

    max_grad_norm: float = 0.01
    """Gradients are scaled down to this L2 norm over all trained parameters; as in Mask2Former."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        for name in ("query_scale", "generator_scale"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must be 0 or more, got {self.weight_decay}")
        if self.max_grad_norm <= 0:
            raise ValueError(f"max_grad_norm must be above 0, got {self.max_grad_norm}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    kind: Literal["constant", "step", "cosine"] = "step"
    """After warmup: flat; a tenth from 90 % and a hundredth from 95 % of the run; or half a cosine to 0."""

    warmup_steps: int = 0
    """Optimizer steps of linear warmup; 0 starts at the peak."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be 0 or more, got {self.warmup_steps}")


def build_optimizer(
    groups: Iterable[dict[str, Any]], *, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.AdamW:
    """AdamW over parameter groups that name their own `lr` and `weight_decay`."""
    import torch

    return torch.optim.AdamW(list(groups), betas=betas, eps=1e-8, fused=True)


def build_schedule(optimizer: torch.optim.Optimizer, config: ScheduleConfig, iterations: int) -> LambdaLR:
    """The factor on every group's rate as a function of the optimizer step.

    Kept out of `Accelerator.prepare`, which would step it once for every process.
    """
    from torch.optim.lr_scheduler import LambdaLR

    if config.warmup_steps >= iterations:
        raise ValueError(
            f"warmup_steps ({config.warmup_steps}) must be below the run's {iterations} iterations; "
            "lower warmup_steps or raise iterations"
        )

    def factor(step: int) -> float:
        warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
        if config.kind == "constant":
            return warmup
        if config.kind == "cosine":
            done = (step - config.warmup_steps) / (iterations - config.warmup_steps)
            return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, done))))
        return warmup * 0.1 ** ((step >= 0.9 * iterations) + (step >= 0.95 * iterations))

    return LambdaLR(optimizer, factor)
