"""From pictures and masks to what the model takes: the same square frame for all of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fisa_model.config import Resize
from fisa_model.mask_generators import LOGIT, MaskProposals, ProposalForm
from fisa_model.matcher import Target
from fisa_model.pictures import check_image

PROPOSAL_STRIDE = 4
"""The model reads proposals at a quarter of the image's side, the stride at which Mask2Former makes them."""

OUTSIDE = -LOGIT
"""Mask logit where there is no image, and of proposals that only fill up a batch."""

_MOST_SHRUNK_ON_GPU = 30
"""torch refuses more than about 47 times on CUDA, 31 on ROCm: a pixel's weights must fit in shared memory."""

GRAY = 128 / 255
"""Colour of the frame around a shrunk image, as in detectron2's FixedSizeCrop."""


def check_proposals(proposals: MaskProposals, size: tuple[int, int]) -> None:
    """Refuse proposals that are damaged, or not of an image of (H, W) pixels.

    Raises:
        ValueError: they are no MaskProposals, a value is NaN or infinite, a score is no probability, or masks
            have no pixels or not the image's proportions.
    """
    if not isinstance(proposals, MaskProposals):
        raise ValueError(
            f"proposals of an image must be MaskProposals, got {type(proposals).__name__}; make them of mask "
            "logits [Q, h, w] and scores [Q]"
        )
    for name in ("mask_logits", "scores"):
        if not np.isfinite(getattr(proposals, name)).all():
            raise ValueError(f"{name} of the proposals are NaN or infinite; run the mask generator again")
    if ((proposals.scores < 0) | (proposals.scores > 1)).any():
        raise ValueError(
            f"scores of the proposals must be 0 to 1, got {proposals.scores.min():g} to "
            f"{proposals.scores.max():g}; give probabilities, or ones where there are none"
        )
    if not len(proposals):
        return
    shape = proposals.mask_logits.shape
    if 0 in shape:
        raise ValueError(f"proposals have no pixels: mask_logits is {list(shape)}")
    # Rounding at some stride may have taken or given one cell at either side.
    sides = list(zip(size, shape[1:], strict=True))
    smallest_stride = max(pixels / (cells + 1) for pixels, cells in sides)
    largest_stride = min(pixels / (cells - 1) if cells > 1 else float("inf") for pixels, cells in sides)
    if smallest_stride > largest_stride:
        raise ValueError(
            f"mask_logits are {shape[1]} x {shape[2]} (height x width), their image {size[0]} x {size[1]}; "
            "masks must cover the image's own frame in its own proportions: cut off what the generator "
            "padded, or check that they belong to this image"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """A square window of `size` pixels on an image that was resized to `height` x `width`, maybe mirrored."""

    size: int
    height: int
    width: int
    top: int = 0
    left: int = 0
    flip: bool = False

    @property
    def fills_window(self) -> bool:
        """Whether the image fills the window, so that resizing is all there is to do."""
        return self.height == self.width == self.size and not self.flip

    def sources(self, side: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Rows and columns of `side` pixels in this window -> where they lie in the image, 0 to 1.

        Values outside 0 to 1 lie beside the image.
        """
        centres = (torch.arange(side, device=device) + 0.5) * (self.size / side)
        rows, columns = (centres + self.top) / self.height, (centres + self.left) / self.width
        return rows, 1 - columns if self.flip else columns


def whole_frame(size: tuple[int, int], image_size: int, resize: Resize, *, flip: bool = False) -> Frame:
    """The window of S = `image_size` that holds all of an image of (H, W) pixels, see `FISAConfig.resize`."""
    height, width = image_size, image_size
    if resize == "letterbox":
        # Of a single row of pixels no cell of the proposals would have its centre inside.
        height, width = (max(2, round(pixels * image_size / max(size))) for pixels in size)
    return Frame(size=image_size, height=height, width=width, flip=flip)


def to_clip_input(
    image: NDArray[np.uint8],
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    resize: Resize = "squash",
    device: torch.device | str = "cpu",
) -> Tensor:
    """RGB [H, W, 3] -> [3, S, S], all of the image, CLIP-normalised; `resize` as in `FISAConfig`.

    It is resized on `device`: for S = 896 a core takes 14 ms for a photo of COCO, and 0.1 s for 4 megapixels.
    """
    check_image(image)
    frame = whole_frame((image.shape[0], image.shape[1]), image_size, resize)
    return _normalise(warp_image(image, frame, device), mean, std)


def in_form(mask_logits: Tensor, form: ProposalForm | None) -> Tensor:
    """Mask logits as a table of this form would have kept them; as they came where it is None."""
    if form == "binary":
        return torch.where(mask_logits >= 0, LOGIT, -LOGIT)
    return mask_logits if form is None else mask_logits.clamp(-LOGIT, LOGIT)


def to_model_proposals(
    mask_logits: Tensor,
    *,
    image_size: int,
    form: ProposalForm | None = None,
    frame: Frame | None = None,
) -> Tensor:
    """Proposals [Q, h, w] at any resolution -> [Q, S / 4, S / 4], what the model was trained on.

    `frame` holds the whole image; None is the squashed one. `form` is that of the table it was trained on;
    None leaves logits as they came. A network's own reach 30, and from a table of binary masks the adapter
    knows none but 10.
    """
    side = -(-image_size // PROPOSAL_STRIDE)
    logits = in_form(mask_logits, form)
    if frame is not None and not frame.fills_window:
        return warp_logits(logits, frame, side=side)
    if len(logits) == 0:
        return logits.new_zeros(0, side, side)
    return _resize(logits, (side, side), "bilinear")


def to_tensor(array: NDArray[Any]) -> Tensor:
    """Shares memory where it may be written to; torch has no read-only tensors, and tables are read-only."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def pad_proposals(proposals: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """[Q_i, h, w] of each image -> [B, Q, h, w] with the largest Q, and which of them are real, [B, Q].

    Q is at least 1, so that a batch without proposals takes the same way through the model as any other:
    workers that train together wait for each other's gradients.
    """
    most = max(1, *(len(masks) for masks in proposals))
    if all(len(masks) == most for masks in proposals):
        stacked = torch.stack(list(proposals))
        return stacked, torch.ones(stacked.shape[:2], dtype=torch.bool, device=stacked.device)
    padded = proposals[0].new_full((len(proposals), most, *proposals[0].shape[1:]), OUTSIDE)
    valid = torch.zeros(len(proposals), most, dtype=torch.bool, device=padded.device)
    for i, masks in enumerate(proposals):
        padded[i, : len(masks)] = masks
        valid[i, : len(masks)] = True
    return padded, valid


@dataclass(frozen=True, slots=True)
class TrainingSample:
    image: Tensor
    """[3, S, S], CLIP-normalised."""

    proposals: Tensor
    """[Q, S / 4, S / 4]."""

    target: Target
    """Masks [N, S, S]."""

    emptied: int
    """Segments without a pixel in the window; `target` lacks them, unless they are kept."""


class Jitter:
    """Random mirror image and large-scale jitter, the same for image, proposals and ground truth."""

    def __init__(
        self,
        *,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        scale: tuple[float, float] | None = (0.1, 2.0),
        flip: float = 0.5,
        keep_empty: bool = False,
        resize: Resize = "squash",
    ) -> None:
        """`scale` is the range of the longer side over S; None takes the whole image, as at test time.

        `keep_empty` keeps segments without a pixel in the window, as Mask2Former does. Each is matched to
        some proposal that has nothing to do with it, which then learns its name.
        """
        if scale is not None and not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be a range of positive numbers, got {scale}")
        self.image_size = image_size
        self.mean = mean
        self.std = std
        self.scale = scale
        self.flip = flip
        self.keep_empty = keep_empty
        self.resize: Resize = resize

    def __call__(
        self,
        image: NDArray[np.uint8],
        proposals: MaskProposals,
        target: Target,
        rng: np.random.Generator,
    ) -> TrainingSample:
        """Draws one frame; the same state of `rng` draws the same one."""
        check_image(image)
        check_proposals(proposals, (image.shape[0], image.shape[1]))
        if target.masks.shape[1:] != image.shape[:2]:
            raise ValueError(
                f"ground-truth masks are {list(target.masks.shape[1:])} pixels, their image is "
                f"{list(image.shape[:2])}; give masks at the size of the image"
            )
        frame = self.draw(image.shape[0], image.shape[1], rng)
        masks = warp_masks(target.masks, frame, side=self.image_size)
        seen = torch.from_numpy(masks.numpy().any(axis=(1, 2)))
        kept = torch.ones_like(seen) if self.keep_empty else seen
        return TrainingSample(
            image=_normalise(warp_image(image, frame), self.mean, self.std),
            proposals=warp_logits(
                to_tensor(proposals.mask_logits), frame, side=-(-self.image_size // PROPOSAL_STRIDE)
            ),
            target=Target(target.labels[kept], masks[kept]),
            emptied=int((~seen).sum()),
        )

    # The paper crops 1024 pixels and squashes them to the model's 896; here the same window is drawn at 896.
    # Sizes as in detectron2's ResizeScale and FixedSizeCrop (one factor for both offsets),
    # https://github.com/facebookresearch/detectron2/blob/02b5c4e/detectron2/data/transforms/augmentation_impl.py#L203-L370.
    def draw(self, height: int, width: int, rng: np.random.Generator) -> Frame:
        flip = bool(rng.random() < self.flip)
        size = self.image_size
        if self.scale is None:
            return whole_frame((height, width), size, self.resize, flip=flip)
        ratio = rng.uniform(*self.scale) * size / max(height, width)
        # Below two pixels no cell of a mask has its centre in the frame, as in `whole_frame`.
        height, width = max(2, round(height * ratio)), max(2, round(width * ratio))
        offset = rng.random()
        return Frame(
            size=size,
            height=height,
            width=width,
            top=round(max(height - size, 0) * offset),
            left=round(max(width - size, 0) * offset),
            flip=flip,
        )


def warp_image(image: NDArray[np.uint8], frame: Frame, device: torch.device | str = "cpu") -> Tensor:
    """[H, W, 3] -> [3, S, S] in 0..1, on `device`; gray where the window reaches beyond the image."""
    pixels = _resize(_to_float(image, device), (frame.height, frame.width), "bicubic")
    if frame.flip:
        pixels = pixels.flip(-1)
    crop = pixels[:, frame.top : frame.top + frame.size, frame.left : frame.left + frame.size]
    canvas = crop.new_full((3, frame.size, frame.size), GRAY)
    canvas[:, : crop.shape[1], : crop.shape[2]] = crop
    return canvas


def warp_logits(mask_logits: Tensor, frame: Frame, *, side: int) -> Tensor:
    """[Q, h, w] -> [Q, side, side], bilinear, and antialiased where masks shrink."""
    rows, columns = frame.sources(side, mask_logits.device)
    if len(mask_logits) == 0:
        return mask_logits.new_zeros(0, side, side)
    size = (math.ceil(frame.height * side / frame.size), math.ceil(frame.width * side / frame.size))
    if size[0] < mask_logits.shape[1] or size[1] < mask_logits.shape[2]:
        mask_logits = _resize(mask_logits, size, "bilinear")
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    warped = F.grid_sample(mask_logits[None], 2 * grid[None] - 1, padding_mode="border", align_corners=False)
    return warped[0].masked_fill_(~_inside(rows, columns), OUTSIDE)


def unwarp(values: Tensor, frame: Frame, size: tuple[int, int]) -> Tensor:
    """[Q, side, side] in a frame of a whole image -> [Q, h, w] in the image's own, bilinear.

    The frame is not mirrored. What lies beside the image in it is not read.
    """
    if frame.fills_window:
        return F.interpolate(values[None], size=size, mode="bilinear", align_corners=False)[0]
    axes = []
    side = values.shape[-1]
    for cells, pixels in zip(size, (frame.height, frame.width), strict=True):
        covered = pixels / frame.size
        centres = (torch.arange(cells, device=values.device) + 0.5) * (covered / cells)
        inside = math.floor(covered * side + 0.5)  # cells whose centre lies in the image
        axes.append(centres.clamp(max=(inside - 0.5) / side))
    grid = torch.stack(torch.meshgrid(axes[1], axes[0], indexing="xy"), dim=-1)
    return F.grid_sample(values[None], 2 * grid[None] - 1, padding_mode="border", align_corners=False)[0]


def warp_masks(masks: Tensor, frame: Frame, *, side: int) -> Tensor:
    """[N, H, W] bool -> [N, side, side] bool, the nearest pixel."""
    rows, columns = frame.sources(side)
    y = (rows * masks.shape[1]).long().clamp(0, masks.shape[1] - 1)
    x = (columns * masks.shape[2]).long().clamp(0, masks.shape[2] - 1)
    # numpy takes bytes from their places five times as fast as torch.
    picked = masks.numpy().take(x.numpy(), axis=2).take(y.numpy(), axis=1)
    return torch.from_numpy(picked) & _inside(rows, columns)


def _inside(rows: Tensor, columns: Tensor) -> Tensor:
    return ((rows >= 0) & (rows <= 1))[:, None] & ((columns >= 0) & (columns <= 1))[None]


def _to_float(image: NDArray[np.uint8], device: torch.device | str) -> Tensor:
    return to_tensor(np.ascontiguousarray(image)).to(device).permute(2, 0, 1).float() / 255


def _resize(values: Tensor, size: tuple[int, int], mode: Literal["bicubic", "bilinear"]) -> Tensor:
    """[N, h, w] -> [N, *size], antialiased where it shrinks."""
    device = values.device
    shrunk = max(before / after for before, after in zip(values.shape[1:], size, strict=True))
    if shrunk > _MOST_SHRUNK_ON_GPU:
        values = values.cpu()
    # Antialiasing is stated because its default in torchvision changed between versions.
    resized = F.interpolate(values[None], size=size, mode=mode, align_corners=False, antialias=True)[0]
    return resized.to(device)


def _normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """In place, [3, h, w]."""
    means, deviations = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (mean, std))
    return pixels.sub_(means).div_(deviations)
