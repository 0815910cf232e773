"""CLIP's image tower with mask tokens beside the image tokens.

Image tokens run through CLIP unchanged and never see a mask or a word. Mask tokens start as copies of the
class token and read the image tokens' keys and values, layer by layer, inside their masks. So one pass over
an image serves any number of mask sets and vocabularies.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fisa_model.image_tower import Activation, ImageTower

LayerNorm = Callable[[Tensor], Tensor]


class Guide(Protocol):
    """What changes mask tokens before they look at the image: SEVE, bound to a vocabulary."""

    def __call__(self, layer: int, tokens: Tensor, norm: LayerNorm) -> tuple[Tensor, Tensor]:
        """Tokens [B, Q, C] -> the tokens to go on with, and the input of their query projection."""


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """All that mask tokens need from B images; it depends on neither masks nor words.

    On a CPU they lie in one piece of memory: a part that is kept or pickled takes all with it, unless cloned.
    """

    cls_token: Tensor
    """[B, C], the class token before the first layer, from which mask tokens start."""

    keys: list[Tensor]
    """One [B, heads, 1 + P, C / heads] a layer."""

    values: list[Tensor]
    """One [B, heads, 1 + P, C / heads] a layer."""


class ImageBlock(nn.Module):
    """The weights of one transformer block of CLIP, shared with it, and the steps that are made of them."""

    def __init__(
        self, weights: Mapping[str, nn.Parameter], *, heads: int, activation: Activation, eps: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.activation = activation
        self.in_proj_weight = weights["attn.in_proj_weight"]
        self.in_proj_bias = weights["attn.in_proj_bias"]
        self.width = self.in_proj_weight.shape[1]
        self.out_proj = _linear(weights, "attn.out_proj")
        self.ln_1 = _layer_norm(weights, "ln_1", eps)
        self.ln_2 = _layer_norm(weights, "ln_2", eps)
        self.c_fc = _linear(weights, "mlp.c_fc")
        self.c_proj = _linear(weights, "mlp.c_proj")

    def queries(self, tokens: Tensor) -> Tensor:
        """CLIP's own query projection, [B, N, C] -> [B, N, C]."""
        return F.linear(tokens, self.in_proj_weight[: self.width], self.in_proj_bias[: self.width])

    def keys_values(self, tokens: Tensor) -> Tensor:
        """[B, N, C] -> [2, B, heads, N, C / heads], the keys and then the values."""
        # Without the queries, so that keys and values kept for many layers do not hold their memory too.
        both = F.linear(tokens, self.in_proj_weight[self.width :], self.in_proj_bias[self.width :])
        return both.view(*both.shape[:2], 2, self.heads, self.width // self.heads).permute(2, 0, 3, 1, 4)

    def finish(
        self, tokens: Tensor, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Attention and MLP with their residuals: tokens and queries [B, N, C] -> [B, N, C]."""
        attended = attend(split_heads(queries, self.heads), keys, values, bias)
        tokens = tokens + self.out_proj(attended.transpose(1, 2).flatten(2))
        hidden = self.activation(self.c_fc(self.ln_2(tokens)))
        finished: Tensor = tokens + self.c_proj(hidden)
        return finished


# Token layout after https://github.com/mlpc-ucsd/MaskCLIP/blob/43049d1/maskclip/modeling/maskclip.py#L155-L178.
# Differs from MaskCLIP: image and mask tokens attend in two calls, not in one masked sequence, and the query
# projection of mask tokens is a trained copy (https://arxiv.org/abs/2409.16278v2, equations 1 and 2).
class MaskTokenEncoder(nn.Module):
    """CLIP's image tower, and mask tokens that read from it."""

    def __init__(
        self,
        tower: ImageTower,
        *,
        image_size: int,
        query_projection: Literal["mask_only", "shared"] = "mask_only",
    ) -> None:
        """Shares the weights of the tower; only position embedding and query projections are copied."""
        super().__init__()
        if image_size % tower.patch_size:
            above = -(-image_size // tower.patch_size) * tower.patch_size
            raise ValueError(
                f"image_size must be a multiple of the CLIP's patch size {tower.patch_size}, "
                f"got {image_size}; the next larger is {above}"
            )
        self.image_size = image_size
        self.query_projection = query_projection
        weights = tower.weights
        self.conv1_weight = weights["conv1.weight"]
        self.conv1_bias = weights.get("conv1.bias")
        self.class_embedding = weights["class_embedding"]
        self.positional_embedding = nn.Parameter(
            resize_position_embedding(weights["positional_embedding"].detach(), self.grid_size),
            requires_grad=False,
        )
        has_ln_pre = "ln_pre.weight" in weights
        self.ln_pre = _layer_norm(weights, "ln_pre", tower.eps) if has_ln_pre else nn.Identity()
        blocks = [
            ImageBlock(block, heads=tower.heads, activation=tower.activation, eps=tower.eps)
            for block in tower.blocks
        ]
        self.blocks = nn.ModuleList(blocks)
        self.query_projections = nn.ModuleList(_copy_of_queries(block) for block in blocks)
        self.ln_post = _layer_norm(weights, "ln_post", tower.eps)
        self.proj = weights["proj"]
        self.proj_bias = weights.get("proj_bias")

    @property
    def patch_size(self) -> int:
        return self.conv1_weight.shape[-1]

    @property
    def grid_size(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def width(self) -> int:
        return self.class_embedding.shape[0]

    @property
    def output_width(self) -> int:
        """Width of the space that images and texts share."""
        return self.proj.shape[1]

    @property
    def trains_images(self) -> bool:
        """Whether anything in the path of image tokens learns; otherwise that path runs without gradients."""
        of_masks = ("query_projections.",) if self.query_projection == "mask_only" else ()
        after = ("ln_post.", "proj", *of_masks)
        return any(p.requires_grad for name, p in self.named_parameters() if not name.startswith(after))

    def encode_images(self, images: Tensor) -> ImageFeatures:
        """[B, 3, S, S], CLIP-normalised -> keys and values of every layer."""
        keys: list[Tensor] = []
        values: list[Tensor] = []
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_images):
            tokens = self.embed_images(images)
            cls_token = tokens[:, 0]
            for layer_keys, layer_values in self._run_images(tokens):
                keys.append(layer_keys)
                values.append(layer_values)
        return ImageFeatures(cls_token, keys, values)

    def embed_images(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> tokens before the first layer, [B, 1 + P, C], the class token first."""
        patches = F.conv2d(images, self.conv1_weight, self.conv1_bias, stride=self.patch_size)
        patches = patches.flatten(2).transpose(1, 2)
        cls_tokens = self.class_embedding.to(patches.dtype).expand(len(images), 1, -1)
        tokens = torch.cat([cls_tokens, patches], dim=1) + self.positional_embedding
        embedded: Tensor = self.ln_pre(tokens)
        return embedded

    def _run_images(self, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        shared = self.query_projection == "shared"
        # Each head in one piece, which a CPU reads faster, and all layers in one piece, between which no
        # memory is lost to the system: it would have to be cleared again for every layer. A compiler, though,
        # takes each write to a part of it for a copy of all.
        together = (
            tokens.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        )
        room: Tensor | None = None
        for layer, (block, projection) in enumerate(zip(self.blocks, self.query_projections, strict=True)):
            assert isinstance(block, ImageBlock)
            normed = block.ln_1(tokens)
            keys_values = block.keys_values(normed)
            if together:
                if room is None:
                    room = keys_values.new_empty(len(self.blocks), *keys_values.shape)
                keys_values = room[layer].copy_(keys_values)
            keys, values = keys_values
            yield keys, values
            # Nothing reads image tokens after the last layer: its keys and values are enough.
            if layer + 1 < len(self.blocks):
                queries = projection(normed) if shared else block.queries(normed)
                tokens = block.finish(tokens, queries, keys, values, None)

    def embed_masks(
        self, features: ImageFeatures, bias: Tensor, guide: Guide | None = None, *, frozen: bool = False
    ) -> Tensor:
        """Follows mask tokens through all layers.

        Args:
            features: of the same B images.
            bias: [B, 1, Q, 1 + P], added to the attention of mask token q for the class token and each patch.
            guide: what changes the tokens before they look at the image.
            frozen: whether CLIP's own query projections are used, in place of the trained ones.

        Returns:
            [B, Q, D], unit rows in the space of the text embeddings.
        """
        tokens = features.cls_token.unsqueeze(1).expand(-1, bias.shape[2], -1)
        layers = zip(self.blocks, self.query_projections, features.keys, features.values, strict=True)
        for layer, (block, projection, keys, values) in enumerate(layers):
            assert isinstance(block, ImageBlock)
            if guide is None:
                query_input = block.ln_1(tokens)
            else:
                tokens, query_input = guide(layer, tokens, block.ln_1)
            queries = block.queries(query_input) if frozen else projection(query_input)
            tokens = block.finish(tokens, queries, keys, values, bias.to(keys.dtype))
        return F.normalize(self._project(tokens).float(), dim=-1)

    def _project(self, tokens: Tensor) -> Tensor:
        projected: Tensor = self.ln_post(tokens) @ self.proj
        return projected if self.proj_bias is None else projected + self.proj_bias


def resize_position_embedding(embedding: Tensor, grid_size: int) -> Tensor:
    """[1 + g * g, C] of a CLIP -> [1 + grid_size ** 2, C]; the row of the class token stays as it is."""
    side = math.isqrt(len(embedding) - 1)
    if side * side != len(embedding) - 1:
        raise ValueError(f"position embedding has {len(embedding)} rows; expected 1 + a square number")
    if side == grid_size:
        return embedding.clone()
    grid = embedding[1:].T.reshape(1, -1, side, side)
    resized = F.interpolate(grid, size=(grid_size, grid_size), mode="bilinear", align_corners=False)
    return torch.cat([embedding[:1], resized[0].flatten(1).T])


def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of [B, heads, N, c] to [B, heads, M, c], a bias added to its scores -> [B, heads, N, c]."""
    only_queries_learn = torch.is_grad_enabled() and queries.requires_grad and not keys.requires_grad
    if bias is None or not only_queries_learn or queries.device.type != "cpu":
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
    # torch's own on a CPU fills gradients of frozen keys and values, too: for a few mask tokens that took
    # longer than the rest of the backward pass. All images at once would copy keys and values into one piece.
    images = zip(queries * queries.shape[-1] ** -0.5, keys, values, bias, strict=True)
    return torch.stack([(q @ k.mT + b).softmax(dim=-1) @ v for q, k, v, b in images])


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """[B, N, C] -> [B, heads, N, C / heads]."""
    return tokens.view(*tokens.shape[:-1], heads, tokens.shape[-1] // heads).transpose(1, 2)


def _linear(weights: Mapping[str, nn.Parameter], name: str) -> nn.Linear:
    weight = weights[f"{name}.weight"]
    # Made on the meta device: its own weights would be thrown away.
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = weight, weights[f"{name}.bias"]
    return layer


def _layer_norm(weights: Mapping[str, nn.Parameter], name: str, eps: float) -> nn.LayerNorm:
    weight = weights[f"{name}.weight"]
    layer = nn.LayerNorm(weight.shape[0], eps=eps, device="meta")
    layer.weight, layer.bias = weight, weights[f"{name}.bias"]
    return layer


def _copy_of_queries(block: ImageBlock) -> nn.Linear:
    width = block.width
    layer = nn.Linear(width, width, device="meta")
    layer.weight = nn.Parameter(block.in_proj_weight[:width].detach().clone())
    layer.bias = nn.Parameter(block.in_proj_bias[:width].detach().clone())
    return layer
