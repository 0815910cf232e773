"""Encoded images: sizes and pixels as a person sees them, and clear refusals."""

import io

import numpy as np
import pytest
from PIL import Image

from fisa_platform.images import ImageFacts, decode_image, inspect_image

ORIENTATION = 0x0112


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def test_orientation_turns_size_and_pixels() -> None:
    picture = Image.new("RGB", (30, 20), "red")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encoded(picture, "JPEG", exif=exif)
    assert inspect_image(data) == ImageFacts(height=30, width=20, orientation=6)
    assert decode_image(data).shape == (30, 20, 3)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    data = encoded(Image.new(mode, (5, 4)), "JPEG" if mode == "CMYK" else "PNG")
    pixels = decode_image(data)
    assert pixels.shape == (4, 5, 3) and pixels.dtype == np.uint8


@pytest.mark.parametrize(
    ("mode", "form"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("P", "PNG"), ("RGBA", "PNG")]
)
def test_colours_stay_what_they_are(mode: str, form: str) -> None:
    pixels = decode_image(encoded(Image.new("RGB", (8, 8), (204, 51, 0)).convert(mode), form))
    assert np.abs(pixels.astype(int) - (204, 51, 0)).max() <= 6


def test_16_bits_of_grey_keep_their_shades() -> None:
    shades = np.linspace(0, 65_535, 256).reshape(16, 16).astype(np.uint16)
    pixels = decode_image(encoded(Image.fromarray(shades)))
    assert np.array_equal(pixels, np.arange(256).reshape(16, 16, 1).repeat(3, axis=2))


def test_a_png_named_jpg_is_a_png() -> None:
    assert inspect_image(encoded(Image.new("RGB", (3, 2)))) == ImageFacts(height=2, width=3, orientation=1)


def test_refuses_what_is_no_image() -> None:
    with pytest.raises(ValueError, match="not an image that can be read"):
        inspect_image(b"")


def test_refuses_a_cut_image() -> None:
    data = encoded(Image.effect_noise((64, 64), 50), "JPEG")
    with pytest.raises(ValueError, match="cannot be decoded"):
        inspect_image(data[: len(data) // 2])


def test_refuses_too_many_pixels_before_decoding() -> None:
    data = encoded(Image.new("1", (12_000, 9_000)))
    with pytest.raises(ValueError, match="12000 x 9000"):
        decode_image(data)
