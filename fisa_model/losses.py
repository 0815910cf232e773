"""Mask losses as arithmetic on sampled points, and where those points lie."""

import torch
import torch.nn.functional as F
from torch import Tensor

OVERSAMPLE = 3
"""Candidates a kept point is chosen from, and the share of points that is chosen so (PointRend's figures)."""
IMPORTANT_SHARE = 0.75


def dice_loss(logits: Tensor, targets: Tensor, num_masks: float) -> Tensor:
    """Dice loss of N masks at P points: [N, P], [N, P] -> scalar, the sum over masks / `num_masks`."""
    probabilities = logits.sigmoid()
    overlap = 2 * (probabilities * targets).sum(-1)
    sizes = probabilities.sum(-1) + targets.sum(-1)
    return (1 - (overlap + 1) / (sizes + 1)).sum() / num_masks


def sigmoid_bce(logits: Tensor, targets: Tensor, num_masks: float) -> Tensor:
    """Cross-entropy of N masks at P points: [N, P], [N, P] -> scalar, mean over points, sum / `num_masks`."""
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return losses.mean(-1).sum() / num_masks


def point_sample(masks: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of masks [N, h, w] at points (x, y) in 0..1: [N or 1, P, 2] -> [N, P]."""
    grid = (2 * points - 1).unsqueeze(1).expand(len(masks), -1, -1, -1)
    return F.grid_sample(masks.unsqueeze(1), grid, align_corners=False)[:, 0, 0]


# After PointRend, https://github.com/facebookresearch/detectron2/blob/02b5c4e/projects/PointRend/point_rend/point_features.py#L63-L116.
@torch.no_grad()
def uncertain_points(mask_logits: Tensor, num_points: int) -> Tensor:
    """Points for each of N masks [N, h, w], most of them where the mask is least sure -> [N, P, 2]."""
    masks = len(mask_logits)
    important = int(IMPORTANT_SHARE * num_points)
    candidates = torch.rand(masks, OVERSAMPLE * num_points, 2, device=mask_logits.device)
    certainty = point_sample(mask_logits, candidates).abs()
    chosen = certainty.topk(important, dim=1, largest=False, sorted=False).indices
    sampled = candidates.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 2))
    elsewhere = torch.rand(masks, num_points - important, 2, device=mask_logits.device)
    return torch.cat([sampled, elsewhere], dim=1)
