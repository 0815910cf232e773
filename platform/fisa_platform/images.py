"""Encoded images: their size as seen, and their pixels."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded; a decoded one takes 3 bytes a pixel."""

_ORIENTATION_TAG = 0x0112
_UPRIGHT, _TURNED = (1, 2, 3, 4), (5, 6, 7, 8)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Pixels of an encoded image as it is seen, that is after its EXIF orientation (1 to 8, 1 is upright)."""

    height: int
    width: int
    orientation: int


def inspect_image(data: bytes) -> ImageFacts:
    """The size of an encoded image; decodes the pixels once, so that a cut file is found.

    Raises:
        ValueError: not an image, cut short, or too large.
    """
    image = _open(data)
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"image cannot be decoded: {error}") from error
    if orientation in _TURNED:
        return ImageFacts(image.width, image.height, orientation)
    return ImageFacts(image.height, image.width, orientation if orientation in _UPRIGHT else 1)


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """RGB pixels [H, W, 3] after the EXIF orientation; grey, 16 bits, palette, CMYK, alpha are converted.

    Raises:
        ValueError: not an image, cut short, or too large.
    """
    image = _open(data)
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            # 16 bits a pixel; `convert` would take all but the darkest for white.
            upright = Image.fromarray((np.asarray(upright).clip(0, 65_535) / 257).round().astype(np.uint8))
        return np.asarray(upright.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"image cannot be decoded: {error}") from error


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise ValueError(f"not an image that can be read ({len(data)} bytes)") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"image cannot be opened: {error}") from error
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"image has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}; scale it down"
        )
    return image
