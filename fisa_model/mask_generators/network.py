"""What networks that predict a set of masks have in common as generators: sizes, batches, precision."""

import threading
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fisa_model.mask_generators import BATCH_PIXELS, MaskProposals, Precision
from fisa_model.mask_generators.frame import LONGEST, SHORTEST, crop_masks, resize, resized_shape


class NetworkGenerator(ABC):
    """Runs a network over images, those of one test size together, so that none is padded for another's sake.

    Args:
        network: what `run` needs.
        device: where it runs.
        shortest, longest: the test size in pixels.
        precision: `bf16` computes in bfloat16 what can bear it.
        batch_pixels: resized pixels of one size that it takes at once; at least one image.
    """

    def __init__(
        self,
        network: Any,
        *,
        device: torch.device | str = "cpu",
        shortest: int = SHORTEST,
        longest: int = LONGEST,
        precision: Precision = "fp32",
        batch_pixels: int = BATCH_PIXELS,
    ) -> None:
        self.network = network.to(device).eval()
        self.device = torch.device(device)
        self.shortest = shortest
        self.longest = longest
        self.precision = precision
        self.batch_pixels = batch_pixels
        self._lock = threading.Lock()

    @abstractmethod
    def run(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Resized images [B, 3, h, w], 0 to 255, on the device -> masks and classes.

        Mask logits are [B, Q, h' / 4, w' / 4] of the padded frame, class logits [B, Q, K + 1], of which the
        last is "no object".
        """

    def __call__(self, image: NDArray[np.uint8]) -> MaskProposals:
        return self.batch([image])[0]

    @torch.inference_mode()
    def batch(self, images: Sequence[NDArray[np.uint8]]) -> list[MaskProposals]:
        """RGB images, [H, W, 3] each."""
        places: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place, image in enumerate(images):
            size = resized_shape(image.shape[0], image.shape[1], self.shortest, self.longest)
            places[size].append(place)
        proposals: dict[int, MaskProposals] = {}
        for (height, width), of_one_size in places.items():
            together = max(1, self.batch_pixels // (height * width))
            for start in range(0, len(of_one_size), together):
                part = of_one_size[start : start + together]
                found = self._propose([images[place] for place in part], height, width)
                proposals.update(zip(part, found, strict=True))
        return [proposals[place] for place in range(len(images))]

    def _propose(self, images: list[NDArray[np.uint8]], height: int, width: int) -> list[MaskProposals]:
        """Images of one test size, which is given."""
        pixels = torch.stack([resize(image, self.shortest, self.longest) for image in images])
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        # Of several threads one is in the network: `batch_pixels` is what the device's memory holds.
        with self._lock, autocast:
            masks, classes = self.run(pixels.to(self.device))
            scores = 1 - classes.float().softmax(dim=-1)[..., -1]
            cut = [crop_masks(logits, height, width).cpu() for logits in masks.float()]
            scores = scores.cpu()
            del masks, classes
        return [
            MaskProposals(logits.numpy(), of_masks.numpy())
            for logits, of_masks in zip(cut, scores, strict=True)
        ]
