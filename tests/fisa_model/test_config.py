"""What configs refuse, and what importing the package does not do."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import fisa_model
from fisa_model.config import (
    AdapterConfig,
    CLIPConfig,
    FISAConfig,
    PanopticConfig,
    SEVEConfig,
    fisa_toy,
    fisa_vit_l14_336,
)


def fisa(**settings: Any) -> FISAConfig:
    return FISAConfig(clip=CLIPConfig(model="toy"), **settings)


def test_presets_are_built_from_the_defaults() -> None:
    assert fisa_toy().clip.is_local
    assert fisa_vit_l14_336().image_size == 896
    assert fisa_vit_l14_336().trains_masks


def test_masks_learn_only_with_an_adapter_that_learns() -> None:
    clip = CLIPConfig(model="toy")
    assert not FISAConfig(clip=clip, adapter=AdapterConfig(layers=0)).trains_masks
    assert not FISAConfig(clip=clip, trained="none").trains_masks


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        (SEVEConfig, {"init": "zeros"}, "init must be one of 'zero', 'random', got 'zeros'"),
        (SEVEConfig, {"residual": "querry"}, "residual must be one of 'query', 'replace', 'stream'"),
        (AdapterConfig, {"bias": "Soft"}, "bias must be one of 'hard', 'soft', got 'Soft'"),
        (AdapterConfig, {"where": "masks"}, "where must be one of 'both', 'attention', 'output'"),
        (fisa, {"trained": "lorra"}, "trained must be one of 'simo', .*got 'lorra'"),
        (fisa, {"query_projection": "share"}, "query_projection must be one of 'mask_only', 'shared'"),
        (PanopticConfig, {"preset": "foo"}, "preset must be one of 'maskclip', .*got 'foo'"),
        (PanopticConfig, {"objectness": "gen"}, "objectness must be one of 'generator', 'none'"),
    ],
)
def test_a_misspelt_choice_is_named(
    kind: Callable[..., object], setting: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**setting)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="layers must be 0 to 3, got 4"):
        AdapterConfig(layers=4)
    with pytest.raises(ValueError, match=r"query_width must be a positive multiple of heads \(4\), got 10"):
        SEVEConfig(query_width=10)
    with pytest.raises(ValueError, match="weights must be left out for 'toy', which brings its own"):
        CLIPConfig(model="toy", weights="openai")
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        FISAConfig(clip=CLIPConfig(model="toy"), image_size=0)
    with pytest.raises(ValueError, match="enable SEVE or train 'simo'"):
        FISAConfig(clip=CLIPConfig(model="toy"), trained="seve_only", seve=SEVEConfig(enabled=False))
    with pytest.raises(ValueError, match="SEVE must learn, start at zero or be off"):
        FISAConfig(clip=CLIPConfig(model="toy"), trained="none", seve=SEVEConfig(init="random"))


def test_importing_is_light() -> None:
    heavy = "torch", "open_clip", "ray", "skimage", "transformers"
    code = (
        "import sys, fisa_model, fisa_model.config, fisa_model.vocabulary, fisa_model.mask_generators;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_shows_its_four_names() -> None:
    assert fisa_model.FISAConfig is FISAConfig
    assert {type(getattr(fisa_model, name)).__name__ for name in fisa_model.__all__} == {"type", "function"}
    with pytest.raises(AttributeError, match="has no attribute 'FISAPredicter'"):
        _ = fisa_model.FISAPredicter


def test_a_preset_gives_the_thresholds_that_are_not_given() -> None:
    assert PanopticConfig().thresholds == (0.3, 0.5)
    assert PanopticConfig(preset="mask2former").thresholds == (0.8, 0.8)
    assert PanopticConfig(preset="fc_clip", object_threshold=0.1).thresholds == (0.1, 0.8)
    assert PanopticConfig(preset="mask2former", object_threshold=0.0).thresholds == (0.0, 0.8)
    with pytest.raises(ValueError, match="overlap_threshold must be 0 to 1, got 2"):
        PanopticConfig(overlap_threshold=2)
