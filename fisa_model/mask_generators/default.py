"""The generator that belongs to a model."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fisa_model.config import TOY_CLIP, FISAConfig
from fisa_model.mask_generators import BatchMaskGenerator, MaskProposals, load_mask_generator


class DefaultGenerator:
    """The generator that belongs to a model, loaded when it is first asked."""

    def __init__(self, config: FISAConfig, device: torch.device | str) -> None:
        self.name = "felzenszwalb" if config.clip.model == TOY_CLIP else "mask2former"
        self.device = str(device)
        self._loaded: BatchMaskGenerator | None = None

    def __call__(self, image: NDArray[np.uint8]) -> MaskProposals:
        return self.batch([image])[0]

    def batch(self, images: Sequence[NDArray[np.uint8]]) -> list[MaskProposals]:
        """What it proposes for each of several images."""
        if self._loaded is None:
            self._loaded = load_mask_generator(self.name, device=self.device)
        return self._loaded.batch(images)
