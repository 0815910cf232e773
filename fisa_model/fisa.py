"""FISA, the mask classifier: images, mask proposals and class tokens in, a class for every mask out.

Shape letters, here and in the whole package: B images, Q proposals, P patches, K classes, R classifier rows
(one for each name of a class), C width of the encoder, D width of the space of images and texts, S side of
the square input, H W original pixels, N ground-truth segments. (The paper's m, n, t are Q, P, K.)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fisa_model.clip_weights import UNKNOWN_CLIP, CLIPFacts, LoadedCLIP, load_clip, read_architecture
from fisa_model.config import FISAConfig, Resize, Trained
from fisa_model.image_tower import ImageTower
from fisa_model.lora import add_lora
from fisa_model.mask_attention import DistributionAdapter, attention_bias
from fisa_model.seve import SEVE
from fisa_model.simo import count_trainable, freeze
from fisa_model.text_cache import TextCache
from fisa_model.text_encoder import ClassTokens, TextEncoder
from fisa_model.visual_encoder import ImageFeatures, MaskTokenEncoder


@dataclass(frozen=True, slots=True)
class FISAOutput:
    class_logits: Tensor
    """[B, Q, K], or [B, Q, K + 1] where the class tokens have a void row (the last column)."""

    mask_logits: Tensor
    """[B, Q, h, w], the proposals after the Distribution Adapter, whatever `AdapterConfig.where` says."""


@dataclass(frozen=True, slots=True)
class AdaptedMasks:
    """Proposals as mask tokens look through them; it depends on neither words nor pixels."""

    mask_logits: Tensor
    """[B, Q, h, w], the proposals after the Distribution Adapter."""

    bias: Tensor
    """[B, 1, Q, 1 + P], see `attention_bias`."""

    def select(self, rows: Tensor) -> "AdaptedMasks":
        """Of each image the proposals in `rows`, [B, U]."""
        images = torch.arange(len(rows), device=rows.device)[:, None]
        return AdaptedMasks(self.mask_logits[images, rows], self.bias[images, :, rows].transpose(1, 2))


class FISA(nn.Module):
    """A frozen CLIP with what the paper adds to it."""

    def __init__(
        self,
        *,
        visual_encoder: MaskTokenEncoder,
        seve: SEVE | None,
        adapter: DistributionAdapter,
        clip: CLIPFacts,
        text_tower: nn.Module | None = None,
        bias: Literal["hard", "soft"] = "hard",
        cls_key: bool = True,
        resize: Resize = "squash",
    ) -> None:
        """`text_tower` is the whole CLIP, given only where its language encoder learns with the model."""
        super().__init__()
        self.visual_encoder = visual_encoder
        self.seve = seve
        self.adapter = adapter
        self.clip = clip
        self.text_tower = text_tower
        self.bias = bias
        self.cls_key = cls_key
        self.resize: Resize = resize
        self.trained: Trained = "none"
        """What `freeze` let learn."""

    @property
    def image_size(self) -> int:
        return self.visual_encoder.image_size

    @property
    def device(self) -> torch.device:
        return self.visual_encoder.class_embedding.device

    def forward(self, images: Tensor, proposals: Tensor, class_tokens: ClassTokens) -> FISAOutput:
        """Scores every proposal against every class.

        Args:
            images: [B, 3, S, S], CLIP-normalised.
            proposals: [B, Q, h, w], mask logits of the frozen generator, in the frame of `images`.
            class_tokens: the vocabulary, for all B images.
        """
        # Masks before images: this waits for numbers of its own, and a GPU would do the tower first.
        masks = self.adapt_masks(proposals)
        return self.classify(self.encode_images(images), masks, class_tokens)

    def encode_images(self, images: Tensor) -> ImageFeatures:
        """The costly half, [B, 3, S, S] -> features that serve any proposals and any vocabulary."""
        side = self.image_size
        if images.shape[1:] != (3, side, side):
            raise ValueError(f"images must be [B, 3, {side}, {side}], got {list(images.shape)}")
        return self.visual_encoder.encode_images(images)

    def adapt_masks(self, proposals: Tensor, *, frozen: bool = False) -> AdaptedMasks:
        """Proposals [B, Q, h, w] -> masks that serve any vocabulary; `frozen` takes them as they came."""
        if proposals.ndim != 4:
            raise ValueError(f"proposals must be [B, Q, h, w], got {list(proposals.shape)}")
        mask_logits = proposals if frozen else self.adapter(proposals)
        bias = attention_bias(
            proposals if self.adapter.where in ("output", "nowhere") else mask_logits,
            image_size=self.image_size,
            grid_size=self.visual_encoder.grid_size,
            kind="hard" if frozen else self.bias,
            cls_key=self.cls_key,
        )
        return AdaptedMasks(mask_logits, bias)

    def classify(self, features: ImageFeatures, masks: AdaptedMasks, class_tokens: ClassTokens) -> FISAOutput:
        """The cheap half: masks of encoded images against one vocabulary."""
        self._check(features, masks, class_tokens)
        guide = None if self.seve is None else self.seve.guide(class_tokens.targets)
        embeddings = self.visual_encoder.embed_masks(features, masks.bias, guide)
        return FISAOutput(class_logits(embeddings, class_tokens, self.clip.logit_scale), masks.mask_logits)

    def classify_frozen(
        self, features: ImageFeatures, masks: AdaptedMasks, class_tokens: ClassTokens
    ) -> Tensor:
        """Class logits of the frozen CLIP, without anything that was trained, for masks adapted `frozen`.

        Raises as `check_frozen`.
        """
        self._check(features, masks, class_tokens)
        self.check_frozen()
        embeddings = self.visual_encoder.embed_masks(features, masks.bias, frozen=True)
        return class_logits(embeddings, class_tokens, self.clip.logit_scale)

    def check_frozen(self) -> None:
        """Makes sure that the frozen CLIP is still in the model.

        Raises:
            ValueError: the path of image tokens or the language encoder was trained, so that features or
                class tokens are no longer CLIP's.
        """
        if self.text_tower is not None:
            raise ValueError(
                "the language encoder of this model was trained, so the frozen CLIP is not in it; use an "
                "ensemble with weights of trains_text false"
            )
        shared = self.trained == "simo" and self.visual_encoder.query_projection == "shared"
        if shared or self.trained in ("full", "lora"):
            raise ValueError(
                "the image path of this model was trained, so the frozen CLIP is not in it; use an ensemble "
                "with weights of trained 'simo' or 'seve_only' and query_projection 'mask_only'"
            )

    def _check(self, features: ImageFeatures, masks: AdaptedMasks, class_tokens: ClassTokens) -> None:
        if len(masks.mask_logits) != len(features.cls_token):
            raise ValueError(
                f"proposals must be [B, Q, h, w] for B = {len(features.cls_token)} images, "
                f"got {list(masks.mask_logits.shape)}"
            )
        width = self.visual_encoder.output_width
        if class_tokens.classifier.shape[-1] != width:
            raise ValueError(
                f"class tokens are {class_tokens.classifier.shape[-1]} wide, this model's are {width}; "
                "encode them with the text encoder of the same CLIP"
            )


def class_logits(embeddings: Tensor, class_tokens: ClassTokens, logit_scale: float) -> Tensor:
    """Scaled cosines [B, Q, D] -> [B, Q, K (+ 1)]; of a class's names the best one counts."""
    with torch.autocast(embeddings.device.type, enabled=False):
        rows = logit_scale * embeddings.float() @ class_tokens.classifier.float().T
    columns = class_tokens.num_columns
    if rows.shape[-1] == columns:
        return rows
    owners = class_tokens.class_index.expand_as(rows)
    lowest = rows.new_full((*rows.shape[:-1], columns), -torch.inf)
    return lowest.scatter_reduce(-1, owners, rows, reduce="amax", include_self=False)


def build_fisa(config: FISAConfig, *, text_cache_path: Path | str | None = None) -> tuple[FISA, TextEncoder]:
    """Loads the CLIP and puts FISA on its image tower, frozen but for what `config.trained` names.

    `text_cache_path` is a folder in which the text encoder keeps and finds the rows of its vocabularies.
    """
    clip = load_clip(config.clip)
    model = assemble(config, clip.model, clip.facts)
    cache = None if text_cache_path is None else TextCache(text_cache_path, _text_digest(clip))
    return model, TextEncoder(clip.model, clip.tokenizer, cache, learns=config.trains_text)


def _text_digest(clip: LoadedCLIP) -> str:
    """The CLIP's digest, and what of its text tower shows in no tensor that is saved."""
    tower: Any = getattr(clip.model, "text", clip.model)
    pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    return f"{clip.facts.digest} {pool} {getattr(tower, 'attn_mask', None) is not None}"


def assemble(config: FISAConfig, clip: Any, facts: CLIPFacts) -> FISA:
    """FISA on the image tower of an open_clip model, frozen but for what `config.trained` names."""
    visual_encoder = MaskTokenEncoder(
        ImageTower.read(clip.visual),
        image_size=config.image_size,
        query_projection=config.query_projection,
    )
    if config.trained == "lora":
        add_lora(visual_encoder, config.lora_rank)
    seve = SEVE(
        config.seve,
        width=visual_encoder.width,
        text_width=visual_encoder.output_width,
        layers=len(visual_encoder.blocks),
    )
    model = FISA(
        visual_encoder=visual_encoder,
        seve=seve if config.seve.enabled else None,
        adapter=DistributionAdapter(config.adapter),
        clip=facts,
        text_tower=clip if config.trains_text else None,
        bias=config.adapter.bias,
        cls_key=config.cls_key,
        resize=config.resize,
    )
    freeze(model, config.trained)
    return model


def count_parameters(config: FISAConfig) -> dict[str, int]:
    """Numbers that learn under a config, by part, without loading or downloading any weights."""
    with torch.device("meta"):
        clip = read_architecture(config.clip)
        return count_trainable(assemble(config, clip, UNKNOWN_CLIP))
