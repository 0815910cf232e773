"""SIMO, Strategic Image-Mask Optimization: which few parameters learn, and how fast."""

from typing import TYPE_CHECKING, Literal, TypedDict

from torch import nn

from fisa_model.lora import LowRank

if TYPE_CHECKING:
    from fisa_model.fisa import FISA


class ParameterGroup(TypedDict):
    """A group as torch's optimizers take it."""

    name: str
    params: list[nn.Parameter]
    lr: float
    weight_decay: float


def freeze(model: "FISA", trained: Literal["simo", "seve_only", "full", "lora", "none"]) -> None:
    """Lets exactly the named part learn; see `FISAConfig.trained`."""
    model.requires_grad_(trained == "full")
    parts = _parts(model)
    learning = {
        "simo": ("seve", "adapter", "query_projections"),
        "seve_only": ("seve", "adapter"),
        "full": tuple(parts),
        "lora": ("seve", "adapter", "lora"),
        "none": (),
    }
    for part in learning[trained]:
        for parameter in parts[part]:
            parameter.requires_grad = True


def trainable_parameters(model: "FISA") -> list[nn.Parameter]:
    return [parameter for parameters in _learning(model).values() for parameter in parameters]


def count_trainable(model: "FISA") -> dict[str, int]:
    """Numbers that learn, by part; the paper's 26 M are the sum for ViT-L/14-336."""
    return {part: sum(p.numel() for p in parameters) for part, parameters in _learning(model).items()}


def parameter_groups(
    model: "FISA", *, learning_rate: float, weight_decay: float = 0.05, query_scale: float = 0.1
) -> list[ParameterGroup]:
    """New parts at the full rate, CLIP's own at `query_scale` of it; decay on everything, biases too."""
    groups: list[ParameterGroup] = []
    for part, parameters in _learning(model).items():
        scale = query_scale if part in ("query_projections", "image_tower") else 1.0
        if parameters:
            groups.append(
                {
                    "name": part,
                    "params": parameters,
                    "lr": learning_rate * scale,
                    "weight_decay": weight_decay,
                }
            )
    return groups


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
    }
    taken: set[int] = set()
    for part, parameters in parts.items():
        parts[part] = [parameter for parameter in parameters if id(parameter) not in taken]
        taken |= {id(parameter) for parameter in parameters}
    return parts
