"""Panoptic quality, image by image: counts that merge over workers and give panopticapi's numbers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fisa_model.vocabulary import Vocabulary
from fisa_platform.evaluation.label_maps import run_starts

_ID_RANGE = 1 << 24
_VOID_ID = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassQuality:
    """How one class fared, in percent."""

    category_id: int
    name: str
    pq: float
    """Panoptic quality: `sq * rq`."""
    sq: float
    """Segmentation quality: mean IoU of the matched pairs."""
    rq: float
    """Recognition quality: F1 of the matching."""
    true_positives: int
    false_positives: int
    false_negatives: int


# After https://github.com/cocodataset/panopticapi/blob/7bb4655/panopticapi/evaluation.py#L77-L165, including
# that a ground-truth segment's area is the JSON's, and that of several crowds of a class in an image the last
# counts. hotcoco's PanopticEval gives the same numbers, but takes whole data sets as files, not label maps.
class PanopticMetrics:
    """PQ, SQ and RQ over any number of images. Pickles; `merge` adds another worker's counts."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._index = {category_id: index for index, category_id in enumerate(vocabulary.ids)}
        self._iou = np.zeros(len(vocabulary), dtype=np.float64)
        self._true_positives = np.zeros(len(vocabulary), dtype=np.int64)
        self._false_positives = np.zeros(len(vocabulary), dtype=np.int64)
        self._false_negatives = np.zeros(len(vocabulary), dtype=np.int64)

    def update(
        self,
        gt_ids: NDArray[np.int32],
        gt_segments: Sequence[Mapping[str, Any]],
        pred_ids: NDArray[np.int32],
        pred_segments: Sequence[Mapping[str, Any]],
    ) -> None:
        """Count one image.

        Args:
            gt_ids, pred_ids: [H, W], 0 where there is no segment.
            gt_segments: id, category_id, area and iscrowd of each ground-truth segment.
            pred_segments: id and category_id of each predicted segment.
        """
        if gt_ids.shape != pred_ids.shape:
            raise ValueError(
                f"ground truth is {gt_ids.shape} pixels (height, width), prediction {pred_ids.shape}"
            )
        truth = {segment["id"]: segment for segment in gt_segments}
        predicted = {segment["id"]: self._class_index(segment) for segment in pred_segments}
        overlaps = _overlaps(gt_ids, pred_ids)
        areas = _predicted_areas(overlaps, predicted)
        matched: set[int] = set()
        found: set[int] = set()
        for (gt_id, pred_id), intersection in overlaps.items():
            segment = truth.get(gt_id)
            if segment is None or segment["iscrowd"] or pred_id not in predicted:
                continue
            index = self._class_index(segment)
            if index != predicted[pred_id]:
                continue
            union = areas[pred_id] + segment["area"] - intersection - overlaps.get((_VOID_ID, pred_id), 0)
            iou = intersection / union
            if iou > 0.5:
                self._true_positives[index] += 1
                self._iou[index] += iou
                found.add(gt_id)
                matched.add(pred_id)
        crowds = self._count_missed(truth, found)
        for pred_id, index in predicted.items():
            if pred_id not in matched:
                ignored = overlaps.get((_VOID_ID, pred_id), 0) + overlaps.get(
                    (crowds.get(index, -1), pred_id), 0
                )
                self._false_positives[index] += ignored / areas[pred_id] <= 0.5

    def merge(self, other: "PanopticMetrics") -> None:
        """Add the counts of other images."""
        if other.vocabulary != self.vocabulary:
            raise ValueError("metrics of two vocabularies do not merge")
        self._iou += other._iou
        self._true_positives += other._true_positives
        self._false_positives += other._false_positives
        self._false_negatives += other._false_negatives

    def per_class(self) -> list[ClassQuality]:
        """The classes that occurred, in ground truth or prediction, in the vocabulary's order."""
        pq, sq, rq = self._qualities()
        return [
            ClassQuality(
                category_id=category.id,
                name=category.name,
                pq=100 * float(pq[index]),
                sq=100 * float(sq[index]),
                rq=100 * float(rq[index]),
                true_positives=int(self._true_positives[index]),
                false_positives=int(self._false_positives[index]),
                false_negatives=int(self._false_negatives[index]),
            )
            for index, category in enumerate(self.vocabulary.categories)
            if self._occurs[index]
        ]

    def result(self, subsets: Mapping[str, Collection[int]]) -> dict[str, dict[str, float]]:
        """PQ, SQ and RQ in percent for each named set of category ids.

        A set without ground truth is left out. As in panopticapi, a class counts towards the mean once it
        occurs in ground truth or prediction.
        """
        qualities = np.stack(self._qualities())
        results: dict[str, dict[str, float]] = {}
        for name, category_ids in subsets.items():
            member = np.isin(self.vocabulary.ids, list(category_ids))
            if not (self._true_positives + self._false_negatives)[member].any():
                continue
            means = 100 * qualities[:, member & self._occurs].mean(axis=1)
            results[name] = {"PQ": float(means[0]), "SQ": float(means[1]), "RQ": float(means[2])}
        return results

    @property
    def _occurs(self) -> NDArray[np.bool_]:
        return (self._true_positives + self._false_positives + self._false_negatives) > 0

    def _qualities(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """PQ, SQ and RQ [K] as fractions; 0 for a class that does not occur."""
        weight = self._true_positives + 0.5 * self._false_positives + 0.5 * self._false_negatives
        recognised = np.maximum(weight, 0.5)
        segmented = np.maximum(self._true_positives, 1)
        return self._iou / recognised, self._iou / segmented, self._true_positives / recognised

    def _class_index(self, segment: Mapping[str, Any]) -> int:
        index = self._index.get(segment["category_id"])
        if index is None:
            raise ValueError(
                f"segment {segment['id']} has category id {segment['category_id']}, which the vocabulary of "
                f"{len(self.vocabulary)} classes lacks"
            )
        return index

    def _count_missed(self, truth: Mapping[int, Mapping[str, Any]], found: set[int]) -> dict[int, int]:
        """Count what was not found; give the crowd's segment id of each class index that has one."""
        crowds: dict[int, int] = {}
        for gt_id, segment in truth.items():
            index = self._class_index(segment)
            if segment["iscrowd"]:
                crowds[index] = gt_id
            elif gt_id not in found:
                self._false_negatives[index] += 1
        return crowds


def _overlaps(gt_ids: NDArray[np.int32], pred_ids: NDArray[np.int32]) -> dict[tuple[int, int], int]:
    """Pixels of each pair of ids that meet, ordered by ground-truth id, then by predicted id."""
    starts = run_starts(gt_ids, pred_ids)
    keys = gt_ids.reshape(-1)[starts].astype(np.int64) * _ID_RANGE + pred_ids.reshape(-1)[starts]
    pairs, inverse = np.unique(keys, return_inverse=True)
    pixels = np.bincount(inverse, weights=np.diff(starts, append=gt_ids.size)).astype(np.int64)
    return {
        divmod(pair, _ID_RANGE): count for pair, count in zip(pairs.tolist(), pixels.tolist(), strict=True)
    }


def _predicted_areas(overlaps: Mapping[tuple[int, int], int], predicted: Mapping[int, int]) -> dict[int, int]:
    """Pixels of each predicted segment; refuses what panopticapi refuses."""
    areas: dict[int, int] = {}
    for (_, pred_id), count in overlaps.items():
        areas[pred_id] = areas.get(pred_id, 0) + count
    unlisted = areas.keys() - predicted.keys() - {_VOID_ID}
    empty = predicted.keys() - areas.keys()
    if unlisted or empty:
        raise ValueError(
            "predicted segments and the id map disagree: "
            f"{sorted(unlisted)} only in the map, {sorted(empty)} only in the list"
        )
    return areas
