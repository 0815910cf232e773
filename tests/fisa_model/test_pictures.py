"""Encoded images: sizes and pixels as a person sees them, and clear refusals."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fisa_model.pictures import ImageFacts, decode_image, inspect_image, read_picture

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


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_pixels(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(Image.new("RGB", (30, 20), "red"), form, exif=exif)
    facts = inspect_image(data)
    assert (facts.height, facts.width) == decode_image(data).shape[:2]
    assert facts.orientation == orientation


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


def test_people_have_pictures_in_many_forms(tmp_path: Path) -> None:
    shades = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    deep = Image.fromarray(shades.astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(shades).save(tmp_path / "turned.png", exif=exif)
    expected = shades[..., None].repeat(3, axis=2)
    for picture in (expected, deep, tmp_path / "deep.png", str(tmp_path / "deep.png")):
        assert np.array_equal(read_picture(picture), expected)
    assert np.array_equal(read_picture(tmp_path / "turned.png"), np.rot90(expected, -1))


def test_what_is_no_picture_is_refused_in_one_sentence(tmp_path: Path) -> None:
    for odd in (b"bytes", io.BytesIO(), [[1]], None, 3):
        with pytest.raises(ValueError, match="a picture is a path, a PIL image or an RGB array"):
            read_picture(odd)  # type: ignore[arg-type]
    files = {
        "text.jpg": (b"404 Not Found", "not an image that can be read"),
        "float.tif": (encoded(Image.new("F", (4, 4)), "TIFF"), "floating-point pixels of unknown range"),
        "huge.png": (encoded(Image.new("1", (20_000, 20_000))), "(could be|more than)"),
        "cut.png": (encoded(Image.effect_noise((64, 64), 50))[:900], "image cannot be decoded"),
    }
    for name, (data, reason) in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}: .*{reason}"):
            read_picture(tmp_path / name)
    for path in (tmp_path, tmp_path / ("x" * 300), "nowhere.jpg", "a\0b"):
        with pytest.raises(ValueError, match="no image file that can be read"):
            read_picture(path)


def test_a_png_named_jpg_is_a_png() -> None:
    assert inspect_image(encoded(Image.new("RGB", (3, 2)))) == ImageFacts(height=2, width=3, orientation=1)


def test_refuses_what_is_no_image() -> None:
    with pytest.raises(ValueError, match="floating-point pixels"):
        inspect_image(encoded(Image.new("F", (4, 4)), "TIFF"))
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
