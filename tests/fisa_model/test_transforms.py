"""One frame for image, proposals and ground truth."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from fisa_model.config import Resize
from fisa_model.mask_generators import MaskProposals
from fisa_model.matcher import Target
from fisa_model.objective import collate
from fisa_model.transforms import (
    GRAY,
    OUTSIDE,
    Frame,
    Jitter,
    pad_proposals,
    to_clip_input,
    to_model_proposals,
    to_tensor,
    unwarp,
    warp_image,
    warp_logits,
    warp_masks,
    whole_frame,
)

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def rectangle(height: int, width: int, top: int, left: int, bottom: int, right: int) -> NDArray[np.bool_]:
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def paint(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """White on black."""
    return np.repeat((255 * mask).astype(np.uint8)[..., None], 3, axis=2)


def proposals_of(mask: NDArray[np.bool_]) -> MaskProposals:
    return MaskProposals(np.where(mask, 10.0, -10.0).astype(np.float32)[None], np.ones(1, np.float32))


def overlap(a: Tensor, b: Tensor) -> float:
    return ((a & b).sum() / (a | b).sum()).item()


def centre(mask: Tensor) -> Tensor:
    return mask.nonzero().float().mean(dim=0)


def test_squash_is_bicubic_with_antialias() -> None:
    image = np.random.default_rng(0).integers(0, 256, (37, 91, 3), dtype=np.uint8)
    ours = to_clip_input(image, image_size=24, mean=MEAN, std=STD)
    pixels = torch.from_numpy(image).permute(2, 0, 1) / 255
    expected = resize(pixels, [24, 24], interpolation=InterpolationMode.BICUBIC, antialias=True)
    expected = (expected - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("seed", range(8))
def test_image_proposals_and_truth_stay_together(seed: int) -> None:
    mask = rectangle(60, 90, 12, 20, 48, 70)
    jitter = Jitter(image_size=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), scale=(0.6, 1.6))
    target = Target(torch.tensor([3]), torch.from_numpy(mask)[None])
    sample = jitter(paint(mask), proposals_of(mask), target, np.random.default_rng(seed))
    truth = sample.target.masks[0]
    assert sample.image.shape == (3, 64, 64)
    assert truth.shape == (64, 64)
    painted = sample.image[0] > 0.55
    proposal = (
        torch.nn.functional.interpolate(sample.proposals[None], size=(64, 64), mode="bilinear")[0, 0] > 0
    )
    # An edge of a mask at a quarter of the resolution may lie half a cell away.
    for other, pixels in ((painted, 0.6), (proposal, 2.0)):
        assert (centre(other) - centre(truth)).abs().max() < pixels
        assert overlap(other, truth) > 0.85


def test_the_same_random_state_draws_the_same_sample() -> None:
    mask = rectangle(20, 20, 5, 5, 15, 15)
    jitter = Jitter(image_size=32, mean=MEAN, std=STD)
    target = Target(torch.tensor([0]), torch.from_numpy(mask)[None])
    first, second = (
        jitter(paint(mask), proposals_of(mask), target, np.random.default_rng(4)) for _ in range(2)
    )
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.proposals, second.proposals)


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_without_scale_or_flip_it_is_the_frame_of_test_time(resize: Resize) -> None:
    mask = rectangle(20, 44, 5, 5, 15, 30)
    jitter = Jitter(image_size=32, mean=MEAN, std=STD, scale=None, flip=0.0, resize=resize)
    target = Target(torch.tensor([0]), torch.from_numpy(mask)[None])
    sample = jitter(paint(mask), proposals_of(mask), target, np.random.default_rng(0))
    image = to_clip_input(paint(mask), image_size=32, mean=MEAN, std=STD, resize=resize)
    assert torch.equal(sample.image, image)
    frame = whole_frame((20, 44), 32, resize)
    proposals = to_model_proposals(to_tensor(proposals_of(mask).mask_logits), image_size=32, frame=frame)
    torch.testing.assert_close(sample.proposals, proposals, atol=1e-5, rtol=1e-5)


def test_a_letterbox_keeps_proportions_and_squash_fills_the_window() -> None:
    assert whole_frame((30, 60), 32, "letterbox") == Frame(size=32, height=16, width=32)
    assert whole_frame((60, 30), 32, "letterbox") == Frame(size=32, height=32, width=16)
    assert whole_frame((1, 1000), 32, "letterbox").height == 2
    assert whole_frame((30, 60), 32, "squash") == whole_frame((50, 50), 32, "letterbox")
    assert whole_frame((30, 60), 32, "squash").fills_window


@pytest.mark.parametrize("size", [(24, 60), (60, 24), (40, 40)])
@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_values_come_back_to_where_they_were_in_the_image(resize: Resize, size: tuple[int, int]) -> None:
    """A plane through the image's corners, so that every place has a value of its own."""
    height, width = size
    frame = whole_frame(size, 64, resize)
    rows, columns = torch.arange(height) / height, torch.arange(width) / width
    plane = (5 * rows[:, None] - 3 * columns[None])[None]
    back = unwarp(warp_logits(plane, frame, side=64), frame, size)
    inner = (..., slice(2, -2), slice(2, -2))  # at the border half a cell is level
    torch.testing.assert_close(back[inner], plane[inner], atol=2e-2, rtol=0)
    assert (back - plane).abs().max() < 0.2


@pytest.mark.parametrize("size", [(853, 1280), (1280, 853), (850, 1280), (856, 1280), (1, 900)])
def test_what_lies_beside_the_image_is_not_read(size: tuple[int, int]) -> None:
    frame = whole_frame(size, 896, "letterbox")
    beside = warp_logits(torch.zeros(1, 8, 8), frame, side=224)
    assert (beside == OUTSIDE).any()
    assert not unwarp(beside, frame, (size[0] // 4 + 1, size[1] // 4 + 1)).any()


def test_masks_that_shrink_are_antialiased_as_at_test_time() -> None:
    mask = np.zeros((200, 312), bool)
    mask[20:180, 100:104] = True
    mask[60:62] = True
    proposals = proposals_of(mask)
    jitter = Jitter(image_size=64, mean=MEAN, std=STD, scale=None, flip=0.0)
    target = Target(torch.tensor([0]), torch.from_numpy(mask)[None])
    sample = jitter(paint(mask), proposals, target, np.random.default_rng(0))
    expected = to_model_proposals(to_tensor(proposals.mask_logits), image_size=64)
    torch.testing.assert_close(sample.proposals, expected, atol=1e-5, rtol=1e-5)


def test_a_small_image_lies_on_gray_with_empty_masks_around() -> None:
    image = np.full((10, 20, 3), 255, np.uint8)
    frame = Frame(size=16, height=4, width=8)
    pixels = warp_image(image, frame)
    assert torch.allclose(pixels[:, :4, :8], torch.ones(()))
    assert torch.allclose(pixels[:, 4:], torch.tensor(GRAY))
    assert torch.allclose(pixels[:, :, 8:], torch.tensor(GRAY))
    logits = warp_logits(torch.full((1, 5, 10), 7.0), frame, side=16)
    assert torch.allclose(logits[0, :4, :8], torch.tensor(7.0))
    assert (logits[0, 4:] == OUTSIDE).all()
    masks = warp_masks(torch.ones(1, 10, 20, dtype=torch.bool), frame, side=16)
    assert masks.sum() == 4 * 8


def test_mirror_images_are_mirrored() -> None:
    left = torch.from_numpy(rectangle(4, 4, 0, 0, 4, 2))[None]
    plain, flipped = (
        warp_masks(left, Frame(size=4, height=4, width=4, flip=flip), side=4) for flip in (False, True)
    )
    assert torch.equal(plain, left)
    assert torch.equal(flipped, left.flip(-1))


def test_sizes_are_those_of_large_scale_jitter() -> None:
    rng = np.random.default_rng(0)
    jitter = Jitter(image_size=100, mean=MEAN, std=STD, scale=(0.1, 2.0))
    frames = [jitter.draw(60, 80, rng) for _ in range(300)]
    longer = [max(frame.height, frame.width) for frame in frames]
    assert 10 <= min(longer) < 25
    assert 180 < max(longer) <= 200
    assert all(abs(frame.height / frame.width - 0.75) < 0.06 for frame in frames)
    assert all(0 <= frame.left <= max(frame.width - 100, 0) for frame in frames)
    assert any(frame.flip for frame in frames)


def test_what_a_very_long_picture_shows_is_proposed_too() -> None:
    mask = np.ones((60, 1400), dtype=bool)
    jitter = Jitter(image_size=224, mean=MEAN, std=STD, scale=(0.1, 0.1))
    target = Target(torch.tensor([5]), torch.from_numpy(mask)[None])
    sample = jitter(paint(mask), proposals_of(mask), target, np.random.default_rng(0))
    assert sample.target.masks.any()
    assert (sample.proposals > 0).any()


@pytest.mark.parametrize("keep_empty", [False, True])
def test_segments_that_leave_the_frame_are_counted_and_dropped_unless_kept(*, keep_empty: bool) -> None:
    masks = np.stack([rectangle(40, 40, 0, 0, 40, 40), rectangle(40, 40, 0, 0, 20, 20)])
    jitter = Jitter(image_size=16, mean=MEAN, std=STD, scale=(4.0, 4.0), flip=0.0, keep_empty=keep_empty)
    target = Target(torch.tensor([5, 6]), torch.from_numpy(masks))
    samples = [
        jitter(paint(masks[0]), proposals_of(masks[0]), target, np.random.default_rng(seed))
        for seed in range(20)
    ]
    emptied = [not warped[1].any() for warped in (expected_masks(masks, jitter, seed) for seed in range(20))]
    assert 0 < sum(emptied) < 20
    assert [sample.emptied for sample in samples] == emptied
    for sample, is_empty in zip(samples, emptied, strict=True):
        assert sample.target.labels.tolist() == ([5] if is_empty and not keep_empty else [5, 6])
    assert collate(samples).emptied == sum(emptied) / 20


def expected_masks(masks: NDArray[np.bool_], jitter: Jitter, seed: int) -> Tensor:
    """In the window that a sample of this seed gets."""
    frame = jitter.draw(40, 40, np.random.default_rng(seed))
    return warp_masks(torch.from_numpy(masks), frame, side=16)


def test_proposals_are_brought_to_a_quarter_and_filled_up() -> None:
    one = to_model_proposals(
        to_tensor(proposals_of(rectangle(40, 80, 0, 0, 40, 40)).mask_logits), image_size=32
    )
    none = to_model_proposals(torch.zeros(0, 5, 5), image_size=32)
    assert one.shape == (1, 8, 8)
    assert (one[0] > 0).tolist() == [[True] * 4 + [False] * 4] * 8
    padded, valid = pad_proposals([one, none])
    assert padded.shape == (2, 1, 8, 8)
    assert valid.tolist() == [[True], [False]]
    assert (padded[1] == OUTSIDE).all()


def test_proposals_of_one_number_are_stacked() -> None:
    masks = torch.rand(2, 3, 3)
    padded, valid = pad_proposals([masks, masks + 1])
    assert torch.equal(padded, torch.stack([masks, masks + 1]))
    assert valid.tolist() == [[True, True]] * 2


def test_read_only_tables_are_read_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    proposals = proposals_of(rectangle(8, 8, 0, 0, 4, 4))
    proposals.mask_logits.flags.writeable = False
    to_model_proposals(to_tensor(proposals.mask_logits), image_size=16)
    assert not recwarn.list


def test_masks_of_another_size_are_refused() -> None:
    mask = rectangle(20, 20, 5, 5, 15, 15)
    target = Target(torch.tensor([0]), torch.zeros(1, 10, 20, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"masks are \[10, 20\] pixels, their image is \[20, 20\]"):
        Jitter(image_size=16, mean=MEAN, std=STD)(
            paint(mask), proposals_of(mask), target, np.random.default_rng(0)
        )
    with pytest.raises(ValueError, match="scale must be a range of positive numbers"):
        Jitter(image_size=16, mean=MEAN, std=STD, scale=(2.0, 1.0))
