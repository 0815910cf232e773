"""CLIP's text tower as a classifier: a vocabulary in, class tokens out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fisa_model.text_cache import TextCache
from fisa_model.vocabulary import Vocabulary

PROMPTS_PER_BATCH = 128
KEPT_NAMES = 20_000
"""Names whose embeddings are kept for the next vocabulary; 60 MB at a width of 768."""

Tokenizer = Callable[[list[str]], Tensor]


@dataclass(frozen=True, slots=True)
class ClassTokens:
    """A vocabulary in the space of images and texts."""

    classifier: Tensor
    """[R, D] unit rows: one a name (a class has one for each synonym)."""

    class_index: Tensor
    """[R], which class a row belongs to; `num_classes` for the row of void."""

    targets: Tensor
    """[K, D] unit rows: one a class, what SEVE reads."""

    void: bool = False
    """Whether the classifier has a row for "none of these", which SEVE never sees."""

    seen: tuple[bool, ...] | None = None
    """For each class, whether training had a name of it; only for an ensemble with the frozen CLIP."""

    @property
    def num_classes(self) -> int:
        return len(self.targets)

    @property
    def num_columns(self) -> int:
        """Columns of the class logits."""
        return self.num_classes + self.void

    def select(self, classes: Tensor) -> "ClassTokens":
        """The vocabulary of these class indices [k] alone, in their order; void stays, the last one."""
        place = self.class_index.new_full((self.num_columns,), -1)
        place[classes] = torch.arange(len(classes), device=place.device)
        place[self.num_classes :] = len(classes)
        owners, rows = place[self.class_index].sort(stable=True)
        rows = rows[owners >= 0]
        return ClassTokens(
            classifier=self.classifier[rows],
            class_index=owners[owners >= 0],
            targets=self.targets[classes],
            void=self.void,
            seen=None if self.seen is None else tuple(self.seen[i] for i in classes.tolist()),
        )

    def to(self, device: torch.device | str) -> "ClassTokens":
        return replace(
            self,
            classifier=self.classifier.to(device),
            class_index=self.class_index.to(device),
            targets=self.targets.to(device),
        )


def _fields_of(template: str) -> list[str]:
    """Names of the replacement fields of a format string; `{}` has an empty one."""
    return [field for _, field, _, _ in Formatter().parse(template) if field is not None]


class TextEncoder:
    """The text tower of a CLIP, which keeps what it encodes in memory and in a cache if given one.

    Where it `learns` nothing is kept: it would be of other weights after the next step.
    """

    def __init__(
        self, clip: Any, tokenizer: Tokenizer, cache: TextCache | None = None, *, learns: bool = False
    ) -> None:
        self.clip = clip
        self.tokenizer = tokenizer
        self.cache = None if learns else cache
        self.learns = learns
        self._rows: dict[tuple[str, tuple[str, ...]], Tensor] = {}

    def to(self, device: torch.device | str) -> "TextEncoder":
        """This encoder, its tower moved to a device; the image tower, which it does not use, is left."""
        visual = self.clip.visual
        # Weights of some image towers are copied for the mask classifier: a GPU would hold them twice.
        del self.clip.visual
        self.clip.to(device)
        self.clip.visual = visual
        self._rows = {}
        return self

    def encode(
        self, vocabulary: Vocabulary, templates: tuple[str, ...], void: str | None = None
    ) -> ClassTokens:
        """Encodes every name in every template.

        A name's row is the mean over its templates, as in FC-CLIP; a class is scored by its best name, and
        read by SEVE as the mean of its names. `void` adds one more row to the classifier, as class index K.
        """
        if isinstance(templates, str) or not templates:
            raise ValueError(
                f"prompt templates must be sentences with {{}} for the class name, got {templates!r}; "
                "get_templates('vild') has some"
            )
        if bad := [template for template in templates if _fields_of(template) != [""]]:
            raise ValueError(f"prompt template {bad[0]!r} must have one {{}} for the class name")
        owners = [k for k, category in enumerate(vocabulary.categories) for _ in category.prompt_names]
        names = [name for category in vocabulary.categories for name in category.prompt_names]
        if void is not None:
            owners, names = [*owners, len(vocabulary)], [*names, void]
        rows = self._encode_names(names, templates)
        class_index = torch.tensor(owners, device=rows.device)
        sums = rows.new_zeros(len(vocabulary) + (void is not None), rows.shape[1])
        targets = F.normalize(sums.index_add(0, class_index, rows), dim=-1)[: len(vocabulary)]
        return ClassTokens(rows, class_index, targets, void is not None)

    def _encode_names(self, names: Sequence[str], templates: tuple[str, ...]) -> Tensor:
        """-> [R, D] unit rows, each the mean over the templates."""
        if self.learns:
            return self._encode(names, templates)
        kept = self._rows  # another thread may put a new one in its place
        known = {name: row for name in names if (row := kept.get((name, templates))) is not None}
        if any(name not in known for name in names):
            known = self._look_up(list(dict.fromkeys(names)), templates, known)
            if len(kept) > KEPT_NAMES:
                self._rows = kept = {}
            kept.update({(name, templates): row for name, row in known.items()})
        return torch.stack([known[name] for name in names])

    def _look_up(
        self, names: list[str], templates: tuple[str, ...], known: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The rows of all names, from the cache or else encoded, but for those that are known."""
        cached = None if self.cache is None else self.cache.read(names, templates)
        if cached is not None:
            # Each in memory of its own: a row of the file would hold all of it.
            cached = cached.to(self.clip.logit_scale.device)
            return {name: row.clone() for name, row in zip(names, cached, strict=True)}
        new = [name for name in names if name not in known]
        with torch.no_grad():
            rows = {**known, **dict(zip(new, self._encode(new, templates), strict=True))}
        if self.cache is not None:
            self.cache.write(names, templates, torch.stack([rows[name] for name in names]))
        return rows

    def _encode(self, names: Sequence[str], templates: tuple[str, ...]) -> Tensor:
        """-> [R, D], without looking at what is kept."""
        prompts = [template.format(name) for name in names for template in templates]
        device = self.clip.logit_scale.device
        batches = [prompts[i : i + PROMPTS_PER_BATCH] for i in range(0, len(prompts), PROMPTS_PER_BATCH)]
        features = [self._encode_prompts(self._tokenize(batch).to(device)) for batch in batches]
        embeddings = F.normalize(torch.cat(features), dim=-1).view(len(names), len(templates), -1)
        return F.normalize(embeddings.mean(dim=1), dim=-1)

    def _tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Raises ValueError for a prompt that fills up the tokens that CLIP reads: its end may be cut."""
        tokens = self.tokenizer(list(prompts))
        context_length = tokens.shape[1]
        for prompt, row in zip(prompts, tokens, strict=True):
            # A token is a byte or more, so a short prompt needs no look.
            if len(prompt.encode()) < context_length - 2:
                continue
            if torch.equal(self.tokenizer([f"{prompt} a"])[0], row):
                raise ValueError(
                    f"the prompt {prompt!r} is too long: it fills the {context_length} tokens that this CLIP "
                    "reads, so that its end may be cut; shorten the class name"
                )
        return tokens

    def _encode_prompts(self, tokens: Tensor) -> Tensor:
        """[N, 77] -> [N, D], not normalised."""
        if self.learns and torch.is_grad_enabled():
            # COCO's 3,360 prompts would keep 100 GB of ViT-L/14's text tower for the backward pass, in bf16;
            # so each batch is encoded there again.
            encoded: Tensor = checkpoint(self.clip.encode_text, tokens, use_reentrant=False)
        else:
            encoded = self.clip.encode_text(tokens)
        return encoded.float()
