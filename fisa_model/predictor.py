"""FISA in one object: a picture and words in, labelled segments out."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fisa_model.config import EnsembleConfig, FISAConfig, PanopticConfig, baseline_of
from fisa_model.device import avoid_cudnn_attention, check_device, check_dtype
from fisa_model.ensemble import ensemble
from fisa_model.fisa import FISA, AdaptedMasks, FISAOutput, build_fisa
from fisa_model.mask_generators import MaskGenerator, MaskProposals, ProposalForm, propose_masks
from fisa_model.mask_generators.default import DefaultGenerator
from fisa_model.pictures import Picture, read_picture
from fisa_model.prediction import DEFAULT_PANOPTIC, Prediction
from fisa_model.segmentation import Segmentation, name_segments
from fisa_model.text_encoder import ClassTokens, TextEncoder
from fisa_model.training_facts import DEFAULT_TEMPLATES
from fisa_model.transforms import (
    Frame,
    check_proposals,
    in_form,
    pad_proposals,
    to_clip_input,
    to_model_proposals,
    to_tensor,
    unwarp,
    whole_frame,
)
from fisa_model.visual_encoder import ImageFeatures
from fisa_model.vocabulary import Vocabulary, get_templates
from fisa_model.weights import read_fisa


@dataclass(frozen=True, slots=True)
class PreparedProposals:
    """Proposals of B images, ready for any number of vocabularies."""

    adapted: AdaptedMasks
    """Filled up to the largest Q."""

    frozen: AdaptedMasks | None
    """The same for the frozen CLIP, where it has a say."""

    mask_logits: list[Tensor]
    """[Q, h, w] of each image, at the proposals' own resolution; see `AdapterConfig.where`."""

    scores: list[Tensor]
    """[Q] of each image, the generator's objectness."""

    sizes: list[tuple[int, int]]
    """(H, W) of each image."""


class FISAPredictor:
    """A model, its words and a mask generator.

    `segment` is for people; `encode_vocabulary`, `encode_images`, `prepare` and `classify` are its parts, for
    programs that bring their own proposals, or keep image and masks for another vocabulary.
    """

    def __init__(
        self,
        model: FISA,
        text_encoder: TextEncoder,
        *,
        generator: MaskGenerator,
        templates: str = DEFAULT_TEMPLATES,
        dtype: torch.dtype | None = None,
        compile: bool = False,
        ensemble: EnsembleConfig | None = None,
        trained_on: Vocabulary | None = None,
        proposal_form: ProposalForm | None = None,
    ) -> None:
        """`dtype` is that of the model's arithmetic: None is bfloat16 on a GPU that has it, else float32.

        `compile` passes the image tower to `torch.compile`: minutes at the first picture, less afterwards.
        `proposal_form` is how the model met masks in training, which it then reads in this form.
        `ensemble` lets the frozen CLIP have a say, more of it in classes that `trained_on` has no name of.
        """
        if ensemble is not None and trained_on is None:
            raise ValueError("an ensemble needs the vocabulary of training, and these weights do not say it")
        if ensemble is not None:
            model.check_frozen()
        if not callable(generator):
            raise ValueError(
                f"a generator is a function from an RGB array [H, W, 3] to MaskProposals, got {generator!r}; "
                "fisa_model.mask_generators.load_mask_generator makes one of a name"
            )
        self.model = model.eval()
        self.text_encoder = text_encoder
        self.generator = generator
        self.preset = templates
        self.templates = get_templates(templates)
        self.ensemble = ensemble
        self.trained_on = trained_on
        self.proposal_form = proposal_form
        self.dtype = check_dtype(dtype, model.device)
        avoid_cudnn_attention(model.device)
        self._encode = torch.compile(model.encode_images) if compile else model.encode_images

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        generator: MaskGenerator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        compile: bool = False,
        ensemble: EnsembleConfig | None = None,
        text_cache_path: Path | str | None = None,
    ) -> "FISAPredictor":
        """Loads trained weights, with the CLIP, the templates and the generator that belong to them.

        `device` None is the GPU where there is one. `text_cache_path` is a folder for vocabularies that come
        again: it keeps every one that is encoded, but for a language encoder that was trained.
        """
        device = check_device(device)
        saved = read_fisa(path)
        facts = saved.facts
        model, text_encoder = build_fisa(saved.config, text_cache_path=text_cache_path)
        saved.load_into(model)
        text_encoder.learns = False  # here, where nothing will train it, what it encodes may be kept
        return cls(
            model.to(device),
            text_encoder.to(device),
            generator=generator or DefaultGenerator(saved.config, device),
            templates=facts.templates,
            dtype=dtype,
            compile=compile,
            ensemble=ensemble,
            trained_on=facts.vocabulary,
            proposal_form=facts.proposal_form,
        )

    @classmethod
    def baseline(
        cls,
        config: FISAConfig,
        *,
        generator: MaskGenerator | None = None,
        templates: str = DEFAULT_TEMPLATES,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        compile: bool = False,
        text_cache_path: Path | str | None = None,
    ) -> "FISAPredictor":
        """The frozen CLIP of a config with mask attention and nothing that was trained."""
        device = check_device(device)
        model, text_encoder = build_fisa(baseline_of(config), text_cache_path=text_cache_path)
        generator = generator or DefaultGenerator(config, device)
        return cls(
            model.to(device),
            text_encoder.to(device),
            generator=generator,
            templates=templates,
            dtype=dtype,
            compile=compile,
        )

    def segment(
        self,
        image: Picture,
        classes: Sequence[str] | Vocabulary,
        *,
        proposals: MaskProposals | None = None,
        panoptic: PanopticConfig = DEFAULT_PANOPTIC,
    ) -> Segmentation:
        """Labels one picture with these words; the generator proposes masks where none are given."""
        [segmentation] = self.segment_batch(
            [image],
            classes,
            proposals=None if proposals is None else [proposals],
            panoptic=panoptic,
        )
        return segmentation

    def segment_batch(
        self,
        images: Sequence[Picture],
        classes: Sequence[str] | Vocabulary,
        *,
        proposals: Sequence[MaskProposals] | None = None,
        panoptic: PanopticConfig = DEFAULT_PANOPTIC,
    ) -> list[Segmentation]:
        """Labels pictures of any sizes with one vocabulary, in one pass of the model."""
        if isinstance(images, str | Path | Image.Image):
            raise ValueError(f"images is a list of pictures, got {images!r}; use `segment` for one")
        vocabulary = classes if isinstance(classes, Vocabulary) else Vocabulary.from_names(classes)
        arrays = [read_picture(image) for image in images]
        if proposals is None:
            proposals = propose_masks(self.generator, arrays)
        predictions = self.predict(arrays, proposals, self.encode_vocabulary(vocabulary))
        return [
            name_segments(prediction.panoptic(vocabulary.is_thing, panoptic), vocabulary)
            for prediction in predictions
        ]

    @torch.no_grad()
    def encode_vocabulary(self, classes: Sequence[str] | Vocabulary) -> ClassTokens:
        """Words as the model reads them, for any number of pictures."""
        vocabulary = classes if isinstance(classes, Vocabulary) else Vocabulary.from_names(classes)
        named = vocabulary.in_preset(self.preset)
        tokens = self.text_encoder.encode(named, self.templates).to(self.model.device)
        if self.ensemble is None:
            return tokens
        assert self.trained_on is not None
        return dataclasses.replace(tokens, seen=vocabulary.shares_name_with(self.trained_on))

    def predict(
        self,
        images: Sequence[NDArray[np.uint8]],
        proposals: Sequence[MaskProposals],
        class_tokens: ClassTokens,
    ) -> list[Prediction]:
        """RGB images [H, W, 3] of any sizes and their proposals -> one prediction an image."""
        if len(images) == 0:
            return []
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        prepared = self.prepare(proposals, sizes)
        return self.classify(self.encode_images(images), prepared, class_tokens)

    @torch.inference_mode()
    def encode_images(self, images: Sequence[NDArray[np.uint8]]) -> ImageFeatures:
        """The costly half of `predict`: features that serve any vocabulary."""
        clip = self.model.clip
        if len(images) == 0:
            raise ValueError("there are no images to encode; give at least one")
        size, resize, device = self.model.image_size, self.model.resize, self.model.device
        batch = [
            to_clip_input(image, image_size=size, mean=clip.mean, std=clip.std, resize=resize, device=device)
            for image in images
        ]
        with self._autocast():
            features: ImageFeatures = self._encode(torch.stack(batch))
        return features

    @torch.inference_mode()
    def prepare(
        self, proposals: Sequence[MaskProposals], sizes: Sequence[tuple[int, int]]
    ) -> PreparedProposals:
        """The part of `predict` that needs only proposals, of images whose sizes are (H, W)."""
        if len(proposals) != len(sizes):
            raise ValueError(
                f"{len(sizes)} images came with proposals of {len(proposals)}; give one set an image"
            )
        if not proposals:
            raise ValueError("there are no proposals to prepare; give one set an image")
        for masks, size in zip(proposals, sizes, strict=True):
            check_proposals(masks, size)
        device = self.model.device
        side, form = self.model.image_size, self.proposal_form
        frames = [whole_frame(size, side, self.model.resize) for size in sizes]
        logits = [to_tensor(masks.mask_logits).to(device) for masks in proposals]
        scaled = [
            to_model_proposals(of_image, image_size=side, form=form, frame=frame)
            for of_image, frame in zip(logits, frames, strict=True)
        ]
        padded = pad_proposals(scaled)[0]
        with self._autocast():
            adapted = self.model.adapt_masks(padded)
            frozen = None if self.ensemble is None else self.model.adapt_masks(padded, frozen=True)
        if not torch.isfinite(adapted.mask_logits).all():
            raise ValueError(
                "masks after the Distribution Adapter are NaN or infinite; the weights are damaged or "
                "diverged"
            )
        changes = (adapted.mask_logits - padded).float()
        if self.model.adapter.where in ("attention", "nowhere"):
            changes = torch.zeros_like(changes)
        return PreparedProposals(
            adapted,
            frozen,
            [_adapt(*of_image, form) for of_image in zip(logits, changes, frames, strict=True)],
            [to_tensor(masks.scores).to(device) for masks in proposals],
            list(sizes),
        )

    @torch.inference_mode()
    def classify(
        self, features: ImageFeatures, prepared: PreparedProposals, class_tokens: ClassTokens
    ) -> list[Prediction]:
        """The cheap half of `predict`: prepared proposals of encoded images against words."""
        with self._autocast():
            output = self.model.classify(features, prepared.adapted, class_tokens)
            probs = self._class_probs(output, features, prepared.frozen, class_tokens)
        if not torch.isfinite(output.class_logits).all():
            raise ValueError(
                "the model's class logits are NaN or infinite; the weights are damaged or diverged"
            )
        cosines = output.class_logits[..., : class_tokens.num_classes] / self.model.clip.logit_scale
        rows = zip(probs, cosines, prepared.mask_logits, prepared.scores, prepared.sizes, strict=True)
        return [
            Prediction(of_classes[: len(masks)], masks, scores, size, similarity[: len(masks)])
            for of_classes, similarity, masks, scores, size in rows
        ]

    def _class_probs(
        self,
        output: FISAOutput,
        features: ImageFeatures,
        frozen_masks: AdaptedMasks | None,
        class_tokens: ClassTokens,
    ) -> Tensor:
        """[B, Q, K], without void."""
        columns = slice(class_tokens.num_classes)
        probs = output.class_logits.float().softmax(dim=-1)[..., columns]
        if self.ensemble is None:
            return probs
        if class_tokens.seen is None:
            raise ValueError(
                "an ensemble needs class tokens that say what was seen in training; encode the vocabulary "
                "with this predictor's encode_vocabulary"
            )
        if frozen_masks is None:
            raise ValueError(
                "an ensemble needs proposals that are prepared for the frozen CLIP, too; prepare them with "
                "this predictor's prepare"
            )
        logits = self.model.classify_frozen(features, frozen_masks, class_tokens)
        return ensemble(probs, logits.softmax(dim=-1)[..., columns], class_tokens.seen, self.ensemble)

    def _autocast(self) -> torch.autocast:
        lower = self.dtype != torch.float32
        return torch.autocast(
            self.model.device.type, dtype=self.dtype if lower else torch.bfloat16, enabled=lower
        )


def _adapt(masks: Tensor, change: Tensor, frame: Frame, form: ProposalForm | None) -> Tensor:
    """Masks with what the adapter adds to their logits in `form`, at a quarter of the model's frame."""
    change = change[: len(masks)]
    if not change.any():
        return masks
    read = in_form(masks, form)
    adapted = read + unwarp(change, frame, (masks.shape[1], masks.shape[2]))
    # Where a network says more than the form, it is believed as long as the adapter leaves it on its side:
    # between the network's own logits lie finer borders.
    believed = (masks != read) & ((masks >= 0) == (adapted >= 0))
    return torch.where(believed, masks, adapted)
