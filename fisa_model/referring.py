"""Referring segmentation: a sentence in, the one mask out that it means.

The classifier is asked the other way round: not which of the words a mask is, but which mask a sentence is.
The paper's table 3 (f) has figures of such a protocol, but does not describe it. Here an expression takes the
proposal whose embedding is nearest to its own, as training-free methods do (https://arxiv.org/abs/2303.17811),
and SEVE reads the expressions about an image together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fisa_model.mask_generators import MaskProposals, propose_masks
from fisa_model.pictures import Picture, read_picture
from fisa_model.prediction import Prediction
from fisa_model.predictor import FISAPredictor
from fisa_model.text_encoder import ClassTokens
from fisa_model.vocabulary import Category, Vocabulary


@dataclass(frozen=True, slots=True)
class Referent:
    """What an expression is taken to mean."""

    expression: str

    similarity: float
    """Cosine of the mask's embedding and the expression's, -1 to 1; NaN where nothing was proposed."""

    mask: NDArray[np.bool_] = field(repr=False)
    """[H, W]."""


def refer(
    predictor: FISAPredictor,
    image: Picture,
    expressions: Sequence[str],
    *,
    proposals: MaskProposals | None = None,
) -> list[Referent]:
    """The mask that each expression means, such as "the man in red, left"; two may mean the same.

    Raises:
        ValueError: there is no expression, or one is empty or longer than CLIP reads.
    """
    array = read_picture(image)
    [masks] = [proposals] if proposals is not None else propose_masks(predictor.generator, [array])
    [prediction] = predictor.predict([array], [masks], encode_expressions(predictor, expressions))
    return find_referents(prediction, expressions)


def encode_expressions(predictor: FISAPredictor, expressions: Sequence[str]) -> ClassTokens:
    """Each expression as one class, whole: a comma in it parts no synonyms."""
    if isinstance(expressions, str):
        raise ValueError(
            f"expressions must be a list of sentences, got {expressions!r}; write [{expressions!r}]"
        )
    if not expressions:
        raise ValueError("there are no expressions; give at least one sentence")
    for number, text in enumerate(expressions, start=1):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"expression {number} is {text!r}; give a sentence")
    return predictor.encode_vocabulary(
        Vocabulary(tuple(Category(k, text) for k, text in enumerate(expressions, start=1)))
    )


def find_referents(prediction: Prediction, expressions: Sequence[str]) -> list[Referent]:
    """The nearest mask of each expression, from a prediction over `encode_expressions` of them."""
    similarities = prediction.similarities
    if similarities is None or similarities.shape[1] != len(expressions):
        raise ValueError(
            f"a prediction over these {len(expressions)} expressions is needed; classify with what "
            "encode_expressions makes of them"
        )
    if not len(similarities):
        nothing = np.zeros(prediction.size, dtype=np.bool_)
        return [Referent(expression, float("nan"), nothing) for expression in expressions]
    nearest, places = similarities.max(dim=0)
    found = zip(expressions, nearest.tolist(), prediction.masks(places), strict=True)
    return [Referent(expression, similarity, mask) for expression, similarity, mask in found]
