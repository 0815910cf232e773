"""What FISA's training minimises: the criterion on the model's output for a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fisa_model.criterion import Criterion, Target
from fisa_model.fisa import FISA
from fisa_model.text_encoder import ClassTokens


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Examples of one step on one rank."""

    images: Tensor
    """[B, 3, S, S], CLIP-normalised."""

    proposals: Tensor
    """[B, Q, h, w] mask logits; filled up to the largest Q."""

    valid: Tensor
    """[B, Q], False where `proposals` is only filled up."""

    targets: list[Target]

    def to(self, device: torch.device | str, **_: object) -> TrainingBatch:
        """The batch on a device."""
        targets = [target.to(device) for target in self.targets]
        return TrainingBatch(
            self.images.to(device), self.proposals.to(device), self.valid.to(device), targets
        )


class FISAObjective(nn.Module):
    """The mask classifier with its criterion, over one vocabulary.

    `mean_over_ranks` averages a number that each rank brings, so that all divide mask losses by the same.
    """

    def __init__(
        self,
        model: FISA,
        criterion: Criterion,
        class_tokens: ClassTokens,
        *,
        mean_over_ranks: Callable[[float], float] = float,
    ) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion
        self.class_tokens = class_tokens
        self.mean_over_ranks = mean_over_ranks

    def forward(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """The losses of a batch; see `Criterion`."""
        output = self.model(batch.images, batch.proposals, self.class_tokens)
        num_masks = self.mean_over_ranks(sum(len(target.labels) for target in batch.targets))
        return self.criterion(
            output,
            batch.targets,
            batch.valid,
            num_classes=self.class_tokens.num_classes,
            num_masks=num_masks,
        )
