"""Converted weights in transformers against detectron2's own Mask2Former, where both are at hand.

Set FISA_MASK2FORMER_CHECKOUT to a checkout of github.com/facebookresearch/Mask2Former (9b0651c) and install
detectron2. The checkout's compiled attention is not needed: without it, it falls back to plain PyTorch.
"""

import os
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import Mask2FormerForUniversalSegmentation

from fisa_model.mask_generators import load_mask_generator
from fisa_model.mask_generators.frame import resized_shape
from fisa_model.mask_generators.mask2former_architectures import PUBLISHED, read_architecture
from fisa_model.mask_generators.mask2former_checkpoint import convert_checkpoint

LAYOUTS = Path(__file__).parent / "layouts"
ZOO = {
    "R50": "maskformer2_R50_bs16_50ep.yaml",
    "R101": "maskformer2_R101_bs16_50ep.yaml",
    "Swin-T": "swin/maskformer2_swin_tiny_bs16_50ep.yaml",
    "Swin-S": "swin/maskformer2_swin_small_bs16_50ep.yaml",
    "Swin-B": "swin/maskformer2_swin_base_IN21k_384_bs16_50ep.yaml",
    "Swin-L": "swin/maskformer2_swin_large_IN21k_384_bs16_100ep.yaml",
}
TINY_HEAD = {
    "SEM_SEG_HEAD.CONVS_DIM": 32,
    "SEM_SEG_HEAD.MASK_DIM": 24,
    "SEM_SEG_HEAD.NUM_CLASSES": 5,
    "SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 2,
    "MASK_FORMER.HIDDEN_DIM": 32,
    "MASK_FORMER.NHEADS": 4,
    "MASK_FORMER.DIM_FEEDFORWARD": 48,
    "MASK_FORMER.DEC_LAYERS": 5,
    "MASK_FORMER.NUM_OBJECT_QUERIES": 7,
}
TINY = {
    "resnet": (
        "R50",
        {"RESNETS.STEM_OUT_CHANNELS": 8, "RESNETS.RES2_OUT_CHANNELS": 16, "RESNETS.WIDTH_PER_GROUP": 4},
    ),
    "swin": (
        "Swin-T",
        {
            "SWIN.EMBED_DIM": 8,
            "SWIN.DEPTHS": [2, 1, 2, 1],
            "SWIN.NUM_HEADS": [1, 2, 4, 8],
            "SWIN.WINDOW_SIZE": 4,
        },
    ),
}
"""A small network of each kind; its names and shapes are in `layouts/`."""

both_backbones = pytest.mark.parametrize("backbone", list(TINY))


@pytest.fixture(scope="module")
def checkout() -> Path:
    folder = os.environ.get("FISA_MASK2FORMER_CHECKOUT")
    if folder is None:
        pytest.skip("FISA_MASK2FORMER_CHECKOUT names no checkout of Mask2Former")
    pytest.importorskip("detectron2")
    sys.path.append(folder)
    # Stands for the compiled operator, which the checkout imports and then tries before plain PyTorch.
    sys.modules.setdefault("MultiScaleDeformableAttention", ModuleType("MultiScaleDeformableAttention"))
    return Path(folder)


def settings(checkout: Path, name: str, changes: dict[str, object]) -> Any:
    from detectron2.config import get_cfg
    from detectron2.projects.deeplab import add_deeplab_config
    from mask2former import add_maskformer2_config

    config = get_cfg()
    add_deeplab_config(config)
    add_maskformer2_config(config)
    config.merge_from_file(str(checkout / "configs" / "coco" / "panoptic-segmentation" / ZOO[name]))
    config.merge_from_list([part for key, value in changes.items() for part in (f"MODEL.{key}", value)])
    config.MODEL.DEVICE = "cpu"
    return config


def tiny_settings(checkout: Path, backbone: str) -> Any:
    name, changes = TINY[backbone]
    return settings(checkout, name, TINY_HEAD | changes)


def tiny_network(checkout: Path, backbone: str) -> Any:
    """Random weights, none of them at its first value: a wrong order of two norms would show."""
    from detectron2.modeling import build_model

    torch.manual_seed(0)
    network = build_model(tiny_settings(checkout, backbone)).eval()
    for name, value in network.state_dict().items():
        if value.is_floating_point() and name != "criterion.empty_weight":
            value.mul_(1 + 0.3 * torch.rand_like(value))
            value.add_(0.05 * torch.randn_like(value).clamp(-3, 3))
    return network


def write_checkpoint(path: Path, network: nn.Module) -> Path:
    """As the model zoo has it: version 1's name of the queries, and the version of each module."""
    state = network.state_dict()
    renamed = type(state)(
        (name.replace("query_feat", "static_query"), t.numpy()) for name, t in state.items()
    )
    renamed._metadata = state._metadata  # type: ignore[attr-defined]
    path.write_bytes(pickle.dumps({"model": renamed, "__author__": "x"}))
    return path


@both_backbones
def test_the_stored_layouts_are_those_of_detectron2(checkout: Path, backbone: str) -> None:
    state = tiny_network(checkout, backbone).state_dict()
    lines = [" ".join([name, *map(str, tensor.shape)]) for name, tensor in state.items()]
    assert (LAYOUTS / f"mask2former_{backbone}.txt").read_text().splitlines() == lines


@pytest.mark.parametrize("name", list(ZOO))
def test_every_published_architecture_is_recognised(checkout: Path, name: str) -> None:
    from detectron2.modeling import build_model

    state = build_model(settings(checkout, name, {})).state_dict()
    assert read_architecture({key: tuple(value.shape) for key, value in state.items()}) == PUBLISHED[name]


@both_backbones
@pytest.mark.parametrize("size", [(384, 384), (416, 608), (800, 1344)], ids=str)
def test_transformers_gives_detectron2s_masks(
    checkout: Path, backbone: str, size: tuple[int, int], tmp_path: Path
) -> None:
    theirs = tiny_network(checkout, backbone)
    convert_checkpoint(write_checkpoint(tmp_path / "a.pkl", theirs), tmp_path / "converted")
    ours: Any = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "converted").eval()
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs.sem_seg_head(theirs.backbone(pixels))
        got = ours(pixel_values=pixels)
    masks: Tensor = expected["pred_masks"]
    assert masks.shape == (1, 7, size[0] // 4, size[1] // 4)
    assert 0.05 < (masks >= 0).float().mean() < 0.95
    torch.testing.assert_close(got.masks_queries_logits, masks, atol=1e-4, rtol=0)
    torch.testing.assert_close(got.class_queries_logits, expected["pred_logits"], atol=1e-4, rtol=0)
    assert ((got.masks_queries_logits >= 0) == (masks >= 0)).float().mean() >= 0.9999


@both_backbones
def test_both_generators_propose_the_same_from_an_image(
    checkout: Path, backbone: str, tmp_path: Path
) -> None:
    config = tiny_settings(checkout, backbone)
    config.INPUT.MIN_SIZE_TEST, config.INPUT.MAX_SIZE_TEST = 96, 150
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "config.yaml").write_text(config.dump())
    network = tiny_network(checkout, backbone)
    source = write_checkpoint(folder / "model_final.pkl", network)
    torch.save({"model": network.state_dict(), "iteration": 3}, tmp_path / "model_final.pth")
    convert_checkpoint(source, tmp_path / "converted")
    image = np.random.default_rng(0).integers(0, 256, (110, 170, 3), dtype=np.uint8)
    ours = load_mask_generator("mask2former", weights=str(tmp_path / "converted"), size=(96, 150))
    expected = ours(image)
    from_pickle = load_mask_generator("detectron2", weights=str(folder))(image)
    source.unlink()
    (tmp_path / "model_final.pth").rename(folder / "model_final.pth")
    from_torch = load_mask_generator("detectron2", weights=str(folder))(image)
    for found in (from_pickle, from_torch):
        np.testing.assert_allclose(found.mask_logits, expected.mask_logits, atol=1e-4)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    other: Any = load_mask_generator("detectron2", weights=str(folder), size=(64, 100))
    assert (other.shortest, other.longest) == (64, 100)


def test_a_checkpoint_of_another_network_is_refused(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(tiny_settings(checkout, "swin").dump())
    write_checkpoint(tmp_path / "model_final.pkl", tiny_network(checkout, "resnet"))
    with pytest.raises(ValueError, match=r"model_final\.pkl: does not fit config\.yaml beside it"):
        load_mask_generator("detectron2", weights=str(tmp_path))


@pytest.mark.usefixtures("checkout")
def test_sizes_are_those_of_detectron2() -> None:
    from detectron2.data.transforms import ResizeShortestEdge

    random = np.random.default_rng(0)
    sizes = [(60, 1240), *random.integers(16, 3000, (200, 2)).tolist()]
    for height, width in sizes:
        expected = ResizeShortestEdge.get_output_shape(height, width, 800, 1333)
        assert resized_shape(height, width, 800, 1333) == tuple(expected)
