"""The frozen generators: shapes, frames and scores."""

import importlib.util
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Mask2FormerForUniversalSegmentation

from fisa_model.mask_generators import MaskProposals, load_mask_generator
from fisa_model.mask_generators.detectron2 import Detectron2Generator
from fisa_model.mask_generators.felzenszwalb import FelzenszwalbGenerator
from fisa_model.mask_generators.frame import crop_masks, pad, resize, resized_shape
from fisa_model.mask_generators.mask2former import (
    LearningMask2Former,
    Mask2FormerGenerator,
    load_network,
)
from fisa_model.mask_generators.oracle import true_proposals


@pytest.fixture
def network(mask2former_folder: Path) -> Mask2FormerForUniversalSegmentation:
    return load_network(str(mask2former_folder))


def test_mask2former_proposes_in_the_images_own_frame(network: Mask2FormerForUniversalSegmentation) -> None:
    generator = Mask2FormerGenerator(network, shortest=40, longest=60)
    image = np.random.default_rng(0).integers(0, 256, (100, 130, 3), dtype=np.uint8)
    proposals = generator(image)
    assert proposals.mask_logits.shape == (7, 10, 13)
    assert ((proposals.scores > 0) & (proposals.scores < 1)).all()
    assert np.array_equal(proposals.mask_logits, generator(image).mask_logits)


@pytest.mark.parametrize(("width", "step"), [(600, 1), (3200, 5), (6400, 10)])
def test_felzenszwalb_does_not_move_what_it_finds(width: int, step: int) -> None:
    """A bar, one pixel further to the right in each picture; larger pictures are seen in whole steps."""
    shifts = []
    for start in range(width // 3, width // 3 + step):
        image = np.full((200, width, 3), 40, dtype=np.uint8)
        image[:, start : start + 50 * step] = 220
        regions = FelzenszwalbGenerator()(image).mask_logits > 0
        columns = [region.any(axis=0).nonzero()[0] for region in regions]
        bar = min(columns, key=lambda found: np.ptp(found))
        shifts.append((bar[0] + bar[-1] + 1) / 2 * width / regions.shape[2] - (start + 25 * step))
    assert abs(np.mean(shifts)) <= 0.2 * step


@pytest.mark.parametrize("width", [3196, 3200, 3204])
def test_felzenszwalb_keeps_the_frame_of_a_side_that_is_no_multiple(width: int) -> None:
    """The left edge of something near the right border."""
    shifts = []
    for start in range(3000, 3005):
        image = np.full((200, width, 3), 40, dtype=np.uint8)
        image[:, start:] = 220
        regions = FelzenszwalbGenerator()(image).mask_logits > 0
        edge = max(region.any(axis=0).argmax() for region in regions)
        shifts.append(edge * width / regions.shape[2] - start)
    assert abs(np.mean(shifts)) <= 1.0


SIZES = ((100, 130), (130, 100), (100, 130), (50, 65), (90, 130))
"""Three test sizes at 40 to 60: the third image has the first's, and the fourth as well."""


@pytest.mark.parametrize("batch_pixels", [1, 2 * 40 * 52, 10**9])
def test_a_batch_is_proposed_for_as_each_of_its_images(
    network: Mask2FormerForUniversalSegmentation, batch_pixels: int
) -> None:
    generator = Mask2FormerGenerator(network, shortest=40, longest=60, batch_pixels=batch_pixels)
    taken = []
    network.register_forward_pre_hook(
        lambda _, args, kwargs: taken.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    together = generator.batch(images)
    assert sorted(taken) == {1: [1, 1, 1, 1, 1], 2 * 40 * 52: [1, 1, 1, 2], 10**9: [1, 1, 3]}[batch_pixels]
    for image, proposals in zip(images, together, strict=True):
        alone = generator(image)
        np.testing.assert_allclose(proposals.mask_logits, alone.mask_logits, atol=1e-4)
        np.testing.assert_allclose(proposals.scores, alone.scores, atol=1e-5)
    assert generator.batch([]) == []


def test_half_precision_moves_masks_a_little_and_keeps_the_pixel_decoder_whole(
    mask2former_folder: Path,
) -> None:
    weights = str(mask2former_folder)
    image = np.random.default_rng(0).integers(0, 256, (100, 130, 3), dtype=np.uint8)
    whole = Mask2FormerGenerator(load_network(weights), shortest=40, longest=60)(image)
    network = load_network(weights)
    half = Mask2FormerGenerator(network, shortest=40, longest=60, precision="bf16")
    dtypes = set()
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear):
            part = "decoder" if "pixel_level_module.decoder" in name else "rest"
            module.register_forward_hook(lambda *call, part=part: dtypes.add((part, call[-1].dtype)))
    proposals = half(image)
    assert dtypes == {("decoder", torch.float32), ("rest", torch.bfloat16)}
    assert proposals.mask_logits.dtype == proposals.scores.dtype == np.float32
    assert not np.array_equal(proposals.mask_logits, whole.mask_logits)
    assert np.corrcoef(proposals.mask_logits.ravel(), whole.mask_logits.ravel())[0, 1] > 0.97
    assert np.abs(proposals.scores - whole.scores).max() < 0.05


def test_mask2former_is_loaded_from_a_folder(mask2former_folder: Path) -> None:
    loaded = load_mask_generator("mask2former", weights=str(mask2former_folder))
    assert isinstance(loaded, Mask2FormerGenerator)
    with pytest.raises(ValueError, match="could not be loaded"):
        load_mask_generator("mask2former", weights=str(mask2former_folder / "nowhere"))


def test_a_published_checkpoint_may_lack_what_masks_do_not_read(
    mask2former_folder: Path, tmp_path: Path
) -> None:
    # As on the hub: names without `swin.`, no last norm of Swin, a buffer that is computed today.
    shutil.copy(mask2former_folder / "config.json", tmp_path)
    tensors = load_file(mask2former_folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "swin.layernorm" not in name}
    block = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0"
    kept[f"{block}.attention.self.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = load_network(str(tmp_path)).state_dict()
    whole = load_network(str(mask2former_folder)).state_dict()
    assert all(torch.equal(loaded[name], whole[name]) for name in whole if "swin.layernorm" not in name)


def test_a_learning_mask2former_proposes_what_the_frozen_one_does(
    network: Mask2FormerForUniversalSegmentation, tmp_path: Path
) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    learning = LearningMask2Former(network, mean=mean, std=std).train()
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    frozen = Mask2FormerGenerator(network, shortest=40, longest=60)(image).mask_logits
    pixels = torch.from_numpy(image).permute(2, 0, 1) / 255
    normalised = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    masks = learning(torch.stack([normalised, normalised.flip(-1)]))
    assert masks.shape == (2, 7, 10, 10)
    np.testing.assert_allclose(masks[0].detach().numpy(), frozen, atol=1e-4)
    masks.square().sum().backward()
    learns = {name: p for name, p in learning.named_parameters() if p.requires_grad}
    assert {name for name, p in learns.items() if p.grad is None} == set()
    assert not any(module.training for module in learning.network.modules())
    learning.save(tmp_path)
    saved = load_network(str(tmp_path)).state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in network.state_dict().items())


def test_a_mask2former_that_lacks_tensors_is_refused(mask2former_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(mask2former_folder, folder)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    tensors = load_file(path)
    name = next(name for name in tensors if "mask_embedder" in name)
    save_file({k: v for k, v in tensors.items() if k != name}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 of the network's tensors, '{re.escape(name)}' among"):
        load_network(str(folder))
    save_file({**tensors, name: tensors[name][:1].clone()}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="could not be loaded"):
        load_network(str(folder))
    for damaged in (whole[:-100], whole[:20], b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"Mask2Former '.*damaged' could not be loaded"):
            load_network(str(folder))


def test_proposals_are_floats_as_torch_takes_them() -> None:
    for dtype in (np.float16, np.float64, ">f4"):
        masks = np.full((2, 3, 4), -3, dtype)[:, :, ::-1]
        proposals = MaskProposals(masks, np.ones(2, dtype))
        assert proposals.mask_logits.dtype == proposals.scores.dtype == np.float32
        assert torch.from_numpy(proposals.mask_logits).sum() == -72
    right = np.zeros((2, 3, 4), np.float32)
    assert MaskProposals(right, np.ones(2, np.float32)).mask_logits is right
    for odd in (right > 0, right.astype(np.uint8), right.tolist(), torch.zeros(2, 3, 4)):
        with pytest.raises(ValueError, match=r"mask_logits must be a numpy array of floats, got .*np.where"):
            MaskProposals(odd, np.ones(2, np.float32))  # type: ignore[arg-type]


class Stub(torch.nn.Module):
    """A detectron2 network whose only mask is the brightness of each cell of 4 x 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.pixel_mean, self.pixel_std = torch.full((3, 1, 1), 100.0), torch.full((3, 1, 1), 50.0)
        self.backbone = torch.nn.AvgPool2d(4)

    def sem_seg_head(self, cells: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pred_masks": cells[:, :1], "pred_logits": torch.zeros(len(cells), 1, 3)}


def test_detectron2_proposes_in_the_images_own_frame() -> None:
    image = np.full((32, 48, 3), 50, np.uint8)
    image[8:16, 16:32] = 200
    proposals = Detectron2Generator(Stub(), shortest=32, longest=48)(image)
    assert proposals.mask_logits.shape == (1, 8, 12)
    assert np.argwhere(proposals.mask_logits[0] == 2).tolist() == [
        [y, x] for y in (2, 3) for x in range(4, 8)
    ]
    assert (proposals.mask_logits == -1).sum() == 88
    assert proposals.scores == pytest.approx(2 / 3)


def test_detectron2_asks_for_a_folder_and_for_its_packages(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'detectron2' needs weights, got none"):
        load_mask_generator("detectron2")
    with pytest.raises(ValueError, match=r"must be a folder with config\.yaml and one of model_final\.pkl"):
        load_mask_generator("detectron2", weights=str(tmp_path))
    if importlib.util.find_spec("detectron2") is None:
        (tmp_path / "config.yaml").touch()
        (tmp_path / "model_final.pth").touch()
        with pytest.raises(
            ValueError, match="needs the packages detectron2 and mask2former: No module named"
        ):
            load_mask_generator("detectron2", weights=str(tmp_path))


def test_the_oracle_proposes_every_segment_but_crowds() -> None:
    ids = np.array([[5, 5, 9, 0],
                    [5, 7, 9, 0]], np.int32)  # fmt: skip
    segments = [{"id": number, "iscrowd": number == 7} for number in (9, 5, 7)]
    proposals = true_proposals(ids, segments)
    assert (proposals.mask_logits >= 0).astype(int).tolist() == [
        [[0, 0, 1, 0], [0, 0, 1, 0]],
        [[1, 1, 0, 0], [1, 0, 0, 0]],
    ]
    assert proposals.scores.tolist() == [1, 1]
    assert true_proposals(ids, []).mask_logits.shape == (0, 2, 4)


@pytest.mark.parametrize(
    ("size", "expected"), [((480, 640), (800, 1067)), ((640, 480), (1067, 800)), ((100, 400), (333, 1333))]
)
def test_test_sizes(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_shape(*size, shortest=800, longest=1333) == expected


def exact_shape(height: int, width: int) -> tuple[float, float]:
    """The test size before rounding, from the paper's rule: the shorter side 800, but no side above 1333."""
    scale = min(800 / min(height, width), 1333 / max(height, width))
    return height * scale, width * scale


def test_sizes_follow_the_rule_of_detectron2() -> None:
    random = np.random.default_rng(0)
    for height, width in random.integers(16, 3000, (200, 2)).tolist():
        got = resized_shape(height, width, 800, 1333)
        assert got == pytest.approx(exact_shape(height, width), abs=0.5 + 1e-9)


@pytest.mark.parametrize(
    ("size", "expected"), [((32, 64), (32, 64)), ((33, 63), (64, 64)), ((1, 95), (32, 96))]
)
def test_the_frame_is_padded_with_zeros_to_the_right_and_below(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    padded = pad(torch.ones(3, *size))
    assert padded.shape == (3, *expected)
    assert padded[:, : size[0], : size[1]].all()
    assert padded.sum() == 3 * size[0] * size[1]


def test_a_size_that_falls_between_two_pixels_rounds_as_in_detectron2() -> None:
    # 60 * 1333 / 1240 is 64.5 exactly; detectron2 arrives there by two factors, and just below.
    assert resized_shape(60, 1240, 800, 1333) == (64, 1333)


def test_images_are_resized_as_by_pil() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((30, 20), Image.Resampling.BILINEAR))
    assert np.array_equal(resize(image, 20, 100).permute(1, 2, 0).numpy(), expected)


def test_cropping_keeps_masks_in_place() -> None:
    ramp = (torch.arange(8.0) * 4 + 2).expand(1, 8, 8)
    assert torch.equal(crop_masks(ramp, 32, 24)[0], ramp[0, :, :6])
    # 26 pixels are six and a half cells: read at seven places evenly spread over them;
    # the first lies before the first cell's centre, where the mask is level.
    expected = ((torch.arange(7.0) + 0.5) * 26 / 7).clamp(min=2)
    torch.testing.assert_close(crop_masks(ramp, 32, 26)[0, 0], expected, atol=1e-4, rtol=0)


def test_unknown_generators_are_named() -> None:
    with pytest.raises(
        ValueError, match="unknown mask generator 'sam'; choose one of felzenszwalb, mask2former, detectron2"
    ):
        load_mask_generator("sam")
    with pytest.raises(ValueError, match="'felzenszwalb' has no weights"):
        load_mask_generator("felzenszwalb", weights="x")
    with pytest.raises(ValueError, match=r"'felzenszwalb' has no test size, got \[800, 1333\]"):
        load_mask_generator("felzenszwalb", size=(800, 1333))


def test_a_network_resizes_to_the_size_it_is_given(mask2former_folder: Path) -> None:
    weights = str(mask2former_folder)
    image = np.random.default_rng(0).integers(0, 256, (100, 130, 3), dtype=np.uint8)
    proposals = load_mask_generator("mask2former", weights=weights, size=(40, 60))(image)
    expected = Mask2FormerGenerator(load_network(weights), shortest=40, longest=60)(image)
    assert proposals.mask_logits.shape == (7, 10, 13)
    np.testing.assert_allclose(proposals.mask_logits, expected.mask_logits, atol=1e-5)
    for size in ((60, 40), (0, 40)):
        with pytest.raises(ValueError, match=r"must be \[shorter side, longest side\] in pixels"):
            load_mask_generator("mask2former", weights=weights, size=size)


def test_proposals_need_a_score_each() -> None:
    with pytest.raises(ValueError, match="one number for each of the 2 masks"):
        MaskProposals(np.zeros((2, 3, 3), np.float32), np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"must be \[Q, h, w\]"):
        MaskProposals(np.zeros((3, 3), np.float32), np.ones(3, np.float32))
