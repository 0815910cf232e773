"""Masks as attention: which patches a mask token may see."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fisa_model import mask_attention
from fisa_model.config import AdapterConfig
from fisa_model.mask_attention import SOFT_FLOOR, DistributionAdapter, attention_bias


def mask(*rows: str) -> Tensor:
    """'#' is a pixel of the mask."""
    return torch.tensor([[1.0 if pixel == "#" else -1.0 for pixel in row] for row in rows])[None, None]


def open_patches(bias: Tensor) -> list[bool]:
    return (bias[0, 0, 0, 1:] == 0).tolist()


def test_one_pixel_opens_its_patch() -> None:
    drawn = mask("....",
                 ".#..",
                 "....",
                 "....")  # fmt: skip
    bias = attention_bias(drawn, image_size=4, grid_size=2)
    assert open_patches(bias) == [True, False, False, False]
    assert bias.shape == (1, 1, 1, 5)


def test_every_pixel_opens_its_own_patch_and_no_other() -> None:
    pixels = torch.full((1, 36, 36), -1.0)
    pixels[0].fill_diagonal_(0.0)
    opened = attention_bias(pixels.view(1, 36, 6, 6), image_size=6, grid_size=3)[0, 0, :, 1:] == 0
    rows, columns = torch.arange(36) // 6, torch.arange(36) % 6
    assert torch.equal(opened, F.one_hot(rows // 2 * 3 + columns // 2, 9) == 1)


def test_an_empty_mask_sees_the_class_token_only() -> None:
    bias = attention_bias(mask("..", ".."), image_size=2, grid_size=2)
    assert bias.flatten().tolist() == [0.0] + 4 * [-torch.inf]


def test_without_the_class_token_an_empty_mask_sees_everything() -> None:
    bias = attention_bias(mask("..", ".."), image_size=2, grid_size=2, cls_key=False)
    assert bias.flatten().tolist() == [-torch.inf] + 4 * [0.0]


def test_chunks_change_neither_the_soft_bias_nor_the_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(2, 5, 3, 3)
    adapter = DistributionAdapter(AdapterConfig())
    with torch.no_grad():
        adapter.convolutions[-1].weight.normal_()
    bias = attention_bias(logits, image_size=8, grid_size=4, kind="soft")
    adapted = adapter(logits)
    monkeypatch.setattr(mask_attention, "PIXELS_PER_CHUNK", 3 * 64)
    monkeypatch.setattr(mask_attention, "HIDDEN_VALUES_PER_CHUNK", {"cpu": 3 * 16 * 9})
    assert torch.equal(attention_bias(logits, image_size=8, grid_size=4, kind="soft"), bias)
    torch.testing.assert_close(adapter(logits), adapted)


def test_hard_bias_has_no_gradient_and_soft_bias_has() -> None:
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    assert not attention_bias(logits, image_size=4, grid_size=2).requires_grad
    soft = attention_bias(logits, image_size=4, grid_size=2, kind="soft")
    soft.sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0
    assert soft.min() >= SOFT_FLOOR


@pytest.mark.parametrize(("layers", "parameters"), [(0, 0), (1, 10), (2, 305), (3, 2625)])
def test_adapter_starts_as_the_identity(layers: int, parameters: int) -> None:
    adapter = DistributionAdapter(AdapterConfig(layers=layers))
    proposals = torch.randn(2, 3, 6, 5)
    assert torch.equal(adapter(proposals), proposals)
    assert sum(p.numel() for p in adapter.parameters()) == parameters


def test_adapter_treats_every_mask_alike() -> None:
    adapter = DistributionAdapter(AdapterConfig())
    with torch.no_grad():
        adapter.convolutions[-1].weight.normal_()
    proposals = torch.randn(2, 3, 6, 5)
    assert not torch.equal(adapter(proposals), proposals)
    torch.testing.assert_close(adapter(proposals)[:, [2, 0]], adapter(proposals[:, [2, 0]]))


def test_no_proposals_are_no_trouble() -> None:
    assert DistributionAdapter(AdapterConfig())(torch.zeros(2, 0, 4, 4)).shape == (2, 0, 4, 4)
    assert attention_bias(torch.zeros(2, 0, 4, 4), image_size=4, grid_size=2).shape == (2, 1, 0, 5)
