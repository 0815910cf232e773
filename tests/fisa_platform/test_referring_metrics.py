"""Intersection over union of what expressions mean."""

from typing import Any

import numpy as np
import pytest

from fisa_platform.evaluation.referring import best_ious, overlap, summarise
from fisa_platform.mask_codec import decode_runs, run_length

RANDOM = np.random.default_rng(0)


def referent(intersection: int, union: int, best: float = 1.0) -> dict[str, Any]:
    return {"intersection": intersection, "union": union, "best_iou": best}


def test_overlap_is_counted_in_pixels() -> None:
    mask, truth = RANDOM.random((2, 13, 17)) > 0.4
    common = overlap(mask, run_length(truth)["counts"])
    assert (common.intersection, common.union) == ((mask & truth).sum(), (mask | truth).sum())
    assert np.array_equal(decode_runs([common.counts], 13, 17)[0], mask)


def test_the_best_proposal_of_each_object() -> None:
    masks, truths = RANDOM.random((5, 13, 17)) > 0.5, RANDOM.random((3, 13, 17)) > 0.6
    expected = [max((m & t).sum() / (m | t).sum() for m in masks) for t in truths]
    assert best_ious(masks, [run_length(t)["counts"] for t in truths]) == pytest.approx(expected)
    assert best_ious(masks[:0], [b"0", b"1"]) == [0.0, 0.0]


def test_scores_by_hand() -> None:
    scores = summarise([referent(90, 100), referent(0, 300, best=0.6), referent(7, 10, best=0.8)])
    assert scores == pytest.approx(
        {
            "oIoU": 100 * 97 / 410,
            "mIoU": 100 * 1.6 / 3,
            "P@0.5": 200 / 3,
            "P@0.7": 200 / 3,
            "P@0.9": 100 / 3,
            "best": 80,
        }
    )
    with pytest.raises(ValueError, match="no expression"):
        summarise([])
