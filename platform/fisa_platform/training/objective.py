"""What FISA's training minimises: the criterion on the model's output for a batch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from fisa_model.criterion import Criterion
from fisa_model.fisa import FISA
from fisa_model.text_encoder import ClassTokens
from fisa_platform.training.batches import TrainingBatch


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
