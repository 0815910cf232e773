"""Frozen mask generators: an image in, class-agnostic mask proposals out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

LOGIT = 10.0
"""Mask logit of a pixel that is known to be inside, and its negative outside: a probability of 0.99995."""

ProposalForm = Literal["binary", "clipped"]
"""What a table of proposals keeps of mask logits: their side of 0, or what of them is within LOGIT (it also
pools those that are finer than a quarter of the image's side)."""


@dataclass(frozen=True, slots=True)
class MaskProposals:
    """Masks of one image, at any resolution; they cover exactly the image's own frame, without padding."""

    mask_logits: NDArray[np.float32]
    """[Q, h, w]; a pixel is in the mask where its logit is 0 or more."""

    scores: NDArray[np.float32]
    """[Q], how likely each mask is an object at all; 1 where the generator does not say."""

    def __post_init__(self) -> None:
        for name in ("mask_logits", "scores"):
            object.__setattr__(self, name, _as_float32(name, getattr(self, name)))
        if self.mask_logits.ndim != 3:
            raise ValueError(f"mask_logits must be [Q, h, w], got shape {self.mask_logits.shape}")
        if self.scores.shape != self.mask_logits.shape[:1]:
            raise ValueError(
                f"scores must hold one number for each of the {len(self.mask_logits)} masks, "
                f"got shape {self.scores.shape}"
            )

    def __len__(self) -> int:
        return len(self.mask_logits)


def _as_float32(name: str, values: object) -> NDArray[np.float32]:
    """The same array where it is what torch takes as it is."""
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        found = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
        raise ValueError(
            f"{name} must be a numpy array of floats, got {found}; of bool masks make logits with "
            "np.where(masks, 10.0, -10.0)"
        )
    return np.ascontiguousarray(values, dtype=np.float32)


class MaskGenerator(Protocol):
    def __call__(self, image: NDArray[np.uint8]) -> MaskProposals:
        """Proposes masks for an RGB image [H, W, 3]."""


class BatchMaskGenerator(MaskGenerator, Protocol):
    def batch(self, images: Sequence[NDArray[np.uint8]]) -> list[MaskProposals]:
        """What it proposes for each of several images, whatever their sizes."""


def propose_masks(generator: MaskGenerator, images: Sequence[NDArray[np.uint8]]) -> list[MaskProposals]:
    """The proposals of several RGB images [H, W, 3], together where the generator can do that."""
    batch = getattr(generator, "batch", None)
    return [generator(image) for image in images] if batch is None else list(batch(images))


GeneratorName = Literal["felzenszwalb", "mask2former", "detectron2"]
GENERATORS: tuple[str, ...] = get_args(GeneratorName)


Precision = Literal["fp32", "bf16"]
BATCH_PIXELS = 8_000_000
"""Pixels, at the generator's own test size, that go through a network at once; a photo of COCO has 0.9 M."""


def check_generator(
    name: str, weights: str | None, size: tuple[int, int] | None = None, precision: Precision = "fp32"
) -> None:
    """Raises ValueError for an unknown name, for weights, a test size or a precision that a generator cannot
    have, or for lack of weights that it needs."""
    if name not in GENERATORS:
        raise ValueError(f"unknown mask generator {name!r}; choose one of {', '.join(GENERATORS)}")
    if name == "felzenszwalb" and weights is not None:
        raise ValueError(
            f"generator 'felzenszwalb' has no weights, got {weights!r}; leave them out "
            "(generator_weights: null), or choose the generator that they belong to"
        )
    if name == "felzenszwalb" and precision != "fp32":
        raise ValueError(f"generator 'felzenszwalb' is no network to compute in {precision}; leave it out")
    if name == "detectron2" and weights is None:
        raise ValueError("generator 'detectron2' needs weights, got none; give its output folder")
    if size is None:
        return
    if name == "felzenszwalb":
        raise ValueError(f"generator_size: 'felzenszwalb' has no test size, got {list(size)}; leave it out")
    shortest, longest = size
    if not 1 <= shortest <= longest:
        raise ValueError(
            "generator_size must be [shorter side, longest side] in pixels, at least 1, the larger one last, "
            f"got {list(size)}; Mask2Former's own is [800, 1333]"
        )


def load_mask_generator(
    name: str,
    *,
    weights: str | None = None,
    size: tuple[int, int] | None = None,
    device: str = "cpu",
    precision: Precision = "fp32",
    batch_pixels: int = BATCH_PIXELS,
) -> BatchMaskGenerator:
    """Builds a generator by name.

    Args:
        name: one of GENERATORS.
        weights: a folder or hub name, for those that have weights.
        size: the test size of a network in pixels: an image's shorter side becomes the first, unless its
            longer one would exceed the second. None is 800 and 1333, or what a detectron2 folder says.
        device: where a network runs.
        precision: `bf16` computes backbone and transformer of a network in bfloat16.
        batch_pixels: resized pixels of one size that a network takes at once; at least one image.
    """
    check_generator(name, weights, size, precision)
    if name == "felzenszwalb":
        from fisa_model.mask_generators.felzenszwalb import FelzenszwalbGenerator

        return FelzenszwalbGenerator()
    options: dict[str, Any] = {"device": device, "precision": precision, "batch_pixels": batch_pixels}
    if size is not None:
        options["shortest"], options["longest"] = size
    if name == "mask2former":
        from fisa_model.mask_generators.mask2former import DEFAULT_WEIGHTS, Mask2FormerGenerator

        return Mask2FormerGenerator.load(weights or DEFAULT_WEIGHTS, **options)
    from fisa_model.mask_generators.detectron2 import Detectron2Generator

    assert weights is not None  # checked above
    return Detectron2Generator.load(weights, **options)
