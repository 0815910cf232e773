"""The training loop: Accelerate over any iterable of batches, reporting to any callable."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

logger = logging.getLogger(__name__)

Report = Callable[[dict[str, float]], None]

Objective = TypeVar("Objective", bound=nn.Module)


@dataclass(slots=True)
class TrainingState(Generic[Objective]):
    """What changes while training, and what a checkpoint keeps."""

    objective: Objective
    """Maps a batch to a dict of scalar losses; `loss` is the one that is minimised."""

    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    """Stepped once for each optimizer step."""

    step: int = 0
    """Optimizer steps done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    iterations: int
    """Optimizer steps of the whole run."""

    max_grad_norm: float
    """L2 norm that gradients are scaled down to."""

    accumulation: int = 1
    """Batches of one optimizer step, on each rank."""

    log_interval: int = 10
    """Steps between two reports; each report is the mean over its interval."""

    checkpoint_interval: int = 0
    """Steps between two calls of `save`; 0 never calls it."""

    seed: int = 0
    """Of what is drawn while a batch is learnt from."""


def train(
    state: TrainingState[Objective],
    batches: Iterable[object],
    config: LoopConfig,
    *,
    accelerator: Accelerator,
    report: Report,
    save: Callable[[], None] | None = None,
) -> None:
    """Train from `state.step` to `config.iterations`.

    Args:
        state: changed in place. Its objective is wrapped for several processes here, once.
        batches: `config.accumulation` batches for every step that is left.
        report: gets what the objective returns, as means over batches and ranks, "step", "learning_rate",
            "grad_norm", "seconds_per_batch" and "data_wait_fraction", every `log_interval` steps, on every
            rank.
        save: called after a step that a checkpoint is due at, with `state` up to date.

    Raises:
        ValueError: the loss is not finite, or `batches` ends before the last step.
    """
    objective = accelerator.prepare_model(state.objective)
    optimizer = accelerator.prepare_optimizer(state.optimizer)
    trained = [parameter for parameter in state.objective.parameters() if parameter.requires_grad]
    meter = _Meter()
    stream = iter(batches)
    while state.step < config.iterations:
        for micro in range(config.accumulation):
            _seed(config.seed, state.step, micro * accelerator.num_processes + accelerator.process_index)
            batch = send_to_device(
                _next(stream, meter, state.step),
                accelerator.device,
                # Elsewhere memory is not pinned, and might be used again before it was read.
                non_blocking=accelerator.device.type == "cuda",
            )
            last = micro == config.accumulation - 1
            with nullcontext() if last else accelerator.no_sync(objective):
                losses = objective(batch)
                accelerator.backward(losses["loss"] / config.accumulation)
            meter.add(losses)
        grad_norm = accelerator.clip_grad_norm_(trained, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        learning_rate = float(state.schedule.get_last_lr()[0])
        state.schedule.step()
        state.step += 1
        if state.step % config.log_interval == 0 or state.step == config.iterations:
            means = accelerator.reduce(meter.means(), reduction="mean")
            report(meter.read(means, step=state.step, learning_rate=learning_rate, grad_norm=grad_norm))
        if save is not None and config.checkpoint_interval and state.step % config.checkpoint_interval == 0:
            save()


def log_progress(iterations: int) -> Report:
    """A report that writes one line to the log."""

    def report(row: dict[str, float]) -> None:
        parts = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "step")
        logger.info("step %d of %d: %s", row["step"], iterations, parts)

    return report


def _seed(seed: int, step: int, part: int) -> None:
    """Let what is drawn depend on the part of the step alone.

    So a run that goes on from a checkpoint draws what it would have drawn, and two workers draw what one
    would that accumulates two batches.
    """
    (state,) = np.random.SeedSequence((seed, step, part)).generate_state(1, np.uint64)
    torch.manual_seed(int(state))


def _next(stream: Iterator[object], meter: _Meter, step: int) -> object:
    started = time.perf_counter()
    try:
        batch = next(stream)
    except StopIteration:
        raise ValueError(f"the batches ended at step {step}, before the last iteration") from None
    meter.waited += time.perf_counter() - started
    return batch


class _Meter:
    """Means of the losses since the last report; on the device until then, so that no step waits for it."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.batches = 0
        self.waited = 0.0
        self.started = time.perf_counter()

    def add(self, losses: dict[str, Tensor]) -> None:
        for name, value in losses.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.batches += 1

    def means(self) -> dict[str, Tensor]:
        """Of this rank."""
        return {name: total / self.batches for name, total in self.sums.items()}

    def read(
        self, losses: dict[str, Tensor], *, step: int, learning_rate: float, grad_norm: Tensor
    ) -> dict[str, float]:
        """A report of these losses, and a new beginning."""
        row = {name: float(value) for name, value in losses.items()}
        if not math.isfinite(row["loss"]):
            raise ValueError(
                f"the loss is {row['loss']} at step {step}; lower learning_rate or check the labels"
            )
        elapsed = time.perf_counter() - self.started
        row |= {
            "step": step,
            "learning_rate": learning_rate,
            "grad_norm": float(grad_norm),
            "seconds_per_batch": elapsed / self.batches,
            "data_wait_fraction": self.waited / elapsed,
        }
        self._reset()
        return row
