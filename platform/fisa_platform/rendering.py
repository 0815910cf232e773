"""Pictures of a panoptic result: coloured segments, outlines and names over the image."""

import colorsys
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from fisa_model.vocabulary import Vocabulary
from fisa_platform.evaluation.label_maps import run_starts

Colour = tuple[int, int, int]

_GOLDEN_ANGLE = 0.618034
_OPACITY = 0.55
_OUTLINE: Colour = (255, 255, 255)
_VOID: Colour = (80, 80, 80)
# Longest side, in pixels, of the copy on which a label's place is looked for.
_PLACING_SIDE = 256


_LONGEST_JPEG_SIDE = 65_500
_LONGEST_DRAWN_SIDE = 2048
"""Pixels to which a small picture is enlarged at most: one of 2000 x 1 would be 400 million otherwise."""


def class_colour(index: int) -> Colour:
    """The colour of class `index` of a vocabulary; neighbours are far apart, and none is grey like void."""
    lightness = (0.55, 0.42, 0.68)[index % 3]
    red, green, blue = colorsys.hls_to_rgb((0.02 + index * _GOLDEN_ANGLE) % 1, lightness, 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_segments(
    image: NDArray[np.uint8],
    ids: NDArray[np.int32],
    segments: Sequence[Mapping[str, Any]],
    vocabulary: Vocabulary,
    min_side: int = 448,
) -> Image.Image:
    """The image with each segment coloured by its class, outlined and named; void is grey.

    Args:
        image: [H, W, 3], RGB.
        ids: [H, W] panoptic ids, 0 for void.
        segments: id and category_id of each segment.
        vocabulary: names, and the classes' order, which decides the colours.
        min_side: an image whose shorter side has fewer pixels is enlarged, so that names can be read.
    """
    if image.shape[:2] != ids.shape:
        raise ValueError(f"image is {image.shape[:2]} pixels (height, width), its ids are {ids.shape}")
    factor = _enlargement(ids.shape, min_side)
    if factor > 1:
        size = (ids.shape[1] * factor, ids.shape[0] * factor)
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        ids = ids.repeat(factor, axis=0).repeat(factor, axis=1)
    colours = _segment_colours(segments, vocabulary)
    picture = _paint(image, ids, colours)
    categories = vocabulary.categories
    names = {segment["id"]: categories[_class_index(segment, vocabulary)].short_name for segment in segments}
    _write_names(picture, ids, names, colours)
    return picture


def draw_masks(
    image: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    names: Sequence[str] = (),
    min_side: int = 448,
) -> Image.Image:
    """The image [H, W, 3] with masks [Q, h, w] of its frame, each in its own colour, small ones on top.

    Where there are names, there is one for each mask.
    """
    ids = np.zeros(masks.shape[1:], dtype=np.int32)
    for index in np.argsort(-masks.sum(axis=(1, 2)), kind="stable").tolist():
        ids[masks[index]] = index + 1
    factor = _enlargement(image.shape, min_side)
    size = (image.shape[1] * factor, image.shape[0] * factor)
    pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    enlarged = np.asarray(Image.fromarray(ids, mode="I").resize(size, Image.Resampling.NEAREST))
    colours = {index + 1: class_colour(index) for index in range(len(masks))}
    picture = _paint(pixels, enlarged, colours)
    _write_names(picture, enlarged, dict(enumerate(names, start=1)), colours)
    return picture


def contact_sheet(pictures: Sequence[tuple[str, Image.Image]], *, columns: int, width: int) -> Image.Image:
    """Pictures in rows of so many, each `width` pixels wide and under its title."""
    font = _font(14)
    line = 20
    # A very tall picture would make its row, and so the sheet, as tall.
    heights = [min(2 * width, max(1, round(p.height * width / p.width))) for _, p in pictures]
    scaled = [
        (title, picture.resize((max(1, min(width, round(picture.width * height / picture.height))), height)))
        for (title, picture), height in zip(pictures, heights, strict=True)
    ]
    rows = [scaled[start : start + columns] for start in range(0, len(scaled), columns)]
    heights = [line + max(picture.height for _, picture in row) for row in rows]
    sheet = Image.new("RGB", (width * min(columns, len(scaled)), sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, (title, picture) in enumerate(row):
            draw.text((column * width + 4, top + 1), title, fill="black", font=font)
            sheet.paste(picture, (column * width, top + line))
        top += height
    return sheet


def side_by_side(panels: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures in a row, each under its title, at the height of the first."""
    height = panels[0][1].height
    pictures = [
        panel.resize((round(panel.width * height / panel.height), height), Image.Resampling.LANCZOS)
        for _, panel in panels
    ]
    font = _font(_font_size(height, height) + 2)
    gap = round(font.size * 0.6)
    top = round(font.size * 1.9)
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) + 1)
    row = Image.new("RGB", (width, top + height + gap), "white")
    draw = ImageDraw.Draw(row)
    left = gap
    for (title, _), picture in zip(panels, pictures, strict=True):
        draw.text((left, top / 2), title, fill=(30, 30, 30), font=font, anchor="lm")
        row.paste(picture, (left, top))
        left += picture.width + gap
    return row


def encode_picture(picture: Image.Image, form: Literal["PNG", "JPEG"] = "PNG") -> bytes:
    """The bytes of an image file: PNG for drawings, JPEG for photos that would be large.

    A picture with a side that JPEG has no number for is made smaller.
    """
    buffer = io.BytesIO()
    picture = picture.convert("RGB")
    if form == "JPEG":
        picture.thumbnail((_LONGEST_JPEG_SIDE, _LONGEST_JPEG_SIDE))
    picture.save(buffer, format=form, **({"quality": 88} if form == "JPEG" else {}))
    return buffer.getvalue()


def _enlargement(shape: Sequence[int], min_side: int) -> int:
    """How many times larger an image [H, W, ...] is drawn, so that its shorter side has `min_side`."""
    height, width = shape[:2]
    return max(1, min(-(-min_side // min(height, width)), _LONGEST_DRAWN_SIDE // max(height, width)))


def _class_index(segment: Mapping[str, Any], vocabulary: Vocabulary) -> int:
    return vocabulary.index_of_id(segment["category_id"])


def _segment_colours(segments: Sequence[Mapping[str, Any]], vocabulary: Vocabulary) -> dict[int, Colour]:
    """A colour for each segment id: its class's, a little lighter or darker for a thing's next instances."""
    instances: dict[int, int] = {}
    colours: dict[int, Colour] = {}
    for segment in segments:
        index = _class_index(segment, vocabulary)
        instance = instances[index] = instances.get(index, -1) + 1
        shade = (0, 28, -28, 48, -48)[instance % 5] if vocabulary.is_thing[index] else 0
        red, green, blue = (min(255, max(0, channel + shade)) for channel in class_colour(index))
        colours[segment["id"]] = (red, green, blue)
    return colours


def _paint(image: NDArray[np.uint8], ids: NDArray[np.int32], colours: Mapping[int, Colour]) -> Image.Image:
    """Blend the segments' colours over the image [H, W, 3], grey out void, and draw the outlines."""
    starts = run_starts(ids)
    listed, inverse = np.unique(ids.reshape(-1)[starts], return_inverse=True)
    void = np.array([segment_id not in colours for segment_id in listed.tolist()])
    palette = np.array([colours.get(segment_id, _VOID) for segment_id in listed.tolist()], dtype=np.uint8)
    position = np.repeat(inverse, np.diff(starts, append=ids.size)).reshape(ids.shape)
    photo = Image.fromarray(image)
    painted = Image.blend(photo, Image.fromarray(palette[position]), _OPACITY)
    grey = Image.blend(photo.convert("L"), Image.new("L", photo.size, _VOID[0]), _OPACITY).convert("RGB")
    painted.paste(grey, mask=Image.fromarray(void[position]))
    outlines = _outlines(position, thickness=max(1, round(min(ids.shape) / 400)))
    painted.paste(_OUTLINE, mask=Image.fromarray(outlines))
    return painted


def _outlines(ids: NDArray[np.integer[Any]], thickness: int) -> NDArray[np.bool_]:
    """Pixels [H, W] on the border between two segments, `thickness` wide."""
    edges = np.zeros(ids.shape, dtype=bool)
    edges[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edges[1:] |= ids[1:] != ids[:-1]
    if thickness == 1:
        return edges
    widened: NDArray[np.uint8] = ndimage.maximum_filter(edges.view(np.uint8), size=thickness)
    return widened.view(np.bool_)


@dataclass(frozen=True, slots=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "_Box") -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


def _write_names(
    picture: Image.Image,
    ids: NDArray[np.int32],
    names: Mapping[int, str],
    colours: Mapping[int, Colour],
) -> None:
    """Name each segment at its innermost point, small ones first; a name without free space is left out."""
    step = -(-max(ids.shape) // _PLACING_SIDE)
    coarse = ids[::step, ::step]
    draw = ImageDraw.Draw(picture, "RGBA")
    present, areas = np.unique(coarse, return_counts=True)
    taken: list[_Box] = []
    for segment_id in present[np.argsort(areas)].tolist():
        if segment_id not in names:
            continue
        row, column = _innermost(coarse == segment_id)
        font = _fitting_font(names[segment_id], picture)
        box = _free_box(
            names[segment_id], font, ((column + 0.5) * step, (row + 0.5) * step), picture.size, taken
        )
        if box is None:
            continue
        taken.append(box)
        red, green, blue = (round(channel * 0.42) for channel in colours[segment_id])
        corners = (box.left, box.top, box.right, box.bottom)
        draw.rounded_rectangle(corners, radius=font.size / 4, fill=(red, green, blue, 225))
        middle = ((box.left + box.right) / 2, (box.top + box.bottom) / 2)
        draw.text(middle, names[segment_id], fill="white", font=font, anchor="mm")


def _innermost(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Row and column of the pixel that is farthest from the border of a mask [h, w] and of the picture."""
    # All around its box there is none of it, so that the box alone has the same depths.
    ((rows, columns),) = ndimage.find_objects(mask.view(np.uint8))
    depth = ndimage.distance_transform_edt(np.pad(mask[rows, columns], 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(row) + rows.start, int(column) + columns.start


def _free_box(
    name: str,
    font: ImageFont.FreeTypeFont,
    centre: tuple[float, float],
    size: tuple[int, int],
    taken: Sequence[_Box],
) -> _Box | None:
    """A box for the name, inside the picture and clear of the others, at `centre` or lines beside it."""
    width, height = font.getlength(name) + font.size * 0.7, font.size * 1.5
    for lines in (0, -1, 1, -2, 2):
        left = min(max(0, centre[0] - width / 2), size[0] - width)
        top = min(max(0, centre[1] - height / 2 + lines * height * 1.05), size[1] - height)
        box = _Box(left, top, left + width, top + height)
        if not any(box.overlaps(other) for other in taken):
            return box
    return None


def _fitting_font(name: str, picture: Image.Image) -> ImageFont.FreeTypeFont:
    """The picture's font, smaller where a long name would not fit across."""
    size = _font_size(*picture.size)
    room = picture.width / (_font(size).getlength(name) + size * 0.7)
    return _font(max(8, int(size * min(1, room))))


def _font_size(width: int, height: int) -> int:
    return round(10 + 0.02 * min(width, height))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # DejaVu comes with matplotlib and covers Latin, Greek and Cyrillic letters.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)
