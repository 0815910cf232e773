"""The numbers of a report: every metric over all, seen, unseen, thing and stuff classes."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from fisa_model.vocabulary import Vocabulary
from fisa_platform.evaluation.instances import InstanceMetrics, true_instances
from fisa_platform.evaluation.label_maps import VOID, class_labels
from fisa_platform.evaluation.mask_accuracy import MaskAccuracy
from fisa_platform.evaluation.panoptic import PanopticMetrics
from fisa_platform.evaluation.semantic import SemanticMetrics
from fisa_platform.panoptic_png import decode_panoptic

SUBSETS = ("all", "seen", "unseen", "thing", "stuff")
"""In the order of tables."""


def standard_subsets(vocabulary: Vocabulary, seen: Vocabulary | None = None) -> dict[str, set[int]]:
    """Category ids of each of SUBSETS; without `seen`, the vocabulary of training, less `seen` and `unseen`.

    A class is seen if any of its names, synonyms included, is a name or synonym that was trained on (the rule
    of FC-CLIP's ensemble; here case does not count, as CLIP reads none), so a class may have different ids in
    the two vocabularies.
    """
    subsets = {"all": set(vocabulary.ids)}
    if seen is not None:
        shared = vocabulary.shares_name_with(seen)
        subsets["seen"] = set(itertools.compress(vocabulary.ids, shared))
        subsets["unseen"] = subsets["all"] - subsets["seen"]
    subsets["thing"] = {category.id for category in vocabulary.categories if category.is_thing}
    subsets["stuff"] = subsets["all"] - subsets["thing"]
    return subsets


METRICS = ("PQ", "SQ", "RQ", "AP", "mIoU", "mask_acc")
"""In the order of tables; `AP` is that of things, `mask_acc` only where it was asked for."""


class Metrics:
    """All counts of a job. Pickles; `merge` adds another worker's."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.panoptic = PanopticMetrics(vocabulary)
        self.semantic = SemanticMetrics(vocabulary)
        self.instances = InstanceMetrics(vocabulary)
        self.masks = MaskAccuracy(vocabulary)

    def merge(self, other: "Metrics") -> None:
        """Add the counts of other images."""
        self.panoptic.merge(other.panoptic)
        self.semantic.merge(other.semantic)
        self.instances.merge(other.instances)
        self.masks.merge(other.masks)

    def result(self, subsets: Mapping[str, Collection[int]]) -> dict[str, dict[str, float]]:
        """METRICS, AP50 and mIoU_old in percent for each subset that ground truth is in."""
        qualities, overlaps = self.panoptic.result(subsets), self.semantic.result(subsets)
        accuracies = {name: {"mask_acc": value} for name, value in self.masks.result(subsets).items()}
        parts = (qualities, self.instances.result(subsets), overlaps, accuracies)
        scores = {
            name: {metric: value for part in parts for metric, value in part.get(name, {}).items()}
            for name in subsets
        }
        return {name: values for name, values in scores.items() if values}

    def per_class(self) -> list[dict[str, Any]]:
        """Of each class that ground truth or predictions have."""
        ious, accuracies = self.semantic.per_class(), self.masks.per_class()
        precisions = self.instances.per_class()
        return [
            {
                "id": quality.category_id,
                "name": quality.name,
                "PQ": quality.pq,
                "SQ": quality.sq,
                "RQ": quality.rq,
                "AP": precisions.get(quality.category_id, (None, None))[0],
                "IoU": ious.get(quality.category_id),
                "mask_acc": accuracies.get(quality.category_id),
            }
            for quality in self.panoptic.per_class()
        ]


def score_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Lines of text: a subset each, with METRICS in columns."""
    columns = [name for name in METRICS if any(name in values for values in scores.values())]
    lines = [f"{'':8}" + "".join(f"{name:>9}" for name in columns)]
    for subset, values in scores.items():
        cells = "".join(f"{values[name]:9.1f}" if name in values else f"{'-':>9}" for name in columns)
        lines.append(f"{subset:8}{cells}")
    return "\n".join(lines)


def score_image(row: dict[str, Any], vocabulary: Vocabulary, metrics: Sequence[Metrics]) -> None:
    """Count one image, given as values of EVALUATED, by one ground truth and once for each set of rules."""
    truth = decode_panoptic(row["true_panoptic"])
    true_labels = class_labels(truth, row["true_segments_info"], vocabulary)
    asked = row["instances"] is not None
    things = true_instances(truth, row["true_segments_info"], vocabulary) if asked else []
    for result, counts in zip([row, *row["by_other_rules"]], metrics, strict=True):
        predicted, labels = decode_panoptic(result["panoptic"]), decode_panoptic(result["semantic"])
        counts.panoptic.update(truth, row["true_segments_info"], predicted, result["segments_info"])
        counts.semantic.update(true_labels, np.where(labels == len(vocabulary), VOID, labels))
        if asked:
            size = (row["height"], row["width"])
            counts.instances.update(row["image_id"], size, things, result["instances"])
    if row["mask_names"] is not None:
        metrics[0].masks.update(np.array(row["mask_classes"], int), np.array(row["mask_names"], int))
