"""Losses as arithmetic, against the formulas written out."""

import math

import torch
import torch.nn.functional as F

from fisa_model.losses import dice_loss, point_sample, sigmoid_bce, uncertain_points


def test_dice_of_a_perfect_mask_is_nothing_and_of_a_wrong_one_is_nearly_all() -> None:
    truth = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    sure = 50 * (2 * truth - 1)
    assert dice_loss(sure, truth, 1.0).item() == 0.0
    assert math.isclose(dice_loss(-sure, truth, 1.0).item(), 1 - 1 / 5, rel_tol=1e-6)


def test_dice_and_bce_sum_over_masks_and_divide() -> None:
    logits = torch.randn(3, 7)
    truth = (torch.rand(3, 7) > 0.5).float()
    p = logits.sigmoid()
    dice = sum(1 - (2 * (p[i] * truth[i]).sum() + 1) / (p[i].sum() + truth[i].sum() + 1) for i in range(3))
    torch.testing.assert_close(dice_loss(logits, truth, 2.0), torch.as_tensor(dice / 2))
    bce = sum(F.binary_cross_entropy(p[i], truth[i]) for i in range(3))
    torch.testing.assert_close(sigmoid_bce(logits, truth, 2.0), torch.as_tensor(bce / 2))


def test_point_sample_reads_pixel_centres() -> None:
    masks = torch.arange(6.0).view(1, 2, 3)
    points = torch.tensor([[[0.5 / 3, 0.25], [2.5 / 3, 0.75], [0.5, 0.5]]])
    torch.testing.assert_close(
        point_sample(masks, points), torch.tensor([[0.0, 5.0, 2.5]]), atol=1e-6, rtol=0
    )


def test_point_sample_is_grid_sample() -> None:
    masks, points = torch.randn(4, 5, 6), torch.rand(4, 9, 2)
    expected = F.grid_sample(masks[:, None], 2 * points[:, :, None] - 1, align_corners=False)[:, 0, :, 0]
    torch.testing.assert_close(point_sample(masks, points), expected, atol=1e-6, rtol=0)


def test_most_points_lie_where_the_mask_is_unsure() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(-8, 8, 64).expand(1, 64, 64)
    points = uncertain_points(ramp, 400)
    assert points.shape == (1, 400, 2)
    near = (point_sample(ramp, points).abs() < 2.1).float().mean()
    # A quarter of the image is that near; without oversampling a quarter of the points would be.
    assert near > 0.7
