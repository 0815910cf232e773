"""A sentence in, the mask out that it means."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fisa_model.fisa import FISA
from fisa_model.mask_generators import MaskProposals
from fisa_model.predictor import FISAPredictor
from fisa_model.referring import encode_expressions, find_referents, refer
from fisa_model.text_encoder import TextEncoder
from fisa_model.vocabulary import Vocabulary

SENTENCES = ["the man, in red", "a dog on the left", "the man, in red"]


def quarters(image: NDArray[np.uint8]) -> MaskProposals:
    """A generator that cuts every picture in four columns."""
    height, width = image.shape[:2]
    owner = np.arange(width) * 4 // width
    logits = np.where(owner == np.arange(4)[:, None], 10.0, -10.0).astype(np.float32)
    return MaskProposals(logits[:, None].repeat(height, axis=1), np.ones(4, np.float32))


@pytest.fixture
def predictor(model: FISA, text_encoder: TextEncoder) -> FISAPredictor:
    return FISAPredictor(model, text_encoder, generator=quarters)


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (12, 24, 3), dtype=np.uint8)


def test_each_expression_takes_the_nearest_mask(predictor: FISAPredictor, image: NDArray[np.uint8]) -> None:
    tokens = encode_expressions(predictor, SENTENCES)
    features, prepared = predictor.encode_images([image]), predictor.prepare([quarters(image)], [(12, 24)])
    guide = predictor.model.seve.guide(tokens.targets)
    with torch.no_grad():
        [embeddings] = predictor.model.visual_encoder.embed_masks(features, prepared.adapted.bias, guide)
    cosines = embeddings @ tokens.classifier.T
    found = refer(predictor, image, SENTENCES)
    assert [referent.expression for referent in found] == SENTENCES
    for place, referent in enumerate(found):
        assert referent.similarity == pytest.approx(float(cosines[:, place].max()), abs=1e-5)
        meant = quarters(image).mask_logits[int(cosines[:, place].argmax())] > 0
        assert np.array_equal(referent.mask, meant)


def test_another_expression_decides_nothing_where_nothing_reads_the_words(
    predictor: FISAPredictor, image: NDArray[np.uint8]
) -> None:
    """Over classes a softmax would make them compete: here it is masks that compete."""
    predictor.model.seve = None
    [alone] = refer(predictor, image, SENTENCES[:1])
    among = refer(predictor, image, [*SENTENCES, "sky"])[0]
    assert np.array_equal(alone.mask, among.mask)
    assert alone.similarity == pytest.approx(among.similarity, abs=1e-5)


def test_a_comma_parts_no_synonyms(predictor: FISAPredictor) -> None:
    tokens = encode_expressions(predictor, SENTENCES)
    assert len(tokens.classifier) == len(tokens.targets) == 3
    synonyms = predictor.encode_vocabulary(Vocabulary.from_names(["the man, in red"]))
    assert len(synonyms.classifier) == 2


def test_without_a_proposal_nothing_is_meant(predictor: FISAPredictor, image: NDArray[np.uint8]) -> None:
    nothing = MaskProposals(np.zeros((0, 12, 24), np.float32), np.zeros(0, np.float32))
    [referent] = refer(predictor, image, ["the man"], proposals=nothing)
    assert math.isnan(referent.similarity)
    assert referent.mask.shape == (12, 24) and not referent.mask.any()


def test_mistakes_are_named(predictor: FISAPredictor, image: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"must be a list of sentences, got 'a man'; write \['a man'\]"):
        refer(predictor, image, "a man")
    with pytest.raises(ValueError, match="no expressions; give at least one"):
        refer(predictor, image, [])
    with pytest.raises(ValueError, match="expression 2 is ' '; give a sentence"):
        refer(predictor, image, ["a man", " "])
    with pytest.raises(ValueError, match="is too long"):
        refer(predictor, image, ["the man " * 30])
    [prediction] = predictor.predict([image], [quarters(image)], encode_expressions(predictor, SENTENCES))
    with pytest.raises(ValueError, match="a prediction over these 1 expressions is needed"):
        find_referents(prediction, ["a man"])
