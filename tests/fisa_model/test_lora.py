"""LoRA: nothing at the start, then a change of low rank on both kinds of tokens."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fisa_model.config import FISAConfig
from fisa_model.fisa import FISA, build_fisa
from fisa_model.lora import LowRank
from fisa_model.simo import count_trainable
from fisa_model.text_encoder import ClassTokens
from fisa_model.weights import load_fisa, save_fisa

RANK = 3


@pytest.fixture
def lora_config(config: FISAConfig) -> FISAConfig:
    return dataclasses.replace(config, trained="lora", query_projection="shared", lora_rank=RANK)


@pytest.fixture
def adapted(lora_config: FISAConfig) -> FISA:
    return build_fisa(lora_config)[0]


def move(model: FISA) -> None:
    """As if it had learnt."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LowRank):
                module.up.normal_()


def test_starts_as_the_frozen_clip(
    adapted: FISA, model: FISA, images: Tensor, proposals: Tensor, class_tokens: ClassTokens
) -> None:
    expected = model(images, proposals, class_tokens).class_logits
    torch.testing.assert_close(adapted(images, proposals, class_tokens).class_logits, expected)


def test_changes_every_projection_by_that_rank(adapted: FISA, model: FISA) -> None:
    move(adapted)
    block: Any = adapted.visual_encoder.blocks[1]
    own: Any = model.visual_encoder.blocks[1]
    change = block.in_proj_weight - own.in_proj_weight
    assert not change[:32].any()  # queries have their own projection
    for part in (change[32:64], change[64:], block.out_proj.weight - own.out_proj.weight):
        assert torch.linalg.matrix_rank(part, rtol=1e-4).item() == RANK
    queries: Any = adapted.visual_encoder.query_projections[1]
    own_queries: Any = model.visual_encoder.query_projections[1]
    assert torch.linalg.matrix_rank(queries.weight - own_queries.weight, rtol=1e-4).item() == RANK


def test_counts_four_projections_of_every_layer(adapted: FISA) -> None:
    assert count_trainable(adapted)["lora"] == 3 * 4 * 2 * RANK * 32
    assert count_trainable(adapted)["query_projections"] == 0


def test_image_tokens_change_too_and_gradients_arrive(
    adapted: FISA, images: Tensor, proposals: Tensor, class_tokens: ClassTokens
) -> None:
    before = adapted.encode_images(images).keys[1].detach()
    move(adapted)
    assert not torch.allclose(adapted.encode_images(images).keys[1], before)
    adapted(images, proposals, class_tokens).class_logits.sum().backward()
    # The last layer's output projection and the first's are both on the way of mask tokens.
    gradients = [p.grad for m in adapted.modules() if isinstance(m, LowRank) for p in m.parameters()]
    assert all(gradient is not None and gradient.any() for gradient in gradients)


def test_is_saved_and_loaded(
    adapted: FISA,
    lora_config: FISAConfig,
    images: Tensor,
    proposals: Tensor,
    class_tokens: ClassTokens,
    tmp_path: Path,
) -> None:
    move(adapted)
    save_fisa(tmp_path / "w.safetensors", adapted, lora_config)
    loaded, _ = load_fisa(tmp_path / "w.safetensors")
    expected = adapted(images, proposals, class_tokens).class_logits
    assert torch.equal(loaded(images, proposals, class_tokens).class_logits, expected)


def test_needs_shared_projections_and_a_rank_that_fits(config: FISAConfig) -> None:
    with pytest.raises(ValueError, match="set query_projection to 'shared'"):
        dataclasses.replace(config, trained="lora")
    with pytest.raises(ValueError, match="lora_rank must be 1 to the encoder's width 32, got 33"):
        build_fisa(dataclasses.replace(config, trained="lora", query_projection="shared", lora_rank=33))
