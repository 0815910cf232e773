"""The oracle classifier: ground-truth classes on proposed masks, the most that a mask classifier could reach.

With it, what is lost is lost by the mask generator and the post-processing. The class of a proposal is a vote
of its pixels: the ground-truth segment that most of them belong to, void included. No one-to-one matching:
fragments and duplicates of a segment all get its class, as a perfect classifier, which sees one mask at a
time, would give them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fisa_model.mask_generators import MaskProposals
from fisa_model.prediction import Prediction
from fisa_model.vocabulary import Vocabulary
from fisa_platform.panoptic_png import decode_panoptic

_FLOOR = 0.9


def oracle_prediction(proposals: MaskProposals, row: Mapping[str, Any], vocabulary: Vocabulary) -> Prediction:
    """What the oracle says of an image's proposals; the image is a row of the images table."""
    ids = decode_panoptic(row["panoptic"])
    probs = oracle_class_probs(proposals.mask_logits >= 0, ids, row["segments_info"], vocabulary)
    logits = torch.from_numpy(proposals.mask_logits)
    return Prediction(
        torch.from_numpy(probs), logits, torch.ones(len(proposals)), (ids.shape[0], ids.shape[1])
    )


def oracle_class_probs(
    masks: NDArray[np.bool_],
    gt_ids: NDArray[np.int32],
    gt_segments: Sequence[Mapping[str, Any]],
    vocabulary: Vocabulary,
) -> NDArray[np.float32]:
    """Class probabilities for the ordinary post-processing: one class a row, or none where void won.

    Args:
        masks: [Q, h, w] proposals, which cover the whole image at any resolution.
        gt_ids: [H, W] panoptic ids of the ground truth.
        gt_segments: id and category_id of each segment.
        vocabulary: K classes.

    Returns:
        [Q, K], all 0 but for the proposal's class, which has 0.9 + 0.1 IoU with its segment: above every
        threshold in use, and where proposals overlap the better one keeps the pixels.
    """
    probs = np.zeros((len(masks), len(vocabulary)), dtype=np.float32)
    positions = _segment_positions(gt_ids, gt_segments, size=masks.shape[1:])
    segment_areas = np.bincount(positions.reshape(-1), minlength=len(gt_segments) + 1)
    for row, mask in zip(probs, masks, strict=True):
        votes = np.bincount(positions[mask], minlength=len(gt_segments) + 1)
        winner = int(votes.argmax())
        if winner == 0:
            continue
        iou = votes[winner] / (votes.sum() + segment_areas[winner] - votes[winner])
        row[vocabulary.index_of_id(gt_segments[winner - 1]["category_id"])] = _FLOOR + (1 - _FLOOR) * iou
    return probs


def _segment_positions(
    gt_ids: NDArray[np.int32], gt_segments: Sequence[Mapping[str, Any]], size: tuple[int, ...]
) -> NDArray[np.intp]:
    """One plus the position in `gt_segments` at each pixel [h, w], 0 for void, sampled at pixel centres."""
    rows, columns = (
        ((np.arange(stored) + 0.5) * original / stored).astype(np.intp)
        for stored, original in zip(size, gt_ids.shape, strict=True)
    )
    sampled = gt_ids[np.ix_(rows, columns)]
    positions = np.zeros(sampled.shape, dtype=np.intp)
    for position, segment in enumerate(gt_segments, start=1):
        positions[sampled == segment["id"]] = position
    return positions
