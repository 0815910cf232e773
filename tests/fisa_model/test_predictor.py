"""A picture and words in, segments out."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fisa_model.config import AdapterUse, EnsembleConfig, FISAConfig, PanopticConfig, baseline_of
from fisa_model.device import default_device, default_dtype
from fisa_model.fisa import FISA, build_fisa
from fisa_model.mask_generators import MaskProposals
from fisa_model.predictor import FISAPredictor, check_proposals
from fisa_model.text_encoder import TextEncoder
from fisa_model.training_facts import TrainingFacts
from fisa_model.vocabulary import Category, Vocabulary
from fisa_model.weights import save_fisa

EVERY = PanopticConfig(object_threshold=0.0)


def halves(image: NDArray[np.uint8]) -> MaskProposals:
    """A generator that cuts every picture in a left and a right half."""
    height, width = image.shape[:2]
    left = np.full((height, width), -10.0, dtype=np.float32)
    left[:, : width // 2] = 10.0
    return MaskProposals(np.stack([left, -left]), np.ones(2, dtype=np.float32))


class InBatches:
    """The same, all pictures of a call together."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, image: NDArray[np.uint8]) -> MaskProposals:
        return self.batch([image])[0]

    def batch(self, images: Sequence[NDArray[np.uint8]]) -> list[MaskProposals]:
        self.sizes.append(len(images))
        return [halves(image) for image in images]


def picture(height: int = 20, width: int = 30) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def predictor(model: FISA, text_encoder: TextEncoder) -> FISAPredictor:
    return FISAPredictor(model, text_encoder, generator=halves)


def test_every_pixel_of_both_halves_is_named(predictor: FISAPredictor) -> None:
    result = predictor.segment(picture(), ["cat", "dog"], panoptic=EVERY)
    assert result.ids.shape == (20, 30)
    assert {tuple(np.unique(result.ids[:, :15])), tuple(np.unique(result.ids[:, 15:]))} == {(1,), (2,)}
    assert {s.name for s in result.segments} <= {"cat", "dog"}
    assert {s.bbox for s in result.segments} == {(0, 0, 15, 20), (15, 0, 15, 20)}


def test_stuff_of_a_vocabulary_is_merged(predictor: FISAPredictor) -> None:
    grass = Vocabulary((Category(7, "grass", is_thing=False),))
    result = predictor.segment(picture(), grass, panoptic=EVERY)
    assert [(s.id, s.category_id, s.area) for s in result.segments] == [(1, 7, 600)]


def test_a_batch_of_sizes_equals_single_pictures(predictor: FISAPredictor) -> None:
    pictures = [picture(20, 30), picture(33, 17)]
    batch = predictor.segment_batch(pictures, ["cat", "dog"], panoptic=EVERY)
    for image, together in zip(pictures, batch, strict=True):
        alone = predictor.segment(image, ["cat", "dog"], panoptic=EVERY)
        assert np.array_equal(alone.ids, together.ids)


def test_a_generator_that_takes_batches_gets_them(predictor: FISAPredictor) -> None:
    pictures = [picture(20, 30), picture(33, 17)]
    alone = predictor.segment_batch(pictures, ["cat", "dog"], panoptic=EVERY)
    predictor.generator = generator = InBatches()
    together = predictor.segment_batch(pictures, ["cat", "dog"], panoptic=EVERY)
    assert generator.sizes == [2]
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.ids, other.ids)


def test_more_proposals_in_a_neighbour_change_nothing(predictor: FISAPredictor) -> None:
    images = [picture(), picture(12, 12)]
    many = MaskProposals(
        np.random.default_rng(1).normal(size=(9, 5, 5)).astype(np.float32), np.ones(9, np.float32)
    )
    tokens = predictor.encode_vocabulary(Vocabulary.from_names(["cat", "dog"]))
    proposals = [halves(images[0]), many]
    together = predictor.predict(images, proposals, tokens)
    assert [len(p.class_probs) for p in together] == [2, 9]
    for image, masks, beside in zip(images, proposals, together, strict=True):
        [alone] = predictor.predict([image], [masks], tokens)
        torch.testing.assert_close(alone.class_probs, beside.class_probs, atol=1e-4, rtol=0)
        torch.testing.assert_close(alone.mask_logits, beside.mask_logits, atol=1e-4, rtol=0)


def test_features_and_masks_serve_another_vocabulary(predictor: FISAPredictor) -> None:
    image = picture()
    features = predictor.encode_images([image])
    prepared = predictor.prepare([halves(image)], [(20, 30)])
    for names in (["cat"], ["a", "b", "c"]):
        tokens = predictor.encode_vocabulary(Vocabulary.from_names(names))
        [reused] = predictor.classify(features, prepared, tokens)
        [fresh] = predictor.predict([image], [halves(image)], tokens)
        assert torch.equal(reused.class_probs, fresh.class_probs)


def test_masks_go_out_at_their_own_resolution(predictor: FISAPredictor) -> None:
    image = picture()
    tokens = predictor.encode_vocabulary(Vocabulary.from_names(["cat"]))
    [prediction] = predictor.predict([image], [halves(image)], tokens)
    assert np.array_equal(prediction.mask_logits.numpy(), halves(image).mask_logits)
    with torch.no_grad():
        predictor.model.adapter.convolutions[-1].bias.fill_(3.0)
    [adapted] = predictor.predict([image], [halves(image)], tokens)
    np.testing.assert_allclose(adapted.mask_logits.numpy(), halves(image).mask_logits + 3.0, atol=1e-5)


@pytest.mark.parametrize("form", ["binary", "clipped"])
def test_masks_are_read_in_the_form_they_had_in_training(
    trained: FISA, text_encoder: TextEncoder, config: FISAConfig, tmp_path: Path, form: str
) -> None:
    save_fisa(tmp_path / "w.safetensors", trained, config, TrainingFacts(proposal_form=form))
    predictor = FISAPredictor.load(tmp_path / "w.safetensors", generator=halves, device="cpu")
    tokens = predictor.encode_vocabulary(Vocabulary.from_names(["cat", "dog"]))
    network = np.random.default_rng(0).normal(0, 15, (3, 8, 12)).astype(np.float32)
    scores = np.ones(3, dtype=np.float32)
    table = np.where(network >= 0, 10, -10) if form == "binary" else network.clip(-10, 10)
    [from_network] = predictor.predict([picture()], [MaskProposals(network, scores)], tokens)
    [from_table] = predictor.predict([picture()], [MaskProposals(table.astype(np.float32), scores)], tokens)
    assert torch.equal(from_network.class_probs, from_table.class_probs)
    # What goes out has the sides that a table's masks have, and the network's own borders.
    assert torch.equal(from_network.mask_logits >= 0, from_table.mask_logits >= 0)
    assert np.isin(from_network.mask_logits.numpy(), network).mean() > 0.3
    predictor.proposal_form = None
    [as_they_came] = predictor.predict([picture()], [MaskProposals(network, scores)], tokens)
    assert not torch.equal(as_they_came.class_probs, from_table.class_probs)


def test_a_network_that_is_not_sure_keeps_its_masks(predictor: FISAPredictor) -> None:
    """What an adapter adds to logits of 10 would drown a network's logits of 2."""
    predictor.proposal_form = "binary"
    with torch.no_grad():
        predictor.model.adapter.convolutions[-1].bias.fill_(-3.0)
    tokens = predictor.encode_vocabulary(Vocabulary.from_names(["cat"]))
    masks = halves(picture()).mask_logits * np.float32(0.2)
    [prediction] = predictor.predict([picture()], [MaskProposals(masks, np.ones(2, np.float32))], tokens)
    assert np.array_equal(prediction.mask_logits.numpy(), masks)
    with torch.no_grad():
        predictor.model.adapter.convolutions[-1].bias.fill_(-13.0)
    [closed] = predictor.predict([picture()], [MaskProposals(masks, np.ones(2, np.float32))], tokens)
    assert closed.mask_logits.max() < 0


def test_an_unknown_form_of_proposals_is_refused(model: FISA, config: FISAConfig, tmp_path: Path) -> None:
    save_fisa(tmp_path / "known.safetensors", model, config)
    with safe_open(tmp_path / "known.safetensors", framework="pt") as file:
        metadata = {**file.metadata(), "proposals": "fuzzy"}
    save_file(load_file(tmp_path / "known.safetensors"), tmp_path / "w.safetensors", metadata)
    with pytest.raises(ValueError, match="trained on 'fuzzy' proposals, this version knows binary and clip"):
        FISAPredictor.load(tmp_path / "w.safetensors", generator=halves)


@pytest.mark.parametrize(
    ("where", "steers", "goes_out"),
    [("both", True, True), ("attention", True, False), ("output", False, True), ("nowhere", False, False)],
)
def test_where_adapted_masks_go(
    predictor: FISAPredictor,
    where: AdapterUse,
    steers: Any,
    goes_out: Any,
) -> None:
    image, masks = picture(), halves(picture())
    tokens = predictor.encode_vocabulary(Vocabulary.from_names(["cat", "dog"]))
    [plain] = predictor.predict([image], [masks], tokens)
    predictor.model.adapter.where = where
    with torch.no_grad():
        # Opens every patch of every mask.
        predictor.model.adapter.convolutions[-1].bias.fill_(100.0)
    [adapted] = predictor.predict([image], [masks], tokens)
    assert torch.equal(adapted.class_probs, plain.class_probs) != steers
    assert torch.equal(adapted.mask_logits, plain.mask_logits) != goes_out


def test_a_letterboxed_picture_is_seen_as_on_a_gray_square(
    predictor: FISAPredictor, text_encoder: TextEncoder, config: FISAConfig
) -> None:
    side = config.image_size
    wide = picture(side // 2, side)
    square = np.concatenate([wide, np.full_like(wide, 128)])
    masks = np.random.default_rng(1).normal(0, 5, (3, side // 8, side // 4)).astype(np.float32)
    around = np.concatenate([masks, np.full_like(masks, -10)], axis=1)
    letterbox = FISAPredictor(
        build_fisa(dataclasses.replace(config, resize="letterbox"))[0], text_encoder, generator=halves
    )
    letterbox.model.load_state_dict(predictor.model.state_dict())
    found = []
    for model, image, logits in ((letterbox, wide, masks), (predictor, square, around)):
        last = model.model.adapter.convolutions[-1]
        with torch.no_grad():
            last.weight.copy_(torch.randn(last.weight.shape, generator=torch.Generator().manual_seed(3)))
            last.bias.fill_(3.0)
        tokens = model.encode_vocabulary(Vocabulary.from_names(["cat", "dog"]))
        found += model.predict([image], [MaskProposals(logits, np.ones(3, np.float32))], tokens)
    torch.testing.assert_close(found[0].class_probs, found[1].class_probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0].mask_logits, found[1].mask_logits[:, : side // 8], atol=1e-5, rtol=0)
    assert found[0].size == (side // 2, side)
    [squashed] = predictor.predict([wide], [MaskProposals(masks, np.ones(3, np.float32))], tokens)
    assert not torch.allclose(found[0].class_probs, squashed.class_probs, atol=1e-3)


def test_no_proposals_leave_the_picture_void(predictor: FISAPredictor) -> None:
    none = MaskProposals(np.zeros((0, 4, 4), np.float32), np.zeros(0, np.float32))
    result = predictor.segment(picture(), ["cat"], proposals=none)
    assert not result.ids.any()
    assert result.segments == []


def test_coco_form(predictor: FISAPredictor) -> None:
    result = predictor.segment(picture(), ["cat", "dog"], panoptic=EVERY)
    png, info = result.to_coco()
    colours = np.asarray(PIL.Image.open(io.BytesIO(png))).astype(int)
    assert np.array_equal(colours @ [1, 256, 65536], result.ids)
    assert [row["area"] for row in info] == [(result.ids == row["id"]).sum() for row in info]


def test_saved_weights_predict_the_same(
    predictor: FISAPredictor, model: FISA, config: FISAConfig, tmp_path: Path
) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    save_fisa(tmp_path / "fisa.safetensors", model, config)
    loaded = FISAPredictor.load(tmp_path / "fisa.safetensors", generator=halves)
    tokens = predictor.encode_vocabulary(Vocabulary.from_names(["cat", "dog"]))
    image = picture()
    [before] = predictor.predict([image], [halves(image)], tokens)
    [after] = loaded.predict([image], [halves(image)], tokens)
    assert torch.equal(before.class_probs, after.class_probs)
    assert torch.equal(before.mask_logits, after.mask_logits)


def test_baseline_is_the_untrained_model(predictor: FISAPredictor, config: FISAConfig) -> None:
    baseline = FISAPredictor.baseline(config, generator=halves)
    tokens = predictor.encode_vocabulary(Vocabulary.from_names(["cat", "dog"]))
    image = picture()
    [ours] = predictor.predict([image], [halves(image)], tokens)
    [frozen] = baseline.predict([image], [halves(image)], tokens)
    assert torch.equal(ours.class_probs, frozen.class_probs)
    assert not any(p.requires_grad for p in build_fisa(baseline_of(config))[0].parameters())


def test_mistakes_are_named(predictor: FISAPredictor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocabulary has no classes"):
        predictor.segment(picture(), [])
    with pytest.raises(ValueError, match="class name 'cat' occurs more than once"):
        predictor.segment(picture(), ["cat", "Cat"])
    with pytest.raises(ValueError, match="the image has no pixels"):
        predictor.segment(np.zeros((0, 4, 3), np.uint8), ["cat"])
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\]; got float64"):
        predictor.segment(np.zeros((4, 4, 3)), ["cat"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"nowhere.jpg: no image file that can be read \(No such file"):
        predictor.segment("nowhere.jpg", ["cat"])
    with pytest.raises(ValueError, match="class names must be text, got 1"):
        predictor.segment(picture(), [1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="there are no images to encode"):
        predictor.encode_images([])
    with pytest.raises(ValueError, match="there are no proposals to prepare"):
        predictor.prepare([], [])
    with pytest.raises(ValueError, match="1 images came with proposals of 0"):
        predictor.segment_batch([picture()], ["cat"], proposals=[])
    with pytest.raises(ValueError, match=r"images is a list of pictures, got 'street.jpg'; use `segment`"):
        predictor.segment_batch("street.jpg", ["cat"])


@pytest.mark.parametrize(
    ("shape", "logit", "score", "message"),
    [
        ((1, 20, 30), np.nan, 1.0, "mask_logits of the proposals are NaN"),
        ((1, 20, 30), 1.0, np.inf, "scores of the proposals are NaN or infinite"),
        ((1, 0, 30), 1.0, 1.0, "proposals have no pixels"),
        ((1, 30, 20), 1.0, 1.0, "mask_logits are 30 x 20 .* their image 20 x 30"),
        ((1, 8, 8), 1.0, 1.0, "in its own proportions"),
    ],
)
def test_proposals_that_cannot_be_right_are_refused(
    predictor: FISAPredictor, shape: tuple[int, int, int], logit: float, score: float, message: str
) -> None:
    proposals = MaskProposals(np.full(shape, logit, np.float32), np.full(1, score, np.float32))
    with pytest.raises(ValueError, match=message):
        predictor.segment(picture(), ["cat"], proposals=proposals)


def test_masks_at_any_stride_fit_their_image() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        height, width = (int(pixels) for pixels in rng.integers(1, 2000, 2))
        stride = rng.uniform(0.5, 40)
        rounded = rng.choice([np.floor, np.ceil, np.round])
        shape = (1, *(max(1, int(rounded(pixels / stride))) for pixels in (height, width)))
        check_proposals(MaskProposals(np.zeros(shape, np.float32), np.ones(1, np.float32)), (height, width))


def test_an_adapter_that_diverged_is_named(predictor: FISAPredictor) -> None:
    with torch.no_grad():
        predictor.model.adapter.convolutions[-1].bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="masks after the Distribution Adapter are NaN"):
        predictor.segment(picture(), ["cat"])


def test_device_and_dtype_are_chosen(predictor: FISAPredictor) -> None:
    gpu = torch.cuda.is_available()
    assert default_device() == ("cuda" if gpu else "cpu")
    assert default_dtype(torch.device("cpu")) is torch.float32
    assert predictor.dtype is torch.float32


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"device": "gpu"}, "device 'gpu' is not one of this machine's; give 'cpu', 'cuda'"),
        ({"device": "meta"}, "device 'meta' is not one of this machine's"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not one of this machine's"),
        ({"dtype": "bf16"}, "dtype must be one of torch.float32, torch.bfloat16, .* got 'bf16'"),
        ({"dtype": torch.int32}, "got torch.int32"),
        ({"generator": "mask2former"}, "a generator is a function .* got 'mask2former'"),
    ],
)
def test_what_a_predictor_cannot_run_on_is_refused(
    config: FISAConfig, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        FISAPredictor.baseline(config, **wrong)


def test_scores_are_probabilities() -> None:
    proposals = MaskProposals(np.zeros((2, 4, 4), np.float32), np.array([-1, 2], np.float32))
    with pytest.raises(ValueError, match="scores of the proposals must be 0 to 1, got -1 to 2; give prob"):
        check_proposals(proposals, (4, 4))


def test_a_picture_is_no_list_of_pictures(predictor: FISAPredictor) -> None:
    image: Any = PIL.Image.fromarray(picture())
    with pytest.raises(ValueError, match=r"images is a list of pictures, got <PIL.* use `segment` for one"):
        predictor.segment_batch(image, ["cat"])
    pair = np.stack([picture(), picture()])
    assert len(predictor.predict(pair, [halves(picture())] * 2, predictor.encode_vocabulary(["cat"]))) == 2


def test_objectness_is_one_of_two(predictor: FISAPredictor) -> None:
    words = predictor.encode_vocabulary(["cat"])
    [prediction] = predictor.predict([picture()], [halves(picture())], words)
    wrong: Any = "m2f"
    with pytest.raises(ValueError, match="objectness must be 'generator' or 'none', got 'm2f'"):
        prediction.semantic(objectness=wrong)


def test_panoptic_rules_are_a_config(predictor: FISAPredictor) -> None:
    rules: Any = "maskclip_coco"
    with pytest.raises(ValueError, match="must be a PanopticConfig, got 'maskclip_coco'; write"):
        predictor.segment(picture(), ["cat"], panoptic=rules)


def test_bfloat16_is_a_switch(model: FISA, text_encoder: TextEncoder, predictor: FISAPredictor) -> None:
    lower = FISAPredictor(model, text_encoder, generator=halves, dtype=torch.bfloat16)
    keys = [p.encode_images([picture()]).keys[0] for p in (predictor, lower)]
    assert [key.dtype for key in keys] == [torch.float32, torch.bfloat16]
    torch.testing.assert_close(keys[1].float(), keys[0], atol=0.05, rtol=0.05)


@pytest.mark.slow
def test_compiled_predictions_are_the_same(
    model: FISA, text_encoder: TextEncoder, predictor: FISAPredictor
) -> None:
    compiled = FISAPredictor(model, text_encoder, generator=halves, compile=True)
    keys = [p.encode_images([picture()]).keys[-1] for p in (predictor, compiled)]
    torch.testing.assert_close(keys[1], keys[0], atol=1e-4, rtol=1e-4)


class TestEnsemble:
    """A model that has learnt something, beside the frozen CLIP that it was made of."""

    WORDS = Vocabulary.from_names(["cat", "dog", "sofa"])

    def probs(self, predictor: FISAPredictor) -> torch.Tensor:
        tokens = predictor.encode_vocabulary(self.WORDS)
        [prediction] = predictor.predict([picture()], [halves(picture())], tokens)
        return prediction.class_probs

    @pytest.fixture
    def saved(self, model: FISA, config: FISAConfig, tmp_path: Path) -> Path:
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in model.visual_encoder.query_projections.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
        trained_on = TrainingFacts(vocabulary=Vocabulary.from_names(["dog", "mouse"]))
        save_fisa(tmp_path / "w.safetensors", model, config, trained_on)
        return tmp_path / "w.safetensors"

    def test_classes_follow_their_shares(self, saved: Path, config: FISAConfig) -> None:
        alone = self.probs(FISAPredictor.load(saved, generator=halves))
        frozen = self.probs(FISAPredictor.baseline(config, generator=halves))
        assert not torch.allclose(alone, frozen, atol=1e-3)
        shares = EnsembleConfig(seen_weight=0.25, unseen_weight=1.0)
        both = self.probs(FISAPredictor.load(saved, generator=halves, ensemble=shares))
        unseen, seen = frozen[:, [0, 2]], alone[:, 1] ** 0.75 * frozen[:, 1] ** 0.25
        expected = torch.stack([unseen[:, 0], seen, unseen[:, 1]], dim=1)
        torch.testing.assert_close(both, expected / expected.sum(1, keepdim=True), atol=1e-5, rtol=1e-4)

    def test_needs_to_know_what_was_trained_on(self, model: FISA, text_encoder: TextEncoder) -> None:
        with pytest.raises(ValueError, match="these weights do not say it"):
            FISAPredictor(model, text_encoder, generator=halves, ensemble=EnsembleConfig())

    def test_needs_words_that_say_what_was_seen(self, saved: Path) -> None:
        predictor = FISAPredictor.load(saved, generator=halves, ensemble=EnsembleConfig())
        words = predictor.text_encoder.encode(self.WORDS, predictor.templates)
        with pytest.raises(ValueError, match="encode the vocabulary with this predictor's encode_vocabulary"):
            predictor.predict([picture()], [halves(picture())], words)

    def test_needs_an_image_path_that_is_clips(self, config: FISAConfig, tmp_path: Path) -> None:
        shared = dataclasses.replace(config, query_projection="shared")
        path = tmp_path / "w.safetensors"
        save_fisa(path, build_fisa(shared)[0], shared, TrainingFacts(vocabulary=self.WORDS))
        with pytest.raises(ValueError, match="the image path of this model was trained"):
            FISAPredictor.load(path, generator=halves, ensemble=EnsembleConfig())

    def test_needs_words_that_are_clips(self, config: FISAConfig, tmp_path: Path) -> None:
        texts = dataclasses.replace(config, trains_text=True)
        path = tmp_path / "w.safetensors"
        save_fisa(path, build_fisa(texts)[0], texts, TrainingFacts(vocabulary=self.WORDS))
        with pytest.raises(ValueError, match="the language encoder of this model was trained"):
            FISAPredictor.load(path, generator=halves, ensemble=EnsembleConfig())
