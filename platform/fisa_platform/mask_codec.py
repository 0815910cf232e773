"""Masks as the `masks` column of the proposals table holds them: COCO's compressed run lengths.

The codec is binary, so what comes back as a logit is `LOGIT` inside a mask and `-LOGIT` outside.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from fisa_model.mask_generators import MaskProposals

LOGIT = 10.0
"""Mask logit of a pixel that a stored mask holds: a probability of 0.99995."""


def encode_masks(masks: NDArray[np.bool_], scores: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Run lengths of masks [Q, h, w] with scores [Q], as structs of the proposals table."""
    if masks.ndim != 3 or len(masks) != len(scores):
        raise ValueError(f"masks must be [Q, h, w] with Q scores, got {masks.shape} and {scores.shape}")
    if not len(masks):
        return []
    # Runs go down the columns, so pycocotools wants [h, w, Q] in column-major order.
    runs = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8))
    areas = coco_mask.area(runs)
    return [
        {
            "height": run["size"][0],
            "width": run["size"][1],
            "counts": run["counts"],
            "score": float(score),
            "area": int(area),
        }
        for run, score, area in zip(runs, scores, areas, strict=True)
    ]


def decode_masks(structs: Sequence[Mapping[str, Any]]) -> NDArray[np.bool_]:
    """Masks [Q, h, w] of structs of the proposals table; [0, 0, 0] of none."""
    if not structs:
        return np.zeros((0, 0, 0), dtype=bool)
    sizes = {(struct["height"], struct["width"]) for struct in structs}
    if len(sizes) > 1:
        raise ValueError(f"masks of one image must share one size, got {sorted(sizes)} (height, width)")
    (size,) = sizes
    runs = [{"size": list(size), "counts": struct["counts"]} for struct in structs]
    return np.ascontiguousarray(coco_mask.decode(runs).transpose(2, 0, 1)).view(np.bool_)


def encode_proposals(proposals: MaskProposals, height: int, width: int) -> dict[str, Any]:
    """A row of the proposals table, less its `image_id`. A mask without a pixel is dropped.

    Args:
        proposals: what a generator gave for one image.
        height, width: pixels of that image.
    """
    masks = proposals.mask_logits >= 0
    kept = masks.any(axis=(1, 2))
    return {"height": height, "width": width, "masks": encode_masks(masks[kept], proposals.scores[kept])}


def decode_proposals(row: Mapping[str, Any]) -> MaskProposals:
    """The proposals of a row of the proposals table, at the size they were stored in."""
    masks = decode_masks(row["masks"])
    if not len(masks):
        masks = np.zeros((0, row["height"], row["width"]), dtype=bool)
    logits = np.where(masks, np.float32(LOGIT), np.float32(-LOGIT))
    return MaskProposals(logits, np.array([struct["score"] for struct in row["masks"]], dtype=np.float32))
