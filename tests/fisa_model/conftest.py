"""A CLIP of three layers of width 32 with random weights, in open_clip's folder form."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file

from fisa_model.config import AdapterConfig, CLIPConfig, FISAConfig, SEVEConfig
from fisa_model.fisa import FISA, build_fisa
from fisa_model.simo import trainable_parameters
from fisa_model.text_encoder import ClassTokens, TextEncoder

PATCH, GRID, SIZE = 4, 4, 16
MODEL_CFG: dict[str, Any] = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": SIZE, "layers": 3, "width": 32, "patch_size": PATCH, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def randomise(model: CLIP) -> CLIP:
    """Moves every weight of the image tower: fresh biases are 0 and fresh norms 1, which hides mistakes."""
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def clip_model_cfg() -> dict[str, Any]:
    return MODEL_CFG


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_clip")
    torch.manual_seed(0)
    model = randomise(CLIP(**MODEL_CFG))
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL_CFG, "preprocess_cfg": {}}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def clip(clip_folder: Path) -> Any:
    """The same CLIP, untouched, as the reference."""
    return open_clip.create_model(f"local-dir:{clip_folder}").eval().requires_grad_(requires_grad=False)


@pytest.fixture
def config(clip_folder: Path) -> FISAConfig:
    return FISAConfig(
        clip=CLIPConfig(model=f"local-dir:{clip_folder}"),
        image_size=SIZE,
        seve=SEVEConfig(query_width=8, heads=2),
        adapter=AdapterConfig(hidden=4),
    )


@pytest.fixture
def built(config: FISAConfig) -> tuple[FISA, TextEncoder]:
    torch.manual_seed(1)
    return build_fisa(config)


@pytest.fixture
def model(built: tuple[FISA, TextEncoder]) -> FISA:
    return built[0]


@pytest.fixture
def trained(model: FISA) -> FISA:
    """Somewhere on the way, where every trained tensor has a gradient."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in trainable_parameters(model):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def text_encoder(built: tuple[FISA, TextEncoder]) -> TextEncoder:
    return built[1]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def proposals() -> torch.Tensor:
    """Five random masks an image, about half of their patches open."""
    return torch.randn(2, 5, GRID, GRID, generator=torch.Generator().manual_seed(3)) - 1.5


@pytest.fixture
def class_tokens() -> ClassTokens:
    """Four classes of random directions; the third has two names, and there is a void row."""
    rows = torch.randn(6, 24, generator=torch.Generator().manual_seed(4))
    rows = torch.nn.functional.normalize(rows, dim=-1)
    return ClassTokens(rows, torch.tensor([0, 1, 2, 2, 3, 4]), rows[[0, 1, 2, 4]], void=True)
