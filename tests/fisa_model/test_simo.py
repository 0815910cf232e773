"""Which parameters learn, how many they are, and what reaches them."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from fisa_model.config import AdapterConfig, FISAConfig, SEVEConfig, fisa_toy, fisa_vit_l14_336
from fisa_model.criterion import Criterion
from fisa_model.fisa import FISA, build_fisa, count_parameters
from fisa_model.matcher import HungarianMatcher, Target
from fisa_model.objective import FISAObjective, TrainingBatch
from fisa_model.simo import count_trainable, parameter_groups, trainable_parameters
from fisa_model.text_encoder import ClassTokens


def test_the_papers_model_trains_26_million_parameters() -> None:
    parts = count_parameters(fisa_vit_l14_336())
    assert parts == {
        "query_projections": 25_190_400,
        "seve": 1_246_720,
        "adapter": 305,
        "image_tower": 0,
        "lora": 0,
        "text_tower": 0,
    }
    assert sum(parts.values()) == 26_437_425


def test_any_config_can_be_counted() -> None:
    """Sums from the table of the paper's open questions (a), LoRA's by hand."""
    large = fisa_vit_l14_336()
    per_layer = dataclasses.replace(large, seve=SEVEConfig(query_width=1024, heads=16, groups=24))
    assert round(sum(count_parameters(per_layer).values()) / 1e6, 1) == 88.2
    lora = dataclasses.replace(large, trained="lora", query_projection="shared", lora_rank=64)
    assert count_parameters(lora)["lora"] == 24 * 4 * 2 * 64 * 1024
    toy = count_parameters(fisa_toy())
    assert toy["query_projections"] == 6 * (128 * 128 + 128)


@pytest.mark.parametrize(
    ("trained", "parts"),
    [
        ("simo", {"query_projections", "seve", "adapter"}),
        ("seve_only", {"seve", "adapter"}),
        ("full", {"query_projections", "seve", "adapter", "image_tower"}),
        ("lora", {"seve", "adapter", "lora"}),
        ("none", set()),
    ],
)
def test_each_choice_trains_its_parts(config: FISAConfig, trained: Any, parts: set[str]) -> None:
    model, _ = build_fisa(
        dataclasses.replace(config, trained=trained, query_projection="shared", lora_rank=4)
    )
    assert {part for part, count in count_trainable(model).items() if count} == parts


def test_groups_have_their_rates(model: FISA) -> None:
    groups = parameter_groups(model, learning_rate=1e-4)
    rates = {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}
    assert rates == {
        "query_projections": (pytest.approx(1e-5), 0.05),
        "seve": (1e-4, 0.05),
        "adapter": (1e-4, 0.05),
    }
    assert sum(len(group["params"]) for group in groups) == len(trainable_parameters(model))


def test_norm_layers_and_embeddings_are_not_decayed(config: FISAConfig) -> None:
    model, _ = build_fisa(dataclasses.replace(config, trained="full", trains_text=True))
    groups = parameter_groups(model, learning_rate=1e-4)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(decay) == len(trainable_parameters(model))
    undecayed = {name for name, p in model.named_parameters() if decay.get(id(p)) == 0}
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert undecayed == {name for name in learning if ".ln_" in name or "embedding" in name}
    assert {name.split(".")[0] for name in undecayed} == {"visual_encoder", "text_tower"}
    assert [group["lr"] for group in groups if group["weight_decay"] == 0] == 2 * [pytest.approx(1e-5)]


@pytest.fixture
def targets() -> list[Target]:
    generator = torch.Generator().manual_seed(5)
    return [Target(torch.tensor([0, 2]), torch.rand(2, 16, 16, generator=generator) > 0.5) for _ in range(2)]


def loss_of(
    model: FISA, images: Tensor, proposals: Tensor, class_tokens: ClassTokens, targets: list[Target]
) -> dict[str, Tensor]:
    objective = FISAObjective(model, HungarianMatcher(num_points=32), Criterion(num_points=32), class_tokens)
    losses: dict[str, Tensor] = objective(
        TrainingBatch(images, proposals, torch.ones(2, 5, dtype=torch.bool), targets)
    )
    return losses


def total_gradient(parameters: Any) -> float:
    return sum(p.grad.abs().sum().item() for p in parameters if p.grad is not None)


def test_two_steps_change_what_learns_and_nothing_else(
    model: FISA, images: Tensor, proposals: Tensor, class_tokens: ClassTokens, targets: list[Target]
) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    features = model.encode_images(images)
    optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate=1e-2))  # type: ignore[arg-type]
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, images, proposals, class_tokens, targets)["loss"].backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    after = model.encode_images(images)
    for old, new in zip([*features.keys, *features.values], [*after.keys, *after.values], strict=True):
        assert torch.equal(old, new)


def test_words_start_to_steer_after_one_step(
    model: FISA, images: Tensor, proposals: Tensor, class_tokens: ClassTokens, targets: list[Target]
) -> None:
    assert model.seve is not None
    extraction: Any = model.seve.extractions[0]
    asking = [*extraction.query.parameters(), *extraction.key.parameters()]
    optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate=1e-2))  # type: ignore[arg-type]
    loss_of(model, images, proposals, class_tokens, targets)["loss"].backward()
    assert total_gradient(asking) == 0
    assert total_gradient(extraction.value.parameters()) > 0
    optimizer.step()
    optimizer.zero_grad()
    loss_of(model, images, proposals, class_tokens, targets)["loss"].backward()
    assert total_gradient(asking) > 0


@pytest.mark.parametrize(
    ("bias", "where", "reached"),
    [
        ("hard", "both", False),
        ("soft", "both", True),
        ("soft", "attention", True),
        ("soft", "output", False),
    ],
)
def test_classification_reaches_the_adapter_through_a_soft_bias_only(
    config: FISAConfig,
    images: Tensor,
    proposals: Tensor,
    class_tokens: ClassTokens,
    targets: list[Target],
    bias: Any,
    where: Any,
    reached: Any,
) -> None:
    config = dataclasses.replace(config, adapter=AdapterConfig(hidden=4, bias=bias, where=where))
    model, _ = build_fisa(config)
    losses = loss_of(model, images, proposals, class_tokens, targets)
    losses["loss_class"].backward(retain_graph=True)
    assert (total_gradient(model.adapter.parameters()) > 0) == reached
    for name in ("loss_mask", "loss_dice"):
        model.zero_grad()
        losses[name].backward(retain_graph=True)
        assert total_gradient(model.adapter.parameters()) > 0, name


def test_images_get_gradients_only_where_their_path_learns(config: FISAConfig, images: Tensor) -> None:
    for trained, query_projection, expected in [
        ("simo", "mask_only", False),
        ("simo", "shared", True),
        ("seve_only", "shared", False),
        ("full", "mask_only", True),
    ]:
        choice = dataclasses.replace(config, trained=trained, query_projection=query_projection)  # type: ignore[arg-type]
        features = build_fisa(choice)[0].encode_images(images)
        assert features.keys[-1].requires_grad == expected, (trained, query_projection)


def test_learns_which_mask_is_which(
    model: FISA, images: Tensor, proposals: Tensor, class_tokens: ClassTokens, targets: list[Target]
) -> None:
    optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate=3e-3, query_scale=1.0))  # type: ignore[arg-type]
    torch.manual_seed(0)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = loss_of(model, images, proposals, class_tokens, targets)
        loss["loss"].backward()
        optimizer.step()
        losses.append(loss["loss_class"].item())
    assert min(losses[-10:]) < 0.5 * losses[0]
