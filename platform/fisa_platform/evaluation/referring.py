"""Referring segmentation: how much of what an expression means is found, as intersection over union.

oIoU and mIoU as in https://arxiv.org/abs/2112.02244 (LAVT): of all pixels together, and as a mean over
expressions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from fisa_platform.mask_codec import run_length

PRECISIONS = (0.5, 0.7, 0.9)
"""Intersections over union from which on an expression counts as understood."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """A chosen mask and the object that was meant."""

    counts: bytes
    """The mask, as COCO's compressed run lengths."""

    intersection: int
    union: int


def overlap(mask: NDArray[np.bool_], true_counts: bytes) -> Overlap:
    """A mask [H, W] against COCO's compressed run lengths at the same size."""
    found = run_length(mask)
    truth = {"size": list(mask.shape), "counts": true_counts}
    intersection = int(coco_mask.area(coco_mask.merge([found, truth], intersect=True)))
    union = int(coco_mask.area(found)) + int(coco_mask.area(truth)) - intersection
    return Overlap(found["counts"], intersection, union)


def best_ious(masks: NDArray[np.bool_], true_counts: Sequence[bytes]) -> list[float]:
    """For each object the best intersection over union that any mask of [Q, H, W] has; 0 where Q is 0."""
    if not len(masks) or not true_counts:
        return [0.0] * len(true_counts)
    truths = [{"size": list(masks.shape[1:]), "counts": counts} for counts in true_counts]
    ious = coco_mask.iou([run_length(mask) for mask in masks], truths, [0] * len(truths))
    best: list[float] = np.asarray(ious).max(axis=0).tolist()
    return best


def summarise(referents: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Percentages over values of `schema.REFERENT`, of which there must be one.

    Returns:
        `oIoU`; `mIoU`; `P@0.5` and so on, expressions whose IoU is no less than that; and `best`, the mIoU if
        each expression chose the best of the proposals.
    """
    rows = [(r["intersection"], r["union"], r["best_iou"]) for r in referents]
    if not rows:
        raise ValueError("there is no expression to score")
    intersections, unions, best = np.array(rows, dtype=np.float64).T
    ious = intersections / unions
    return {
        "oIoU": 100 * float(intersections.sum() / unions.sum()),
        "mIoU": 100 * float(ious.mean()),
        **{f"P@{least}": 100 * float((ious >= least).mean()) for least in PRECISIONS},
        "best": 100 * float(best.mean()),
    }
