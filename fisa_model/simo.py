"""SIMO, Strategic Image-Mask Optimization: which few parameters learn, and how fast."""

from typing import TYPE_CHECKING, TypedDict

from torch import nn

from fisa_model.config import Trained
from fisa_model.lora import LowRank

if TYPE_CHECKING:
    from fisa_model.fisa import FISA


CLIPS_OWN = ("query_projections", "image_tower", "text_tower")
"""Parts that CLIP's own training has shaped, and that learn more slowly."""

UNDECAYED_LAYERS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm, nn.Embedding)
UNDECAYED_NAMES = ("class_embedding", "positional_embedding", "relative_position_bias_table")
"""What is not decayed: norm layers, embeddings, and Swin's table of positions, as in Mask2Former; and CLIP's
embeddings that are bare parameters."""


class ParameterGroup(TypedDict):
    """A group as torch's optimizers take it."""

    name: str
    params: list[nn.Parameter]
    lr: float
    weight_decay: float


def freeze(model: "FISA", trained: Trained) -> None:
    """Lets exactly the named part learn; see `FISAConfig.trained`."""
    model.trained = trained
    model.requires_grad_(requires_grad=False)
    for parameter in learning_parameters(model, trained):
        parameter.requires_grad = True


def learning_parameters(model: "FISA", trained: Trained) -> list[nn.Parameter]:
    """What learns where `trained` is trained, whether it requires gradients at the moment or not."""
    learning = {
        "simo": ("seve", "adapter", "query_projections"),
        "seve_only": ("seve", "adapter"),
        "full": ("seve", "adapter", "query_projections", "image_tower"),
        "lora": ("seve", "adapter", "lora"),
        "none": (),
    }
    # A model is handed its text tower only where that learns.
    parts = _parts(model)
    return [parameter for part in (*learning[trained], "text_tower") for parameter in parts[part]]


def trainable_parameters(model: "FISA") -> list[nn.Parameter]:
    return [parameter for parameters in _learning(model).values() for parameter in parameters]


def count_trainable(model: "FISA") -> dict[str, int]:
    """Numbers that learn, by part; the paper's 26 M are the sum for ViT-L/14-336."""
    return {part: sum(p.numel() for p in parameters) for part, parameters in _learning(model).items()}


def parameter_groups(
    model: "FISA", *, learning_rate: float, weight_decay: float = 0.05, query_scale: float = 0.1
) -> list[ParameterGroup]:
    """New parts at the full rate, CLIP's own at `query_scale` of it; what decays, see `split_by_decay`."""
    groups: list[ParameterGroup] = []
    for part, parameters in _learning(model).items():
        rate = learning_rate * (query_scale if part in CLIPS_OWN else 1.0)
        group = ParameterGroup(name=part, params=parameters, lr=rate, weight_decay=weight_decay)
        groups += split_by_decay(group, model)
    return groups


def split_by_decay(group: ParameterGroup, module: nn.Module) -> list[ParameterGroup]:
    """A group as at most two: norm layers and embeddings of `module` without decay, biases and the rest with.

    As in https://github.com/facebookresearch/Mask2Former/blob/9b0651c/train_net.py, where WEIGHT_DECAY_NORM
    and WEIGHT_DECAY_EMBED are 0.
    """
    exempt = {
        id(parameter)
        for layer in module.modules()
        for name, parameter in layer.named_parameters(recurse=False)
        if isinstance(layer, UNDECAYED_LAYERS) or name in UNDECAYED_NAMES
    }
    decayed, others = group.copy(), group.copy()
    decayed["params"] = [parameter for parameter in group["params"] if id(parameter) not in exempt]
    others["params"] = [parameter for parameter in group["params"] if id(parameter) in exempt]
    others["name"] = f"{group['name']}, not decayed"
    others["weight_decay"] = 0.0
    return [half for half in (decayed, others) if half["params"]]


def _learning(model: "FISA") -> dict[str, list[nn.Parameter]]:
    return {part: [p for p in parameters if p.requires_grad] for part, parameters in _parts(model).items()}


def _parts(model: "FISA") -> dict[str, list[nn.Parameter]]:
    """All parameters, each in one part."""
    encoder = model.visual_encoder
    low_rank = [module for module in encoder.modules() if isinstance(module, LowRank)]
    parts: dict[str, list[nn.Parameter]] = {
        "lora": [parameter for module in low_rank for parameter in module.parameters()],
        "query_projections": list(encoder.query_projections.parameters()),
        "seve": [] if model.seve is None else list(model.seve.parameters()),
        "adapter": list(model.adapter.parameters()),
        "image_tower": list(encoder.parameters()),
        "text_tower": [] if model.text_tower is None else _text_parameters(model.text_tower),
    }
    taken: set[int] = set()
    for part, parameters in parts.items():
        parts[part] = [parameter for parameter in parameters if id(parameter) not in taken]
        taken |= {id(parameter) for parameter in parameters}
    return parts


def _text_parameters(clip: nn.Module) -> list[nn.Parameter]:
    """The language encoder of a CLIP: all but its image tower and the scale of its cosines."""
    others = ("visual.", "logit_scale", "logit_bias")
    return [p for name, p in clip.named_parameters() if not name.startswith(others)]
