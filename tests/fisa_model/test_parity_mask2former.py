"""Matching, losses and inference against Mask2Former's own answers to random numbers (parity/)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fisa_model.criterion import Criterion
from fisa_model.fisa import FISAOutput
from fisa_model.losses import point_sample, uncertain_points
from fisa_model.matcher import HungarianMatcher, Match, Target
from fisa_model.postprocess import instance, panoptic, semantic, semantic_scores

Reference = Callable[[str], dict[str, Any]]
POINTS = 64


@pytest.fixture
def training(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Three images, the second without segments; random points are those that the reference had."""
    arrays = {name: torch.from_numpy(array) for name, array in reference("mask2former_training").items()}
    draw_these_points(monkeypatch, {n: arrays[f"points/{n}"] for n in (POINTS, 3 * POINTS, POINTS // 4)})
    return arrays


def draw_these_points(monkeypatch: pytest.MonkeyPatch, banks: dict[int, Tensor]) -> None:
    monkeypatch.setattr(torch, "rand", lambda masks, points, _, **__: banks[points].repeat(masks, 1, 1))


def batch_of(arrays: dict[str, Tensor]) -> tuple[FISAOutput, list[Target], Tensor]:
    targets = []
    for i in range(3):
        labels = arrays[f"labels/{i}"]
        masks = np.unpackbits(arrays[f"truth/{i}"].numpy(), count=len(labels) * 32 * 48)
        targets.append(Target(labels, torch.from_numpy(masks).view(len(labels), 32, 48) > 0))
    return FISAOutput(arrays["logits"], arrays["masks"]), targets, torch.ones(3, 10, dtype=torch.bool)


def matches_of(arrays: dict[str, Tensor]) -> list[Match]:
    return [Match(arrays[f"proposals/{i}"], arrays[f"segments/{i}"]) for i in range(3)]


def test_costs_and_assignments_are_mask2formers(training: dict[str, Tensor]) -> None:
    output, targets, valid = batch_of(training)
    matcher = HungarianMatcher(num_points=POINTS)
    for i, target in enumerate(targets):
        points = training[f"points/{POINTS}"]
        cost = matcher.cost(output.class_logits[i], output.mask_logits[i], target, points)
        torch.testing.assert_close(cost, training[f"cost/{i}"], atol=1e-5, rtol=0)
    for match, expected in zip(matcher(output, targets, valid), matches_of(training), strict=True):
        assert torch.equal(match.proposals, expected.proposals)
        assert torch.equal(match.segments, expected.segments)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("no_object_weight", [0.0, 0.1])
def test_losses_are_mask2formers(training: dict[str, Tensor], no_object_weight: float, ranks: int) -> None:
    output, targets, valid = batch_of(training)
    criterion = Criterion(num_points=POINTS, no_object_weight=no_object_weight)
    num_masks = sum(len(target.labels) for target in targets) / ranks
    losses = criterion(output, targets, matches_of(training), valid, num_classes=5, num_masks=num_masks)
    for ours, theirs in (("loss_class", "loss_ce"), ("loss_mask", "loss_mask"), ("loss_dice", "loss_dice")):
        expected = training[f"{theirs}/{no_object_weight}/{ranks}"]
        torch.testing.assert_close(losses[ours], expected, atol=1e-5, rtol=0)


def test_points_are_pointrends(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {name: torch.from_numpy(array) for name, array in reference("pointrend").items()}
    sampled = point_sample(arrays["masks"], arrays["candidates"])
    torch.testing.assert_close(sampled, arrays["sampled"], atol=1e-6, rtol=0)
    draw_these_points(monkeypatch, {120: arrays["candidates"], 10: arrays["elsewhere"]})
    points = uncertain_points(arrays["masks"], 40)
    assert torch.equal(sort_points(points), sort_points(arrays["points"]))


def sort_points(points: Tensor) -> Tensor:
    """Points [N, P, 2] of each mask in the order of their x: losses do not depend on their order."""
    return points.gather(1, points[..., :1].argsort(dim=1).expand_as(points))


@pytest.fixture(params=[5, 133])
def inference(request: pytest.FixtureRequest, reference: Reference) -> dict[str, Tensor]:
    """100 masks of 24 x 32 and logits of K classes and void, of which even classes are things."""
    arrays = {name: torch.from_numpy(array) for name, array in reference("mask2former_inference").items()}
    prefix = f"{request.param}/"
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    probs = own["logits"].softmax(-1)[:, :-1]
    is_thing = torch.arange(request.param) % 2 == 0
    return {**own, "masks": arrays["masks"], "probs": probs, "is_thing": is_thing}


# From 0.5 on, a proposal that is kept is no void: its class has more than half of the probability.
@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("overlap", [0.5, 0.8])
def test_segments_are_mask2formers(inference: dict[str, Tensor], overlap: float, threshold: float) -> None:
    result = panoptic(
        inference["probs"],
        inference["masks"],
        is_thing=inference["is_thing"].tolist(),
        object_threshold=threshold,
        overlap_threshold=overlap,
    )
    key = f"panoptic/{overlap}/{threshold}"
    assert np.array_equal(result.ids, inference[key].numpy())
    assert [segment.class_index for segment in result.segments] == inference[f"{key}/classes"].tolist()
    assert (len(result.segments) > 1) == (threshold < 1)


def test_labels_are_mask2formers(inference: dict[str, Tensor]) -> None:
    assert np.array_equal(semantic(inference["probs"], inference["masks"]), inference["semantic"].numpy())
    best = semantic_scores(inference["probs"], inference["masks"]).amax(0)
    torch.testing.assert_close(best, inference["semantic_best"], atol=1e-5, rtol=0)


def test_instances_are_mask2formers(inference: dict[str, Tensor]) -> None:
    found = instance(inference["probs"], inference["masks"], is_thing=inference["is_thing"].tolist())
    classes, scores = inference["instance_classes"].tolist(), inference["instance_scores"].tolist()
    bits = np.unpackbits(inference["instance_masks"].numpy(), count=len(classes) * 24 * 32)
    masks = [mask.tobytes() for mask in bits.reshape(len(classes), -1)]
    # Empty masks all score 0, so their order says nothing.
    expected = sorted(zip(classes, masks, scores, strict=True))
    ours = sorted((one.class_index, one.mask.tobytes(), one.score) for one in found)
    assert [(k, mask) for k, mask, _ in ours] == [(k, mask) for k, mask, _ in expected]
    assert [score for *_, score in ours] == pytest.approx([score for *_, score in expected], abs=1e-6)
