"""Patches of a mask: the quick way against the one that makes every pixel."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fisa_model import open_patches as module
from fisa_model.open_patches import open_patches


def slowly(mask_logits: Tensor, image_size: int, grid_size: int) -> Tensor:
    """What MaskCLIP does: all pixels, then the largest of each patch."""
    pixels = F.interpolate(mask_logits[:, None], size=(image_size, image_size), mode="bilinear")
    return F.max_pool2d(pixels, image_size // grid_size)[:, 0] >= 0


def blobs(count: int, height: int, width: int) -> Tensor:
    """Smooth masks, most of whose patches lie inside or outside."""
    coarse = torch.randn(count, 1, height // 5 + 2, width // 5 + 2)
    return F.interpolate(coarse, size=(height, width), mode="bicubic")[:, 0] - 0.4


@pytest.mark.parametrize(
    ("height", "width", "image_size", "grid_size"),
    [
        (56, 56, 224, 14),  # a quarter of the image, as trained
        (64, 64, 224, 16),  # 3.5 pixels a cell
        (50, 84, 224, 16),  # a generator's own frame
        (32, 32, 32, 8),  # as large as the image
        (64, 40, 32, 8),  # larger
        (1, 1, 16, 4),
    ],
)
def test_equals_the_largest_resized_pixel(height: int, width: int, image_size: int, grid_size: int) -> None:
    torch.manual_seed(0)
    for masks in (blobs(40, height, width), torch.randn(40, height, width) - 1.2):
        expected = slowly(masks, image_size, grid_size)
        assert torch.equal(open_patches(masks, image_size=image_size, grid_size=grid_size), expected)
        assert height == 1 or 0.05 < expected.float().mean() < 0.95


def test_a_logit_of_zero_is_inside() -> None:
    masks = torch.full((1, 4, 4), -1.0)
    masks[0, 2, 1] = 0.0
    assert open_patches(masks, image_size=4, grid_size=2).tolist() == [[[False, False], [True, False]]]


def test_a_speck_that_no_pixel_sees_opens_nothing() -> None:
    """Resizing mixes it with what is around it; a patch that only holds the logit itself would be open."""
    masks = torch.full((1, 8, 8), -10.0)
    masks[0, 4, 4] = 0.1
    assert not open_patches(masks, image_size=32, grid_size=4).any()


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    masks = torch.randn(20, 12, 12)
    whole = open_patches(masks, image_size=48, grid_size=6)
    monkeypatch.setattr(module, "PATCHES_PER_CHUNK", 7)
    assert torch.equal(open_patches(masks, image_size=48, grid_size=6), whole)
