"""SEVE, Semantic-guided Visual Encoding: mask tokens attend to class tokens before they look at the image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from fisa_model.config import SEVEConfig
from fisa_model.visual_encoder import split_heads


@dataclass(frozen=True, slots=True)
class ClassKeys:
    """Keys [1, heads, K, query_width / heads] and values [1, heads, K, C / heads] of K class tokens."""

    keys: Tensor
    values: Tensor


# Equations 3 and 4 of https://arxiv.org/abs/2409.16278v2.
class SemanticExtraction(nn.Module):
    """Mask tokens ask class tokens: one multi-head attention without output projection."""

    def __init__(self, *, width: int, text_width: int, query_width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"seve.heads must divide the encoder's width {width}, got {heads}")
        self.heads = heads
        self.query = nn.Linear(width, query_width)
        self.key = nn.Linear(text_width, query_width)
        self.value = nn.Linear(text_width, width)

    def encode_classes(self, class_tokens: Tensor) -> ClassKeys:
        """[K, D] -> what mask tokens attend to; computed once for a vocabulary."""
        rows = class_tokens.unsqueeze(0)
        return ClassKeys(split_heads(self.key(rows), self.heads), split_heads(self.value(rows), self.heads))

    def forward(self, tokens: Tensor, classes: ClassKeys) -> Tensor:
        """[B, Q, C] -> [B, Q, C], a mixture of the class tokens' values for each mask token."""
        # All images share the vocabulary, so their tokens are one long row of queries.
        queries = split_heads(self.query(tokens).flatten(0, 1).unsqueeze(0), self.heads)
        answer = F.scaled_dot_product_attention(queries, classes.keys, classes.values)
        return answer.transpose(1, 2).reshape(tokens.shape)


class SEVE(nn.Module):
    """Semantic extraction in front of a layer's query projection, by default of every layer's."""

    def __init__(self, config: SEVEConfig, *, width: int, text_width: int, layers: int) -> None:
        super().__init__()
        self.config = config
        self.layers = layers if config.first_layers is None else config.first_layers
        if not config.groups <= self.layers <= layers:
            raise ValueError(
                f"seve.groups ({config.groups}) and seve.first_layers ({config.first_layers}) must be at "
                f"most the encoder's {layers} layers"
            )
        self.extractions = nn.ModuleList(
            SemanticExtraction(
                width=width, text_width=text_width, query_width=config.query_width, heads=config.heads
            )
            for _ in range(config.groups)
        )
        self._initialise(config.init)

    def _initialise(self, init: Literal["zero", "random"]) -> None:
        for extraction in self._extractions():
            for linear in (extraction.query, extraction.key, extraction.value):
                nn.init.xavier_uniform_(linear.weight)
                nn.init.zeros_(linear.bias)
            # A zero matrix, not a zero gate: AdamW moves every weight by about the learning rate, so a matrix
            # of D inputs is felt after some hundred steps, a scalar is not.
            if init == "zero":
                nn.init.zeros_(extraction.value.weight)

    def _extractions(self) -> list[SemanticExtraction]:
        return [module for module in self.extractions if isinstance(module, SemanticExtraction)]

    def guide(self, class_tokens: Tensor) -> "SemanticGuide":
        """Binds a vocabulary, [K, D] unit rows."""
        if self.config.token_norm:
            class_tokens = F.layer_norm(class_tokens, class_tokens.shape[-1:])
        extractions = self._extractions()
        classes = [extraction.encode_classes(class_tokens) for extraction in extractions]
        groups = [layer * len(extractions) // self.layers for layer in range(self.layers)]
        return SemanticGuide(
            [extractions[group] for group in groups],
            [classes[group] for group in groups],
            self.config.residual,
        )


@dataclass(frozen=True, slots=True)
class SemanticGuide:
    """SEVE of the layers that have it, bound to the class tokens of one vocabulary."""

    extractions: list[SemanticExtraction]
    """One a layer, from the first layer on."""

    classes: list[ClassKeys]
    residual: Literal["query", "replace", "stream"]

    def __call__(self, layer: int, tokens: Tensor, norm: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Tokens [B, Q, C] -> the tokens to go on with, and the input of their query projection."""
        normed = norm(tokens)
        if layer >= len(self.extractions):
            return tokens, normed
        answer: Tensor = self.extractions[layer](normed, self.classes[layer])
        if self.residual == "replace":
            return tokens, answer
        if self.residual == "stream":
            tokens = tokens + answer
            return tokens, norm(tokens)
        # Words reach the query only: they steer where a mask token looks, and cannot be copied to the output.
        return tokens, normed + answer
