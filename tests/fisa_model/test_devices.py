"""All tensors of a model lie where the model is. No GPU is needed: see `pretend_gpu`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pretend_gpu import GPU, PretendGPUTensor, pretended_gpu
from torch import Tensor

from fisa_model.config import EnsembleConfig, FISAConfig, PanopticConfig
from fisa_model.criterion import Criterion
from fisa_model.fisa import FISA
from fisa_model.mask_generators import MaskProposals
from fisa_model.mask_generators.mask2former import LearningMask2Former, Mask2FormerGenerator, load_network
from fisa_model.matcher import HungarianMatcher, Target
from fisa_model.objective import FISAObjective, TrainingBatch
from fisa_model.predictor import FISAPredictor
from fisa_model.text_encoder import TextEncoder
from fisa_model.transforms import to_clip_input
from fisa_model.vocabulary import Vocabulary
from fisa_model.weights import save_fisa

EVERY = PanopticConfig(object_threshold=0.0)
WORDS = Vocabulary.from_names(["cat", "dog, hound"], stuff=["grass"])


def on_gpu(tensor: Tensor) -> bool:
    return isinstance(tensor, PretendGPUTensor)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda gpu: gpu + torch.ones(3),
        lambda gpu: torch.cat([gpu, torch.ones(3)]),
        lambda gpu: torch.ones(3)[gpu.long()],
        lambda gpu: gpu.masked_fill(torch.ones(3, dtype=torch.bool), 0.0),
        lambda gpu: gpu.mul_(torch.ones(3)),
        lambda gpu: gpu.numpy(),
        lambda gpu: np.asarray(gpu),
    ],
)
def test_the_pretended_gpu_refuses_what_a_gpu_refuses(mistake: Callable[[Tensor], Any]) -> None:
    with pretended_gpu(), pytest.raises((RuntimeError, TypeError)):
        mistake(torch.ones(3).to(GPU))


def test_the_pretended_gpu_computes() -> None:
    with pretended_gpu():
        made = torch.arange(6, device="cuda:0").view(2, 3)
        made[0] += torch.tensor([1, 2, 3], device=made.device)
        made[:, torch.tensor([0])] = 7  # indices may come from the CPU
        assert on_gpu(made) and on_gpu(made[0]) and on_gpu(made * 2.0)
        assert made.device == GPU
        assert made.cpu().tolist() == made.tolist() == [[7, 3, 5], [7, 4, 5]]
        assert not on_gpu(made.cpu())


def picture() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def blobs(image: np.ndarray[Any, Any]) -> MaskProposals:
    logits = np.random.default_rng(1).normal(size=(5, image.shape[0] // 2, image.shape[1] // 2))
    return MaskProposals(6 * logits.astype(np.float32), np.linspace(0.5, 1, 5, dtype=np.float32))


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
@pytest.mark.parametrize("bias", ["hard", "soft"])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_picture_is_labelled_as_on_the_cpu(
    trained: FISA,
    text_encoder: TextEncoder,
    resize: Literal["squash", "letterbox"],
    bias: Literal["hard", "soft"],
    *,
    mixed: bool,
) -> None:
    trained.resize, trained.bias = resize, bias
    options: dict[str, Any] = {"ensemble": EnsembleConfig(), "trained_on": WORDS} if mixed else {}

    def segment(model: FISA, encoder: TextEncoder) -> Any:
        predictor = FISAPredictor(model, encoder, generator=blobs, proposal_form="clipped", **options)
        tokens = predictor.encode_vocabulary(WORDS)
        assert tokens.classifier.device == model.device
        [prediction] = predictor.predict([picture()], [blobs(picture())], tokens)
        instances = prediction.instance(WORDS.is_thing)
        return (
            predictor.segment(picture(), WORDS, panoptic=EVERY),
            prediction.semantic(),
            [(found.class_index, round(found.score, 4), found.mask.sum()) for found in instances],
        )

    expected, labels, instances = segment(trained, text_encoder)
    with pretended_gpu():
        found, their_labels, their_instances = segment(trained.to(GPU), text_encoder.to(GPU))
    assert [segment.name for segment in found.segments] == [segment.name for segment in expected.segments]
    assert len(found.segments) > 1
    assert np.array_equal(found.ids, expected.ids)
    assert np.array_equal(their_labels, labels)
    assert their_instances == instances


def test_a_predictor_has_its_words_where_it_has_its_images(config: FISAConfig, tmp_path: Path) -> None:
    """On two cores ViT-L/14 takes 17 minutes for the 847 classes of ADE20K in 14 sentences."""
    options: dict[str, Any] = {"generator": blobs, "dtype": torch.float32, "text_cache_path": tmp_path}
    expected = FISAPredictor.baseline(config, device="cpu", **options).segment(
        picture(), WORDS, panoptic=EVERY
    )
    with pretended_gpu():
        for kept in (False, True):
            if not kept:
                [file.unlink() for file in tmp_path.iterdir()]
            predictor = FISAPredictor.baseline(config, device="cuda:0", **options)
            tower = predictor.text_encoder.clip
            assert predictor.model.device == tower.logit_scale.device == tower.token_embedding.weight.device
            assert on_gpu(predictor.encode_vocabulary(WORDS).classifier)
            assert not torch.backends.cuda.cudnn_sdp_enabled()
            found = predictor.segment(picture(), WORDS, panoptic=EVERY)
            assert np.array_equal(found.ids, expected.ids)
            assert any(tmp_path.iterdir())


def test_trained_weights_come_with_their_words(trained: FISA, config: FISAConfig, tmp_path: Path) -> None:
    """The image tower of the text encoder's CLIP stays: some are copies, which a GPU would hold twice."""
    path = tmp_path / "weights.safetensors"
    save_fisa(path, trained, config)
    with pretended_gpu():
        predictor = FISAPredictor.load(path, generator=blobs, device="cuda:0", dtype=torch.float32)
        tower = predictor.text_encoder.clip
        assert predictor.model.device == tower.logit_scale.device == GPU
        assert not any(on_gpu(parameter) for parameter in tower.visual.parameters())


def test_a_picture_that_shrinks_more_than_a_gpu_can_comes_back_to_it() -> None:
    with pretended_gpu():
        image = np.zeros((900, 20, 3), np.uint8)
        assert on_gpu(to_clip_input(image, image_size=28, mean=(0.5,) * 3, std=(0.2,) * 3, device=GPU))


@pytest.mark.parametrize("no_object_weight", [0.0, 0.1])
@pytest.mark.parametrize("classes_per_batch", [None, 3])
def test_a_batch_has_the_losses_that_it_has_on_the_cpu(
    trained: FISA,
    images: Tensor,
    proposals: Tensor,
    text_encoder: TextEncoder,
    no_object_weight: float,
    classes_per_batch: int | None,
) -> None:
    targets = [Target(torch.tensor([0, 2]), masks[:2] >= 0) for masks in proposals]
    batch = TrainingBatch(images, proposals, torch.ones(proposals.shape[:2], dtype=torch.bool), targets)

    def losses(device: torch.device | str) -> dict[str, float]:
        tokens = text_encoder.to(device).encode(WORDS, ("a {}",), "void")
        objective = FISAObjective(
            trained.to(device),
            HungarianMatcher(num_points=64),
            Criterion(num_points=64, no_object_weight=no_object_weight),
            tokens,
            classes_per_batch=classes_per_batch,
        )
        torch.manual_seed(3)
        found = objective(batch.to(device))
        assert found["loss"].device == trained.device
        return {name: loss.item() for name, loss in found.items()}

    expected = losses("cpu")
    with pretended_gpu():
        assert losses(GPU) == pytest.approx(expected, rel=1e-4)


def test_a_batch_goes_through_pinned_memory(images: Tensor, proposals: Tensor) -> None:
    valid = torch.ones(proposals.shape[:2], dtype=torch.bool)
    targets = [Target(torch.tensor([2, 3]), masks[:2] >= 0) for masks in proposals]
    batch = TrainingBatch(images, proposals, valid, targets, emptied=0.5)
    with pretended_gpu():
        there = batch.pin_memory().to(GPU, non_blocking=True)
        assert all(map(on_gpu, (there.images, there.proposals, there.valid)))
        assert all(on_gpu(target.masks) and on_gpu(target.labels) for target in there.targets)
        back = there.to("cpu")
    for name in ("images", "proposals", "valid"):
        assert torch.equal(getattr(back, name), getattr(batch, name))
    for target, given in zip(back.targets, targets, strict=True):
        assert torch.equal(target.masks, given.masks)
        assert torch.equal(target.labels, given.labels)
    assert back.emptied == 0.5


def test_a_network_proposes_as_on_the_cpu(mask2former_folder: Path) -> None:
    expected = Mask2FormerGenerator(load_network(str(mask2former_folder)), shortest=40, longest=60)(picture())
    with pretended_gpu():
        network = load_network(str(mask2former_folder))
        found = Mask2FormerGenerator(network, device=GPU, shortest=40, longest=60)(picture())
        learning = LearningMask2Former.load(str(mask2former_folder), mean=(0.5,) * 3, std=(0.2,) * 3)
        assert on_gpu(learning.to(GPU)(torch.zeros(1, 3, 64, 64, device=GPU)))
    np.testing.assert_allclose(found.mask_logits, expected.mask_logits, atol=1e-4)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
