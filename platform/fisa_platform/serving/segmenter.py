"""The model behind the service: several pictures, each with its own words, in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fisa_model.config import PanopticConfig
from fisa_model.device import default_device
from fisa_model.mask_generators import GeneratorName, load_mask_generator, propose_masks
from fisa_model.predictor import FISAPredictor
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

    vocabulary: Vocabulary
    panoptic: PanopticConfig


class Segmenter:
    """Answers questions in batches: the image trunk, nearly all of the work, runs once for all pictures."""

    def __init__(self, predictor: FISAPredictor, info: ModelInfo) -> None:
        self.predictor = predictor
        self.info = info

    def __call__(self, questions: Sequence[Question]) -> list[Segmentation]:
        images = [question.image for question in questions]
        proposals = propose_masks(self.predictor.generator, images)
        features = self.predictor.encode_images(images)
        answers = []
        for row, (question, masks) in enumerate(zip(questions, proposals, strict=True)):
            height, width, _ = question.image.shape
            (prediction,) = self.predictor.classify(
                _image_row(features, row),
                self.predictor.prepare([masks], [(height, width)]),
                self.predictor.encode_vocabulary(question.vocabulary),
            )
            result = prediction.panoptic(question.vocabulary.is_thing, question.panoptic)
            answers.append(name_segments(result, question.vocabulary))
        return answers


def load_segmenter(
    classifier: ClassifierConfig,
    generator: GeneratorName,
    generator_weights: str | None = None,
    generator_size: tuple[int, int] | None = None,
) -> Segmenter:
    """Loads generator and classifier on this worker's device."""
    device = default_device()
    masks = load_mask_generator(generator, weights=generator_weights, size=generator_size, device=device)
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
    return Segmenter(predictor, info)


def _image_row(features: ImageFeatures, row: int) -> ImageFeatures:
    """The features of one image of a batch."""
    here = slice(row, row + 1)
    return ImageFeatures(
        features.cls_token[here], [keys[here] for keys in features.keys], [v[here] for v in features.values]
    )
