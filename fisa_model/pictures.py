"""Images as people have them, and encoded ones: their size as seen, and their pixels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded; a decoded one takes 3 bytes a pixel."""

Picture = NDArray[np.uint8] | Image.Image | Path | str
"""An RGB array [H, W, 3], an image of PIL, or the path of an image file."""

_DAMAGED = (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError)
"""What PIL's readers raise for a file that is not whole."""

_ORIENTATION_TAG = 0x0112


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
        # TIFFs are upright once they are loaded, whatever their tag says.
        ImageOps.exif_transpose(image, in_place=True)
        image.load()
    except _DAMAGED as error:
        raise ValueError(f"image cannot be decoded: {error}") from error
    return ImageFacts(image.height, image.width, orientation if orientation in range(1, 9) else 1)


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """RGB pixels [H, W, 3] after the EXIF orientation; grey, 16 bits, palette, CMYK, alpha are converted.

    Raises:
        ValueError: not an image, cut short, too large, or of floating-point pixels.
    """
    return _to_rgb(_open(data))


def read_picture(picture: Picture) -> NDArray[np.uint8]:
    """RGB pixels [H, W, 3] of what people call a picture; a file or an image as `decode_image`.

    Raises:
        ValueError: it is none of these, or none that can be read.
    """
    if isinstance(picture, np.ndarray):
        check_image(picture)
        return picture
    if isinstance(picture, Image.Image):
        _check_mode(picture)
        return _to_rgb(picture)
    if not isinstance(picture, str | Path):
        raise ValueError(
            f"a picture is a path, a PIL image or an RGB array [H, W, 3], got {type(picture).__name__}"
        )
    try:
        data = Path(picture).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{picture!s}: no image file that can be read ({reason})") from error
    try:
        return decode_image(data)
    except ValueError as error:
        raise ValueError(f"{picture}: {error}") from error


def check_image(image: NDArray[np.uint8]) -> None:
    """Raises ValueError for an array that is not RGB, uint8 [H, W, 3], or has no pixels."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"an image must be RGB, uint8 [H, W, 3]; got {image.dtype} {list(image.shape)}")
    if 0 in image.shape:
        raise ValueError(f"the image has no pixels: {list(image.shape)}; check the file it came from")


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            # 16 bits a pixel; `convert` would take all but the darkest for white.
            upright = Image.fromarray((np.asarray(upright).clip(0, 65_535) / 257).round().astype(np.uint8))
        array = np.asarray(upright.convert("RGB"))
    except _DAMAGED as error:
        raise ValueError(f"image cannot be decoded: {error}") from error
    check_image(array)
    return array


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise ValueError(f"not an image that can be read ({len(data)} bytes)") from error
    except _DAMAGED as error:
        raise ValueError(f"image cannot be opened: {error}") from error
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"image has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}; scale it down"
        )
    _check_mode(image)
    return image


def _check_mode(image: Image.Image) -> None:
    if image.mode == "F":
        raise ValueError("image has floating-point pixels of unknown range; save it with 8 or 16 bits")
