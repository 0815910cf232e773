"""Matching without the costs that cannot matter: the assignment is the one of all costs."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fisa_model.assignment import assign, may_be_assigned
from fisa_model.fisa import FISAOutput
from fisa_model.matcher import HungarianMatcher, Match, Target

POINTS = 256


def total(costs: NDArray[np.float64]) -> float:
    return float(costs[assign(costs)].sum())


def test_whatever_the_costs_turn_out_to_be_the_others_are_not_needed() -> None:
    generator = np.random.default_rng(0)
    left_out = sum(check_needed(generator) for _ in range(300))
    assert left_out > 200


def check_needed(generator: np.random.Generator) -> int:
    """Costs between bounds, drawn again and again; returns how many proposals none of them needs."""
    shape = generator.integers(1, 9, 2)
    least = generator.random(shape) * generator.choice([1, 4, 10, 30])
    # Some costs are known: their bounds are equal.
    most = least + 2 * generator.random(shape) * (generator.random((shape[0], 1)) < 0.7)
    needed = may_be_assigned(least, most)
    for _ in range(8):
        share = generator.choice([generator.random(shape), (generator.random(shape) < 0.5).astype(float)])
        costs = least + share * (most - least)
        assert total(costs[needed]) == pytest.approx(total(costs))
    return int((~needed).sum())


def test_a_proposal_that_no_bound_lets_in_is_not_needed() -> None:
    least = np.array([[0.0, 9.0], [9.0, 0.0], [1.5, 9.0], [2.5, 9.0], [9.0, 2.5]])
    assert may_be_assigned(least, least + 2).tolist() == [True, True, True, False, False]


def test_a_proposal_may_come_in_because_others_move() -> None:
    # Segment 2 would take the proposal of segment 1, that one the proposal of segment 0, and this one
    # proposal 3, which by itself never pays.
    most = np.array([[0.0, 1.0, 9.0], [9.0, 0.0, 2.0], [9.0, 9.0, 5.0], [3.0, 9.0, 9.0]])
    least = most.copy()
    assert may_be_assigned(least, most).tolist() == [True, True, True, False]
    least[1, 2] = 0.9
    assert may_be_assigned(least, most).tolist() == [True, True, True, True]


def test_many_segments_that_all_could_change_are_no_overflow() -> None:
    most = np.zeros((130, 120))
    assert may_be_assigned(most - 1e290, most).all()


def smooth(count: int, generator: torch.Generator, side: int = 16) -> Tensor:
    coarse = torch.randn(1, count, 4, 4, generator=generator)
    return 10 * F.interpolate(coarse, size=(side, side), mode="bicubic")[0]


def example(seed: int, proposals: int = 14) -> tuple[FISAOutput, list[Target], Tensor]:
    """Two images, in which some proposals resemble segments and some are padding."""
    generator = torch.Generator().manual_seed(seed)
    outputs, targets = [], []
    for segments in torch.randint(0, 7, (2,), generator=generator).tolist():
        masks = smooth(proposals, generator)
        copies = masks[segments : 2 * segments]
        copies += masks[: len(copies)] * torch.rand(1, generator=generator) * 3
        labels = torch.randint(0, 5, (segments,), generator=generator)
        targets.append(Target(labels, masks[:segments] > 0))
        outputs.append(masks)
    logits = 4 * torch.randn(2, proposals, 6, generator=generator)
    valid = torch.rand(2, proposals, generator=generator) < 0.8
    return FISAOutput(logits, torch.stack(outputs)), targets, valid


def match(
    output: FISAOutput, targets: list[Target], valid: Tensor, classify: Callable[[Tensor], Tensor]
) -> list[Match]:
    torch.manual_seed(0)
    matcher = HungarianMatcher(num_points=POINTS)
    return matcher.settle(matcher.compare_masks(output.mask_logits, targets, valid), classify)


@pytest.mark.parametrize("seed", range(30))
def test_matches_are_those_of_all_costs(seed: int) -> None:
    output, targets, valid = example(seed)

    def classify(rows: Tensor) -> Tensor:
        return output.class_logits[torch.arange(2)[:, None], rows]

    found = match(output, targets, valid, classify)
    torch.manual_seed(0)
    for i, target in enumerate(targets):
        places = valid[i].nonzero()[:, 0]
        points = torch.rand(1, POINTS, 2)
        costs = HungarianMatcher().cost(
            output.class_logits[i, places], output.mask_logits[i, places], target, points
        )
        proposals, segments = assign(costs.double().numpy())
        assert found[i].proposals.tolist() == places[proposals].tolist()
        assert found[i].segments.tolist() == segments.tolist()


def test_proposals_that_are_far_behind_are_not_classified() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = smooth(40, generator)
    masks[30] = masks[0] + 0.5
    output = FISAOutput(torch.zeros(1, 40, 3), masks[None])
    target = Target(torch.tensor([0, 1, 2]), masks[:3] > 0)
    asked: list[list[int]] = []

    def classify(rows: Tensor) -> Tensor:
        asked.append(rows[0].tolist())
        return output.class_logits[:, rows[0]]

    [found] = match(output, [target], torch.ones(1, 40, dtype=torch.bool), classify)
    assert (found.proposals.tolist(), found.segments.tolist()) == ([1, 2, 30], [1, 2, 0])
    assert asked == [[0, 1, 2, 30]]


def test_a_negative_weight_of_the_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"class_weight must be 0 or more, got -1"):
        HungarianMatcher(class_weight=-1.0)
