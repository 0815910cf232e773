"""Mask tokens against MaskCLIP's, MasQCLIP's and FC-CLIP's own answers to random weights (parity/)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor

from fisa_model.image_tower import ImageTower
from fisa_model.mask_attention import attention_bias
from fisa_model.visual_encoder import MaskTokenEncoder, resize_position_embedding

Reference = Callable[[str], dict[str, Any]]


def load_tower(arrays: dict[str, Any]) -> MaskTokenEncoder:
    """The reference's CLIP, in ours; of MasQCLIP also the query projections of mask tokens."""
    weights = {
        name.removeprefix("weights/"): torch.from_numpy(array).float()
        for name, array in arrays.items()
        if name.startswith("weights/")
    }
    queries = {name: weights.pop(name) for name in list(weights) if ".new_q_proj." in name}
    layers = sum(name.endswith("ln_1.weight") for name in weights)
    clip = CLIP(
        embed_dim=12,
        quick_gelu=True,
        vision_cfg={"image_size": 16, "layers": layers, "width": 16, "patch_size": 4, "head_width": 8},
        text_cfg={"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1},
    )
    clip.visual.load_state_dict(weights)
    encoder = MaskTokenEncoder(ImageTower.read(clip.visual), image_size=16)
    for name, weight in queries.items():
        layer, kind = name.split(".")[2], name.split(".")[-1]
        encoder.query_projections.load_state_dict({f"{layer}.{kind}": weight}, strict=False)
    return encoder.eval()


@torch.no_grad()
def embed(encoder: MaskTokenEncoder, arrays: dict[str, Any]) -> tuple[Tensor, Tensor]:
    images, masks = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["masks"])
    bias = attention_bias(masks, image_size=16, grid_size=4)
    opened = (bias[..., 1:] == 0).float().mean()
    assert 0.2 < opened < 0.8
    expected = F.normalize(torch.from_numpy(arrays["embeddings"]), dim=-1)
    return encoder.embed_masks(encoder.encode_images(images), bias), expected


def test_mask_tokens_are_maskclips(reference: Reference) -> None:
    """Its five layers before mask refinement, 100 masks, one of them empty."""
    arrays = reference("maskclip")
    actual, expected = embed(load_tower(arrays), arrays)
    assert actual.shape == (2, 100, 12)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_queries_of_their_own_are_masqclips(reference: Reference) -> None:
    arrays = reference("masqclip")
    encoder = load_tower(arrays)
    actual, expected = embed(encoder, arrays)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    plain = {name: array for name, array in arrays.items() if ".new_q_proj." not in name}
    assert (embed(load_tower(plain), arrays)[0] - expected).abs().max() > 1e-2


def test_position_embedding_is_resized_as_in_fc_clip(reference: Reference) -> None:
    """From 24 x 24 (336 pixels) to 64 x 64 (896 pixels)."""
    arrays = {name: torch.from_numpy(array) for name, array in reference("fc_clip").items()}
    resized = resize_position_embedding(arrays["embedding"], 64)
    assert torch.equal(resized[0], arrays["embedding"][0])
    assert torch.equal(resized[1:], arrays["resized"])


def test_open_patches_are_maskclips_at_14_pixels() -> None:
    """A threshold on probabilities, then the largest pixel of a patch; masks hold exact zeros, too."""
    rng = np.random.default_rng(5)
    logits = torch.from_numpy(rng.standard_normal((1, 1000, 42, 42), dtype=np.float32)) - 2.8
    logits[0, ::7, 20, 5] = 0.0
    expected = F.max_pool2d((logits.sigmoid() >= 0.5).float(), 14).flatten(2) == 1
    assert 0.2 < expected.float().mean() < 0.8
    assert torch.equal(attention_bias(logits, image_size=42, grid_size=3)[:, 0, :, 1:] == 0, expected)
