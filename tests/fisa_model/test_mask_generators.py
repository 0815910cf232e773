"""The frozen generators: shapes, frames and scores."""

import numpy as np
import pytest
import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from fisa_model.mask_generators import MaskProposals, load_mask_generator
from fisa_model.mask_generators.frame import crop_masks, resized_shape
from fisa_model.mask_generators.mask2former import Mask2FormerGenerator


@pytest.fixture(scope="module")
def network() -> Mask2FormerForUniversalSegmentation:
    torch.manual_seed(0)
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(
            image_size=64,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1],
            window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=7,
        num_labels=5,
    )
    return Mask2FormerForUniversalSegmentation(config)


def test_mask2former_proposes_in_the_images_own_frame(network: Mask2FormerForUniversalSegmentation) -> None:
    generator = Mask2FormerGenerator(network, shortest=40, longest=60)
    image = np.random.default_rng(0).integers(0, 256, (100, 130, 3), dtype=np.uint8)
    proposals = generator(image)
    assert proposals.mask_logits.shape == (7, 10, 13)
    assert ((proposals.scores > 0) & (proposals.scores < 1)).all()
    assert np.array_equal(proposals.mask_logits, generator(image).mask_logits)


def test_mask2former_is_loaded_from_a_folder(
    network: Mask2FormerForUniversalSegmentation, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("m2f")
    network.save_pretrained(folder)
    loaded = load_mask_generator("mask2former", weights=str(folder))
    assert isinstance(loaded, Mask2FormerGenerator)
    with pytest.raises(ValueError, match="could not be loaded"):
        load_mask_generator("mask2former", weights=str(folder / "nowhere"))


@pytest.mark.parametrize(
    ("size", "expected"), [((480, 640), (800, 1067)), ((640, 480), (1067, 800)), ((100, 400), (333, 1333))]
)
def test_test_sizes(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_shape(*size, shortest=800, longest=1333) == expected


def test_cropping_keeps_masks_in_place() -> None:
    ramp = (torch.arange(8.0) * 4 + 2).expand(1, 8, 8)
    assert torch.equal(crop_masks(ramp, 32, 24)[0], ramp[0, :, :6])
    # 26 pixels are six and a half cells: read at seven places evenly spread over them;
    # the first lies before the first cell's centre, where the mask is level.
    expected = ((torch.arange(7.0) + 0.5) * 26 / 7).clamp(min=2)
    torch.testing.assert_close(crop_masks(ramp, 32, 26)[0, 0], expected, atol=1e-4, rtol=0)


def test_unknown_generators_are_named() -> None:
    with pytest.raises(
        ValueError, match="unknown mask generator 'sam'; choose one of felzenszwalb, mask2former"
    ):
        load_mask_generator("sam")
    with pytest.raises(ValueError, match="'felzenszwalb' has no weights"):
        load_mask_generator("felzenszwalb", weights="x")


def test_proposals_need_a_score_each() -> None:
    with pytest.raises(ValueError, match="one number for each of the 2 masks"):
        MaskProposals(np.zeros((2, 3, 3), np.float32), np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"must be \[Q, h, w\]"):
        MaskProposals(np.zeros((3, 3), np.float32), np.ones(3, np.float32))
