"""Felzenszwalb's graph segmentation as a mask generator: classical, without weights, one mask a region."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.segmentation import felzenszwalb

from fisa_model.mask_generators import LOGIT, MaskProposals


class FelzenszwalbGenerator:
    """Efficient Graph-Based Image Segmentation (Felzenszwalb, Huttenlocher, IJCV 2004), as in scikit-image.

    The regions cut the image into parts that do not overlap.

    Args:
        scale: larger values give larger regions.
        sigma: standard deviation in pixels of the blur before segmentation.
        min_size: regions of fewer pixels are merged into a neighbour.
        max_side: a larger image is segmented at means of squares of its pixels, at most this many a side.
    """

    def __init__(
        self, *, scale: float = 300.0, sigma: float = 0.6, min_size: int = 500, max_side: int = 640
    ) -> None:
        self.scale = scale
        self.sigma = sigma
        self.min_size = min_size
        self.max_side = max_side

    def __call__(self, image: NDArray[np.uint8]) -> MaskProposals:
        step = -(-max(image.shape[:2]) // self.max_side)
        height, width = image.shape[:2]
        small = image
        if step > 1:
            size = (-(-width // step), -(-height // step))
            small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
        regions = felzenszwalb(small, scale=self.scale, sigma=self.sigma, min_size=self.min_size)
        inside = regions == np.arange(regions.max() + 1)[:, None, None]
        logits = np.where(inside, np.float32(LOGIT), np.float32(-LOGIT))
        return MaskProposals(logits, np.ones(len(logits), dtype=np.float32))

    def batch(self, images: Sequence[NDArray[np.uint8]]) -> list[MaskProposals]:
        """One after the other."""
        return [self(image) for image in images]
