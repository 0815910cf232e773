"""The toy world: seeded scenes with panoptic ground truth, where open-vocabulary learning shows in minutes.

Stuff (grass, water, brick, ...) fills the picture, and things that combine a pattern, a colour and a shape
("striped red circle") lie on it. Names are split: training scenes show seen names, evaluation scenes all.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter1d

from fisa_model.vocabulary import Category, Vocabulary
from fisa_platform.schema import INDEX, REJECTED
from fisa_platform.sources.index import Index, RowBuffer
from fisa_platform.sources.toy_textures import (
    COLOURS,
    PATTERNS,
    SHAPES,
    STUFF_TEXTURES,
    outline,
    thing_texture,
)

URI_PREFIX = "toyworld://"

UNSEEN_STUFF = ("water", "clouds", "lava")
SCENE_SIZE = 224
"""Side of a scene in pixels: 14 x 14 patches of the toy CLIP."""

OBJECT_SIZE = 96
"""Side of a single-object picture in pixels, the size that the toy CLIP is pre-trained at."""

_THING_DIAMETER = (56.0, 92.0)
_OBJECT_SHARE = 0.75
"""Single-object pictures that show a thing; the others show stuff alone."""

_MIN_VISIBLE_PIXELS = 400
_MIN_VISIBLE_FRACTION = 0.6


@dataclass(frozen=True)
class Thing:
    """A thing class of the toy world."""

    pattern: str
    colour: str
    shape: str
    is_seen: bool

    @property
    def name(self) -> str:
        return f"{self.pattern} {self.colour} {self.shape}"


def _things() -> tuple[Thing, ...]:
    # One third is unseen, cut like a Latin square: each pattern, colour and shape is seen in other company.
    grid = product(enumerate(PATTERNS), enumerate(COLOURS), enumerate(SHAPES))
    return tuple(Thing(p, c, s, is_seen=(i + j + k) % 3 != 0) for (i, p), (j, c), (k, s) in grid)


THINGS = _things()

Names = Literal["seen", "all"]


def vocabulary(names: Names) -> Vocabulary:
    """The categories of the training scenes ("seen"), or all; an id means the same in both."""
    things = [(thing.name, True, thing.is_seen) for thing in THINGS]
    stuff = [(name, False, name not in UNSEEN_STUFF) for name in STUFF_TEXTURES]
    rows = enumerate(things + stuff, start=1)
    return Vocabulary(
        tuple(Category(i, name, is_thing) for i, (name, is_thing, seen) in rows if seen or names == "all")
    )


@dataclass(frozen=True)
class Scene:
    """A picture with its panoptic ground truth."""

    image: np.ndarray
    """[S, S, 3], uint8."""

    ids: np.ndarray
    """[S, S], int32; the segment of each pixel."""

    category_ids: dict[int, int]
    """Category id of each segment id."""


def draw_scene(seed: int, index: int, names: Names) -> Scene:
    """Scene `index` of the world `seed`, whose names are the seen ones or all of them."""
    rng = np.random.default_rng((seed, index, names == "all"))
    categories = vocabulary(names).categories
    stuff = [c for c in categories if not c.is_thing]
    things = [c for c in categories if c.is_thing]
    image, ids, segments = _draw_stuff(
        rng, [stuff[i] for i in rng.permutation(len(stuff))[: rng.integers(1, 4)]]
    )
    for _ in range(int(rng.integers(3, 6))):
        _place_thing(rng, things[rng.integers(len(things))], image, ids, segments)
    visible, areas = np.unique(ids, return_counts=True)
    assert len(visible) == len(segments) and areas.min() > 0
    return Scene(np.clip(image, 0, 255).astype(np.uint8), ids, segments)


def _draw_stuff(
    rng: np.random.Generator, kinds: list[Category]
) -> tuple[np.ndarray, np.ndarray, dict[int, int]]:
    """Bands of stuff with wavy borders, turned by a random multiple of a quarter."""
    borders = np.linspace(0, SCENE_SIZE, len(kinds) + 1)[1:-1, None]
    waves = gaussian_filter1d(rng.standard_normal((len(kinds) - 1, SCENE_SIZE)), 20, axis=1, mode="wrap")
    heights = borders + rng.uniform(-20, 20, borders.shape) + 60 * waves
    band = (np.arange(SCENE_SIZE)[None, :, None] >= heights[:, None, :]).sum(axis=0)
    band = np.rot90(band, int(rng.integers(4)))
    image = np.empty((SCENE_SIZE, SCENE_SIZE, 3), np.float32)
    ids = np.asarray(band + 1, dtype=np.int32)
    for index, category in enumerate(kinds):
        here = band == index
        image[here] = STUFF_TEXTURES[category.name](rng, SCENE_SIZE)[here]
    return image, ids, {index + 1: category.id for index, category in enumerate(kinds)}


def _place_thing(
    rng: np.random.Generator, category: Category, image: np.ndarray, ids: np.ndarray, segments: dict[int, int]
) -> None:
    """Paint one thing where it leaves every segment under it mostly visible; give up after a few tries."""
    pattern, colour, shape = category.name.split()
    for _ in range(8):
        diameter = rng.uniform(*_THING_DIAMETER)
        margin = diameter * 0.35
        row, column = rng.uniform(margin, SCENE_SIZE - margin, 2)
        mask = outline(rng, shape, diameter, (row, column), SCENE_SIZE)
        if _hides_too_much(mask, ids):
            continue
        _paint(rng, image, mask, colour, pattern)
        segment_id = max(segments) + 1
        ids[mask] = segment_id
        segments[segment_id] = category.id
        return


def _paint(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, colour: str, pattern: str) -> None:
    """Fill `mask` [S, S] of an image with a piece of texture no larger than needed."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    inside = mask[window]
    texture = thing_texture(rng, colour, pattern, max(inside.shape))
    image[window][inside] = texture[: inside.shape[0], : inside.shape[1]][inside]


def _hides_too_much(mask: np.ndarray, ids: np.ndarray) -> bool:
    covered, areas = np.unique(ids, return_counts=True)
    for segment_id, area in zip(covered, areas, strict=True):
        left = int(area) - int((mask & (ids == segment_id)).sum())
        if left < _MIN_VISIBLE_PIXELS or left < _MIN_VISIBLE_FRACTION * area:
            return True
    return False


def draw_object(seed: int, index: int) -> tuple[np.ndarray, str]:
    """Picture `index` [96, 96, 3] uint8 of one thing on stuff, or of stuff alone, and its name (of all)."""
    rng = np.random.default_rng((seed, index, 2))
    stuff = list(STUFF_TEXTURES)[rng.integers(len(STUFF_TEXTURES))]
    image = STUFF_TEXTURES[stuff](rng, OBJECT_SIZE)
    name = stuff
    if rng.random() < _OBJECT_SHARE:
        thing = THINGS[rng.integers(len(THINGS))]
        diameter = rng.uniform(*_THING_DIAMETER)
        room = max(OBJECT_SIZE - diameter, 0) / 2
        row, column = OBJECT_SIZE / 2 + rng.uniform(-room, room, 2)
        mask = outline(rng, thing.shape, diameter, (row, column), OBJECT_SIZE)
        _paint(rng, image, mask, thing.colour, thing.pattern)
        name = thing.name
    return np.clip(image, 0, 255).astype(np.uint8), name


def index(seed: int, count: int, names: Names) -> Index:
    """The index of the first `count` scenes of a world; `draw_uri` draws what it points to."""
    rows = RowBuffer(INDEX)
    for number in range(count):
        uri = f"{URI_PREFIX}{names}/{seed}/{number}"
        rows.append(
            {
                "image_id": str(number),
                "file_name": f"{number:06d}.jpg",
                "image_uri": uri,
                "panoptic_uri": uri,
                "height": SCENE_SIZE,
                "width": SCENE_SIZE,
            }
        )
    return Index(rows=rows.table(), rejected=REJECTED.empty_table(), vocabulary=vocabulary(names))


def draw_uri(uri: str) -> Scene:
    """The scene that a row of `index` points to."""
    names, seed, number = uri.removeprefix(URI_PREFIX).split("/")
    return draw_scene(int(seed), int(number), "all" if names == "all" else "seen")
