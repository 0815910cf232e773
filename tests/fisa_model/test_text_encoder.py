"""Names and templates as rows of a classifier."""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fisa_model.fisa import class_logits
from fisa_model.text_encoder import TextEncoder
from fisa_model.vocabulary import Category, Vocabulary, get_templates


def embed(clip: Any, prompts: list[str], encoder: TextEncoder) -> Tensor:
    return clip.encode_text(encoder.tokenizer(prompts), normalize=True)


def test_a_row_is_the_mean_over_templates(clip: Any, text_encoder: TextEncoder) -> None:
    templates = get_templates("vild")
    tokens = text_encoder.encode(Vocabulary.from_names(["cat", "traffic light"]), templates)
    for row, name in zip(tokens.classifier, ["cat", "traffic light"], strict=True):
        rows = embed(clip, [template.format(name) for template in templates], text_encoder)
        torch.testing.assert_close(row, F.normalize(rows.mean(0), dim=0), atol=1e-6, rtol=0)


def test_equals_open_clips_own_classifier(clip: Any, text_encoder: TextEncoder) -> None:
    names, templates = ["cat", "sofa", "traffic light"], get_templates("vild")
    with torch.no_grad():
        expected = open_clip.build_zero_shot_classifier(
            clip,
            text_encoder.tokenizer,
            names,
            [lambda name, template=template: template.format(name) for template in templates],
        ).T
    tokens = text_encoder.encode(Vocabulary.from_names(names), templates)
    torch.testing.assert_close(tokens.classifier, expected, atol=1e-6, rtol=0)


def test_synonyms_have_rows_and_share_a_target(text_encoder: TextEncoder) -> None:
    vocabulary = Vocabulary((Category(1, "sofa", synonyms=("couch",)), Category(2, "cat")))
    tokens = text_encoder.encode(vocabulary, ("{}",))
    assert tokens.class_index.tolist() == [0, 0, 1]
    assert tokens.num_classes == 2
    mean = F.normalize(tokens.classifier[:2].mean(0), dim=0)
    torch.testing.assert_close(tokens.targets[0], mean)
    torch.testing.assert_close(tokens.targets[1], tokens.classifier[2])
    torch.testing.assert_close(tokens.targets.norm(dim=1), torch.ones(2))


def test_a_class_scores_by_its_best_name(text_encoder: TextEncoder) -> None:
    vocabulary = Vocabulary((Category(1, "sofa", synonyms=("couch", "settee")), Category(2, "cat")))
    tokens = text_encoder.encode(vocabulary, get_templates("vild"))
    images = F.normalize(torch.randn(1, 40, 24, generator=torch.Generator().manual_seed(5)), dim=-1)
    each = 100 * images @ tokens.classifier.T
    expected = torch.stack([each[..., :3].max(-1).values, each[..., 3]], dim=-1)
    torch.testing.assert_close(class_logits(images, tokens, 100.0), expected)
    assert len(each[..., :3].argmax(-1).unique()) == 3


def test_void_is_classified_but_never_read_by_seve(text_encoder: TextEncoder) -> None:
    tokens = text_encoder.encode(Vocabulary.from_names(["cat"]), ("{}",), void="other")
    assert tokens.class_index.tolist() == [0, 1]
    assert (tokens.num_classes, tokens.num_columns, len(tokens.targets)) == (1, 2, 1)


def test_names_are_encoded_once(text_encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    tokenizer = text_encoder.tokenizer
    text_encoder.tokenizer = lambda prompts: asked.extend(prompts) or tokenizer(prompts)  # type: ignore[func-returns-value]
    first = text_encoder.encode(Vocabulary.from_names(["cat", "dog"]), ("a {}",))
    second = text_encoder.encode(Vocabulary.from_names(["dog", "cow"]), ("a {}",))
    assert asked == ["a cat", "a dog", "a cow"]
    assert torch.equal(first.classifier[1], second.classifier[0])


def test_threads_may_encode_while_another_makes_room(
    text_encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fisa_model.text_encoder.KEPT_NAMES", 20)
    expected = {
        k: text_encoder.encode(Vocabulary.from_names([f"w{k}"]), ("{}",)).classifier for k in range(30)
    }

    def encode(start: int) -> None:
        for first in range(start, start + 20):
            chosen = [(first + k) % 30 for k in range(8)]
            tokens = text_encoder.encode(Vocabulary.from_names([f"w{k}" for k in chosen]), ("{}",))
            alone = torch.cat([expected[k] for k in chosen])
            torch.testing.assert_close(tokens.classifier, alone, atol=1e-5, rtol=1e-5)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(encode, range(0, 28, 7)))


def test_long_vocabularies_go_in_batches(text_encoder: TextEncoder) -> None:
    names = [f"thing {k}" for k in range(300)]
    tokens = text_encoder.encode(Vocabulary.from_names(names), ("{}",))
    alone = text_encoder.encode(Vocabulary.from_names(["thing 299"]), ("{}",))
    assert tokens.classifier.shape == (300, 24)
    assert torch.equal(tokens.classifier[299], alone.classifier[0])


def test_what_learns_is_encoded_anew(clip: Any, text_encoder: TextEncoder) -> None:
    learning = TextEncoder(copy.deepcopy(clip), text_encoder.tokenizer, learns=True)
    words = Vocabulary.from_names(["cat", "dog"])
    with torch.no_grad():
        before = learning.encode(words, ("{}",)).classifier
        learning.clip.text_projection.mul_(torch.linspace(-1, 1, learning.clip.text_projection.shape[1]))
        after = learning.encode(words, ("{}",)).classifier
    assert not torch.allclose(before, after, atol=1e-2)


def test_a_name_that_may_be_cut_is_refused(text_encoder: TextEncoder) -> None:
    # A digit is a token and a byte, and a text has two tokens more.
    context_length = text_encoder.tokenizer([""]).shape[1]
    fits, fills, cut = ("1" * (context_length - count) for count in (3, 2, 1))
    text_encoder.encode(Vocabulary.from_names([fits]), ("{}",))
    for name in (fills, cut):
        with pytest.raises(ValueError, match=rf"1' is too long: it fills the {context_length} tokens that"):
            text_encoder.encode(Vocabulary.from_names(["dog", name]), ("{}",))


@pytest.mark.parametrize("template", ["a {} and a {}", "{} {a}", "{0}", "a"])
def test_a_template_has_one_place(text_encoder: TextEncoder, template: str) -> None:
    with pytest.raises(ValueError, match=r"must have one \{\} for the class name"):
        text_encoder.encode(Vocabulary.from_names(["cat"]), (template,))


@pytest.mark.parametrize("templates", ["a photo of a {}", ()])
def test_templates_are_sentences(text_encoder: TextEncoder, templates: Any) -> None:
    with pytest.raises(ValueError, match=r"prompt templates must be sentences with \{\} .* get_templates"):
        text_encoder.encode(Vocabulary.from_names(["cat"]), templates)


def test_a_template_without_a_place_is_refused(text_encoder: TextEncoder) -> None:
    with pytest.raises(ValueError, match=r"must have one \{\} for the class name"):
        text_encoder.encode(Vocabulary.from_names(["cat"]), ("a photo",))
