"""Masks as the proposals table holds them, in one of four encodings.

| encoding | what is kept | what comes back |
|---|---|---|
| `rle` | inside or outside, as COCO's compressed run lengths | `LOGIT` or `-LOGIT` |
| `bits` | the same, one bit a pixel | the same |
| `logits8`, `logits4` | logits at a quarter of the image's side, 256 or 16 levels | logits within `LOGIT` |

A classifier that was trained on one of them reads all masks in the same form, from wherever they come.
`tests/benchmarks/mask_codec.py` measures them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from fisa_model.mask_generators import LOGIT, MaskProposals, ProposalForm

MaskEncoding = Literal["rle", "bits", "logits4", "logits8"]
ENCODINGS: tuple[str, ...] = get_args(MaskEncoding)

LOGIT_STRIDE = 4
"""Pixels of the image to a cell of stored logits, the stride of Mask2Former's."""


FORM_OF: dict[str, ProposalForm] = {
    "rle": "binary",
    "bits": "binary",
    "logits4": "clipped",
    "logits8": "clipped",
}
"""What a model that learns from masks of an encoding knows of their logits."""


class _Codec(Protocol):
    def encode(self, logits: NDArray[np.float32]) -> list[bytes]:
        """Mask logits [Q, h, w] of Q >= 1 masks -> the bytes of each."""

    def decode(self, data: Sequence[bytes], height: int, width: int) -> NDArray[np.float32]:
        """The bytes of each mask -> their logits [Q, h, w]."""


class _RunLengths:
    def encode(self, logits: NDArray[np.float32]) -> list[bytes]:
        return [run["counts"] for run in run_lengths(logits >= 0)]

    def decode(self, data: Sequence[bytes], height: int, width: int) -> NDArray[np.float32]:
        return _binary_logits(decode_runs(data, height, width))


class _Bits:
    def encode(self, logits: NDArray[np.float32]) -> list[bytes]:
        return [packed.tobytes() for packed in np.packbits((logits >= 0).reshape(len(logits), -1), axis=1)]

    def decode(self, data: Sequence[bytes], height: int, width: int) -> NDArray[np.float32]:
        packed = np.frombuffer(b"".join(data), dtype=np.uint8).reshape(len(data), -1)
        bits = np.unpackbits(packed, axis=1, count=height * width)
        return _binary_logits(bits.reshape(len(data), height, width).view(np.bool_))


class _Levels:
    """Logits on `2 ** bits` levels of equal distance, half of them below 0: no cell changes sides."""

    def __init__(self, bits: Literal[4, 8]) -> None:
        self.bits = bits
        self.highest = 2**bits - 1

    def encode(self, logits: NDArray[np.float32]) -> list[bytes]:
        scaled = (np.clip(logits, -LOGIT, LOGIT) / LOGIT + 1) * (self.highest / 2)
        lowest_inside = (self.highest + 1) // 2
        levels = np.rint(scaled).astype(np.uint8).reshape(len(logits), -1)
        inside = (logits >= 0).reshape(levels.shape)
        levels = np.where(inside, np.maximum(levels, lowest_inside), np.minimum(levels, lowest_inside - 1))
        if self.bits == 4:
            padded = np.pad(levels, ((0, 0), (0, levels.shape[1] % 2)))
            levels = padded[:, ::2] << 4 | padded[:, 1::2]
        return [row.tobytes() for row in levels]

    def decode(self, data: Sequence[bytes], height: int, width: int) -> NDArray[np.float32]:
        levels = np.frombuffer(b"".join(data), dtype=np.uint8).reshape(len(data), -1)
        if self.bits == 4:
            levels = np.stack([levels >> 4, levels & 15], axis=2).reshape(len(data), -1)
        grid = levels[:, : height * width].reshape(len(data), height, width)
        values: NDArray[np.float32] = (grid * np.float32(2 / self.highest) - 1) * np.float32(LOGIT)
        return values


CODECS: dict[str, _Codec] = {
    "rle": _RunLengths(),
    "bits": _Bits(),
    "logits4": _Levels(4),
    "logits8": _Levels(8),
}


def encode_proposals(
    proposals: MaskProposals, height: int, width: int, encoding: MaskEncoding = "rle"
) -> dict[str, Any]:
    """A row of the proposals table, less its `image_id`. A mask without a pixel is dropped.

    Args:
        proposals: what a generator gave for one image.
        height, width: pixels of that image.
        encoding: see the module.
    """
    logits = proposals.mask_logits
    if encoding.startswith("logits"):
        logits = _at_stride(logits, height, width)
    areas = (logits >= 0).sum(axis=(1, 2))
    kept = areas > 0
    data = CODECS[encoding].encode(logits[kept]) if kept.any() else []
    masks = [
        {
            "height": logits.shape[1],
            "width": logits.shape[2],
            "data": encoded,
            "score": float(score),
            "area": int(area),
        }
        for encoded, score, area in zip(data, proposals.scores[kept], areas[kept], strict=True)
    ]
    return {"height": height, "width": width, "encoding": encoding, "masks": masks}


def decode_proposals(row: Mapping[str, Any]) -> MaskProposals:
    """The proposals of a row of the proposals table, at the size they were stored in.

    Raises:
        ValueError: masks of several sizes, or an encoding that this version does not know.
    """
    masks = row["masks"]
    if row["encoding"] not in CODECS:
        raise ValueError(
            f"masks are encoded as {row['encoding']!r}, this version reads {', '.join(ENCODINGS)}; "
            "update the platform, or propose again"
        )
    if not masks:
        shape = (0, row["height"], row["width"])
        return MaskProposals(np.zeros(shape, np.float32), np.zeros(0, np.float32))
    sizes = {(mask["height"], mask["width"]) for mask in masks}
    if len(sizes) > 1:
        raise ValueError(f"masks of one image must share one size, got {sorted(sizes)} (height, width)")
    logits = CODECS[row["encoding"]].decode([mask["data"] for mask in masks], *sizes.pop())
    return MaskProposals(logits, np.array([mask["score"] for mask in masks], dtype=np.float32))


def run_lengths(masks: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """COCO's compressed run lengths of masks [Q, h, w]: `size` and `counts` of each."""
    # Runs go down the columns, so pycocotools wants [h, w, Q] in column-major order.
    runs: list[dict[str, Any]] = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8))
    return runs


def run_length(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """The same of one mask [h, w]; masks of a large image are better made and encoded one by one."""
    return run_lengths(mask[None])[0]


def decode_runs(counts: Sequence[bytes], height: int, width: int) -> NDArray[np.bool_]:
    """Masks [Q, height, width] of Q >= 1 of COCO's compressed run lengths."""
    masks = coco_mask.decode([{"size": [height, width], "counts": runs} for runs in counts])
    return np.ascontiguousarray(masks.transpose(2, 0, 1)).view(np.bool_)


def _binary_logits(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.where(masks, np.float32(LOGIT), np.float32(-LOGIT))


def _at_stride(logits: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Logits of cells of LOGIT_STRIDE pixels, where they came finer: of the mean probability in each."""
    import torch
    import torch.nn.functional as F

    size = -(-height // LOGIT_STRIDE), -(-width // LOGIT_STRIDE)
    if not len(logits) or (logits.shape[1] <= size[0] and logits.shape[2] <= size[1]):
        return logits
    means = F.adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(logits)).sigmoid()[None], size)[0]
    return np.asarray(means.logit(eps=1e-5).numpy())
