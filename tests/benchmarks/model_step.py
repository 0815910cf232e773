"""Cost of a training step over the bare image trunk: FISA should train for little more than it looks.

    uv run python tests/benchmarks/model_step.py --model ViT-B-16 --size 448 --batch 4

The trunk is CLIP's image tower in the code that the step runs, without gradients, at the same size, dtype
and batch: so the ratio is what FISA adds, not what a faster trunk saves. Beside it stands open_clip's own
tower, which on a CPU takes a quarter longer. A step is forward, matching, losses with point sampling,
backward, gradient clipping and AdamW. Weights are random: they change no cost. Only proposals whose masks are
near to a segment's best one are classified for the matching, so a step costs more with a larger `--alike`.
Runs are interleaved; the figures are medians, and ratios are of medians. The last line is JSON.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from measuring import interleave, machine
from torch import Tensor, nn

from fisa_model.config import TOY_CLIP, CLIPConfig, FISAConfig
from fisa_model.criterion import Criterion
from fisa_model.fisa import build_fisa
from fisa_model.matcher import HungarianMatcher, Target
from fisa_model.objective import FISAObjective, TrainingBatch
from fisa_model.simo import parameter_groups, trainable_parameters
from fisa_model.text_encoder import ClassTokens
from fisa_model.visual_encoder import ImageBlock, MaskTokenEncoder

CLASSES = 133
"""Names of COCO panoptic."""

OPEN_CLIPS = "open_clip's trunk"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16", help="an open_clip name, or `toy`")
    parser.add_argument("--size", type=int, default=448, help="side of the square input in pixels")
    parser.add_argument("--masks", type=int, default=100, help="proposals of an image")
    parser.add_argument("--segments", type=int, default=11, help="segments of an image; COCO panoptic has 11")
    parser.add_argument("--alike", type=int, default=1, help="proposals that are like each segment")
    parser.add_argument("--batch", type=int, default=4, help="images of a step")
    parser.add_argument("--points", type=int, default=12_544, help="points at which masks are compared")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each, after one that warms up")
    parser.add_argument(
        "--skip-shared", action="store_true", help="leave out query projections for all tokens"
    )
    return parser.parse_args()


class Step:
    """One training step of a model on one batch."""

    def __init__(self, config: FISAConfig, batch: TrainingBatch, tokens: ClassTokens, points: int) -> None:
        torch.manual_seed(0)
        self.model = build_fisa(config)[0].to(batch.images.device).train()
        criterion = Criterion(num_points=points)
        self.objective = FISAObjective(self.model, HungarianMatcher(num_points=points), criterion, tokens)
        groups: Any = parameter_groups(self.model, learning_rate=1e-4)
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.batch = batch

    def __call__(self) -> None:
        self.objective(self.batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(trainable_parameters(self.model), 0.01)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def run_trunk(encoder: MaskTokenEncoder, images: Tensor) -> Tensor:
    """CLIP's image tower in our code: all image tokens through all layers."""
    tokens = encoder.embed_images(images)
    for block in encoder.blocks:
        assert isinstance(block, ImageBlock)
        normed = block.ln_1(tokens)
        keys_values = block.keys_values(normed)
        keys, values = keys_values.contiguous() if images.device.type == "cpu" else keys_values
        tokens = block.finish(tokens, block.queries(normed), keys, values, None)
    return tokens


def open_clip_trunk(model: str, size: int, device: str) -> nn.Module | None:
    """open_clip's own image tower at a size; None for the toy model, which open_clip does not know."""
    if model == TOY_CLIP:
        return None
    tower: nn.Module = open_clip.create_model(model, force_image_size=size).visual
    return tower.eval().requires_grad_(requires_grad=False).to(device)


def make_batch(arguments: argparse.Namespace) -> TrainingBatch:
    """Smooth masks, of which a few are much like each segment, and the others like none."""
    generator = torch.Generator().manual_seed(0)
    size, batch, side = arguments.size, arguments.batch, arguments.size // 4
    coarse = torch.randn(batch, arguments.masks, 8, 8, generator=generator)
    for copy in range(1, arguments.alike):
        rows = slice(copy * arguments.segments, (copy + 1) * arguments.segments)
        unlike = coarse[:, rows]
        coarse[:, rows] = coarse[:, : unlike.shape[1]] + 0.2 * unlike
    proposals = 10 * F.interpolate(coarse, size=(side, side), mode="bicubic") - 6
    truth = F.interpolate(proposals[:, : arguments.segments], size=(size, size), mode="bilinear") > 0
    labels = torch.randint(CLASSES, (batch, arguments.segments), generator=generator)
    targets = [Target(label, masks) for label, masks in zip(labels, truth, strict=True)]
    images = torch.randn(batch, 3, size, size, generator=generator)
    valid = torch.ones(batch, arguments.masks, dtype=torch.bool)
    return TrainingBatch(images, proposals, valid, targets).to(arguments.device)


def make_tokens(width: int, device: str) -> ClassTokens:
    rows = F.normalize(torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(1)), dim=-1)
    return ClassTokens(rows, torch.arange(CLASSES), rows).to(device)


def main() -> None:
    arguments = parse_arguments()
    batch = make_batch(arguments)
    config = FISAConfig(clip=CLIPConfig(model=arguments.model), image_size=arguments.size)
    width = build_fisa(config)[0].visual_encoder.output_width
    tokens = make_tokens(width, arguments.device)
    step = Step(config, batch, tokens, arguments.points)
    functions: dict[str, Callable[[], object]] = {
        "trunk": lambda: run_trunk(step.model.visual_encoder, batch.images),
        "step, mask_only": step,
    }
    theirs = open_clip_trunk(arguments.model, arguments.size, arguments.device)
    if theirs is not None:
        functions = {OPEN_CLIPS: torch.no_grad()(lambda: theirs(batch.images)), **functions}
    if not arguments.skip_shared:
        shared = FISAConfig(clip=config.clip, image_size=config.image_size, query_projection="shared")
        functions["step, shared"] = Step(shared, batch, tokens, arguments.points)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    peaks: dict[str, int] = {}
    precision = torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.dtype == "bf16")
    with precision:
        for name, value, peak in interleave(functions, arguments.runs, arguments.device):
            seconds[name].append(value)
            peaks[name] = max(peak, peaks.get(name, 0))
    print(
        f"{arguments.model} at {arguments.size}, batch {arguments.batch}, {arguments.masks} masks, "
        f"{arguments.dtype} on {arguments.device}"
    )
    print(f"{'':18}{'seconds':>9}{'min':>9}{'max':>9}{'/ trunk':>9}{'/ open_clip':>12}{'peak GiB':>10}")
    for name, values in seconds.items():
        print(
            f"{name:18}{statistics.median(values):9.3f}{min(values):9.3f}{max(values):9.3f}"
            f"{ratio(seconds, name, 'trunk'):9.3f}{ratio(seconds, name, OPEN_CLIPS) or math.nan:12.3f}"
            f"{peaks[name] / 2**30:10.2f}"
        )
    print(json.dumps(result(arguments, seconds, peaks)))


def ratio(seconds: dict[str, list[float]], name: str, base: str) -> float | None:
    if name not in seconds or base not in seconds:
        return None
    return statistics.median(seconds[name]) / statistics.median(seconds[base])


def result(
    arguments: argparse.Namespace, seconds: dict[str, list[float]], peaks: dict[str, int]
) -> dict[str, Any]:
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "trunk_seconds": medians["trunk"],
        "open_clip_trunk_seconds": medians.get(OPEN_CLIPS),
        "step_seconds": medians["step, mask_only"],
        "ratio": ratio(seconds, "step, mask_only", "trunk"),
        "open_clip_ratio": ratio(seconds, "step, mask_only", OPEN_CLIPS),
        "shared_ratio": ratio(seconds, "step, shared", "trunk"),
        "peak_bytes": peaks["step, mask_only"],
        **vars(arguments),
        **machine(arguments.device),
    }


if __name__ == "__main__":
    main()
