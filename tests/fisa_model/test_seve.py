"""Mask tokens ask class tokens: a set of words, read through the query only."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fisa_model.config import FISAConfig, SEVEConfig
from fisa_model.fisa import FISA, build_fisa
from fisa_model.seve import SEVE, SemanticExtraction
from fisa_model.text_encoder import ClassTokens


def randomise_values(model: FISA, scale: float = 1.0) -> None:
    assert model.seve is not None
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for extraction in model.seve.extractions:
            extraction.value.weight.copy_(
                scale * torch.randn(extraction.value.weight.shape, generator=generator)
            )


def without_seve(config: FISAConfig) -> FISAConfig:
    return dataclasses.replace(config, seve=SEVEConfig(enabled=False))


def test_zero_values_leave_the_frozen_baseline(
    config: FISAConfig, model: FISA, images: Tensor, proposals: Tensor, class_tokens: ClassTokens
) -> None:
    baseline, _ = build_fisa(without_seve(config))
    assert torch.equal(
        model(images, proposals, class_tokens).class_logits,
        baseline(images, proposals, class_tokens).class_logits,
    )


def test_order_of_class_tokens_does_not_matter(
    model: FISA, images: Tensor, proposals: Tensor, class_tokens: ClassTokens
) -> None:
    randomise_values(model)
    shuffled = dataclasses.replace(class_tokens, targets=class_tokens.targets[[2, 0, 3, 1]])
    torch.testing.assert_close(
        model(images, proposals, shuffled).class_logits,
        model(images, proposals, class_tokens).class_logits,
        atol=1e-4,
        rtol=0,
    )


def test_saying_every_word_twice_changes_nothing(class_tokens: ClassTokens) -> None:
    seve = SEVE(SEVEConfig(query_width=8, heads=2, init="random"), width=32, text_width=24, layers=2)
    tokens = torch.randn(2, 5, 32)
    once = seve.guide(class_tokens.targets)(0, tokens, torch.nn.Identity())[1]
    twice = seve.guide(class_tokens.targets.repeat(2, 1))(0, tokens, torch.nn.Identity())[1]
    torch.testing.assert_close(once, twice, atol=1e-5, rtol=0)


@pytest.mark.parametrize("token_norm", [True, False])
def test_class_tokens_are_normalised_to_be_told_apart(class_tokens: ClassTokens, token_norm: Any) -> None:
    config = SEVEConfig(query_width=8, heads=2, init="random", token_norm=token_norm)
    words = SEVE(config, width=32, text_width=24, layers=2)
    tokens = torch.randn(2, 5, 32)
    half, whole = (
        words.guide(length * class_tokens.targets)(0, tokens, torch.nn.Identity())[1] for length in (0.5, 1.0)
    )
    assert torch.allclose(half, whole, atol=1e-2) == token_norm
    unit_rows = class_tokens.targets
    rows = F.layer_norm(unit_rows, unit_rows.shape[-1:]) if token_norm else unit_rows
    extraction = words.extractions[0]
    assert isinstance(extraction, SemanticExtraction)
    expected = tokens + extraction(tokens, extraction.encode_classes(rows))
    torch.testing.assert_close(whole, expected)


def test_words_reach_the_query_the_stream_or_replace_the_token(class_tokens: ClassTokens) -> None:
    tokens = torch.randn(2, 5, 32)
    outputs = {}
    for residual in ("query", "replace", "stream"):
        torch.manual_seed(0)
        config = SEVEConfig(query_width=8, heads=2, init="random", residual=residual)  # type: ignore[arg-type]
        guide = SEVE(config, width=32, text_width=24, layers=2).guide(class_tokens.targets)
        outputs[residual] = guide(1, tokens, torch.nn.Identity())
    answer = outputs["replace"][1]
    assert torch.equal(outputs["query"][0], tokens)
    assert torch.equal(outputs["query"][1], tokens + answer)
    assert torch.equal(outputs["replace"][0], tokens)
    assert torch.equal(outputs["stream"][0], tokens + answer)


def seve(layers: int = 4, **options: int) -> SEVE:
    config = SEVEConfig(query_width=8, heads=2, init="random", **options)  # type: ignore[arg-type]
    return SEVE(config, width=32, text_width=24, layers=layers)


def test_consecutive_layers_share_a_set_of_projections(class_tokens: ClassTokens) -> None:
    sizes = {groups: sum(p.numel() for p in seve(groups=groups).parameters()) for groups in (1, 2, 4)}
    assert sizes[4] == 2 * sizes[2] == 4 * sizes[1]
    guide, tokens = seve(groups=2).guide(class_tokens.targets), torch.randn(1, 3, 32)
    first, second, third, fourth = (guide(layer, tokens, torch.nn.Identity())[1] for layer in range(4))
    assert torch.equal(first, second)
    assert torch.equal(third, fourth)
    assert not torch.allclose(second, third)


def test_words_reach_the_first_layers_only(class_tokens: ClassTokens) -> None:
    guide, tokens = seve(first_layers=2).guide(class_tokens.targets), torch.randn(1, 3, 32)
    reached = [not torch.equal(guide(layer, tokens, torch.nn.Identity())[1], tokens) for layer in range(4)]
    assert reached == [True, True, False, False]


def test_sets_of_projections_without_a_layer_are_refused() -> None:
    with pytest.raises(ValueError, match=r"first_layers must be at least groups \(3\), got 2"):
        seve(groups=3, first_layers=2)
    with pytest.raises(ValueError, match=r"seve.groups \(5\) .* at most the encoder's 4 layers"):
        seve(groups=5)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="must divide the encoder's width 30, got 4"):
        SEVE(SEVEConfig(), width=30, text_width=24, layers=1)
