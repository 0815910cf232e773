"""The published architectures of Mask2Former, and which one a checkpoint holds."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import Mask2FormerConfig, PreTrainedConfig, ResNetConfig, SwinConfig

OUTPUTS: dict[str, Any] = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
"""Of a backbone: its features at strides 4, 8, 16 and 32."""

NUM_LEVELS, NUM_POINTS = 3, 4
"""Scales and sampling points of the deformable attention, which no configuration changes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SwinShape:
    """A Swin Transformer with patches of 4 pixels and a relative position bias."""

    width: int
    """Channels of the first stage; each further one doubles them."""

    depths: tuple[int, ...]
    """Blocks of each stage."""

    heads: tuple[int, ...]
    """Attention heads of each stage."""

    window: int
    """Patches on a window's side."""

    def config(self) -> PreTrainedConfig:
        return SwinConfig(
            image_size=32 * self.window,
            embed_dim=self.width,
            depths=list(self.depths),
            num_heads=list(self.heads),
            window_size=self.window,
            drop_path_rate=0.3,
            **OUTPUTS,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ResNetShape:
    """A ResNet of bottlenecks that stride in their 3 x 3 convolution, as torchvision's do."""

    width: int
    """Channels of the stem."""

    channels: tuple[int, ...]
    """Channels that each stage puts out."""

    depths: tuple[int, ...]
    """Bottlenecks of each stage."""

    def config(self) -> PreTrainedConfig:
        return ResNetConfig(
            embedding_size=self.width,
            hidden_sizes=list(self.channels),
            depths=list(self.depths),
            downsample_in_bottleneck=False,
            **OUTPUTS,
        )


# Defaults of https://github.com/facebookresearch/Mask2Former/blob/9b0651c/configs/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml.
@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """Every size of a Mask2Former that its tensors tell."""

    backbone: SwinShape | ResNetShape

    num_queries: int = 100
    num_classes: int = 133

    width: int = 256
    """Channels of the pixel decoder and of the queries."""

    mask_width: int = 256
    """Channels of the mask features."""

    heads: int = 8
    """Attention heads of both decoders."""

    pixel_layers: int = 6
    """Deformable attention layers of the pixel decoder."""

    pixel_feedforward: int = 1024
    query_layers: int = 9
    """Masked attention layers of the transformer decoder."""

    query_feedforward: int = 2048

    def config(self) -> Mask2FormerConfig:
        classes: dict[str, Any] = {"num_labels": self.num_classes}
        return Mask2FormerConfig(
            backbone_config=self.backbone.config(),
            num_queries=self.num_queries,
            **classes,
            feature_size=self.width,
            hidden_dim=self.width,
            mask_feature_size=self.mask_width,
            num_attention_heads=self.heads,
            encoder_layers=self.pixel_layers,
            encoder_feedforward_dim=self.pixel_feedforward,
            # It counts the prediction from the queries alone as a layer.
            decoder_layers=self.query_layers + 1,
            dim_feedforward=self.query_feedforward,
        )


def _swin(width: int, depth: int, window: int) -> SwinShape:
    heads = width // 32
    return SwinShape(
        width=width, depths=(2, 2, depth, 2), heads=(heads, 2 * heads, 4 * heads, 8 * heads), window=window
    )


def _resnet(depth: int) -> ResNetShape:
    return ResNetShape(width=64, channels=(256, 512, 1024, 2048), depths=(3, 4, depth, 3))


# Of each data set, in https://github.com/facebookresearch/Mask2Former/blob/9b0651c/MODEL_ZOO.md.
PUBLISHED = {
    "R50": Architecture(backbone=_resnet(6)),
    "R101": Architecture(backbone=_resnet(23)),
    "Swin-T": Architecture(backbone=_swin(96, 6, window=7)),
    "Swin-S": Architecture(backbone=_swin(96, 18, window=7)),
    # Pre-trained on ImageNet-1k or on ImageNet-21k: the same tensors.
    "Swin-B": Architecture(backbone=_swin(128, 18, window=12)),
    "Swin-L": Architecture(backbone=_swin(192, 18, window=12), num_queries=200),
}
"""For COCO panoptic segmentation, by backbone."""

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each tensor of a checkpoint, by its name."""


def describe(architecture: Architecture) -> str:
    """In words, such as "Swin-B, 100 queries, 133 classes"."""
    names = [name for name, known in PUBLISHED.items() if known.backbone == architecture.backbone]
    backbone = names[0] if names else str(architecture.backbone)
    return f"{backbone}, {architecture.num_queries} queries, {architecture.num_classes} classes"


def read_architecture(shapes: Shapes) -> Architecture:
    """The architecture of a checkpoint in detectron2's names; refuses what is no Mask2Former."""
    pixel = "sem_seg_head.pixel_decoder.transformer.encoder.layers"
    query = "sem_seg_head.predictor"
    num_queries, width = _shape(shapes, f"{query}.query_embed.weight", 2)
    offsets = _shape(shapes, f"{pixel}.0.self_attn.sampling_offsets.weight", 2)[0]
    return Architecture(
        backbone=_read_backbone(shapes),
        num_queries=num_queries,
        num_classes=_shape(shapes, f"{query}.class_embed.weight", 2)[0] - 1,
        width=width,
        mask_width=_shape(shapes, "sem_seg_head.pixel_decoder.mask_features.weight", 4)[0],
        # An offset is two numbers.
        heads=offsets // (2 * NUM_LEVELS * NUM_POINTS),
        pixel_layers=_count(shapes, rf"{re.escape(pixel)}\.(\d+)\."),
        pixel_feedforward=_shape(shapes, f"{pixel}.0.linear1.weight", 2)[0],
        query_layers=_count(shapes, rf"{re.escape(query)}\.transformer_ffn_layers\.(\d+)\."),
        query_feedforward=_shape(shapes, f"{query}.transformer_ffn_layers.0.linear1.weight", 2)[0],
    )


def _read_backbone(shapes: Shapes) -> SwinShape | ResNetShape:
    if "backbone.stem.conv1.weight" in shapes:
        return ResNetShape(
            width=_shape(shapes, "backbone.stem.conv1.weight", 4)[0],
            channels=tuple(_shape(shapes, f"backbone.res{n}.0.conv3.weight", 4)[0] for n in range(2, 6)),
            depths=tuple(_count(shapes, rf"backbone\.res{n}\.(\d+)\.") for n in range(2, 6)),
        )
    tables = [
        _shape(shapes, f"backbone.layers.{n}.blocks.0.attn.relative_position_bias_table", 2) for n in range(4)
    ]
    return SwinShape(
        width=_shape(shapes, "backbone.patch_embed.proj.weight", 4)[0],
        depths=tuple(_count(shapes, rf"backbone\.layers\.{n}\.blocks\.(\d+)\.") for n in range(4)),
        heads=tuple(heads for _, heads in tables),
        # A row for every offset between two patches of a window, along both sides.
        window=(math.isqrt(tables[0][0]) + 1) // 2,
    )


def _shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"there is no tensor {name!r}, so it is no Mask2Former of detectron2")
    if len(shapes[name]) != dimensions:
        raise ValueError(f"tensor {name!r} must have {dimensions} dimensions, got shape {shapes[name]}")
    return shapes[name]


def _count(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number that `pattern` finds at the start of a name."""
    found = [int(match[1]) for match in map(re.compile(pattern).match, names) if match]
    return max(found, default=-1) + 1
