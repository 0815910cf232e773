"""Mask2Former as a mask generator, through transformers: frozen, or learning with the classifier.

Only its mask logits are taken, and how surely a mask is any object; its class names are not used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import Mask2FormerForUniversalSegmentation

from fisa_model.mask_generators.frame import crop_masks, pad
from fisa_model.mask_generators.network import NetworkGenerator

DEFAULT_WEIGHTS = "facebook/mask2former-swin-base-coco-panoptic"
"""Swin-B pre-trained on ImageNet-1k; the paper's is its ImageNet-21k sister, which must be converted."""

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

NOT_IN_MASKS = ("class_predictor.", "encoder.swin.layernorm.")
"""What masks do not depend on: the names of classes, and a norm of Swin's that only its classifier uses."""

MAY_BE_MISSING = ("encoder.swin.layernorm.", "criterion.empty_weight")
"""What published checkpoints may lack, as neither masks nor scores depend on it: that norm, and a loss's."""


class Mask2FormerGenerator(NetworkGenerator):
    """A Mask2Former of transformers.

    In `bf16` its pixel decoder stays in float32, as in detectron2's: deformable attention needs places that
    are finer than bfloat16 can say.
    """

    def __init__(self, network: Any, **options: Any) -> None:
        """`options` are those of `NetworkGenerator`."""
        super().__init__(network, **options)
        if self.precision == "bf16":
            level = self.network.model.pixel_level_module
            level.decoder = _InFloat32(level.decoder)

    @classmethod
    def load(cls, weights: str, **options: Any) -> "Mask2FormerGenerator":
        """From a folder or a hub name; `options` are those of `NetworkGenerator`."""
        return cls(load_network(weights), **options)

    def run(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        normalised = (pixels - _column(MEAN, pixels)) / _column(STD, pixels)
        output = self.network(pixel_values=pad(normalised))
        return output.masks_queries_logits, output.class_queries_logits


class _InFloat32(nn.Module):
    """A part of a network that computes in float32 where the rest does not."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, features: Sequence[Tensor], *args: Any, **options: Any) -> Any:
        with torch.autocast(features[0].device.type, enabled=False):
            return self.part([feature.float() for feature in features], *args, **options)


class LearningMask2Former(nn.Module):
    """A Mask2Former that proposes in the training loop, for the frame of training, and learns there.

    The paper's "+ mask generator" (table 3). It learns from the losses of matched masks alone. It stays in
    evaluation mode, without stochastic depth and with the batch statistics it came with, as it is used later.
    """

    def __init__(self, network: Any, *, mean: Sequence[float], std: Sequence[float]) -> None:
        """`mean` and `std` are CLIP's, which the images of a batch were normalised with."""
        super().__init__()
        self.network = network
        self.mean = mean
        self.std = std
        for name, parameter in network.named_parameters():
            parameter.requires_grad = not any(part in name for part in NOT_IN_MASKS)

    @classmethod
    def load(cls, weights: str, *, mean: Sequence[float], std: Sequence[float]) -> "LearningMask2Former":
        """From a folder or a hub name."""
        return cls(load_network(weights), mean=mean, std=std)

    def train(self, mode: bool = True) -> "LearningMask2Former":  # noqa: FBT001, FBT002 - torch's signature
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S], CLIP-normalised -> mask logits [B, Q, S / 4, S / 4], always in float32."""
        with torch.autocast(images.device.type, enabled=False):
            pixels = images.float() * _column(self.std, images) + _column(self.mean, images)
            normalised = (255 * pixels - _column(MEAN, images)) / _column(STD, images)
            output = self.network(pixel_values=torch.stack([pad(image) for image in normalised]))
            masks: Tensor = output.masks_queries_logits
        return torch.stack([crop_masks(rows, *images.shape[2:]) for rows in masks])

    def save(self, folder: Path) -> None:
        """As transformers saves it: what `Mask2FormerGenerator.load` takes."""
        self.network.save_pretrained(folder)


def load_network(weights: str) -> Any:
    """A Mask2Former from a folder or a hub name.

    Raises:
        ValueError: there is none, or it cannot be reached.
    """
    try:
        loaded: Any = Mask2FormerForUniversalSegmentation.from_pretrained(
            weights, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        raise ValueError(
            f"Mask2Former {weights!r} could not be loaded: {error}; give a folder with config.json and "
            "model.safetensors, or a hub name that can be reached"
        ) from error
    network, found = loaded
    # What a file lacks, transformers starts at random.
    needed = (name for name in found["missing_keys"] if not any(part in name for part in MAY_BE_MISSING))
    if missing := sorted(needed):
        raise ValueError(
            f"Mask2Former {weights!r} lacks {len(missing)} of the network's tensors, {missing[0]!r} among "
            "them; give the weights of a Mask2Former for segmentation"
        )
    return network


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """One value a channel, for images [B, 3, H, W]."""
    return torch.tensor(values, device=like.device).view(3, 1, 1)
