"""The training loss: equation 6 of the paper, on matched proposals."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fisa_model.fisa import FISAOutput
from fisa_model.losses import dice_loss, point_sample, sigmoid_bce, uncertain_points
from fisa_model.matcher import Match, Target

_IGNORED = -100


class Criterion:
    """Weighted sum of classification, cross-entropy and Dice."""

    def __init__(
        self,
        *,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.0,
        num_points: int = 12_544,
        mask_losses: bool = True,
    ) -> None:
        """`no_object_weight` is the weight of unmatched proposals, whose class is void; 0 leaves them out.

        `mask_losses` is False where nothing that learns touches the masks (`FISAConfig.trains_masks`).
        """
        if no_object_weight < 0:
            raise ValueError(f"no_object_weight must be 0 or more, got {no_object_weight}")
        if num_points < 1:
            raise ValueError(f"num_points must be at least 1, got {num_points}")
        self.weights = {"loss_class": class_weight, "loss_mask": mask_weight, "loss_dice": dice_weight}
        self.no_object_weight = no_object_weight
        self.num_points = num_points
        self.mask_losses = mask_losses

    def __call__(
        self,
        output: FISAOutput,
        targets: list[Target],
        matches: list[Match],
        valid: Tensor,
        *,
        num_classes: int,
        num_masks: float | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            output: of the model.
            targets: one an image.
            matches: one an image, of the proposals in `output`.
            valid: [B, Q], False for proposals that only fill up the batch.
            num_classes: K, without void; a void column is the one after.
            num_masks: segments to divide mask losses by, the mean over ranks; of this batch where None.

        Returns:
            `loss`, their weighted sum, with gradient; and the parts: `loss_class` and, where masks are
            trained, `loss_mask` and `loss_dice`.
        """
        if num_masks is None:
            num_masks = float(sum(len(target.labels) for target in targets))
        with torch.autocast(output.mask_logits.device.type, enabled=False):
            losses = {"loss_class": self._class_loss(output, targets, matches, valid, num_classes)}
            if self.mask_losses:
                losses |= self._mask_losses(output, targets, matches, max(num_masks, 1.0))
        losses["loss"] = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
        return losses

    def _class_loss(
        self, output: FISAOutput, targets: list[Target], matches: list[Match], valid: Tensor, num_classes: int
    ) -> Tensor:
        logits = output.class_logits.float()
        if logits.shape[-1] == num_classes and self.no_object_weight > 0:
            raise ValueError(
                f"no_object_weight is {self.no_object_weight} but the class tokens have no void row; "
                "encode the vocabulary with void, or set it to 0"
            )
        unmatched = num_classes if self.no_object_weight > 0 else _IGNORED
        labels = torch.full(logits.shape[:2], unmatched, device=logits.device)
        labels[~valid] = _IGNORED
        for row, target, match in zip(labels, targets, matches, strict=True):
            target.check_labels(num_classes)
            row[match.proposals] = target.labels[match.segments]
        weights = logits.new_ones(logits.shape[-1])
        weights[num_classes:] = self.no_object_weight
        summed = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), weights, ignore_index=_IGNORED, reduction="sum"
        )
        # Zero segments in the whole batch is a loss of zero, not 0 / 0.
        total = weights[labels[labels != _IGNORED]].sum()
        return summed / total.clamp(min=torch.finfo(total.dtype).tiny)

    def _mask_losses(
        self, output: FISAOutput, targets: list[Target], matches: list[Match], num_masks: float
    ) -> dict[str, Tensor]:
        sampled = [
            self._sample(masks[match.proposals].float(), target.masks[match.segments].float())
            for masks, target, match in zip(output.mask_logits, targets, matches, strict=True)
        ]
        logits = torch.cat([pair[0] for pair in sampled])
        truth = torch.cat([pair[1] for pair in sampled])
        return {
            "loss_mask": sigmoid_bce(logits, truth, num_masks),
            "loss_dice": dice_loss(logits, truth, num_masks),
        }

    def _sample(self, mask_logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        points = uncertain_points(mask_logits.detach(), self.num_points)
        return point_sample(mask_logits, points), point_sample(truth, points)
