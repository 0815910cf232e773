"""Mask2Former as a frozen mask generator, through transformers.

Only its mask logits are taken, and how surely a mask is any object; its class names are not used.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import Mask2FormerForUniversalSegmentation

from fisa_model.mask_generators import MaskProposals

DEFAULT_WEIGHTS = "facebook/mask2former-swin-base-coco-panoptic"
"""Swin-B pre-trained on ImageNet-1k; the paper's is its ImageNet-21k sister, which must be converted."""

SHORTEST, LONGEST = 800, 1333
"""Test sizes in pixels: the shorter side becomes the first, unless the longer would exceed the second."""

PADDED_TO = 32
MASK_STRIDE = 4
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


class Mask2FormerGenerator:
    """A Mask2Former of transformers, in float32: its deformable attention loses masks at lower precision."""

    def __init__(
        self,
        network: Any,
        *,
        device: torch.device | str = "cpu",
        shortest: int = SHORTEST,
        longest: int = LONGEST,
    ) -> None:
        self.network = network.to(device).eval()
        self.device = device
        self.shortest = shortest
        self.longest = longest

    @classmethod
    def load(cls, weights: str, *, device: torch.device | str = "cpu") -> "Mask2FormerGenerator":
        """From a folder or a hub name."""
        try:
            network = Mask2FormerForUniversalSegmentation.from_pretrained(weights)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"Mask2Former {weights!r} could not be loaded: {error}; give a folder with config.json and "
                "model.safetensors, or a hub name that can be reached"
            ) from error
        return cls(network, device=device)

    @torch.inference_mode()
    def __call__(self, image: NDArray[np.uint8]) -> MaskProposals:
        pixels = self._prepare(image)
        height, width = pixels.shape[1:]
        padded = F.pad(pixels, (0, -width % PADDED_TO, 0, -height % PADDED_TO))
        output = self.network(pixel_values=padded[None].to(self.device))
        # The last class is "no object".
        scores = 1 - output.class_queries_logits[0].float().softmax(dim=-1)[:, -1]
        masks = _crop(output.masks_queries_logits[0].float(), height, width)
        return MaskProposals(masks.cpu().numpy(), scores.cpu().numpy())

    def _prepare(self, image: NDArray[np.uint8]) -> Tensor:
        """[H, W, 3] -> [3, h, w] at the test size, normalised."""
        height, width = resized_shape(image.shape[0], image.shape[1], self.shortest, self.longest)
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float()
        resized = F.interpolate(pixels[None], size=(height, width), mode="bilinear", antialias=True)[0]
        return (resized - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


# As detectron2's ResizeShortestEdge, https://github.com/facebookresearch/detectron2/blob/02b5c4e/detectron2/data/transforms/augmentation_impl.py#L181-L200.
def resized_shape(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    scale = shortest / min(height, width)
    if scale * max(height, width) > longest:
        scale = longest / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def _crop(masks: Tensor, height: int, width: int) -> Tensor:
    """Masks at stride 4 of the padded frame -> of the image alone, so that they cover exactly its frame."""
    if height % MASK_STRIDE == 0 and width % MASK_STRIDE == 0:
        return masks[:, : height // MASK_STRIDE, : width // MASK_STRIDE]
    rows, columns = -(-height // MASK_STRIDE), -(-width // MASK_STRIDE)
    # The image ends inside a cell: read the masks at the centres of a grid that covers the image and no more.
    y = (torch.arange(rows, device=masks.device) + 0.5) * height / rows / MASK_STRIDE / masks.shape[1]
    x = (torch.arange(columns, device=masks.device) + 0.5) * width / columns / MASK_STRIDE / masks.shape[2]
    grid = 2 * torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1) - 1
    return F.grid_sample(masks[None], grid[None], padding_mode="border", align_corners=False)[0]
