"""Which patches of an image hold a pixel of a mask, without making the mask's pixels where it is plain.

Masks come at a quarter of the image's side. A patch is open where any pixel of the mask, resized to the
image, has a logit of 0 or more. Nearly all patches lie well inside or outside of a mask, and the few logits
around them tell; only the others are resized.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PATCHES_PER_CHUNK = 1 << 16
"""Patches whose pixels are made at once; 51 MB at 14 x 14 pixels."""


def open_patches(mask_logits: Tensor, *, image_size: int, grid_size: int) -> Tensor:
    """Equals `max_pool2d(interpolate(mask_logits, S, "bilinear"), S / g) >= 0`, up to rounding.

    Args:
        mask_logits: [N, h, w].
        image_size: S, to which masks are resized.
        grid_size: g, patches along a side; it divides S.

    Returns:
        [N, g, g] bool.
    """
    rows = _Axis.of(mask_logits.shape[1], image_size, grid_size, mask_logits.device)
    columns = _Axis.of(mask_logits.shape[2], image_size, grid_size, mask_logits.device)
    inside = mask_logits >= 0
    # A pixel between four logits of one sign has that sign.
    opened = _any_in_patch(_with_next(_with_next(inside, 1), 2), rows.with_pixel, columns.with_pixel)
    touched = _any_in_patch(inside, rows.touching, columns.touching)
    for unsure in torch.split((touched & ~opened).nonzero(), PATCHES_PER_CHUNK):
        mask, row, column = unsure.unbind(dim=1)
        window = mask_logits[mask[:, None, None], rows.cells[row][:, :, None], columns.cells[column][:, None]]
        pixels = rows.weights[row] @ window.float() @ columns.weights[column].mT
        opened[mask, row, column] = pixels.amax(dim=(1, 2)) >= 0
    return opened


@dataclass(frozen=True, slots=True)
class _Axis:
    """One side of a mask: from which of its cells the pixels of each of g patches are interpolated."""

    cells: Tensor
    """[g, c], all cells that a patch's pixels lie between; the last one repeated where there are fewer."""

    weights: Tensor
    """[g, S / g, c], from cells to pixels."""

    touching: Tensor
    """[g, size], 1 for the cells that a patch's pixels lie between and 0 for the others."""

    with_pixel: Tensor
    """[g, size], 1 for those of them that have a pixel between themselves and the next."""

    @classmethod
    def of(cls, size: int, image_size: int, grid_size: int, device: torch.device) -> "_Axis":
        pixels = torch.arange(image_size, device=device).view(grid_size, -1)
        # As in interpolate with align_corners=False.
        place = ((pixels + 0.5) * (size / image_size) - 0.5).clamp(min=0)
        below = place.floor().long().clamp(max=size - 1)
        above = (below + 1).clamp(max=size - 1)
        share = (place - below).clamp(max=1)
        first, last = below[:, :1], above[:, -1:]
        most = int((last - first).max()) + 1
        steps = torch.arange(most, device=device)
        cells = torch.minimum(first + steps, last)
        weights = torch.zeros(grid_size, pixels.shape[1], most, device=device)
        weights.scatter_add_(2, (below - first)[..., None], (1 - share)[..., None])
        weights.scatter_add_(2, (above - first)[..., None], share[..., None])
        # Where pixels are closer than cells, every cell up to the last has one; many pixels, few cells.
        dense = size <= image_size
        between = torch.minimum(cells, below[:, -1:]) if dense else below
        nothing = torch.zeros(grid_size, size, device=device)
        return cls(cells, weights, nothing.scatter(1, cells, 1), nothing.scatter(1, between, 1))


def _with_next(inside: Tensor, dim: int) -> Tensor:
    """Whether a cell and the next one are both inside; the last one is its own next."""
    both = inside.clone()
    both.narrow(dim, 0, inside.shape[dim] - 1).logical_and_(inside.narrow(dim, 1, inside.shape[dim] - 1))
    return both


def _any_in_patch(inside: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[N, h, w] bool, [g, h] and [g, w] the cells of each patch -> [N, g, g]."""
    # Counting them as a product of matrices takes half the time of gathering them.
    return rows @ inside.float() @ columns.T > 0
