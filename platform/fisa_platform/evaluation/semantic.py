"""Mean IoU of label maps: one confusion matrix that merges over workers, counted by hotcoco."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from hotcoco.semantic import SemanticEval
from numpy.typing import NDArray

from fisa_model.vocabulary import Vocabulary
from fisa_platform.evaluation.label_maps import VOID


# The two formulas of detectron2's evaluation/sem_seg_evaluation.py, before and since commit f3c1bc19.
# Differs from both where a prediction is void, which detectron2 never has: that is a miss of the true class.
class SemanticMetrics:
    """mIoU over any number of images. Pickles; `merge` adds another worker's counts."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        # One class more, which only predictions have: void. The label after it is what ground truth ignores.
        self._predicted_void = len(vocabulary)
        self._ignored = len(vocabulary) + 1
        self._pixels = SemanticEval(len(vocabulary) + 1, ignore_index=self._ignored)

    def update(self, gt_labels: NDArray[np.integer[Any]], pred_labels: NDArray[np.integer[Any]]) -> None:
        """Count one image.

        Args:
            gt_labels: [H, W] class indices of the vocabulary; VOID (-1) where there is no ground truth.
            pred_labels: [H, W] class indices; VOID (-1) where nothing is predicted.
        """
        self._pixels.update(
            np.where(gt_labels == VOID, self._ignored, gt_labels).astype(np.int64),
            np.where(pred_labels == VOID, self._predicted_void, pred_labels).astype(np.int64),
        )

    def merge(self, other: "SemanticMetrics") -> None:
        """Add the counts of other images."""
        if other.vocabulary != self.vocabulary:
            raise ValueError("metrics of two vocabularies do not merge")
        self._pixels.merge(other._pixels)

    def per_class(self) -> dict[int, float]:
        """IoU in percent of each category id with ground truth."""
        correct, truth, predicted = self._areas()
        ious = 100 * correct / np.maximum(truth + predicted - correct, 1)
        ids = self.vocabulary.ids
        return {ids[index]: float(ious[index]) for index in np.flatnonzero(truth)}

    def result(self, subsets: Mapping[str, Collection[int]]) -> dict[str, dict[str, float]]:
        """mIoU in percent for each named set of category ids; a set without ground truth is left out.

        `mIoU` is the mean over the classes with ground truth. `mIoU_old` (detectron2 until July 2022) divides
        the same sum by the number of classes with ground truth or predictions.
        """
        _, truth, predicted = self._areas()
        ious = self.per_class()
        occurring = {self.vocabulary.ids[index] for index in np.flatnonzero(truth + predicted)}
        results: dict[str, dict[str, float]] = {}
        for name, category_ids in subsets.items():
            members = set(category_ids)
            scored = [iou for category_id, iou in ious.items() if category_id in members]
            if scored:
                total = float(np.sum(scored))
                results[name] = {"mIoU": total / len(scored), "mIoU_old": total / len(members & occurring)}
        return results

    def _areas(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Pixels [K] that are right, that are of the class, that are predicted; all where there is truth."""
        confusion = self._pixels.confusion().astype(np.float64)
        classes = len(self.vocabulary)
        return np.diag(confusion)[:classes], confusion.sum(axis=1)[:classes], confusion.sum(axis=0)[:classes]
