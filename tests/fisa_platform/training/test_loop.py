"""The loop on a model of one weight: reports, accumulation, and going on from a checkpoint."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fisa_platform.training.checkpoint import load_checkpoint, save_checkpoint
from fisa_platform.training.loop import LoopConfig, TrainingState, train
from fisa_platform.training.optim import ScheduleConfig, build_optimizer, build_schedule


class Line(nn.Module):
    """Fits y = weight * x; `frozen` never learns."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        return {"loss": ((self.weight - 3) * batch * self.frozen).pow(2).mean()}


class NoisyLine(Line):
    """Draws in each step, as FISA's criterion draws its points."""

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        return super().forward(batch + torch.randn(4))


def new_state(iterations: int, objective: Line | None = None) -> TrainingState[Line]:
    objective = objective or Line()
    optimizer = build_optimizer([{"params": [objective.weight], "lr": 0.1, "weight_decay": 0.0}])
    return TrainingState(objective, optimizer, build_schedule(optimizer, ScheduleConfig(), iterations))


def batches(count: int, start: int = 0) -> Iterator[Tensor]:
    for k in range(start, count):
        yield torch.randn(4, generator=torch.Generator().manual_seed(k))


def run(
    state: TrainingState[Line], config: LoopConfig, stream: Iterator[Tensor], **options: object
) -> list[dict[str, float]]:
    reports: list[dict[str, float]] = []
    train(state, stream, config, accelerator=Accelerator(cpu=True), report=reports.append, **options)
    return reports


def test_reports_every_interval_and_at_the_end() -> None:
    config = LoopConfig(iterations=12, max_grad_norm=10, log_interval=5)
    reports = run(new_state(12), config, batches(12))
    assert [row["step"] for row in reports] == [5, 10, 12]
    assert reports[-1]["loss"] < reports[0]["loss"]


def test_going_on_from_a_checkpoint_equals_not_stopping(tmp_path: Path) -> None:
    whole = new_state(20, NoisyLine())
    run(whole, LoopConfig(iterations=20, max_grad_norm=10), batches(20))

    first = new_state(20, NoisyLine())
    config = LoopConfig(iterations=10, max_grad_norm=10, checkpoint_interval=10)
    run(first, config, batches(10), save=lambda: save_checkpoint(tmp_path, first))
    second = new_state(20, NoisyLine())
    torch.manual_seed(12345)  # the state of a new process is another one
    load_checkpoint(tmp_path, second)
    assert second.step == 10
    run(second, LoopConfig(iterations=20, max_grad_norm=10), batches(20, start=10))
    assert torch.equal(second.objective.weight, whole.objective.weight)


def test_a_checkpoint_holds_only_what_learns(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, new_state(5))
    state = new_state(5)
    state.objective.frozen.requires_grad_(requires_grad=True)
    with pytest.raises(ValueError, match=r"'frozen' .* is in only one of the checkpoint and the model"):
        load_checkpoint(tmp_path, state)


def test_accumulation_equals_one_larger_batch() -> None:
    halves = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]
    split, whole = new_state(1), new_state(1)
    run(split, LoopConfig(iterations=1, max_grad_norm=1e9, accumulation=2), iter(halves))
    run(whole, LoopConfig(iterations=1, max_grad_norm=1e9), iter([torch.cat(halves)]))
    torch.testing.assert_close(split.objective.weight, whole.objective.weight)


def test_a_loss_that_is_not_a_number_stops_the_run() -> None:
    with pytest.raises(ValueError, match="the loss is nan at step 1"):
        config = LoopConfig(iterations=3, max_grad_norm=1, log_interval=1)
        run(new_state(3), config, iter([torch.tensor([torch.nan])] * 3))


def test_too_few_batches_stop_the_run() -> None:
    with pytest.raises(ValueError, match="ended at step 2"):
        run(new_state(5), LoopConfig(iterations=5, max_grad_norm=1), batches(2))
