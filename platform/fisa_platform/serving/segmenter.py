"""The model behind the service: several pictures, each with its own words, in one pass."""

import dataclasses
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache
from numpy.typing import NDArray

from fisa_model.config import PanopticConfig
from fisa_model.device import default_device
from fisa_model.mask_generators import GeneratorName, Precision, load_mask_generator, propose_masks
from fisa_model.predictor import FISAPredictor, PreparedProposals
from fisa_model.segmentation import Segmentation, name_segments
from fisa_model.visual_encoder import ImageFeatures
from fisa_model.vocabulary import Vocabulary
from fisa_platform.classifier import ClassifierConfig, load_predictor
from fisa_platform.job import to_json
from fisa_platform.serving.schemas import ModelInfo


@dataclass(frozen=True, slots=True)
class Question:
    """What one request asks."""

    image: NDArray[np.uint8]
    """[H, W, 3], RGB."""

    digest: str
    """SHA-256 of the picture's file, by which a picture that comes again is known."""

    vocabulary: Vocabulary
    panoptic: PanopticConfig


@dataclass(frozen=True, slots=True)
class EncodedPicture:
    """All of one picture that does not depend on words: nearly all of the work."""

    features: ImageFeatures
    proposals: PreparedProposals


class Segmenter:
    """Answers questions in batches: generator and image trunk run once for all pictures that are new."""

    def __init__(self, predictor: FISAPredictor, info: ModelInfo, *, kept_bytes: int = 0) -> None:
        """`kept_bytes` is the room for pictures that are kept, those asked about last, for further words."""
        self.predictor = predictor
        self.info = info
        self._lock = threading.Lock()
        self.kept: LRUCache[str, EncodedPicture] = LRUCache(kept_bytes, getsizeof=_tensor_bytes)

    def __call__(self, questions: Sequence[Question]) -> list[Segmentation | ValueError]:
        """The answers; an error where a question's words cannot be read, which is not the others' fault."""
        rows: dict[str, list[int]] = {}
        for row, question in enumerate(questions):
            rows.setdefault(question.digest, []).append(row)
        images = {digest: questions[of_picture[0]].image for digest, of_picture in rows.items()}
        answers: dict[int, Segmentation | ValueError] = {}
        # Ray Serve may split a batch and call for its parts at once.
        with self._lock:
            for digest, picture in self._encode(images):
                answers |= {row: self._answer(questions[row], picture) for row in rows[digest]}
        return [answers[row] for row in range(len(questions))]

    def _encode(self, images: Mapping[str, NDArray[np.uint8]]) -> Iterator[tuple[str, EncodedPicture]]:
        """Digests and pictures, one after the other, so that masks of one picture are held at a time."""
        new: dict[str, NDArray[np.uint8]] = {}
        for digest, image in images.items():
            kept = self.kept.get(digest)
            if kept is None:
                new[digest] = image
            else:
                yield digest, kept
        if not new:
            return
        proposals = propose_masks(self.predictor.generator, list(new.values()))
        features = self.predictor.encode_images(list(new.values()))
        for row, ((digest, image), masks) in enumerate(zip(new.items(), proposals, strict=True)):
            height, width, _ = image.shape
            prepared = self.predictor.prepare([masks], [(height, width)])
            picture = EncodedPicture(_image_row(features, row), prepared)
            yield digest, picture
            self._keep(digest, picture)

    def _keep(self, digest: str, picture: EncodedPicture) -> None:
        size = _tensor_bytes(picture)
        if size > self.kept.maxsize:
            return
        while self.kept.currsize + size > self.kept.maxsize:
            self.kept.popitem()  # before the copy, so that both are never held
        self.kept[digest] = _copy(picture)

    def _answer(self, question: Question, picture: EncodedPicture) -> Segmentation | ValueError:
        try:
            words = self.predictor.encode_vocabulary(question.vocabulary)
        except ValueError as error:
            return error
        (prediction,) = self.predictor.classify(picture.features, picture.proposals, words)
        result = prediction.panoptic(question.vocabulary.is_thing, question.panoptic)
        return name_segments(result, question.vocabulary)


def load_segmenter(
    classifier: ClassifierConfig,
    generator: GeneratorName,
    generator_weights: str | None = None,
    generator_size: tuple[int, int] | None = None,
    *,
    generator_precision: Precision = "fp32",
    kept_bytes: int = 0,
) -> Segmenter:
    """Loads generator and classifier on this worker's device."""
    device = default_device()
    masks = load_mask_generator(
        generator,
        weights=generator_weights,
        size=generator_size,
        device=device,
        precision=generator_precision,
    )
    # Requests bring words that may never come again, which a cache on disk would keep for ever.
    predictor = load_predictor(classifier, masks, caches_words=False)
    info = ModelInfo(
        classifier=to_json(classifier),
        clip_digest=predictor.model.clip.digest,
        image_size=predictor.model.image_size,
        templates=list(predictor.templates),
        generator=generator,
        device=device,
    )
    return Segmenter(predictor, info, kept_bytes=kept_bytes)


def _image_row(features: ImageFeatures, row: int) -> ImageFeatures:
    """The features of one image of a batch."""
    here = slice(row, row + 1)
    return ImageFeatures(
        features.cls_token[here], [keys[here] for keys in features.keys], [v[here] for v in features.values]
    )


def _copy(picture: EncodedPicture) -> EncodedPicture:
    """The picture in memory of its own, where a row of a batch would hold that of the whole batch."""
    features, proposals = picture.features, picture.proposals
    return EncodedPicture(
        ImageFeatures(
            features.cls_token.clone(),
            [keys.clone() for keys in features.keys],
            [values.clone() for values in features.values],
        ),
        dataclasses.replace(proposals, mask_logits=[masks.clone() for masks in proposals.mask_logits]),
    )


def _tensor_bytes(value: Any) -> int:
    """Memory of all tensors that a value is made of."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if dataclasses.is_dataclass(value):
        return sum(_tensor_bytes(getattr(value, member.name)) for member in dataclasses.fields(value))
    return sum(map(_tensor_bytes, value)) if isinstance(value, list | tuple) else 0
