"""The classifier that a job names."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from fisa_model.config import AdapterConfig, fisa_toy
from fisa_model.device import default_device, default_dtype
from fisa_model.fisa import build_fisa
from fisa_model.mask_generators import Precision
from fisa_model.weights import save_fisa
from fisa_platform.classifier import ClassifierConfig, check_weights, load_predictor

DEFAULT = default_dtype(torch.device(default_device()))


@pytest.mark.parametrize(
    ("precision", "dtype"), [(None, DEFAULT), ("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_arithmetic_is_the_jobs_choice_or_else_the_devices(
    precision: Precision | None, dtype: torch.dtype
) -> None:
    predictor = load_predictor(ClassifierConfig(frozen=fisa_toy(), precision=precision))
    assert predictor.dtype is dtype


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"precision": "fp16"}, "precision must be one of 'fp32', 'bf16', got 'fp16'"),
        ({"templates": "vlid"}, "templates must be one of 'vild', 'photo', 'literal', got 'vlid'"),
    ],
)
def test_a_misspelt_choice_is_named(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassifierConfig(frozen=fisa_toy(), **setting)


@pytest.mark.parametrize("caches_words", [True, False])
def test_words_of_jobs_are_kept_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caches_words: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    predictor = load_predictor(ClassifierConfig(frozen=fisa_toy()), caches_words=caches_words)
    tokens = predictor.encode_vocabulary(["cat", "dog"])
    assert len(list(tmp_path.rglob("*.safetensors"))) == caches_words
    again = load_predictor(ClassifierConfig(frozen=fisa_toy()), caches_words=caches_words)
    if caches_words:
        monkeypatch.delattr(again.text_encoder.clip, "transformer")  # what is kept needs no text tower
    assert torch.equal(again.encode_vocabulary(["cat", "dog"]).classifier, tokens.classifier)


def test_weights_may_be_tried_without_their_adapter(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    model, _ = build_fisa(fisa_toy())
    save_fisa(path, model, fisa_toy())
    assert load_predictor(ClassifierConfig(weights_uri=str(path))).model.adapter.where == "both"
    tried = load_predictor(ClassifierConfig(weights_uri=str(path), adapter_where="nowhere"))
    assert tried.model.adapter.where == "nowhere"
    bare = dataclasses.replace(fisa_toy(), adapter=AdapterConfig(layers=0))
    save_fisa(path, build_fisa(bare)[0], bare)
    with pytest.raises(ValueError, match="has no adapter \\(it was trained with 0 layers\\); leave it out"):
        check_weights(ClassifierConfig(weights_uri=str(path), adapter_where="nowhere"))
    with pytest.raises(ValueError, match="adapter_where is 'nowhere', but a frozen CLIP has no adapter"):
        ClassifierConfig(frozen=fisa_toy(), adapter_where="nowhere")
