"""LoRA on CLIP's attention projections: what the paper's table 3 compares SIMO with."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fisa_model.visual_encoder import ImageBlock, MaskTokenEncoder


# Equation 3 of https://arxiv.org/abs/2106.09685, with alpha equal to the rank.
class LowRank(nn.Module):
    """Adds a trained matrix of low rank to each of several square matrices at the end of a frozen weight."""

    def __init__(self, weight: Tensor, *, rank: int, matrices: int) -> None:
        """`weight` is [rows, C]; its last `matrices` x C rows are changed."""
        super().__init__()
        width = weight.shape[1]
        if not 1 <= rank <= width:
            raise ValueError(f"lora_rank must be 1 to the encoder's width {width}, got {rank}")
        self.kept_rows = len(weight) - matrices * width
        self.down = nn.Parameter(torch.empty(matrices, rank, width))
        self.up = nn.Parameter(torch.zeros(matrices, width, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        change = (self.up @ self.down).flatten(0, 1)
        return torch.cat([weight[: self.kept_rows], weight[self.kept_rows :] + change])


def add_lora(encoder: MaskTokenEncoder, rank: int) -> None:
    """Puts a `LowRank` on the projections to queries, keys and values and on the output of every layer.

    The encoder's query projections must be `shared`, so that image and mask tokens use the same ones.
    """
    for block, projection in zip(encoder.blocks, encoder.query_projections, strict=True):
        assert isinstance(block, ImageBlock)
        keys_values = LowRank(block.in_proj_weight, rank=rank, matrices=2)
        parametrize.register_parametrization(block, "in_proj_weight", keys_values)
        for linear in (projection, block.out_proj):
            assert isinstance(linear, nn.Linear)
            parametrize.register_parametrization(
                linear, "weight", LowRank(linear.weight, rank=rank, matrices=1)
            )
