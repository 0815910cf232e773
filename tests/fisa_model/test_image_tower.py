"""Towers of other libraries: the same embeddings, and refusals where they would differ."""

from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import timm
import torch
from timm.models.eva import Eva
from torch import Tensor, nn

from fisa_model.image_tower import ImageTower
from fisa_model.visual_encoder import MaskTokenEncoder


def eva(**changes: Any) -> nn.Module:
    """EVA01 as open_clip's `EVA01-g-14-plus` builds it, of three layers of width 32."""
    settings = {
        "img_size": 28,
        "patch_size": 7,
        "embed_dim": 32,
        "depth": 3,
        "num_heads": 2,
        "mlp_ratio": 3.0,
        "num_classes": 24,
        "global_pool": "token",
    }
    torch.manual_seed(0)
    visual = nn.Module()
    visual.trunk = Eva(**{**settings, **changes})
    visual.head = nn.Sequential()
    for parameter in visual.parameters():
        nn.init.normal_(parameter, std=0.2)
    return visual.eval().requires_grad_(requires_grad=False)


@pytest.fixture
def large_images() -> Tensor:
    return torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(2))


def test_a_mask_of_the_whole_image_is_evas_embedding(large_images: Tensor) -> None:
    visual: Any = eva()
    encoder = MaskTokenEncoder(ImageTower.read(visual), image_size=28)
    bias = torch.zeros(2, 1, 3, 1 + 16)
    embeddings = encoder.embed_masks(encoder.encode_images(large_images), bias)
    expected = nn.functional.normalize(visual.trunk(large_images), dim=-1)
    for q in range(3):
        torch.testing.assert_close(embeddings[:, q], expected, atol=1e-5, rtol=0)


def test_published_eva_is_read_whole() -> None:
    """40 layers of width 1408 (model-zoo entry EVA01-g-14-plus), whose queries are 79.35 M numbers."""
    with torch.device("meta"):
        visual = open_clip.create_model("EVA01-g-14-plus", load_weights=False, device="meta").visual
        tower = ImageTower.read(visual)
        encoder = MaskTokenEncoder(tower, image_size=896)
    assert len(tower.blocks) == 40
    assert tower.eps == 1e-6
    assert encoder.positional_embedding.shape == (1 + 64 * 64, 1408)
    assert sum(p.numel() for p in encoder.query_projections.parameters()) == 40 * (1408 * 1408 + 1408)
    read = {id(p) for block in tower.blocks for p in block.values()} | {id(p) for p in tower.weights.values()}
    copied = {"cls_token", "pos_embed", "head.weight"}
    for name, parameter in visual.trunk.named_parameters():
        is_bias = name.endswith(("q_bias", "v_bias"))
        assert id(parameter) in read or name in copied or is_bias, name


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"use_rot_pos_emb": True}, "rotates positions"),
        ({"global_pool": "avg"}, "pools patches"),
        ({"swiglu_mlp": True}, "no GELU"),
        ({"init_values": 0.1}, "not a plain ViT"),
        ({"qkv_fused": False}, "not a plain ViT"),
        ({"use_post_norm": True}, "has blocks of EvaBlockPostNorm"),
        ({"use_pre_transformer_norm": True}, "not a plain"),
        ({"use_abs_pos_emb": False}, r"not a plain EVA01 \(lacks pos_embed\)"),
        ({"use_fc_norm": True}, r"not a plain EVA01 \(lacks norm.bias\)"),
    ],
)
def test_other_timm_trunks_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ImageTower.read(eva(**changes))


def test_a_convolutional_trunk_is_refused() -> None:
    visual = SimpleNamespace(trunk=timm.create_model("convnext_atto", num_classes=24))
    visual.named_parameters = lambda: [("trunk.head.fc.weight", visual.trunk.head.fc.weight)]
    with pytest.raises(ValueError, match="timm's ConvNeXt, no EVA; choose an open_clip ViT"):
        ImageTower.read(visual)


def test_a_grid_that_is_no_square_is_refused(clip_model_cfg: dict[str, Any]) -> None:
    vision = {**clip_model_cfg["vision_cfg"], "image_size": (8, 32)}
    clip = open_clip.model.CLIP(**{**clip_model_cfg, "vision_cfg": vision})
    with pytest.raises(ValueError, match=r"looks at \(\d+, \d+\) patches, which is no square"):
        ImageTower.read(clip.visual)


def test_pooling_patches_is_refused(clip_model_cfg: dict[str, Any]) -> None:
    vision = {**clip_model_cfg["vision_cfg"], "pool_type": "avg"}
    clip = open_clip.model.CLIP(**{**clip_model_cfg, "vision_cfg": vision})
    with pytest.raises(ValueError, match="pools image tokens by 'avg'"):
        ImageTower.read(clip.visual)
