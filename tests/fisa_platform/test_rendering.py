import io

import numpy as np
import pytest
from PIL import Image

from fisa_model.vocabulary import Category, Vocabulary
from fisa_platform.rendering import (
    class_colour,
    contact_sheet,
    draw_masks,
    draw_segments,
    encode_picture,
    side_by_side,
)

VOCABULARY = Vocabulary(
    (Category(1, "striped red triangle"), Category(9, "grass", False), Category(12, "sky"))
)
SEGMENTS = [{"id": 3, "category_id": 1}, {"id": 4, "category_id": 9}]


def scene(height, width):
    """A grey image: segment 3 on the left, 4 on the right, void at the bottom."""
    ids = np.zeros((height, width), dtype=np.int32)
    ids[: height * 3 // 4, : width // 2] = 3
    ids[: height * 3 // 4, width // 2 :] = 4
    return np.full((height, width, 3), 128, dtype=np.uint8), ids


def corner_colours(picture):
    pixels = np.asarray(picture).astype(int)
    return pixels[3, 3], pixels[3, -4], pixels[-4, 3]


def test_segments_have_their_class_colour_and_void_is_grey():
    left, right, void = corner_colours(draw_segments(*scene(120, 160), SEGMENTS, VOCABULARY, min_side=0))
    assert left.tolist() == pytest.approx([128 * 0.45 + channel * 0.55 for channel in class_colour(0)], abs=1)
    assert right.tolist() == pytest.approx(
        [128 * 0.45 + channel * 0.55 for channel in class_colour(1)], abs=1
    )
    assert len(set(void.tolist())) == 1


def test_a_class_keeps_its_colour_in_another_image():
    image, ids = scene(120, 160)
    alone = draw_segments(
        image, np.where(ids == 4, 8, 0).astype(np.int32), [{"id": 8, "category_id": 9}], VOCABULARY
    )
    both = draw_segments(image, ids, SEGMENTS, VOCABULARY)
    assert corner_colours(alone)[1].tolist() == corner_colours(both)[1].tolist()


def test_two_instances_of_a_thing_differ():
    twins = [{"id": 3, "category_id": 1}, {"id": 4, "category_id": 1}]
    left, right, _ = corner_colours(draw_segments(*scene(120, 160), twins, VOCABULARY))
    assert np.abs(left - right).max() > 10


def test_a_hundred_classes_have_distinct_colours():
    colours = np.array([class_colour(index) for index in range(100)])
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1e9 * np.eye(100)
    assert distances.min() > 8
    assert np.ptp(colours, axis=1).min() > 60


def test_segments_are_outlined():
    picture = np.asarray(draw_segments(*scene(120, 160), SEGMENTS, VOCABULARY, min_side=0))
    assert picture[5, 80].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("height", "width", "expected"), [(224, 224, (448, 448)), (600, 900, (900, 600))])
def test_a_small_image_is_enlarged_until_names_can_be_read(height, width, expected):
    assert draw_segments(*scene(height, width), SEGMENTS, VOCABULARY).size == expected


def test_a_thin_image_is_not_enlarged_beyond_measure():
    image, ids = np.zeros((1, 2000, 3), np.uint8), np.zeros((1, 2000), np.int32)
    assert draw_segments(image, ids, [], VOCABULARY).size == (2000, 1)
    assert draw_masks(image[:, :150], np.ones((1, 1, 150), dtype=bool)).size == (13 * 150, 13)


def test_a_tall_picture_does_not_make_the_sheet_as_tall():
    sheet = contact_sheet(
        [("a", Image.new("RGB", (1, 2000))), ("b", Image.new("RGB", (40, 30)))], columns=2, width=60
    )
    assert sheet.size == (120, 20 + 120)


def test_a_side_that_jpeg_has_no_number_for_is_made_smaller():
    with Image.open(io.BytesIO(encode_picture(Image.new("RGB", (70_000, 200)), "JPEG"))) as read:
        assert read.size == (65_500, 187)


@pytest.mark.parametrize(("side", "line"), [(448, 19), (3000, 70)])
def test_the_size_of_a_name_follows_the_picture(side, line):
    """White letters on a dark box: the height that they span is about that of the font."""
    image, ids = scene(side, side)
    pixels = np.asarray(draw_segments(image, ids, SEGMENTS, VOCABULARY, min_side=0))
    inside = pixels[side // 8 : side * 5 // 8, side // 20 : side * 9 // 20]
    rows = np.flatnonzero((inside > 250).all(axis=-1).any(axis=1))
    assert 0.5 * line < np.ptp(rows) < 1.5 * line


def test_an_image_may_have_no_segments_and_a_name_too_long():
    image, ids = scene(40, 30)
    draw_segments(image, np.zeros_like(ids), [], VOCABULARY)
    draw_segments(image, ids, SEGMENTS, VOCABULARY, min_side=0)


def test_ids_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"image is \(40, 30\) pixels"):
        draw_segments(scene(40, 30)[0], scene(30, 40)[1], SEGMENTS, VOCABULARY)


def test_panels_stand_in_a_row_at_one_height():
    row = side_by_side([("image", Image.new("RGB", (100, 200))), ("FISA", Image.new("RGB", (200, 100)))])
    assert row.width > 100 + 400
    assert 200 < row.height < 300


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_pictures_are_encoded(form):
    with Image.open(io.BytesIO(encode_picture(Image.new("RGB", (5, 4)), form))) as read:
        assert (read.format, read.size) == (form, (5, 4))
