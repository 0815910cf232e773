"""The classifier that a job names."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fisa_model.config import fisa_toy
from fisa_model.device import default_device, default_dtype
from fisa_model.mask_generators import Precision
from fisa_platform.classifier import ClassifierConfig, load_predictor

DEFAULT = default_dtype(torch.device(default_device()))


@pytest.mark.parametrize(
    ("precision", "dtype"), [(None, DEFAULT), ("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_arithmetic_is_the_jobs_choice_or_else_the_devices(
    precision: Precision | None, dtype: torch.dtype
) -> None:
    predictor = load_predictor(ClassifierConfig(frozen=fisa_toy(), precision=precision))
    assert predictor.dtype is dtype


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
