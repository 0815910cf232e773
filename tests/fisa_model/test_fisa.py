"""The whole classifier: classes, vocabularies and empty masks."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fisa_model.fisa import FISA, class_logits
from fisa_model.text_encoder import ClassTokens, TextEncoder
from fisa_model.vocabulary import Vocabulary


def test_one_column_a_class_and_one_for_void(
    model: FISA, images: Tensor, proposals: Tensor, class_tokens: ClassTokens
) -> None:
    output = model(images, proposals, class_tokens)
    assert output.class_logits.shape == (2, 5, 4 + 1)
    assert output.mask_logits.shape == proposals.shape


def test_a_class_scores_by_its_best_name(class_tokens: ClassTokens) -> None:
    embeddings = F.normalize(torch.randn(1, 2, 24), dim=-1)
    rows = 50.0 * embeddings @ class_tokens.classifier.T
    expected = torch.stack(
        [rows[..., 0], rows[..., 1], rows[..., 2:4].amax(-1), rows[..., 4], rows[..., 5]], dim=-1
    )
    torch.testing.assert_close(class_logits(embeddings, class_tokens, 50.0), expected)


def test_permuting_classes_permutes_logits(
    model: FISA, images: Tensor, proposals: Tensor, text_encoder: TextEncoder
) -> None:
    names = ["cat", "dog", "sofa,couch"]
    logits = model(images, proposals, encode(text_encoder, names)).class_logits
    turned = model(images, proposals, encode(text_encoder, names[::-1])).class_logits
    torch.testing.assert_close(turned, logits.flip(-1), atol=1e-4, rtol=0)


def test_any_vocabulary_fits_the_same_weights(
    model: FISA, images: Tensor, proposals: Tensor, text_encoder: TextEncoder
) -> None:
    features, masks = model.encode_images(images), model.adapt_masks(proposals)
    for size in (1, 133, 847):
        tokens = encode(text_encoder, [f"thing {k}" for k in range(size)])
        assert model.classify(features, masks, tokens).class_logits.shape == (2, 5, size)


def encode(text_encoder: TextEncoder, names: list[str]) -> ClassTokens:
    return text_encoder.encode(Vocabulary.from_names(names), ("{}",))


def test_features_are_reused_exactly(
    model: FISA, images: Tensor, proposals: Tensor, class_tokens: ClassTokens
) -> None:
    features = model.encode_images(images)
    assert torch.equal(
        model.classify(features, model.adapt_masks(proposals), class_tokens).class_logits,
        model(images, proposals, class_tokens).class_logits,
    )


def test_empty_masks_are_all_the_same_and_finite(
    model: FISA, images: Tensor, class_tokens: ClassTokens
) -> None:
    logits = model(images, torch.full((2, 3, 4, 4), -1.0), class_tokens).class_logits
    assert torch.isfinite(logits).all()
    # Rows of one matrix product may differ in the last bit, where its blocks meet.
    torch.testing.assert_close(logits[:, 1], logits[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits[:, 2], logits[:, 0], rtol=0, atol=1e-5)


def test_no_proposals_give_no_rows(model: FISA, images: Tensor, class_tokens: ClassTokens) -> None:
    output = model(images, torch.zeros(2, 0, 4, 4), class_tokens)
    assert output.class_logits.shape == (2, 0, 5)


def test_refuses_class_tokens_of_another_clip(
    model: FISA, images: Tensor, proposals: Tensor, class_tokens: ClassTokens
) -> None:
    narrow = dataclasses.replace(class_tokens, classifier=class_tokens.classifier[:, :20])
    with pytest.raises(ValueError, match="class tokens are 20 wide, this model's are 24"):
        model(images, proposals, narrow)


def test_bfloat16_points_the_same_way_and_names_the_same_classes(trained: FISA, images: Tensor) -> None:
    """200 masks an image; where two of 133 classes are nearly as good, either may win."""
    generator = torch.Generator().manual_seed(6)
    proposals = torch.randn(2, 200, 4, 4, generator=generator) - 1.5
    words = F.normalize(torch.randn(24, 24, generator=generator), dim=-1)
    # Logits of these are the embeddings themselves.
    axes = ClassTokens(torch.eye(24), torch.arange(24), words)
    exact = trained(images, proposals, axes).class_logits / trained.clip.logit_scale
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = trained(images, proposals, axes).class_logits / trained.clip.logit_scale
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert F.cosine_similarity(exact, rough, dim=-1).min() > 0.999
    classes = F.normalize(torch.randn(133, 24, generator=generator), dim=-1).T
    best = (exact @ classes).topk(2, dim=-1).values
    clear = best[..., 0] - best[..., 1] > 0.01
    same = (exact @ classes).argmax(-1) == (rough @ classes).argmax(-1)
    assert clear.float().mean() > 0.5
    assert same[clear].float().mean() > 0.99
