"""Large-scale jitter against detectron2's ResizeScale and FixedSizeCrop with the same draws (parity/)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fisa_model.transforms import GRAY, Frame, Jitter, warp_image, warp_masks

Reference = Callable[[str], dict[str, Any]]


class Draws:
    """Stands in for a random generator: the given scale, then the given offset, and no mirror image."""

    def __init__(self, scale: float, offset: float) -> None:
        self.scale = scale
        self.chances = iter([1.0, offset])

    def random(self) -> float:
        return next(self.chances)

    def uniform(self, low: float, high: float) -> float:
        assert low <= self.scale <= high
        return self.scale


def draw(height: float, width: float, scale: float, offset: float) -> Frame:
    jitter = Jitter(image_size=96, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return jitter.draw(int(height), int(width), Draws(scale, offset))  # type: ignore[arg-type]


def test_sizes_offsets_and_padding_are_detectron2s(reference: Reference) -> None:
    arrays = reference("jitter")
    frames = [draw(*row) for row in arrays["draws"]]
    found = [[f.height, f.width, f.top, f.left, max(96 - f.height, 0), max(96 - f.width, 0)] for f in frames]
    assert arrays["size"] == 96
    assert found == arrays["frames"].tolist()


@pytest.mark.parametrize("number", range(4))
def test_a_painted_rectangle_lands_where_detectron2_puts_it(reference: Reference, number: int) -> None:
    arrays = reference("jitter")
    painted, expected = arrays["painted"], arrays[f"mask/{number}"]
    frame = draw(*painted.shape, *arrays[f"draw/{number}"])
    # Their pad value of a segmentation is 255, which is no segment.
    mask = warp_masks(torch.from_numpy(painted > 0)[None], frame, side=96)[0]
    assert np.array_equal(mask.numpy(), expected == 200)
    image = 255 * warp_image(np.repeat(painted[..., None], 3, axis=2), frame)[0].numpy()
    outside = expected == 255
    assert outside.any() == (number < 3)
    np.testing.assert_allclose(image[outside], 255 * GRAY, atol=1e-4)
    assert (arrays[f"image/{number}"][outside] == 128).all()
    # Inside, ours is bicubic and theirs bilinear, so only flat places are alike.
    flat = ~outside & ((arrays[f"image/{number}"] == 0) | (arrays[f"image/{number}"] == 200))
    assert np.abs(image - arrays[f"image/{number}"])[flat].max() < 30
