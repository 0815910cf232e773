"""A language encoder that learns with the model (table 3, + language encoder)."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fisa_model import text_encoder
from fisa_model.config import FISAConfig
from fisa_model.criterion import Criterion
from fisa_model.fisa import build_fisa
from fisa_model.mask_generators.felzenszwalb import FelzenszwalbGenerator
from fisa_model.matcher import HungarianMatcher, Target
from fisa_model.objective import FISAObjective, TrainingBatch
from fisa_model.predictor import FISAPredictor
from fisa_model.simo import count_trainable, parameter_groups
from fisa_model.text_cache import TextCache
from fisa_model.text_encoder import TextEncoder
from fisa_model.vocabulary import Vocabulary
from fisa_model.weights import load_fisa, save_fisa

WORDS, TEMPLATES = Vocabulary.from_names(["cat", "dog, hound"]), ("a {}",)


@pytest.fixture
def text_config(config: FISAConfig) -> FISAConfig:
    return dataclasses.replace(config, trains_text=True)


def test_words_move_and_are_saved(
    text_config: FISAConfig, images: Tensor, proposals: Tensor, tmp_path: Path
) -> None:
    model, encoder = build_fisa(text_config)
    with torch.no_grad():
        before = encoder.encode(WORDS, TEMPLATES).classifier
    objective = FISAObjective(
        model,
        HungarianMatcher(num_points=32),
        Criterion(num_points=32),
        lambda: encoder.encode(WORDS, TEMPLATES),
    )
    targets = [Target(torch.tensor([0, 1]), masks[:2] >= 0) for masks in proposals]
    batch = TrainingBatch(images, proposals, torch.ones(2, 5, dtype=torch.bool), targets)
    optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate=1e-2))  # type: ignore[arg-type]
    objective(batch)["loss"].backward()
    optimizer.step()
    after = encoder.encode(WORDS, TEMPLATES).classifier
    assert not torch.allclose(after, before, atol=1e-4)

    save_fisa(tmp_path / "w.safetensors", model, text_config)
    loaded, words = load_fisa(tmp_path / "w.safetensors")
    assert torch.equal(words.encode(WORDS, TEMPLATES).classifier, after)
    frozen = {name for name, p in loaded.named_parameters() if not p.requires_grad}
    assert "text_tower.logit_scale" in frozen


def test_is_a_part_of_its_own_at_clips_rate(text_config: FISAConfig) -> None:
    model, encoder = build_fisa(text_config)
    tower = {name: p.numel() for name, p in encoder.clip.named_parameters() if "visual" not in name}
    assert count_trainable(model)["text_tower"] == sum(tower.values()) - 1  # without the scale of cosines
    assert count_trainable(model)["image_tower"] == 0
    rates = {group["name"]: group["lr"] for group in parameter_groups(model, learning_rate=1e-4)}
    assert rates["text_tower"] == pytest.approx(1e-5)


def test_nothing_is_kept_while_it_learns(text_config: FISAConfig, tmp_path: Path) -> None:
    _, built = build_fisa(text_config)
    encoder = TextEncoder(built.clip, built.tokenizer, TextCache(tmp_path, "digest"), learns=True)
    assert encoder.encode(WORDS, TEMPLATES).classifier.requires_grad
    with torch.no_grad():
        encoder.encode(WORDS, TEMPLATES)
    assert not list(tmp_path.iterdir())


def test_a_predictor_keeps_what_nothing_trains_any_more(text_config: FISAConfig, tmp_path: Path) -> None:
    model, _ = build_fisa(text_config)
    save_fisa(tmp_path / "w.safetensors", model, text_config)
    predictor = FISAPredictor.load(
        tmp_path / "w.safetensors", generator=FelzenszwalbGenerator(), text_cache_path=tmp_path / "cache"
    )
    before = predictor.encode_vocabulary(WORDS)
    predictor.text_encoder.clip.text_projection.data.zero_()
    assert torch.equal(predictor.encode_vocabulary(WORDS).classifier, before.classifier)
    assert not (tmp_path / "cache").exists()  # a file there would be taken for the CLIP's own


def test_prompts_are_not_all_kept_for_the_backward_pass(
    text_config: FISAConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, encoder = build_fisa(text_config)
    words = Vocabulary.from_names([f"word {i}" for i in range(32)])

    def learn() -> tuple[int, list[Tensor]]:
        """Bytes kept until the backward pass, and the gradients."""
        encoder.clip.zero_grad()
        kept: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            if not isinstance(tensor, torch.nn.Parameter):
                kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            rows = encoder.encode(words, TEMPLATES).classifier
        rows[:, 0].sum().backward()
        return sum(kept.values()), [p.grad for p in encoder.clip.parameters() if p.grad is not None]

    monkeypatch.setattr(text_encoder, "PROMPTS_PER_BATCH", 4)
    kept, gradients = learn()
    monkeypatch.setattr(text_encoder, "checkpoint", lambda encode, tokens, **_: encode(tokens))
    all_kept, expected = learn()
    assert kept < all_kept / 20
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_frozen_model_has_no_text_that_learns(config: FISAConfig) -> None:
    with pytest.raises(ValueError, match="trained is 'none' but trains_text is true"):
        dataclasses.replace(config, trained="none", trains_text=True)
