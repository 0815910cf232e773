"""What a FISA model is made of: small frozen configs, and the presets that name whole models."""

from dataclasses import dataclass, field, replace
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

LOCAL_DIR = "local-dir:"
TOY_CLIP = "toy"

Resize = Literal["squash", "letterbox"]
"""See `FISAConfig.resize`."""

Trained = Literal["simo", "seve_only", "full", "lora", "none"]
"""See `FISAConfig.trained`."""

AdapterUse = Literal["both", "attention", "output", "nowhere"]
"""What takes adapted masks: as `AdapterConfig.where`, or nothing, to compare."""


def check_choices(config: Any) -> None:
    """Raises ValueError where a field of a dataclass is none of the words that its type lists."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        kinds = (hint,) if get_origin(hint) is Literal else get_args(hint)
        accepted = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
        optional = value is None and NoneType in kinds
        if accepted and value not in accepted and not optional:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}, got {value!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CLIPConfig:
    model: str
    """An open_clip name, `local-dir:/path` of an open_clip folder, or `toy` for the CLIP that ships here."""

    weights: str | None = None
    """A pretrained tag of open_clip or a weights file; None is a folder's own, or random for a name."""

    def __post_init__(self) -> None:
        if not self.model.removeprefix(LOCAL_DIR):
            raise ValueError(f"model is {self.model!r}; name an open_clip model, 'local-dir:/path' or 'toy'")
        if self.weights is not None and self.is_local:
            raise ValueError(
                f"weights must be left out for {self.model!r}, which brings its own; got {self.weights!r}"
            )

    @property
    def is_local(self) -> bool:
        return self.model == TOY_CLIP or self.model.startswith(LOCAL_DIR)


@dataclass(frozen=True, kw_only=True, slots=True)
class SEVEConfig:
    enabled: bool = True
    """Whether mask tokens attend to class tokens (Semantic-guided Visual Encoding) at all."""

    residual: Literal["query", "replace", "stream"] = "query"
    """Where the semantic answer goes: added to the query only, in its place, or to the token itself."""

    query_width: int = 256
    """Width of SEVE's queries and keys, over all heads."""

    heads: int = 4
    """Attention heads; they divide `query_width` and the width of the encoder."""

    init: Literal["zero", "random"] = "zero"
    """`zero` starts the value projection at zero, so that an untrained model is the frozen baseline."""

    groups: int = 1
    """Sets of projections; consecutive layers share one: 1 is one for all layers, 24 one for each of 24."""

    first_layers: int | None = None
    """SEVE acts in this many layers, the first ones; none means in all of them."""

    token_norm: bool = True
    """Normalise class tokens before SEVE, without parameters: unit rows are too small to be told apart."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.heads < 1:
            raise ValueError(f"heads must be at least 1, got {self.heads}")
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1, got {self.groups}")
        if self.first_layers is not None and self.first_layers < self.groups:
            raise ValueError(
                f"first_layers must be at least groups ({self.groups}), got {self.first_layers}; "
                "a set of projections without a layer would never learn"
            )
        if self.query_width < 1 or self.query_width % self.heads:
            raise ValueError(
                f"query_width must be a positive multiple of heads ({self.heads}), got {self.query_width}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    layers: int = 2
    """Convolutions of the Distribution Adapter, 0 to 3; 0 leaves the proposals as they are."""

    hidden: int = 16
    """Channels between its convolutions."""

    bias: Literal["hard", "soft"] = "hard"
    """Attention bias of a mask: 0 or -inf (equation 5), or a log-probability that classification trains."""

    where: Literal["both", "attention", "output"] = "both"
    """What takes the adapted masks: the attention of mask tokens, the output at test time, or both; the other
    one takes the proposals as they came. Mask losses train the adapter in any case."""

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 <= self.layers <= 3:
            raise ValueError(f"layers must be 0 to 3, got {self.layers}")
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {self.hidden}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FISAConfig:
    clip: CLIPConfig
    """The vision-language model that is adapted."""

    image_size: int = 896
    """Side in pixels of the square that the model sees; a multiple of the patch size."""

    resize: Resize = "squash"
    """How a whole picture becomes that square: squashed, or in its own proportions with gray below or beside
    it, as in large-scale jitter."""

    seve: SEVEConfig = field(default_factory=SEVEConfig)
    """How mask tokens read the class tokens."""

    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """How proposals are changed before they steer attention."""

    trained: Trained = "simo"
    """What learns beside SEVE and the adapter: CLIP's query projections (`simo`), nothing (`seve_only`), its
    whole image tower (`full`), or LoRA on its attention (`lora`). With `none` nothing learns at all."""

    trains_text: bool = False
    """Whether CLIP's language encoder learns too (table 3); it then reads every prompt at every step."""

    lora_rank: int = 64
    """Rank of LoRA's matrices, where `trained` is `lora`."""

    query_projection: Literal["mask_only", "shared"] = "mask_only"
    """Who uses the trained query projections: mask tokens alone, or image tokens too."""

    cls_key: bool = True
    """Whether mask tokens may always attend to the class token, also when their mask is empty."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {self.image_size}")
        if self.trained == "seve_only" and not self.seve.enabled:
            raise ValueError("trained is 'seve_only' but seve.enabled is false; enable SEVE or train 'simo'")
        if self.trained == "lora" and self.query_projection != "shared":
            raise ValueError(
                f"trained is 'lora', which adapts the projections of image and mask tokens alike, but "
                f"query_projection is {self.query_projection!r}; set query_projection to 'shared'"
            )
        if self.trained == "none" and self.trains_text:
            raise ValueError(
                "trained is 'none' but trains_text is true; choose what is trained beside the text"
            )
        if self.lora_rank < 1:
            raise ValueError(f"lora_rank must be at least 1, got {self.lora_rank}")
        if self.trained == "none" and self.seve.enabled and self.seve.init == "random":
            raise ValueError(
                "trained is 'none' but seve.init is 'random'; SEVE must learn, start at zero or be off"
            )

    @property
    def trains_masks(self) -> bool:
        """Whether the output masks depend on anything that learns, so that mask losses mean something."""
        return self.adapter.layers > 0 and self.trained != "none"


PANOPTIC_PRESETS = {
    "maskclip": (0.3, 0.5),
    "maskclip_coco": (0.5, 0.5),
    "masqclip": (0.3, 0.3),
    "mask2former": (0.8, 0.8),
    "fc_clip": (0.0, 0.8),
    "maft": (0.2, 0.7),
}
"""Object and overlap thresholds of published configurations; MaskCLIP's for ADE20K is the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PanopticConfig:
    """Which proposals become segments."""

    preset: Literal["maskclip", "maskclip_coco", "masqclip", "mask2former", "fc_clip", "maft"] = "maskclip"
    """The published configuration that thresholds are taken from where they are not given."""

    object_threshold: float | None = None
    """Proposals whose best class has no higher score than this are left void."""

    overlap_threshold: float | None = None
    """A segment must keep this part of its own mask after stronger ones took theirs."""

    objectness: Literal["generator", "none"] = "generator"
    """Whether class scores are multiplied by the generator's own confidence, where it has one."""

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("object_threshold", "overlap_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be 0 to 1, got {value}")

    @property
    def resolved(self) -> "PanopticConfig":
        """The same with both thresholds given."""
        objects, overlap = self.thresholds
        return replace(self, object_threshold=objects, overlap_threshold=overlap)

    @property
    def thresholds(self) -> tuple[float, float]:
        """Of objects and of overlap."""
        objects, overlap = PANOPTIC_PRESETS[self.preset]
        return (
            objects if self.object_threshold is None else self.object_threshold,
            overlap if self.overlap_threshold is None else self.overlap_threshold,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleConfig:
    """How far the frozen CLIP has a say in the classes, beside FISA."""

    seen_weight: float = 0.4
    """The frozen CLIP's share (alpha) in classes that share a name with the vocabulary of training."""

    unseen_weight: float = 0.8
    """The frozen CLIP's share (beta) in all others."""

    def __post_init__(self) -> None:
        for name, weight in (("seen_weight", self.seen_weight), ("unseen_weight", self.unseen_weight)):
            if not 0 <= weight <= 1:
                raise ValueError(f"{name} must be from 0 (FISA alone) to 1 (CLIP alone), got {weight}")


def fisa_vit_l14_336() -> FISAConfig:
    """The paper's main model: OpenAI's CLIP ViT-L/14-336 at 896 x 896; 26,437,425 trained parameters."""
    return FISAConfig(clip=CLIPConfig(model="ViT-L-14-336-quickgelu", weights="openai"))


def fisa_toy() -> FISAConfig:
    """The tiny CLIP of the toy world, which ships with the package, on its scenes of 224 x 224."""
    return FISAConfig(clip=CLIPConfig(model=TOY_CLIP), image_size=224)


def baseline_of(config: FISAConfig) -> FISAConfig:
    """The same CLIP at the same size, with nothing added to it."""
    return replace(config, trained="none", seve=SEVEConfig(enabled=False), adapter=AdapterConfig(layers=0))
