"""The classifier that a job names."""

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
