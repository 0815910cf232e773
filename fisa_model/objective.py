"""What training minimises: the criterion on the proposals that answer for a segment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fisa_model.criterion import Criterion
from fisa_model.fisa import FISA, FISAOutput
from fisa_model.matcher import HungarianMatcher, Match, Target
from fisa_model.text_encoder import ClassTokens
from fisa_model.transforms import TrainingSample, pad_proposals


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

    emptied: float = 0.0
    """Segments of an image that have no pixel in its window, on average."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "TrainingBatch":
        """The batch on a device; `non_blocking` does not wait until it is there, where it was pinned."""
        images, proposals, valid = (
            tensor.to(device, non_blocking=non_blocking)
            for tensor in (self.images, self.proposals, self.valid)
        )
        targets = [target.to(device, non_blocking=non_blocking) for target in self.targets]
        return TrainingBatch(images, proposals, valid, targets, self.emptied)

    def pin_memory(self) -> "TrainingBatch":
        """The batch in memory that a GPU reads by itself; a `DataLoader` asks for it."""
        images, proposals, valid = (
            tensor.pin_memory() for tensor in (self.images, self.proposals, self.valid)
        )
        targets = [target.pin_memory() for target in self.targets]
        return TrainingBatch(images, proposals, valid, targets, self.emptied)


def collate(samples: Sequence[TrainingSample]) -> TrainingBatch:
    """Stack samples; proposals are filled up to the largest number."""
    proposals, valid = pad_proposals([sample.proposals for sample in samples])
    images = torch.stack([sample.image for sample in samples])
    emptied = sum(sample.emptied for sample in samples) / len(samples)
    return TrainingBatch(images, proposals, valid, [sample.target for sample in samples], emptied)


class FISAObjective(nn.Module):
    """The mask classifier with its matcher and its criterion, over one vocabulary.

    `class_tokens` may be a function that encodes the vocabulary anew, for a language encoder that learns.
    `generator` proposes in place of the batch, images [B, 3, S, S] -> [B, Q, h, w], and may learn.
    `classes_per_batch` is how many classes a batch is learnt among, see `draw_vocabulary`; None is all.
    `mean_over_ranks` averages a number that each rank brings, so that all divide mask losses by the same.
    """

    def __init__(
        self,
        model: FISA,
        matcher: HungarianMatcher,
        criterion: Criterion,
        class_tokens: ClassTokens | Callable[[], ClassTokens],
        *,
        generator: nn.Module | None = None,
        classes_per_batch: int | None = None,
        mean_over_ranks: Callable[[float], float] = float,
    ) -> None:
        super().__init__()
        if classes_per_batch is not None and classes_per_batch < 1:
            raise ValueError(f"classes_per_batch must be at least 1 or None, got {classes_per_batch}")
        self.model = model
        self.generator = generator
        self.matcher = matcher
        self.criterion = criterion
        self.class_tokens = class_tokens
        self.classes_per_batch = classes_per_batch
        self.mean_over_ranks = mean_over_ranks

    def forward(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """The losses of a batch, see `Criterion`; and `emptied_segments`, which is only to be logged."""
        tokens = self.class_tokens if isinstance(self.class_tokens, ClassTokens) else self.class_tokens()
        targets = batch.targets
        if self.classes_per_batch is not None:
            tokens, targets = draw_vocabulary(tokens, targets, self.classes_per_batch)
        proposals, valid = batch.proposals, batch.valid
        if self.generator is not None:
            proposals = self.generator(batch.images)
            valid = torch.ones(proposals.shape[:2], dtype=torch.bool, device=proposals.device)
        run = self._run_matched if self.criterion.no_object_weight == 0 else self._run_all
        output, matches, valid = run(batch.images, proposals, valid, targets, tokens)
        num_masks = self.mean_over_ranks(sum(len(target.labels) for target in targets))
        losses = self.criterion(
            output,
            targets,
            matches,
            valid,
            num_classes=tokens.num_classes,
            num_masks=num_masks,
        )
        return {**losses, "emptied_segments": batch.images.new_full((), batch.emptied)}

    def _run_all(
        self, images: Tensor, proposals: Tensor, valid: Tensor, targets: list[Target], tokens: ClassTokens
    ) -> tuple[FISAOutput, list[Match], Tensor]:
        output = self.model(images, proposals, tokens)
        return output, self.matcher(output, targets, valid), valid

    def _run_matched(
        self, images: Tensor, proposals: Tensor, valid: Tensor, targets: list[Target], tokens: ClassTokens
    ) -> tuple[FISAOutput, list[Match], Tensor]:
        """Classifies proposals that may be matched, and once more, with gradients, the few that are.

        An unmatched proposal has no loss here, and mask tokens do not see one another.
        """
        # Before the images, as in `FISA.forward`.
        with torch.no_grad():
            masks = self.model.adapt_masks(proposals)
        contests = self.matcher.compare_masks(masks.mask_logits, targets, valid)
        features = self.model.encode_images(images)

        def classify(rows: Tensor) -> Tensor:
            return self.model.classify(features, masks.select(rows), tokens).class_logits

        matches = self.matcher.settle(contests, classify)
        proposals, valid, matches = keep_matched(proposals, matches)
        output = self.model.classify(features, self.model.adapt_masks(proposals), tokens)
        return output, matches, valid


def draw_vocabulary(
    tokens: ClassTokens, targets: Sequence[Target], count: int
) -> tuple[ClassTokens, list[Target]]:
    """`count` classes at random, those of the targets among them, and the targets with labels of these.

    So a model meets another vocabulary with every batch, as it will at test time, and cannot learn the one by
    heart. Where the targets have more classes than `count`, it is just these.
    """
    present = torch.zeros(tokens.num_classes, dtype=torch.bool)
    for target in targets:
        target.check_labels(tokens.num_classes)
        present[target.labels.cpu()] = True
    order = torch.rand(tokens.num_classes).masked_fill(present, -1.0).argsort()
    chosen = order[: max(count, int(present.sum()))].sort().values.to(tokens.targets.device)
    place = chosen.new_full((tokens.num_classes,), -1)
    place[chosen] = torch.arange(len(chosen), device=chosen.device)
    renamed = [Target(place[target.labels], target.masks) for target in targets]
    return tokens.select(chosen), renamed


def keep_matched(proposals: Tensor, matches: Sequence[Match]) -> tuple[Tensor, Tensor, list[Match]]:
    """Of proposals [B, Q, h, w] those that are matched, which of them are real, and their matches."""
    kept = [masks[match.proposals] for masks, match in zip(proposals, matches, strict=True)]
    padded, valid = pad_proposals(kept)
    places = torch.arange(padded.shape[1], device=padded.device)
    return padded, valid, [Match(places[: len(match.segments)], match.segments) for match in matches]
