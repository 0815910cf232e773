"""What the model says about one image, before it is turned into pixels.

Apart from the predictor, so that what only has predictions need not load CLIP's libraries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fisa_model import postprocess
from fisa_model.config import PanopticConfig
from fisa_model.postprocess import Instance, PanopticResult

Objectness = Literal["generator", "none"]
DEFAULT_PANOPTIC = PanopticConfig()


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says about one image's proposals; the methods turn it into pixels."""

    class_probs: Tensor
    """[Q, K], without void."""

    mask_logits: Tensor
    """[Q, h, w], at the proposals' own resolution; see `AdapterConfig.where`."""

    scores: Tensor
    """[Q], the generator's objectness."""

    size: tuple[int, int]
    """(H, W) of the image."""

    similarities: Tensor | None = None
    """[Q, K], cosines of masks and classes, of a class's names the best; None where no CLIP named them."""

    def panoptic(self, is_thing: Sequence[bool], config: PanopticConfig = DEFAULT_PANOPTIC) -> PanopticResult:
        if not isinstance(config, PanopticConfig):
            raise ValueError(
                f"panoptic rules must be a PanopticConfig, got {config!r}; write "
                "PanopticConfig(preset='maskclip_coco') or another preset"
            )
        object_threshold, overlap_threshold = config.thresholds
        return postprocess.panoptic(
            self.class_probs,
            self.mask_logits,
            is_thing=is_thing,
            size=self.size,
            scores=self._scores(config.objectness),
            object_threshold=object_threshold,
            overlap_threshold=overlap_threshold,
        )

    def semantic(self, *, objectness: Objectness = "generator") -> NDArray[np.int32]:
        """[H, W], the class index of every pixel; K where there is no proposal at all."""
        return postprocess.semantic(
            self.class_probs, self.mask_logits, size=self.size, scores=self._scores(objectness)
        )

    def instance(
        self, is_thing: Sequence[bool], *, objectness: Objectness = "generator", top_k: int = 100
    ) -> list[Instance]:
        return postprocess.instance(
            self.class_probs,
            self.mask_logits,
            is_thing=is_thing,
            size=self.size,
            scores=self._scores(objectness),
            top_k=top_k,
        )

    def masks(self, proposals: Tensor | slice = slice(None)) -> NDArray[np.bool_]:
        """[n, H, W], proposals of these indices, or all, at the image's own size."""
        return postprocess.binarise(self.mask_logits[proposals], self.size)[0]

    def _scores(self, objectness: Objectness) -> Tensor | None:
        if objectness not in get_args(Objectness):
            raise ValueError(f"objectness must be 'generator' or 'none', got {objectness!r}")
        return self.scores if objectness == "generator" else None
