"""Matching and the loss on drawn masks."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fisa_model.criterion import Criterion
from fisa_model.fisa import FISAOutput
from fisa_model.losses import point_sample
from fisa_model.matcher import HungarianMatcher, Target


def draw(*rows: str) -> Tensor:
    return torch.tensor([[pixel == "#" for pixel in row] for row in rows])


LEFT, RIGHT, TOP = draw("##..", "##.."), draw("..##", "..##"), draw("####", "....")
ALL_VALID = torch.ones(1, 3, dtype=torch.bool)


def logits_of(*masks: Tensor) -> Tensor:
    return 20.0 * (2 * torch.stack(masks).float() - 1)


def output_for(masks: Tensor, classes: Tensor) -> FISAOutput:
    return FISAOutput(class_logits=classes[None], mask_logits=masks[None])


def test_each_segment_gets_the_proposal_that_looks_like_it() -> None:
    output = output_for(logits_of(TOP, RIGHT, LEFT), torch.zeros(3, 2))
    target = Target(torch.tensor([0, 1]), torch.stack([LEFT, RIGHT]))
    [match] = HungarianMatcher(num_points=64)(output, [target], ALL_VALID)
    pairs = dict(zip(match.segments.tolist(), match.proposals.tolist(), strict=True))
    assert pairs == {0: 2, 1: 1}


def test_equal_masks_are_told_apart_by_class() -> None:
    classes = torch.tensor([[0.0, 9.0], [9.0, 0.0], [0.0, 0.0]])
    output = output_for(logits_of(LEFT, LEFT, TOP), classes)
    target = Target(torch.tensor([0]), LEFT[None])
    [match] = HungarianMatcher(num_points=64)(output, [target], ALL_VALID)
    assert match.proposals.tolist() == [1]


def test_padding_is_never_matched() -> None:
    output = output_for(logits_of(LEFT, TOP, RIGHT), torch.zeros(3, 2))
    output.mask_logits[0, 0] = torch.nan
    valid = torch.tensor([[False, True, True]])
    target = Target(torch.tensor([0, 1, 1]), torch.stack([LEFT, RIGHT, TOP]))
    [match] = HungarianMatcher(num_points=64)(output, [target], valid)
    assert sorted(match.proposals.tolist()) == [1, 2]


def test_assignment_has_the_least_total_cost() -> None:
    torch.manual_seed(0)
    output = output_for(torch.randn(3, 4, 4), torch.randn(3, 5))
    target = Target(torch.tensor([0, 4, 2]), torch.rand(3, 6, 6) > 0.5)
    matcher = HungarianMatcher(num_points=4096)
    [match] = matcher(output, [target], ALL_VALID)
    cost = matcher.cost(output.class_logits[0], output.mask_logits[0], target, torch.rand(1, 4096, 2))
    found = cost[match.proposals, match.segments].sum().item()
    best = min(
        sum(cost[q, n].item() for n, q in enumerate(order)) for order in itertools.permutations(range(3))
    )
    assert math.isclose(found, best, abs_tol=0.2)


def test_cost_is_the_losses_written_out() -> None:
    torch.manual_seed(0)
    classes, masks = torch.randn(2, 3), torch.randn(2, 4, 4)
    target = Target(torch.tensor([2]), torch.rand(1, 5, 5) > 0.5)
    points = torch.rand(1, 50, 2)
    cost = HungarianMatcher(num_points=50).cost(classes, masks, target, points)
    truth = point_sample(target.masks.float(), points)[0]
    for q in range(2):
        logits = point_sample(masks, points)[q]
        p = logits.sigmoid()
        dice = 1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1)
        bce = F.binary_cross_entropy_with_logits(logits, truth)
        expected = -2 * classes[q].softmax(-1)[2] + 5 * bce + 5 * dice
        torch.testing.assert_close(cost[q, 0], expected, atol=1e-5, rtol=1e-5)


def losses_of(
    output: FISAOutput,
    targets: list[Target],
    valid: Tensor = ALL_VALID,
    *,
    num_masks: float | None = None,
    **options: float | bool,
) -> dict[str, Tensor]:
    """Match, then the losses, with two classes."""
    criterion = Criterion(num_points=64, **options)  # type: ignore[arg-type]
    matches = HungarianMatcher(num_points=64)(output, targets, valid)
    return criterion(output, targets, matches, valid, num_classes=2, num_masks=num_masks)


def test_only_matched_proposals_are_classified_by_default() -> None:
    classes = torch.randn(3, 3)
    output = output_for(logits_of(LEFT, RIGHT, TOP), classes)
    target = Target(torch.tensor([1]), RIGHT[None])
    losses = losses_of(output, [target])
    torch.testing.assert_close(losses["loss_class"], F.cross_entropy(classes[1:2], torch.tensor([1])))


def test_unmatched_proposals_are_void_at_their_weight() -> None:
    classes = torch.randn(3, 3)
    output = output_for(logits_of(LEFT, RIGHT, TOP), classes)
    target = Target(torch.tensor([1]), RIGHT[None])
    losses = losses_of(output, [target], no_object_weight=0.1)
    expected = F.cross_entropy(classes, torch.tensor([2, 1, 2]), torch.tensor([1.0, 1.0, 0.1]))
    torch.testing.assert_close(losses["loss_class"], expected)


def test_padding_is_not_classified_as_void() -> None:
    classes = torch.randn(3, 3)
    output = output_for(logits_of(LEFT, RIGHT, TOP), classes)
    valid = torch.tensor([[True, True, False]])
    losses = losses_of(output, [Target(torch.tensor([1]), RIGHT[None])], valid, no_object_weight=0.1)
    expected = F.cross_entropy(classes[:2], torch.tensor([2, 1]), torch.tensor([1.0, 1.0, 0.1]))
    torch.testing.assert_close(losses["loss_class"], expected)


def test_loss_is_two_five_five() -> None:
    output = output_for(torch.randn(3, 4, 4), torch.randn(3, 3))
    target = Target(torch.tensor([1]), RIGHT[None])
    losses = losses_of(output, [target])
    parts = 2 * losses["loss_class"] + 5 * losses["loss_mask"] + 5 * losses["loss_dice"]
    torch.testing.assert_close(losses["loss"], parts)


def test_mask_losses_divide_by_the_given_number_of_segments() -> None:
    output = output_for(logits_of(TOP, RIGHT, LEFT), torch.randn(3, 3))
    target = Target(torch.tensor([1]), TOP[None])
    one, four = (losses_of(output, [target], num_masks=n)["loss_dice"] for n in (1.0, 4.0))
    assert one > 0
    torch.testing.assert_close(four, one / 4, rtol=0.2, atol=0)


def test_mask_losses_are_left_out_where_nothing_changes_masks() -> None:
    output = output_for(torch.randn(3, 4, 4), torch.randn(3, 3))
    target = Target(torch.tensor([1]), RIGHT[None])
    losses = losses_of(output, [target], mask_losses=False)
    assert set(losses) == {"loss", "loss_class"}


def test_a_batch_without_segments_has_a_loss_of_zero_with_gradients() -> None:
    classes = torch.randn(3, 3, requires_grad=True)
    masks = torch.randn(3, 4, 4, requires_grad=True)
    target = Target(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4, 4, dtype=torch.bool))
    loss = losses_of(output_for(masks, classes), [target])["loss"]
    loss.backward()
    assert loss.item() == 0.0
    assert classes.grad is not None
    assert not classes.grad.any()


def test_images_of_a_batch_may_differ_in_segments_and_resolution() -> None:
    output = FISAOutput(torch.randn(2, 3, 2), torch.randn(2, 3, 4, 4))
    targets = [
        Target(torch.tensor([1]), RIGHT[None]),
        Target(torch.tensor([0, 1]), torch.rand(2, 9, 9) > 0.5),
    ]
    losses = losses_of(output, targets, ALL_VALID.expand(2, 3))
    assert torch.isfinite(losses["loss"])


def test_nan_logits_are_named() -> None:
    output = output_for(torch.randn(3, 4, 4), torch.full((3, 3), torch.nan))
    with pytest.raises(ValueError, match="logits of the model are NaN or infinite"):
        losses_of(output, [Target(torch.tensor([1]), RIGHT[None])])


def test_void_without_its_row_is_refused() -> None:
    output = output_for(torch.randn(3, 4, 4), torch.randn(3, 2))
    with pytest.raises(ValueError, match="class tokens have no void row"):
        losses_of(output, [Target(torch.tensor([1]), RIGHT[None])], no_object_weight=0.1)


def test_labels_are_class_indices() -> None:
    output = output_for(torch.randn(3, 4, 4), torch.randn(3, 2))
    assert Target(torch.tensor([1], dtype=torch.int32), RIGHT[None]).labels.dtype == torch.int64
    with pytest.raises(ValueError, match=r"labels must be whole numbers, class indices, got torch.float32"):
        Target(torch.tensor([1.0]), RIGHT[None])
    for label in (-1, 2):
        with pytest.raises(ValueError, match=r"class indices 0 to 1, got \["):
            losses_of(output, [Target(torch.tensor([label]), RIGHT[None])])
    with pytest.raises(ValueError, match="num_points must be at least 1, got 0"):
        Criterion(num_points=0)


def test_a_mask_for_every_label() -> None:
    with pytest.raises(ValueError, match=r"one mask \[H, W\] for each label"):
        Target(torch.tensor([0, 1]), RIGHT[None])
