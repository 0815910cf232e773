"""SIMO, Strategic Image-Mask Optimization: which few parameters learn, and how fast."""

from typing import TYPE_CHECKING, Literal, TypedDict

from torch import nn

if TYPE_CHECKING:
    from fisa_model.fisa import FISA


class ParameterGroup(TypedDict):
    """A group as torch's optimizers take it."""

    name: str
    params: list[nn.Parameter]
    lr: float
    weight_decay: float


def freeze(model: "FISA", trained: Literal["simo", "seve_only", "full", "none"]) -> None:
    """Lets exactly the named part learn."""
    model.requires_grad_(trained == "full")
    if trained in ("simo", "seve_only"):
        for parameter in _added(model):
            parameter.requires_grad = True
    if trained == "simo":
        model.visual_encoder.query_projections.requires_grad_(requires_grad=True)


def trainable_parameters(model: "FISA") -> list[nn.Parameter]:
    return [parameter for parameters in _parts(model).values() for parameter in parameters]


def count_trainable(model: "FISA") -> dict[str, int]:
    """Numbers that learn, by part; the paper's 26 M are the sum for ViT-L/14-336."""
    return {part: sum(p.numel() for p in parameters) for part, parameters in _parts(model).items()}


def parameter_groups(
    model: "FISA", *, learning_rate: float, weight_decay: float = 0.05, query_scale: float = 0.1
) -> list[ParameterGroup]:
    """New parts at the full rate, CLIP's own at `query_scale` of it; decay on everything, biases too."""
    groups: list[ParameterGroup] = []
    for part, parameters in _parts(model).items():
        scale = 1.0 if part in ("seve", "adapter") else query_scale
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


def _parts(model: "FISA") -> dict[str, list[nn.Parameter]]:
    """Everything that learns, each parameter in one part."""
    encoder = model.visual_encoder
    parts: dict[str, list[nn.Parameter]] = {
        "query_projections": list(encoder.query_projections.parameters()),
        "seve": [] if model.seve is None else list(model.seve.parameters()),
        "adapter": list(model.adapter.parameters()),
    }
    named = {id(p) for parameters in parts.values() for p in parameters}
    parts["image_tower"] = [p for p in encoder.parameters() if id(p) not in named]
    return {part: [p for p in parameters if p.requires_grad] for part, parameters in parts.items()}


def _added(model: "FISA") -> list[nn.Parameter]:
    seve = [] if model.seve is None else list(model.seve.parameters())
    return [*seve, *model.adapter.parameters()]
