"""Mask2Former as a frozen mask generator, through transformers.

Only its mask logits are taken, and how surely a mask is any object; its class names are not used.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Mask2FormerForUniversalSegmentation

from fisa_model.mask_generators import MaskProposals
from fisa_model.mask_generators.frame import LONGEST, SHORTEST, crop_masks, pad, resize

DEFAULT_WEIGHTS = "facebook/mask2former-swin-base-coco-panoptic"
"""Swin-B pre-trained on ImageNet-1k; the paper's is its ImageNet-21k sister, which must be converted."""

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
            network = Mask2FormerForUniversalSegmentation.from_pretrained(weights, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"Mask2Former {weights!r} could not be loaded: {error}; give a folder with config.json and "
                "model.safetensors, or a hub name that can be reached"
            ) from error
        return cls(network, device=device)

    @torch.inference_mode()
    def __call__(self, image: NDArray[np.uint8]) -> MaskProposals:
        pixels = resize(image, self.shortest, self.longest)
        normalised = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        output = self.network(pixel_values=pad(normalised)[None].to(self.device))
        # The last class is "no object".
        scores = 1 - output.class_queries_logits[0].float().softmax(dim=-1)[:, -1]
        masks = crop_masks(output.masks_queries_logits[0].float(), *pixels.shape[1:])
        return MaskProposals(masks.cpu().numpy(), scores.cpu().numpy())
