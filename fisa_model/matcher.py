"""Which proposal answers for which ground-truth segment."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fisa_model.assignment import Costs, assign, may_be_assigned
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
        if class_weight < 0:
            raise ValueError(f"class_weight must be 0 or more, got {class_weight}")
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.num_points = num_points

    def __call__(self, output: "FISAOutput", targets: list[Target], valid: Tensor) -> list[Match]:
        """`valid` [B, Q] is False for padding, which is never matched.

        Raises as `compare_masks` and `settle`.
        """
        images = torch.arange(len(valid), device=valid.device)[:, None]
        contests = self.compare_masks(output.mask_logits, targets, valid)
        return self.settle(contests, lambda rows: output.class_logits[images, rows])

    @torch.no_grad()
    def compare_masks(self, mask_logits: Tensor, targets: list[Target], valid: Tensor) -> list["Contest"]:
        """Mask logits [B, Q, h, w] against one target an image; see `__call__` for `valid`.

        Raises:
            ValueError: mask logits are NaN or infinite.
        """
        costs = []
        for masks, target in zip(mask_logits, targets, strict=True):
            points = torch.rand(1, self.num_points, 2, device=masks.device)
            costs.append(self.mask_cost(masks, target, points))
        return [
            Contest(target, np.flatnonzero(real), _checked(cost, real), -self.class_weight)
            for target, real, cost in zip(targets, valid.cpu().numpy(), costs, strict=True)
        ]

    @torch.no_grad()
    def settle(self, contests: list["Contest"], classify: Callable[[Tensor], Tensor]) -> list[Match]:
        """The matches that `cost` of all pairs gives, without the classes of all proposals.

        `classify` gives the class logits [B, U, K] of rows [B, U] of proposals. It is asked for those near to
        the best by their masks and, seldom, once more for others that the classes of these let in.

        Raises:
            ValueError: class logits are NaN or infinite, or a label is none of their columns.
        """
        self._learn(contests, [contest.near() for contest in contests], classify)
        self._learn(contests, [contest.undecided() for contest in contests], classify)
        return [contest.settle() for contest in contests]

    def _learn(
        self,
        contests: list["Contest"],
        asked: list[NDArray[np.int64]],
        classify: Callable[[Tensor], Tensor],
    ) -> None:
        """Classifies the asked proposals of each image, given by their place among its real ones."""
        if not any(len(own) for own in asked):
            return
        rows = [torch.as_tensor(c.places[own]) for c, own in zip(contests, asked, strict=True)]
        logits = classify(pad_sequence(rows, batch_first=True).to(contests[0].target.labels.device))
        costs = [
            self.class_cost(image[: len(own)], contest.target)
            for contest, own, image in zip(contests, asked, logits, strict=True)
        ]
        for contest, own, cost in zip(contests, asked, costs, strict=True):
            contest.class_costs[own] = _checked(cost, slice(None))
            contest.known[own] = True

    def cost(self, class_logits: Tensor, mask_logits: Tensor, target: Target, points: Tensor) -> Tensor:
        """Cost of every pair at points [1, P, 2]: [Q, K], [Q, h, w], N segments -> [Q, N]."""
        return self.class_cost(class_logits, target) + self.mask_cost(mask_logits, target, points)

    def class_cost(self, class_logits: Tensor, target: Target) -> Tensor:
        """[Q, K], N segments -> [Q, N], from `-class_weight` to 0."""
        target.check_labels(class_logits.shape[1])
        with torch.autocast(class_logits.device.type, enabled=False):
            return -self.class_weight * class_logits.float().softmax(-1)[:, target.labels]

    def mask_cost(self, mask_logits: Tensor, target: Target, points: Tensor) -> Tensor:
        """[Q, h, w], N segments, points [1, P, 2] -> [Q, N]."""
        with torch.autocast(mask_logits.device.type, enabled=False):
            logits = point_sample(mask_logits.float(), points)
            truth = point_sample(target.masks.float(), points)
            bce, dice = _pairwise_bce(logits, truth), _pairwise_dice(logits, truth)
            return self.mask_weight * bce + self.dice_weight * dice


@dataclass(slots=True)
class Contest:
    """Who may answer for the segments of an image, as far as it is known."""

    target: Target
    places: NDArray[np.int64]
    """Of the real proposals among all of the image."""

    mask_costs: Costs
    """Of the real proposals; so are all costs here."""

    least_class_cost: float
    class_costs: Costs = field(init=False)
    """0, the most that it can be, where it is not known."""

    known: NDArray[np.bool_] = field(init=False)
    """[Q], whose class costs are known."""

    def __post_init__(self) -> None:
        self.class_costs = np.zeros_like(self.mask_costs)
        self.known = np.zeros(len(self.places), dtype=bool)

    def near(self) -> NDArray[np.int64]:
        """The best proposals by their masks, and those whose class could put them before one of these."""
        proposals, segments = assign(self.mask_costs)
        behind = self.mask_costs[:, segments] - self.mask_costs[proposals, segments]
        near: NDArray[np.bool_] = np.any(behind + self.least_class_cost < 0, axis=1)
        near[proposals] = True
        return np.flatnonzero(near)

    def undecided(self) -> NDArray[np.int64]:
        """Proposals not known that may still be matched, by whatever classes; hardly ever any."""
        most = self.mask_costs + self.class_costs
        least = most + np.where(self.known, 0.0, self.least_class_cost)[:, None]
        return np.flatnonzero(may_be_assigned(least, most) & ~self.known)

    def settle(self) -> Match:
        """Among the proposals that are known."""
        device = self.target.labels.device
        proposals, segments = assign((self.mask_costs + self.class_costs)[self.known])
        places = self.places[self.known][proposals]
        return Match(torch.as_tensor(places, device=device), torch.as_tensor(segments, device=device))


def _checked(costs: Tensor, rows: NDArray[np.bool_] | slice) -> Costs:
    # Made double only here: not every device has such numbers.
    numbers: Costs = costs.cpu().double().numpy()[rows]
    if not np.isfinite(numbers).all():
        raise ValueError(
            "the matching cost is not finite: logits of the model are NaN or infinite; "
            "lower the learning rate, or check the proposals"
        )
    return numbers


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
