"""The frame in which detectron2 tests its networks: images resized and padded, their masks cut back.

After detectron2's ResizeShortestEdge and ImageList, to the last pixel:
https://github.com/facebookresearch/detectron2/blob/02b5c4e/detectron2/data/transforms/augmentation_impl.py#L181-L200.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

SHORTEST, LONGEST = 800, 1333
"""Test sizes in pixels: the shorter side becomes the first, unless the longer would exceed the second."""

PADDED_TO = 32
MASK_STRIDE = 4


def resized_shape(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """Height and width of an image at the test size."""
    # Scaled twice, as there: one product of both scales rounds some sizes to the other side.
    scale = shortest / min(height, width)
    exact_height, exact_width = (shortest, scale * width) if height < width else (scale * height, shortest)
    if max(exact_height, exact_width) > longest:
        scale = longest / max(exact_height, exact_width)
        exact_height, exact_width = exact_height * scale, exact_width * scale
    return max(1, int(exact_height + 0.5)), max(1, int(exact_width + 0.5))


def resize(image: NDArray[np.uint8], shortest: int, longest: int) -> Tensor:
    """[H, W, 3] -> [3, h, w], float32, 0 to 255, at the test size."""
    height, width = resized_shape(image.shape[0], image.shape[1], shortest, longest)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float()


def pad(pixels: Tensor) -> Tensor:
    """[..., 3, h, w], normalised -> the same with zeros at the right and the bottom."""
    height, width = pixels.shape[-2:]
    return F.pad(pixels, (0, -width % PADDED_TO, 0, -height % PADDED_TO))


def crop_masks(masks: Tensor, height: int, width: int) -> Tensor:
    """Masks at stride 4 of the padded frame -> of the image alone, so that they cover exactly its frame.

    Args:
        masks: [Q, H / 4, W / 4].
        height, width: pixels of the image before it was padded.
    """
    if height % MASK_STRIDE == 0 and width % MASK_STRIDE == 0:
        return masks[:, : height // MASK_STRIDE, : width // MASK_STRIDE]
    rows, columns = -(-height // MASK_STRIDE), -(-width // MASK_STRIDE)
    # The image ends inside a cell: read the masks at the centres of a grid that covers the image and no more.
    y = (torch.arange(rows, device=masks.device) + 0.5) * height / rows / MASK_STRIDE / masks.shape[1]
    x = (torch.arange(columns, device=masks.device) + 0.5) * width / columns / MASK_STRIDE / masks.shape[2]
    grid = 2 * torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1) - 1
    return F.grid_sample(masks[None], grid[None], padding_mode="border", align_corners=False)[0]
