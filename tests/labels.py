"""Predictions of two runs, compared."""

from collections.abc import Sequence
from typing import Any

import pytest


def assert_same_labels(rows: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> None:
    """The same rows of predictions; scores may differ by what another batch rounds otherwise."""
    (bare, scores), (other_bare, other_scores) = _split(rows), _split(others)
    assert bare == other_bare
    assert scores == pytest.approx(other_scores, abs=1e-5)


def _split(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[float]]:
    """Rows, or annotations of COCO's JSON, without scores; and these."""
    segments = [segment for row in rows for segment in row["segments_info"]]
    bare = [
        {**row, "segments_info": [{**segment, "score": None} for segment in row["segments_info"]]}
        for row in rows
    ]
    return bare, [segment["score"] for segment in segments]
