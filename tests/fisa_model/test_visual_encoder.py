"""Mask tokens in CLIP: equal to CLIP where the two say the same, and never in the way of image tokens."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fisa_model.fisa import FISA
from fisa_model.image_tower import ImageTower
from fisa_model.mask_attention import attention_bias
from fisa_model.visual_encoder import MaskTokenEncoder, attend, resize_position_embedding


def open_bias(batch: int, masks: int, patches: int = 16) -> Tensor:
    return torch.zeros(batch, 1, masks, 1 + patches)


def random_bias(proposals: Tensor) -> Tensor:
    return attention_bias(proposals, image_size=16, grid_size=4)


@pytest.fixture
def encoder(clip: Any) -> MaskTokenEncoder:
    return MaskTokenEncoder(ImageTower.read(clip.visual), image_size=16)


def test_weights_are_shared_with_the_clip(clip: Any, encoder: MaskTokenEncoder) -> None:
    shared = {p.data_ptr() for p in clip.visual.parameters()}
    own = {name for name, p in encoder.named_parameters() if p.data_ptr() not in shared}
    assert own == {"positional_embedding"} | {
        f"query_projections.{layer}.{kind}" for layer in range(3) for kind in ("weight", "bias")
    }


def test_image_features_do_not_depend_on_masks(encoder: MaskTokenEncoder, images: Tensor) -> None:
    features = encoder.encode_images(images)
    before = [keys.clone() for keys in features.keys]
    encoder.embed_masks(features, open_bias(2, 7))
    assert all(torch.equal(a, b) for a, b in zip(before, encoder.encode_images(images).keys, strict=True))


def test_the_last_layer_computes_keys_and_values_only(encoder: MaskTokenEncoder, images: Tensor) -> None:
    """The rest of it would cost a twelfth of ViT-B's pass, and nothing reads it."""
    with FlopCounterMode(display=False) as counter:
        encoder.encode_images(images)
    width, tokens = encoder.width, 2 * (1 + encoder.grid_size**2)
    projection = 2 * tokens * width**2
    attention = 4 * tokens * (1 + encoder.grid_size**2) * width
    patches = 2 * (tokens - 2) * width * encoder.conv1_weight[0].numel()
    whole_layer = (4 + 2 * 4) * projection + attention
    assert len(encoder.blocks) == 3
    assert counter.get_total_flops() == patches + 2 * whole_layer + 2 * projection


def test_order_and_number_of_masks_do_not_matter(
    encoder: MaskTokenEncoder, images: Tensor, proposals: Tensor
) -> None:
    features, bias = encoder.encode_images(images), random_bias(proposals)
    all_masks = encoder.embed_masks(features, bias)
    some = [3, 0, 4]
    torch.testing.assert_close(
        encoder.embed_masks(features, bias[:, :, some]), all_masks[:, some], atol=1e-6, rtol=0
    )


def test_two_attention_calls_equal_one_packed_sequence(
    clip: Any, encoder: MaskTokenEncoder, images: Tensor, proposals: Tensor
) -> None:
    bias = random_bias(proposals)
    expected = packed_reference(clip.visual, images, bias)
    actual = encoder.embed_masks(encoder.encode_images(images), bias)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def packed_reference(visual: Any, images: Tensor, bias: Tensor) -> Tensor:
    """Masks, class token and patches as one sequence through CLIP's own blocks with one masked attention."""
    masks = bias.shape[2]
    tokens = visual._embeds(images)
    sequence = torch.cat([tokens[:, :1].expand(-1, masks, -1), tokens], dim=1)
    blocked = torch.zeros(len(images), sequence.shape[1], sequence.shape[1])
    blocked[:, :, :masks] = -torch.inf
    blocked[:, :masks, masks:] = bias[:, 0]
    blocked = blocked.repeat_interleave(visual.transformer.resblocks[0].attn.num_heads, dim=0)
    for block in visual.transformer.resblocks:
        sequence = block(sequence, attn_mask=blocked)
    return F.normalize(visual.ln_post(sequence[:, :masks]) @ visual.proj, dim=-1)


def test_position_embedding_is_kept_at_its_own_size_and_bilinear_at_another() -> None:
    embedding = torch.randn(1 + 16, 5)
    assert torch.equal(resize_position_embedding(embedding, 4), embedding)
    larger = resize_position_embedding(embedding, 7)
    grid = embedding[1:].view(4, 4, 5).permute(2, 0, 1)[None]
    expected = F.interpolate(grid, size=(7, 7), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    assert torch.equal(larger[0], embedding[0])
    assert torch.equal(larger[1:], expected.reshape(49, 5))


def test_larger_images_have_more_patches(clip: Any) -> None:
    encoder = MaskTokenEncoder(ImageTower.read(clip.visual), image_size=28)
    features = encoder.encode_images(torch.randn(1, 3, 28, 28))
    assert features.keys[0].shape == (1, 2, 1 + 7 * 7, 16)


def test_no_images_have_no_features(encoder: MaskTokenEncoder) -> None:
    assert encoder.encode_images(torch.randn(0, 3, 16, 16)).keys[0].shape == (0, 2, 17, 16)


@pytest.mark.parametrize("activation", ["GELU", "QuickGELU"])
def test_features_with_and_without_gradients_are_the_same(
    clip_model_cfg: dict[str, Any], images: Tensor, activation: str
) -> None:
    """Without, hidden values are written over, and keys and values lie in one piece."""
    torch.manual_seed(0)
    tower = ImageTower.read(CLIP(**{**clip_model_cfg, "quick_gelu": activation == "QuickGELU"}).visual)
    encoder = MaskTokenEncoder(tower, image_size=16).requires_grad_(requires_grad=True)
    learning = encoder.encode_images(images)
    with torch.no_grad():
        frozen = encoder.encode_images(images)
    assert learning.keys[1].requires_grad
    assert frozen.keys[0].is_contiguous()
    for name in ("keys", "values"):
        torch.testing.assert_close(getattr(frozen, name), getattr(learning, name), atol=1e-6, rtol=0)


def test_shared_queries_start_as_clip_and_then_change_the_image_path(
    clip: Any, encoder: MaskTokenEncoder, images: Tensor, proposals: Tensor
) -> None:
    shared = MaskTokenEncoder(ImageTower.read(clip.visual), image_size=16, query_projection="shared")
    before, own = shared.encode_images(images), encoder.encode_images(images)
    bias = random_bias(proposals)
    torch.testing.assert_close(before.keys, own.keys, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        shared.embed_masks(before, bias), encoder.embed_masks(own, bias), atol=1e-6, rtol=0
    )
    assert shared.trains_images
    with torch.no_grad():
        for parameter in shared.query_projections.parameters():
            parameter.add_(0.1)
    after = shared.encode_images(images)
    assert torch.equal(after.keys[0], before.keys[0])
    assert torch.equal(after.values[0], before.values[0])
    assert not torch.allclose(after.keys[1], before.keys[1], atol=1e-4)


def test_mask_only_keeps_no_graph_over_images(encoder: MaskTokenEncoder, images: Tensor) -> None:
    features = encoder.encode_images(images)
    assert not encoder.trains_images
    assert not any(tensor.requires_grad for tensor in [*features.keys, *features.values])


def test_gelu_of_the_clip_is_used(images: Tensor, clip_model_cfg: dict[str, Any]) -> None:
    torch.manual_seed(0)
    clip = CLIP(**{**clip_model_cfg, "quick_gelu": False}).eval().requires_grad_(requires_grad=False)
    encoder = MaskTokenEncoder(ImageTower.read(clip.visual), image_size=16)
    embedding = encoder.embed_masks(encoder.encode_images(images), open_bias(2, 1))[:, 0]
    torch.testing.assert_close(embedding, clip.encode_image(images, normalize=True), atol=1e-5, rtol=0)


def test_refuses_towers_it_would_get_wrong(clip: Any) -> None:
    with pytest.raises(
        ValueError, match="multiple of the CLIP's patch size 4, got 18; the next larger is 20"
    ):
        MaskTokenEncoder(ImageTower.read(clip.visual), image_size=18)


def test_model_refuses_other_shapes(
    model: FISA, images: Tensor, proposals: Tensor, class_tokens: Any
) -> None:
    with pytest.raises(ValueError, match=r"images must be \[B, 3, 16, 16\]"):
        model.encode_images(images[..., :8])
    with pytest.raises(ValueError, match=r"proposals must be \[B, Q, h, w\] for B = 2"):
        model(images, proposals[:1], class_tokens)
    with pytest.raises(ValueError, match=r"proposals must be \[B, Q, h, w\], got"):
        model(images, proposals[0], class_tokens)


def test_mask_tokens_that_learn_attend_as_those_that_do_not(
    encoder: MaskTokenEncoder, images: Tensor, proposals: Tensor
) -> None:
    features, bias = encoder.encode_images(images), random_bias(proposals)
    for parameter in encoder.query_projections.parameters():
        parameter.requires_grad = True
    learning = encoder.embed_masks(features, bias)
    assert learning.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(learning, encoder.embed_masks(features, bias), atol=1e-5, rtol=0)


@pytest.mark.parametrize("learn", ["queries", "all"])
def test_gradients_of_attention_are_those_of_its_formula(learn: str) -> None:
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(2, 3, n, 4, dtype=torch.double) for n in (5, 7, 7))
    bias = torch.zeros(2, 1, 5, 7, dtype=torch.double).masked_fill(torch.rand(2, 1, 5, 7) > 0.6, -torch.inf)
    bias[..., 0] = 0.0
    inputs = [queries, keys, values] if learn == "all" else [queries]
    for tensor in inputs:
        tensor.requires_grad = True
    expected = ((queries @ keys.mT) / 2 + bias).softmax(-1) @ values
    attended = attend(queries, keys, values, bias)
    torch.testing.assert_close(attended, expected)
    seen = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad((attended * seen).sum(), inputs),
        torch.autograd.grad((expected * seen).sum(), inputs),
    )
