"""Which proposal answers for which ground-truth segment."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fisa_model.losses import point_sample

if TYPE_CHECKING:
    from fisa_model.fisa import FISAOutput


@dataclass(frozen=True, slots=True)
class Target:
    """The ground truth of one image."""

    labels: Tensor
    """[N], class indices."""

    masks: Tensor
    """[N, H, W] bool, at any resolution, in the frame of the image."""

    def __post_init__(self) -> None:
        if self.masks.ndim != 3 or len(self.masks) != len(self.labels):
            raise ValueError(
                f"a target needs one mask [H, W] for each label, got masks {list(self.masks.shape)} "
                f"for {len(self.labels)} labels"
            )
        if self.labels.dtype.is_floating_point and len(self.labels):
            raise ValueError(f"labels must be whole numbers, class indices, got {self.labels.dtype}")
        object.__setattr__(self, "labels", self.labels.long())

    def check_labels(self, num_classes: int) -> None:
        """Raises ValueError where a label is no class index below `num_classes`."""
        if any(not 0 <= label < num_classes for label in self.labels.tolist()):
            raise ValueError(
                f"labels of a target must be class indices 0 to {num_classes - 1}, got {self.labels.tolist()}"
            )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Target":
        return Target(
            self.labels.to(device, non_blocking=non_blocking),
            self.masks.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> "Target":
        return Target(self.labels.pin_memory(), self.masks.pin_memory())


@dataclass(frozen=True, slots=True)
class Match:
    """Pairs of one image: proposal `proposals[i]` answers for segment `segments[i]`."""

    proposals: Tensor
    segments: Tensor


# As in Mask2Former, https://github.com/facebookresearch/Mask2Former/blob/9b0651c/mask2former/modeling/matcher.py.
class HungarianMatcher:
    """The assignment of least total cost: class probability, cross-entropy and Dice at shared points."""

    def __init__(
        self,
        *,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        num_points: int = 12_544,
    ) -> None:
        if num_points < 1:
            raise ValueError(f"num_points must be at least 1, got {num_points}")
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.num_points = num_points

    @torch.no_grad()
    def __call__(self, output: "FISAOutput", targets: list[Target], valid: Tensor) -> list[Match]:
        """`valid` [B, Q] is False for padding, which is never matched."""
        return [
            self._match(class_logits[rows], mask_logits[rows], target, rows)
            for class_logits, mask_logits, target, rows in zip(
                output.class_logits, output.mask_logits, targets, valid, strict=True
            )
        ]

    def _match(self, class_logits: Tensor, mask_logits: Tensor, target: Target, rows: Tensor) -> Match:
        target.check_labels(class_logits.shape[1])
        points = torch.rand(1, self.num_points, 2, device=mask_logits.device)
        cost = self.cost(class_logits, mask_logits, target, points).cpu().numpy()
        if not np.isfinite(cost).all():
            raise ValueError(
                "the matching cost is not finite: logits of the model are NaN or infinite; "
                "lower the learning rate, or check the proposals"
            )
        chosen, segments = linear_sum_assignment(cost)
        places = rows.nonzero()[:, 0]
        return Match(
            places[torch.as_tensor(chosen, device=places.device)],
            torch.as_tensor(segments, device=places.device),
        )

    def cost(self, class_logits: Tensor, mask_logits: Tensor, target: Target, points: Tensor) -> Tensor:
        """Cost of every pair at points [1, P, 2]: [Q, K], [Q, h, w], N segments -> [Q, N]."""
        with torch.autocast(mask_logits.device.type, enabled=False):
            probabilities = class_logits.float().softmax(-1)[:, target.labels]
            logits = point_sample(mask_logits.float(), points)
            truth = point_sample(target.masks.float(), points)
            return (
                -self.class_weight * probabilities
                + self.mask_weight * _pairwise_bce(logits, truth)
                + self.dice_weight * _pairwise_dice(logits, truth)
            )


def _pairwise_bce(logits: Tensor, truth: Tensor) -> Tensor:
    """[Q, P], [N, P] -> [Q, N], mean over points."""
    # softplus(x) = softplus(-x) + x, so one of the two is enough.
    inside = F.softplus(-logits).sum(-1, keepdim=True)
    return (inside + logits @ (1 - truth).T) / logits.shape[1]


def _pairwise_dice(logits: Tensor, truth: Tensor) -> Tensor:
    """[Q, P], [N, P] -> [Q, N]."""
    probabilities = logits.sigmoid()
    overlap = 2 * probabilities @ truth.T
    sizes = probabilities.sum(-1)[:, None] + truth.sum(-1)[None]
    return 1 - (overlap + 1) / (sizes + 1)
