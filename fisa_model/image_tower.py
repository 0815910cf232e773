"""The weights of a CLIP's image tower under one set of names, whichever library the tower is written in.

The names are those of open_clip's own ViT. Weights are read by name and never through a block's code, which
differs between versions of open_clip and timm.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.eva import Eva, EvaBlock
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]
"""Writes over its input where that has no gradient: hidden values are the largest tensors of a layer."""

_LINEAR = ("attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")
_BLOCK = (
    "attn.in_proj_weight",
    "attn.in_proj_bias",
    *(f"{m}.{k}" for m in _LINEAR for k in ("weight", "bias")),
)
_TIMM_BLOCK = {
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attn.proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_TIMM_BIASES = ("attn.q_bias", "attn.v_bias")
ADVICE = "choose an open_clip ViT such as 'ViT-L-14-336-quickgelu', or 'EVA01-g-14-plus'"


@dataclass(frozen=True, slots=True)
class ImageTower:
    """A plain ViT whose class token was trained to be the output."""

    weights: Mapping[str, nn.Parameter]
    """By open_clip's names; without `ln_pre.*`, `conv1.bias` and `proj_bias` where the tower has none."""

    blocks: list[dict[str, nn.Parameter]]
    """The weights of each layer, without the prefix `transformer.resblocks.<layer>.`."""

    heads: int
    activation: Activation
    eps: float
    """Of every LayerNorm."""

    @property
    def patch_size(self) -> int:
        return self.weights["conv1.weight"].shape[-1]

    @classmethod
    def read(cls, visual: Any) -> "ImageTower":
        """Raises ValueError for a tower that is no plain ViT, naming what is odd about it."""
        names = {name for name, _ in visual.named_parameters()}
        return _read_timm(visual) if any(n.startswith("trunk.") for n in names) else _read_open_clip(visual)


def _read_open_clip(visual: Any) -> ImageTower:
    weights = dict(visual.named_parameters())
    outside = {f"{norm}.{kind}" for norm in ("ln_pre", "ln_post") for kind in ("weight", "bias")}
    outside |= {"conv1.weight", "class_embedding", "positional_embedding", "proj"}
    blocks = _blocks_of(weights, "transformer.resblocks.", outside)
    if visual.pool_type != "tok":
        raise ValueError(
            f"this CLIP pools image tokens by {visual.pool_type!r}, but mask tokens copy a class token that "
            "was trained to be the output; choose a CLIP that pools by 'tok'"
        )
    if len(set(visual.grid_size)) > 1:
        raise ValueError(f"this CLIP looks at {visual.grid_size} patches, which is no square; {ADVICE}")
    block = visual.transformer.resblocks[0]
    activation = _activation(block.mlp)
    return ImageTower(weights, blocks, block.attn.num_heads, activation, visual.ln_pre.eps)


def _read_timm(visual: Any) -> ImageTower:
    """EVA01 (https://arxiv.org/abs/2211.07636): no ln_pre, no bias of keys, a head with bias."""
    trunk = visual.trunk
    if not isinstance(trunk, Eva):
        raise ValueError(f"this CLIP's image tower is timm's {type(trunk).__name__}, no EVA; {ADVICE}")
    if trunk.rope is not None or trunk.global_pool != "token":
        raise ValueError(f"this CLIP's timm trunk rotates positions or pools patches; {ADVICE}")
    # A block that normalises after its attention has weights of the same names.
    if other := next((block for block in trunk.blocks if type(block) is not EvaBlock), None):
        raise ValueError(f"this CLIP's timm trunk has blocks of {type(other).__name__}; {ADVICE}")
    own = {name.removeprefix("trunk."): p for name, p in visual.named_parameters()}
    odd = {"patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token", "pos_embed"}
    odd |= {f"{module}.{kind}" for module in ("norm", "head") for kind in ("weight", "bias")}
    if missing := sorted(odd - own.keys()):
        raise ValueError(f"this CLIP's timm trunk is not a plain EVA01 (lacks {missing[0]}); {ADVICE}")
    weights = {
        "conv1.weight": own["patch_embed.proj.weight"],
        "conv1.bias": own["patch_embed.proj.bias"],
        "class_embedding": _frozen(own["cls_token"][0, 0]),
        "positional_embedding": _frozen(own["pos_embed"][0]),
        "ln_post.weight": own["norm.weight"],
        "ln_post.bias": own["norm.bias"],
        "proj": _frozen(own["head.weight"].T),
        "proj_bias": own["head.bias"],
    }
    renamed = {_rename_timm(name): p for name, p in own.items() if name not in odd}
    for layer in range(len(trunk.blocks)):
        prefix = f"transformer.resblocks.{layer}."
        queries, values = (renamed.pop(prefix + name, None) for name in _TIMM_BIASES)
        if queries is not None and values is not None:
            bias = torch.cat([queries, torch.zeros_like(queries), values])
            renamed[f"{prefix}attn.in_proj_bias"] = _frozen(bias)
    blocks = _blocks_of(renamed, "transformer.resblocks.", set())
    block = trunk.blocks[0]
    return ImageTower(weights, blocks, block.attn.num_heads, _activation(block.mlp), block.norm1.eps)


def _rename_timm(name: str) -> str:
    name = name.replace("blocks.", "transformer.resblocks.", 1)
    for theirs, ours in _TIMM_BLOCK.items():
        name = re.sub(rf"\.{re.escape(theirs)}\.", f".{ours}.", name)
    return name.replace(".attn.qkv.weight", ".attn.in_proj_weight")


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)


def _blocks_of(
    weights: Mapping[str, nn.Parameter], prefix: str, outside: set[str]
) -> list[dict[str, nn.Parameter]]:
    """Cuts weights into layers; names other than a plain ViT's are refused."""
    layers = 1 + max((int(name.split(".")[2]) for name in weights if name.startswith(prefix)), default=-1)
    expected = outside | {f"{prefix}{layer}.{name}" for layer in range(layers) for name in _BLOCK}
    if layers == 0 or weights.keys() != expected:
        odd = sorted(weights.keys() ^ expected)[:1]
        raise ValueError(f"this CLIP's image tower is not a plain ViT (odd weight: {odd}); {ADVICE}")
    return [{name: weights[f"{prefix}{layer}.{name}"] for name in _BLOCK} for layer in range(layers)]


def _gelu(x: Tensor, approximate: str) -> Tensor:
    if x.requires_grad:
        return F.gelu(x, approximate=approximate)
    in_place: Tensor = torch.ops.aten.gelu_(x, approximate=approximate)
    return in_place


def _quick_gelu(x: Tensor) -> Tensor:
    if x.requires_grad:
        return x * torch.sigmoid(1.702 * x)
    return x.mul_((1.702 * x).sigmoid_())


def _activation(mlp: nn.Module) -> Activation:
    for module in mlp.children():
        if isinstance(module, nn.GELU):
            return partial(_gelu, approximate=module.approximate)
        if type(module).__name__ == "QuickGELU":
            return _quick_gelu
    raise ValueError(f"this CLIP's MLP has no GELU or QuickGELU: {mlp}")
