"""From mask proposals to attention: the Distribution Adapter, and equation 5."""

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fisa_model.config import AdapterConfig, AdapterUse
from fisa_model.open_patches import open_patches

PIXELS_PER_CHUNK = 32 * 1024 * 1024
"""Upsampled mask pixels held at once; 100 masks at 896 x 896 would be 320 MB an image."""

HIDDEN_VALUES_PER_CHUNK = {"cpu": 1 << 20, "cuda": 1 << 28}
"""Hidden values of the adapter held at once: what stays in a CPU's cache, and 1 GB of a GPU."""

SOFT_FLOOR = -20.0
"""Lowest soft bias: e^-20 is nothing, and no row is closed altogether."""


class DistributionAdapter(nn.Module):
    """A few 3x3 convolutions over each mask alone, added to its logits; the last one starts at zero."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.hidden = config.hidden
        self.where: AdapterUse = config.where
        """May be changed at test time, to compare."""
        widths = [1, *[config.hidden] * (config.layers - 1), 1] if config.layers else [1]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], kernel_size=3, padding=1) for i in range(config.layers)
        )
        if config.layers:
            last = self.convolutions[-1]
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
        # Few channels on many pixels: twice as fast on a CPU as the usual order.
        self.to(memory_format=torch.channels_last)

    def forward(self, mask_logits: Tensor) -> Tensor:
        """[B, Q, h, w] -> [B, Q, h, w]."""
        if not self.convolutions or mask_logits.numel() == 0:
            return mask_logits
        masks = mask_logits.flatten(0, 1).unsqueeze(1).contiguous(memory_format=torch.channels_last)
        hidden = self.hidden * mask_logits.shape[-2] * mask_logits.shape[-1]
        chunk = max(1, HIDDEN_VALUES_PER_CHUNK.get(masks.device.type, 1 << 28) // hidden)
        adapted = torch.cat([part + self._change(part) for part in torch.split(masks, chunk)])
        return adapted.view_as(mask_logits)

    def _change(self, masks: Tensor) -> Tensor:
        *hidden, last = self.convolutions
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        for convolution in hidden:
            masks = F.relu_(convolution(masks))
        if masks.device.type != "cpu":
            return cast(Tensor, last(masks))
        # There a convolution to one channel takes three times as long as each channel's own and their sum.
        weight = last.weight.transpose(0, 1)
        return F.conv2d(masks, weight, padding=1, groups=len(weight)).sum(dim=1, keepdim=True) + last.bias


def attention_bias(
    mask_logits: Tensor,
    *,
    image_size: int,
    grid_size: int,
    kind: Literal["hard", "soft"] = "hard",
    cls_key: bool = True,
) -> Tensor:
    """What is added to the attention of mask tokens (equation 5 of the paper).

    Args:
        mask_logits: [B, Q, h, w], in the frame of the image.
        image_size: S; masks are resized to it before a patch takes the largest logit of its pixels.
        grid_size: patches along a side.
        kind: `hard` opens a patch that holds any pixel of the mask and closes the others with -inf; `soft`
            adds the log-probability of its largest logit, which has a gradient.
        cls_key: whether the class token stays visible.

    Returns:
        [B, 1, Q, 1 + P], the class token's column first.
    """
    if kind == "soft":
        patches = _largest_in_patch(mask_logits, image_size, grid_size)
        bias = F.logsigmoid(patches).clamp(min=SOFT_FLOOR)
    else:
        masks = mask_logits.detach().flatten(0, 1)
        opened = open_patches(masks, image_size=image_size, grid_size=grid_size)
        opened = opened.view(*mask_logits.shape[:2], grid_size**2)
        if not cls_key:
            # A row of -inf only would be NaN after softmax; Mask2Former opens such rows, too.
            opened |= ~opened.any(dim=-1, keepdim=True)
        bias = torch.zeros_like(opened, dtype=mask_logits.dtype).masked_fill(~opened, -torch.inf)
    cls_column = bias.new_full((*bias.shape[:-1], 1), 0.0 if cls_key else -torch.inf)
    return torch.cat([cls_column, bias], dim=-1).unsqueeze(1)


def _largest_in_patch(mask_logits: Tensor, image_size: int, grid_size: int) -> Tensor:
    """[B, Q, h, w] -> [B, Q, P], a few masks at a time."""
    masks = mask_logits.flatten(0, 1).unsqueeze(1).float()
    chunk = max(1, PIXELS_PER_CHUNK // image_size**2)
    pooled = [
        # The upsampled pixels are made again in the backward pass rather than kept.
        checkpoint(_pool, part, image_size, grid_size, use_reentrant=False)
        if part.requires_grad
        else _pool(part, image_size, grid_size)
        for part in torch.split(masks, chunk)
    ]
    return torch.cat(pooled).view(*mask_logits.shape[:2], grid_size**2)


def _pool(masks: Tensor, image_size: int, grid_size: int) -> Tensor:
    pixels = F.interpolate(masks, size=(image_size, image_size), mode="bilinear", align_corners=False)
    return F.max_pool2d(pixels, kernel_size=image_size // grid_size).flatten(1)
