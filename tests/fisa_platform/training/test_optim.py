"""Learning rates over a run."""

import pytest
import torch

from fisa_platform.training.optim import ScheduleConfig, build_optimizer, build_schedule


def rates(config: ScheduleConfig, iterations: int) -> list[float]:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = build_optimizer([{"params": [parameter], "lr": 1.0, "weight_decay": 0.0}])
    schedule = build_schedule(optimizer, config, iterations)
    found = []
    for _ in range(iterations):
        found.append(round(schedule.get_last_lr()[0], 4))
        optimizer.step()
        schedule.step()
    return found


def test_step_drops_at_90_and_95_percent() -> None:
    found = rates(ScheduleConfig(kind="step"), 20)
    assert found == [1.0] * 18 + [0.1, 0.01]


def test_warmup_is_linear() -> None:
    assert rates(ScheduleConfig(kind="constant", warmup_steps=4), 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_falls_to_zero() -> None:
    found = rates(ScheduleConfig(kind="cosine"), 100)
    assert found[0] == 1.0 and found[50] == 0.5 and found[-1] < 0.001


def test_refuses_a_warmup_longer_than_the_run() -> None:
    with pytest.raises(ValueError, match="warmup_steps \\(10\\) must be below the run's 10 iterations"):
        rates(ScheduleConfig(warmup_steps=10), 10)
