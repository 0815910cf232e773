"""What the model says about one image, before it is turned into pixels.

Apart from the predictor, so that what only has predictions need not load CLIP's libraries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fisa_model import postprocess
from fisa_model.postprocess import Instance, PanopticResult


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says about one image's proposals; the methods turn it into pixels."""

    class_probs: Tensor
    """[Q, K], without void."""

    mask_logits: Tensor
    """[Q, h, w], at the proposals' own resolution, after the Distribution Adapter."""

    scores: Tensor
    """[Q], the generator's objectness."""

    size: tuple[int, int]
    """(H, W) of the image."""

    def panoptic(
        self,
        is_thing: Sequence[bool],
        *,
        objectness: bool = True,
        object_threshold: float = 0.3,
        overlap_threshold: float = 0.5,
    ) -> PanopticResult:
        return postprocess.panoptic(
            self.class_probs,
            self.mask_logits,
            is_thing=is_thing,
            size=self.size,
            scores=self.scores if objectness else None,
            object_threshold=object_threshold,
            overlap_threshold=overlap_threshold,
        )

    def semantic(self, *, objectness: bool = True) -> NDArray[np.int32]:
        """[H, W], the class index of every pixel; K where there is no proposal at all."""
        return postprocess.semantic(
            self.class_probs,
            self.mask_logits,
            size=self.size,
            scores=self.scores if objectness else None,
        )

    def instance(
        self, is_thing: Sequence[bool], *, objectness: bool = True, top_k: int = 100
    ) -> list[Instance]:
        return postprocess.instance(
            self.class_probs,
            self.mask_logits,
            is_thing=is_thing,
            size=self.size,
            scores=self.scores if objectness else None,
            top_k=top_k,
        )
