"""Pixels of the toy world: textures of its stuff, outlines and patterns of its things.

Every function takes a numpy Generator: a seed fixes the picture. Images are float32 [H, W, 3], 0 to 255.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

Array = np.ndarray
Rng = np.random.Generator


def _noise(rng: Rng, size: int, sigma: tuple[float, float]) -> Array:
    """Noise [size, size] of unit standard deviation, blurred by `sigma` pixels along rows and columns."""
    field = gaussian_filter(rng.standard_normal((size, size), dtype=np.float32), sigma, mode="wrap")
    return np.asarray((field - field.mean()) / (field.std() + 1e-6), dtype=np.float32)


def _tint(rng: Rng, base: tuple[int, int, int], shade: Array) -> Array:
    """The colour `base`, jittered a little per picture, with `shade` [H, W] in grey levels added to it."""
    colour = np.asarray(base, dtype=np.float32) + rng.uniform(-10, 10, 3).astype(np.float32)
    return np.asarray(colour + shade[..., None], dtype=np.float32)


def _grass(rng: Rng, size: int) -> Array:
    return _tint(rng, (74, 138, 58), 13 * _noise(rng, size, (3.5, 0.7)))


def _sand(rng: Rng, size: int) -> Array:
    return _tint(rng, (214, 190, 140), 7 * _noise(rng, size, (0.6, 0.6)) + 4 * _noise(rng, size, (5, 9)))


def _brick(rng: Rng, size: int) -> Array:
    height, width = int(rng.integers(11, 15)), int(rng.integers(24, 32))
    rows, columns = np.mgrid[:size, :size] + rng.integers(0, width, 2)[:, None, None]
    shifted = columns + (rows // height % 2) * (width // 2)
    mortar = (rows % height < 2) | (shifted % width < 2)
    return _tint(rng, (150, 78, 62), 26 * mortar + 5 * _noise(rng, size, (1, 1)))


def _snow(rng: Rng, size: int) -> Array:
    return _tint(rng, (236, 240, 246), 3 * _noise(rng, size, (8, 8)) + 2 * _noise(rng, size, (0.5, 0.5)))


def _wood(rng: Rng, size: int) -> Array:
    plank = int(rng.integers(18, 26))
    rows = np.arange(size)[:, None] + int(rng.integers(0, plank))
    gap = np.broadcast_to(rows % plank < 2, (size, size))
    return _tint(rng, (162, 116, 72), 9 * _noise(rng, size, (0.8, 14)) - 30 * gap)


def _gravel(rng: Rng, size: int) -> Array:
    stones = np.sign(_noise(rng, size, (2.2, 2.2))) * 12
    return _tint(rng, (128, 126, 124), gaussian_filter(stones, 0.7) + 5 * _noise(rng, size, (0.6, 0.6)))


def _water(rng: Rng, size: int) -> Array:
    rows = np.arange(size, dtype=np.float32)[:, None]
    phase = 2.5 * _noise(rng, size, (6, 24)) + rng.uniform(0, 6.28)
    waves = np.sin(rows * rng.uniform(0.45, 0.65) + phase)
    return _tint(rng, (52, 128, 158), 12 * waves)


def _clouds(rng: Rng, size: int) -> Array:
    puffs = np.clip(_noise(rng, size, (9, 15)), -1, 1)[..., None]
    white = np.asarray((62, 34, 10), dtype=np.float32) * (puffs + 1) / 2
    return np.asarray(
        _tint(rng, (150, 192, 236), np.zeros((size, size), np.float32)) + white, dtype=np.float32
    )


def _lava(rng: Rng, size: int) -> Array:
    veins = np.exp(-4 * np.abs(_noise(rng, size, (5, 5))))[..., None]
    glow = np.asarray((120, 62, 6), dtype=np.float32) * veins
    return np.asarray(_tint(rng, (92, 30, 24), 4 * _noise(rng, size, (1, 1))) + glow, dtype=np.float32)


STUFF_TEXTURES: dict[str, Callable[[Rng, int], Array]] = {
    "grass": _grass,
    "sand": _sand,
    "brick": _brick,
    "snow": _snow,
    "wood": _wood,
    "gravel": _gravel,
    "water": _water,
    "clouds": _clouds,
    "lava": _lava,
}

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (208, 40, 44),
    "yellow": (240, 208, 36),
    "blue": (40, 62, 196),
    "purple": (138, 48, 160),
}

_REGULAR_CORNERS = {"triangle": 3, "square": 4}
SHAPES = ("circle", "triangle", "square", "star")
PATTERNS = ("plain", "striped", "dotted")


def outline(rng: Rng, shape: str, diameter: float, centre: tuple[float, float], size: int) -> Array:
    """Boolean mask [size, size] of a shape; `diameter` is that of its circumscribed circle, in pixels."""
    canvas = Image.new("1", (size, size))
    draw = ImageDraw.Draw(canvas)
    row, column = centre
    radius = diameter / 2
    if shape == "circle":
        radius *= 0.9  # about the area of the other shapes
        draw.ellipse((column - radius, row - radius, column + radius, row + radius), fill=1)
        return np.asarray(canvas)
    corners = _REGULAR_CORNERS.get(shape, 10)
    angles = 2 * np.pi * np.arange(corners) / corners + rng.uniform(-0.35, 0.35) - np.pi / 2
    if shape == "square":
        angles += np.pi / 4  # a square on its corner would be a diamond
    radii = (
        np.where(np.arange(corners) % 2, 0.45, 1.0) * radius if shape == "star" else np.full(corners, radius)
    )
    draw.polygon(
        [(column + r * np.cos(a), row + r * np.sin(a)) for r, a in zip(radii, angles, strict=True)], fill=1
    )
    return np.asarray(canvas)


def thing_texture(rng: Rng, colour: str, pattern: str, size: int) -> Array:
    """A piece of one colour and pattern, [size, size, 3]; the pattern is two tones of the colour."""
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    shade = 3 * _noise(rng, size, (1, 1))
    if pattern == "striped":
        angle, period = rng.uniform(0, np.pi), rng.uniform(9, 12)
        wave = np.sin(
            (rows * np.cos(angle) + columns * np.sin(angle)) * 2 * np.pi / period + rng.uniform(0, 6.28)
        )
        shade = shade + 34 * np.tanh(3 * wave)
    elif pattern == "dotted":
        period = rng.uniform(11, 14)
        row_phase, column_phase = rng.uniform(0, period, 2)
        down = (rows + row_phase) % period - period / 2
        across = (columns + column_phase) % period - period / 2
        shade = shade + 68 * (np.hypot(down, across) < period * 0.3) - 20
    return _tint(rng, COLOURS[colour], shade)
