"""Id maps as runs of equal pixels: a picture has far fewer runs than pixels, so counting runs is fast."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fisa_model.vocabulary import Vocabulary

VOID = -1
"""Label of a pixel that has no class."""


def run_starts(*maps: NDArray[np.int32]) -> NDArray[np.intp]:
    """Flat positions where a run begins that is constant in every one of the maps [H, W], all of one size."""
    changes = np.zeros(maps[0].size, dtype=bool)
    changes[:1] = True
    for ids in maps:
        flat = ids.reshape(-1)
        changes[1:] |= flat[1:] != flat[:-1]
    return np.flatnonzero(changes)


def class_labels(
    ids: NDArray[np.int32], segments: Sequence[Mapping[str, Any]], vocabulary: Vocabulary
) -> NDArray[np.int32]:
    """Class indices [H, W] of a panoptic id map [H, W]; VOID where no segment is. Crowds have their class."""
    listed = np.array([segment["id"] for segment in segments], dtype=np.int64)
    indices = np.array(
        [vocabulary.index_of_id(segment["category_id"]) for segment in segments], dtype=np.int32
    )
    starts = run_starts(ids)
    heads = ids.reshape(-1)[starts]
    labels = np.full(heads.shape, VOID, dtype=np.int32)
    if len(listed):
        order = np.argsort(listed, kind="stable")
        found = order[np.searchsorted(listed, heads, sorter=order).clip(max=len(listed) - 1)]
        labels = np.where(listed[found] == heads, indices[found], VOID).astype(np.int32)
    return np.repeat(labels, np.diff(starts, append=ids.size)).reshape(ids.shape)


def encode_label_map(labels: NDArray[np.int32], classes: int) -> bytes:
    """A PNG of class indices [H, W]: of 8 bits and void 255, or of 16 and 65535 where there are too many."""
    kind: type[np.uint8 | np.uint16] = np.uint8 if classes <= np.iinfo(np.uint8).max else np.uint16
    values = np.where(labels == VOID, np.iinfo(kind).max, labels).astype(kind)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    return buffer.getvalue()
