"""Cost of labelling a picture: generator, image tower, masks against words, post-processing, each by itself.

    uv run python tests/benchmarks/inference.py --model ViT-L-14-336-quickgelu --size 896

Sizes are the paper's by default: an image of 800 x 1333 for a Mask2Former with Swin-B, 896 x 896 for CLIP,
100 masks. Weights are random: they change no cost. `second vocabulary` is what other words cost on a
picture that was encoded already, over a whole pass; the text tower runs once for a vocabulary and is apart.
Peak memory is of the process or the GPU while a part runs, less the weights of the network that has no part
in it. The last line is JSON.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measuring import interleave, machine
from torch import nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from fisa_model.config import CLIPConfig, FISAConfig, PanopticConfig
from fisa_model.fisa import build_fisa
from fisa_model.mask_generators import MaskProposals
from fisa_model.mask_generators.mask2former import Mask2FormerGenerator
from fisa_model.predictor import FISAPredictor
from fisa_model.text_encoder import ClassTokens

VOCABULARIES = (1, 150, 847)
CLASSIFIER = ("image tower", "masks, for any words", "masks x 150 names")
"""What a whole pass of the classifier is."""
GENERATOR = "generator"

EVERY = PanopticConfig(object_threshold=0.0)
"""Random weights are sure of nothing, so that at a usual threshold there would be nothing to do."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="ViT-L-14-336-quickgelu", help="an open_clip name, or `toy`")
    parser.add_argument("--size", type=int, default=896, help="side of CLIP's square input in pixels")
    parser.add_argument("--masks", type=int, default=100, help="proposals of an image")
    parser.add_argument("--height", type=int, default=800, help="of the picture in pixels")
    parser.add_argument("--width", type=int, default=1333, help="of the picture in pixels")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each, after one that warms up")
    parser.add_argument("--skip-generator", action="store_true", help="leave Mask2Former out")
    return parser.parse_args()


def swin_b(device: str) -> Mask2FormerGenerator:
    """Mask2Former with Swin-B for COCO panoptic, with random weights."""
    backbone = SwinConfig(
        embed_dim=128,
        depths=[2, 2, 18, 2],
        num_heads=[4, 8, 16, 32],
        window_size=12,
        image_size=384,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(backbone_config=backbone, num_labels=133, num_queries=100)
    return Mask2FormerGenerator(Mask2FormerForUniversalSegmentation(config), device=device)


def tokens_of(names: int, width: int, device: str) -> ClassTokens:
    rows = F.normalize(torch.randn(names, width, generator=torch.Generator().manual_seed(names)), dim=-1)
    return ClassTokens(rows, torch.arange(names), rows).to(device)


def smooth_proposals(arguments: argparse.Namespace) -> MaskProposals:
    coarse = torch.randn(1, arguments.masks, 8, 8, generator=torch.Generator().manual_seed(0))
    size = (arguments.height // 4, arguments.width // 4)
    logits = 10 * F.interpolate(coarse, size=size, mode="bicubic")[0] - 6
    return MaskProposals(logits.numpy(), np.ones(arguments.masks, dtype=np.float32))


def bytes_of(device: str, *networks: nn.Module) -> int:
    """Of the weights that are on the device, those that networks share counted once."""
    weights = {weight for network in networks for weight in network.parameters()}
    return sum(weight.nbytes for weight in weights if weight.device.type == device)


def build_stages(arguments: argparse.Namespace) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """What is timed, by name, and the bytes of weights that each does without; no one is part of another."""
    config = FISAConfig(clip=CLIPConfig(model=arguments.model), image_size=arguments.size)
    torch.manual_seed(0)
    model, text_encoder = build_fisa(config)
    proposals = smooth_proposals(arguments)
    predictor = FISAPredictor(
        model.to(arguments.device),
        text_encoder,
        generator=lambda image: proposals,
        dtype=torch.bfloat16 if arguments.dtype == "bf16" else torch.float32,
    )
    image = np.random.default_rng(0).integers(0, 256, (arguments.height, arguments.width, 3), dtype=np.uint8)
    size = image.shape[:2]
    features = predictor.encode_images([image])
    words = {k: tokens_of(k, model.visual_encoder.output_width, arguments.device) for k in VOCABULARIES}
    prepared = predictor.prepare([proposals], [size])
    [prediction] = predictor.classify(features, prepared, words[150])
    stages: dict[str, Callable[[], object]] = {
        "image tower": lambda: predictor.encode_images([image]),
        "masks, for any words": lambda: predictor.prepare([proposals], [size]),
    }
    for k, tokens in words.items():
        stages[f"masks x {k} names"] = lambda tokens=tokens: predictor.classify(features, prepared, tokens)
    stages["panoptic, 150 names"] = lambda: prediction.panoptic([True] * 150, EVERY)
    stages["semantic, 150 names"] = prediction.semantic
    idle = dict.fromkeys(stages, 0)
    if not arguments.skip_generator:
        generator = swin_b(arguments.device)
        idle = dict.fromkeys(stages, bytes_of(arguments.device, generator.network))
        idle[GENERATOR] = bytes_of(arguments.device, model, text_encoder.clip)
        stages[GENERATOR] = lambda: generator(image)
    return stages, idle


def main() -> None:
    arguments = parse_arguments()
    stages, idle = build_stages(arguments)
    seconds: dict[str, list[float]] = {name: [] for name in stages}
    peaks = dict.fromkeys(stages, 0)
    for name, value, peak in interleave(stages, arguments.runs, arguments.device):
        seconds[name].append(value)
        peaks[name] = max(peak - idle[name], peaks[name])
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    second = medians["masks x 150 names"] / sum(medians[name] for name in CLASSIFIER)
    print(
        f"{arguments.model} at {arguments.size}, {arguments.masks} masks, picture of {arguments.height} x "
        f"{arguments.width}, {arguments.dtype} on {arguments.device}"
    )
    print(f"{'':22}{'seconds':>9}{'images/s':>10}{'peak GiB':>10}")
    for name, value in medians.items():
        print(f"{name:22}{value:9.3f}{1 / value:10.2f}{peaks[name] / 2**30:10.2f}")
    print(f"second vocabulary over a whole pass of the classifier: {second:.3f}")
    result: dict[str, Any] = {
        "seconds": medians,
        "second_vocabulary_ratio": second,
        "peak_bytes": peaks,
        **vars(arguments),
        **machine(arguments.device),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
