"""COCO's panoptic PNG: 8-bit RGB whose colour is the segment's id, R + 256 G + 65536 B; 0 is void."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

MAX_ID = (1 << 24) - 1
"""The largest id that three bytes hold."""


def decode_panoptic(png: bytes) -> NDArray[np.int32]:
    """The id map [H, W] of a panoptic PNG; refuses what is not 8-bit RGB, since a palette has no ids."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            if picture.mode != "RGB":
                raise ValueError(
                    f"panoptic PNG has mode {picture.mode}; ids need 8-bit RGB without palette or alpha"
                )
            rgb = np.asarray(picture)
    except UnidentifiedImageError as error:
        raise ValueError(f"panoptic PNG cannot be read: {len(png)} bytes that are not a PNG") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"panoptic PNG cannot be read: {error}") from error
    ids = rgb[..., 0].astype(np.int32)
    ids += rgb[..., 1].astype(np.int32) << 8
    ids += rgb[..., 2].astype(np.int32) << 16
    return ids


def encode_panoptic(ids: NDArray[np.integer[Any]]) -> bytes:
    """The panoptic PNG of an id map [H, W]."""
    if ids.size and (ids.min() < 0 or ids.max() > MAX_ID):
        raise ValueError(f"panoptic ids must be 0 to {MAX_ID}, got {ids.min()} to {ids.max()}")
    values = ids.astype(np.uint32)
    rgb = np.stack([values & 255, (values >> 8) & 255, values >> 16], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="PNG")
    return buffer.getvalue()


def panoptic_problem(
    ids: NDArray[np.int32],
    segments_info: Sequence[Mapping[str, Any]],
    *,
    size: tuple[int, int],
) -> str | None:
    """What is wrong between a panoptic id map and its JSON entry, as a reason for the `rejected` table.

    A segment without pixels is no mistake: ADE20K's form lists stuff that things cover, and PQ counts it.

    Args:
        ids: [H, W], the decoded PNG.
        segments_info: the image's entry in the JSON.
        size: height and width of the image.
    """
    if ids.shape != size:
        return f"ground truth is {_by(ids.shape)}, the image is {_by(size)} (height x width)"
    painted = set(np.unique(ids).tolist()) - {0}
    listed = {int(segment["id"]) for segment in segments_info}
    if unlisted := painted - listed:
        return f"panoptic PNG has segment {_some(unlisted)}, which segments_info lacks"
    return None


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in size)


def _some(ids: Iterable[int]) -> str:
    ordered = sorted(ids)
    shown = ", ".join(str(value) for value in ordered[:3])
    return shown if len(ordered) <= 3 else f"{shown} and {len(ordered) - 3} more"
