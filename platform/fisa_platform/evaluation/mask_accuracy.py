"""Mask accuracy: how many ground-truth masks get their class. Needs no mask generator and no matching."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fisa_model.mask_generators import LOGIT, MaskProposals
from fisa_model.vocabulary import Vocabulary
from fisa_platform.evaluation.label_maps import class_labels


@dataclass(frozen=True, slots=True)
class TrueMasks:
    """Ground truth as proposals."""

    masks: NDArray[np.bool_]
    """[N, H, W]."""

    classes: NDArray[np.int64]
    """[N], class indices."""

    def as_proposals(self) -> MaskProposals:
        """The same masks for a classifier."""
        logits = np.where(self.masks, np.float32(LOGIT), np.float32(-LOGIT))
        return MaskProposals(logits, np.ones(len(logits), np.float32))


def true_masks(
    ids: NDArray[np.int32],
    segments: Sequence[Mapping[str, Any]],
    vocabulary: Vocabulary,
    *,
    merge: Literal["segments", "classes"] = "classes",
) -> TrueMasks:
    """One mask a class, or a segment, crowds too, of those that have pixels in the id map [H, W]."""
    if merge == "segments":
        painted = set(np.unique(ids).tolist())
        shown = [segment for segment in segments if segment["id"] in painted]
        indices = [vocabulary.index_of_id(segment["category_id"]) for segment in shown]
        masks = [ids == segment["id"] for segment in shown]
    else:
        labels = class_labels(ids, segments, vocabulary)
        indices = [int(index) for index in np.unique(labels) if index >= 0]
        masks = [labels == index for index in indices]
    stacked = np.stack(masks) if masks else np.zeros((0, *ids.shape), dtype=np.bool_)
    return TrueMasks(stacked, np.array(indices, dtype=np.int64))


# As in https://github.com/HVision-NKU/MaskCLIPpp/blob/8bf4718/maskclippp/evaluation/mask_acc_evaluation.py.
class MaskAccuracy:
    """Recall of each class over its masks, averaged over classes. Pickles; `merge` adds another worker's."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._masks = np.zeros(len(vocabulary), dtype=np.int64)
        self._right = np.zeros(len(vocabulary), dtype=np.int64)

    def update(self, classes: NDArray[np.integer[Any]], predicted: NDArray[np.integer[Any]]) -> None:
        """Count the masks of one image: their class indices [N], and those that were predicted [N]."""
        if classes.shape != predicted.shape:
            raise ValueError(f"{classes.shape[0]} masks came with {predicted.shape[0]} predicted classes")
        np.add.at(self._masks, classes, 1)
        np.add.at(self._right, classes[classes == predicted], 1)

    def merge(self, other: "MaskAccuracy") -> None:
        """Add the counts of other images."""
        if other.vocabulary != self.vocabulary:
            raise ValueError("metrics of two vocabularies do not merge")
        self._masks += other._masks
        self._right += other._right

    def per_class(self) -> dict[int, float]:
        """Percent of the masks of each category id that has any."""
        return {
            category_id: 100 * float(right / masks)
            for category_id, right, masks in zip(self.vocabulary.ids, self._right, self._masks, strict=True)
            if masks
        }

    def result(self, subsets: Mapping[str, Collection[int]]) -> dict[str, float]:
        """Mean over the classes with masks, in percent, for each named set of category ids that has one."""
        recalls = self.per_class()
        scored = {
            name: [recall for category_id, recall in recalls.items() if category_id in set(category_ids)]
            for name, category_ids in subsets.items()
        }
        return {name: float(np.mean(values)) for name, values in scored.items() if values}
