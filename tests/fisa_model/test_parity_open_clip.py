"""The image tower against open_clip with the same weights, and from OpenAI's file to our model."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor, nn

from fisa_model.clip_weights import load_clip
from fisa_model.config import CLIPConfig
from fisa_model.image_tower import ImageTower
from fisa_model.visual_encoder import MaskTokenEncoder

TEXT = {"context_length": 4, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1}
VIT_L = {"image_size": 336, "layers": 24, "width": 1024, "patch_size": 14}


def shallow_and_deep() -> Iterable[Any]:
    for layers in (2, 24):
        yield {"image_size": 28, "layers": layers, "width": 128, "patch_size": 7, "head_width": 32}
    yield pytest.param(VIT_L, marks=pytest.mark.slow)


@pytest.fixture(params=shallow_and_deep(), ids=lambda cfg: f"{cfg['layers']} layers of {cfg['width']}")
def clip(request: pytest.FixtureRequest) -> CLIP:
    torch.manual_seed(0)
    clip = CLIP(embed_dim=64, vision_cfg=request.param, text_cfg=TEXT, quick_gelu=True)
    return move_biases(clip).eval().requires_grad_(requires_grad=False)


def move_biases(clip: CLIP) -> CLIP:
    """Fresh biases are 0 and fresh norms 1, which hides mistakes."""
    with torch.no_grad():
        for parameter in clip.visual.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return clip


@pytest.fixture
def images(clip: CLIP) -> Tensor:
    size = clip.visual.image_size[0]
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2))


@contextmanager
def recorded_inputs(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    inputs: list[Tensor] = []
    hooks = [module.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for module in modules]
    yield inputs
    for hook in hooks:
        hook.remove()


def test_image_tokens_of_every_layer_are_clips(clip: CLIP, images: Tensor) -> None:
    """After the last layer nothing reads them; its class token is the next test's."""
    encoder = MaskTokenEncoder(ImageTower.read(clip.visual), image_size=images.shape[-1])
    with recorded_inputs(clip.visual.transformer.resblocks) as expected:
        clip.encode_image(images)
    with recorded_inputs(block.ln_1 for block in encoder.blocks) as tokens:
        encoder.encode_images(images)
    assert len(tokens) == len(clip.visual.transformer.resblocks)
    for ours, theirs in zip(tokens, expected, strict=True):
        assert theirs.std() > 0.5
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_mask_of_the_whole_image_is_clips_image_embedding(clip: CLIP, images: Tensor) -> None:
    encoder = MaskTokenEncoder(ImageTower.read(clip.visual), image_size=images.shape[-1])
    features = encoder.encode_images(images)
    embeddings = encoder.embed_masks(features, torch.zeros(1, 1, 3, features.keys[0].shape[2]))
    expected = clip.encode_image(images, normalize=True)
    for q in range(3):
        torch.testing.assert_close(embeddings[:, q], expected, atol=1e-5, rtol=0)


TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 16, "layers": 3, "width": 64, "patch_size": 4},
    "text_cfg": TEXT,
}


@pytest.fixture
def openai_weights(tmp_path: Path) -> dict[str, Tensor]:
    """Random half-precision weights; open_clip knows their architecture as `tiny` and `tiny-quickgelu`."""
    for name, quick_gelu in (("tiny", False), ("tiny-quickgelu", True)):
        (tmp_path / f"{name}.json").write_text(json.dumps({**TINY, "quick_gelu": quick_gelu}))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    clip = move_biases(CLIP(**TINY, quick_gelu=True))
    return {name: tensor.half() for name, tensor in clip.state_dict().items() if name != "attn_mask"}


@pytest.fixture
def openai_file(openai_weights: dict[str, Tensor], tmp_path: Path) -> str:
    """As OpenAI publishes a CLIP: a TorchScript archive that also holds three sizes."""
    sizes = {"input_resolution": 16, "context_length": 4, "vocab_size": 8}
    root = nn.Module()
    for name, tensor in {**openai_weights, **{k: torch.tensor(v) for k, v in sizes.items()}}.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.register_buffer(leaf, tensor)
    torch.jit.script(root).save(str(tmp_path / "openai.pt"))
    return str(tmp_path / "openai.pt")


def test_openais_file_becomes_our_model(openai_weights: dict[str, Tensor], openai_file: str) -> None:
    clip = load_clip(CLIPConfig(model="tiny-quickgelu", weights=openai_file)).model
    reference = open_clip.load_openai_model(openai_file, precision="fp32", device="cpu")
    for name, tensor in reference.state_dict().items():
        assert torch.equal(clip.state_dict()[name], tensor), name
    encoder = MaskTokenEncoder(ImageTower.read(clip.visual), image_size=16)
    for layer, projection in enumerate(encoder.query_projections):
        prefix = f"visual.transformer.resblocks.{layer}.attn.in_proj"
        assert torch.equal(projection.weight, openai_weights[f"{prefix}_weight"][:64].float())
        assert torch.equal(projection.bias, openai_weights[f"{prefix}_bias"][:64].float())
        x = torch.linspace(-4, 4, 9)
        assert torch.equal(encoder.blocks[layer].activation(x.clone()), x * torch.sigmoid(1.702 * x))
    images = torch.randn(2, 3, 16, 16)
    ours = encoder.embed_masks(encoder.encode_images(images), torch.zeros(2, 1, 1, 17))[:, 0]
    with torch.no_grad():
        expected = F.normalize(reference.encode_image(images), dim=-1)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_openais_file_under_plain_gelu_is_refused(openai_file: str) -> None:
    with pytest.raises(
        ValueError, match=r"want QuickGELU, which 'tiny' lacks; use the model 'tiny-quickgelu'"
    ):
        load_clip(CLIPConfig(model="tiny", weights=openai_file))
