import io

import numpy as np
import pytest
from PIL import Image

from fisa_platform.panoptic_png import decode_panoptic, encode_panoptic, panoptic_problem

IDS = np.array([[0, 1, 256], [65536, 16777215, 1]], dtype=np.int32)


def png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def test_ids_survive_the_png():
    assert decode_panoptic(encode_panoptic(IDS)).tolist() == IDS.tolist()


def test_a_colour_is_red_plus_256_green_plus_65536_blue():
    assert decode_panoptic(png(Image.new("RGB", (1, 1), (3, 2, 1)))).item() == 3 + 2 * 256 + 65536


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16"])
def test_other_modes_are_refused(mode):
    with pytest.raises(ValueError, match=f"mode {mode}; ids need 8-bit RGB"):
        decode_panoptic(png(Image.new(mode, (2, 2))))


@pytest.mark.parametrize("content", [b"", b"not a picture", encode_panoptic(IDS)[:50]])
def test_what_is_no_png_is_refused(content):
    with pytest.raises(ValueError, match="cannot be read"):
        decode_panoptic(content)


def test_an_id_of_more_than_three_bytes_is_refused():
    with pytest.raises(ValueError, match="0 to 16777215, got 0 to 16777216"):
        encode_panoptic(np.array([[0, 1 << 24]]))


@pytest.mark.parametrize(
    ("listed", "size", "reason"),
    [
        ([1, 256, 65536, 16777215], (2, 3), None),
        ([1, 256, 65536, 16777215], (3, 2), "ground truth is 2 x 3, the image is 3 x 2"),
        ([1, 65536, 16777215], (2, 3), "has segment 256, which segments_info lacks"),
        ([1, 2, 256, 65536, 16777215], (2, 3), None),  # 2 is covered
    ],
)
def test_the_map_and_the_list_must_agree(listed, size, reason):
    found = panoptic_problem(IDS, [{"id": segment_id} for segment_id in listed], size=size)
    assert found is None if reason is None else reason in found
