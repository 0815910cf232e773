"""Makes the `.npz` files in this folder: random inputs, and what reference implementations answer to them.

Run once, with checkouts at the commits of docs/parity.md; nothing of theirs is stored, only numbers:

    export MASKCLIP=... MASQCLIP=... MASK2FORMER=... DETECTRON2=... MAFT_PLUS=... MASKCLIPPP=... FC_CLIP=...
    uv run --with einops --with fvcore --with tabulate python tests/fisa_model/parity/make_fixtures.py
"""

import itertools
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import PIL.Image
import references
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FOLDER = Path(__file__).parent
WIDTH, HEADS, PATCH, SIZE, OUTPUT = 16, 2, 4, 16, 12
"""A ViT that is small enough to store."""

logger = logging.getLogger("make_fixtures")


def save(name: str, arrays: dict[str, Any]) -> None:
    path = FOLDER / f"{name}.npz"
    np.savez_compressed(path, **{key: np.asarray(value) for key, value in arrays.items()})
    logger.info("%s: %d bytes", path.name, path.stat().st_size)


def coarse(rng: np.random.Generator, *shape: int, mean: float = 0.0) -> Tensor:
    """Random numbers of few bits, which compress well and are the same in every precision."""
    return torch.from_numpy((np.round(16 * (rng.standard_normal(shape) + mean)) / 16).astype(np.float32))


def randomise(module: nn.Module, rng: np.random.Generator) -> dict[str, NDArray[np.float16]]:
    """Gives every parameter values that matter, biases and norms too, and returns those of CLIP by name."""
    weights = {}
    for name, parameter in module.named_parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.25
        values = scale * rng.standard_normal(tuple(parameter.shape))
        if "ln_" in name and name.endswith("weight"):
            values += 1
        weights[name] = values.astype(np.float16)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(weights[name]))
    return {f"weights/{name}": value for name, value in weights.items() if "added_params" not in name}


@torch.no_grad()
def maskclip() -> None:
    """Row 3: its visual encoder before the first layer that refines masks; 100 masks, as hard-coded there."""
    rng = np.random.default_rng(3)
    tower = references.maskclip().VisionTransformer(SIZE, PATCH, WIDTH, 5, HEADS, OUTPUT).eval()
    arrays: dict[str, Any] = randomise(tower, rng)
    images, masks = coarse(rng, 2, 3, SIZE, SIZE), coarse(rng, 2, 100, SIZE, SIZE, mean=-1.75)
    masks[0, 7] = -1.0  # empty
    embeddings, _ = tower(images, masks.clone())
    save("maskclip", {**arrays, "images": images, "masks": masks, "embeddings": embeddings})


@torch.no_grad()
def masqclip() -> None:
    """Row 4: a query projection of its own for mask tokens; masks come at another size than the image."""
    rng = np.random.default_rng(4)
    tower = references.masqclip().VisionTransformer(SIZE, PATCH, WIDTH, 3, HEADS, OUTPUT).eval()
    arrays: dict[str, Any] = randomise(tower, rng)
    tower.clip_prep_img = nn.Identity()
    images, masks = coarse(rng, 2, 3, SIZE, SIZE), coarse(rng, 2, 9, 10, 12, mean=-1.0)
    mask_tokens = tower.positional_embedding[0].expand(2, 9, -1)
    embeddings = tower.get_final_embedding(tower(255 * images, masks, mask_tokens), 9)
    save("masqclip", {**arrays, "images": images, "masks": masks, "embeddings": embeddings})


@torch.no_grad()
def fc_clip() -> None:
    """Row 9: the position embedding that FC-CLIP's attention pool adds to an image of zeros."""
    rng = np.random.default_rng(9)
    module = references.fc_clip()
    embedding = coarse(rng, 1 + 24 * 24, 2)
    pool = SimpleNamespace(positional_embedding=embedding, num_heads=1, training=False)
    for name in ("q_proj", "k_proj", "v_proj", "c_proj"):
        setattr(pool, name, nn.Linear(2, 2))
    model = SimpleNamespace(clip_model=SimpleNamespace(visual=SimpleNamespace(attnpool=pool)))
    with mock.patch.object(
        module.F, "multi_head_attention_forward", return_value=[torch.zeros(1, 1, 2)]
    ) as call:
        module.CLIP.visual_prediction_forward_resnet(
            model, torch.zeros(1, 2, 64, 64), torch.ones(1, 1, 64, 64)
        )
    save("fc_clip", {"embedding": embedding, "resized": call.call_args.kwargs["key"][:, 0]})


@contextmanager
def same_points(banks: dict[int, Tensor]) -> Iterator[None]:
    """Every mask draws the same random points: those of the bank with as many as it asks for."""

    def rand(masks: int, points: int, _: int, **__: Any) -> Tensor:
        return banks[points].repeat(masks, 1, 1)

    with mock.patch.object(torch, "rand", rand):
        yield


POINTS = 64
TARGETS = [[0, 4, 2], [], [1, 1, 3, 0, 2]]
"""Classes of the segments of three images."""


def mask2former_batch(
    rng: np.random.Generator,
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]], dict[int, Tensor]]:
    output = {"pred_logits": coarse(rng, 3, 10, 6), "pred_masks": coarse(rng, 3, 10, 8, 12)}
    targets = [
        {"labels": torch.tensor(labels, dtype=torch.long), "masks": coarse(rng, len(labels), 32, 48) > 0}
        for labels in TARGETS
    ]
    banks = {
        count: torch.from_numpy(rng.random((1, count, 2), dtype=np.float32))
        for count in (POINTS, 3 * POINTS, POINTS // 4)
    }
    return output, targets, banks


@torch.no_grad()
def mask2former_training() -> None:
    """Rows 19 and 20: costs, assignments and losses at the same points; one image has no segments."""
    rng = np.random.default_rng(19)
    modules = references.mask2former()
    output, targets, banks = mask2former_batch(rng)
    arrays: dict[str, Any] = {"logits": output["pred_logits"], "masks": output["pred_masks"]}
    for i, target in enumerate(targets):
        arrays |= {f"labels/{i}": target["labels"], f"truth/{i}": np.packbits(target["masks"].numpy())}
    arrays |= {f"points/{count}": points for count, points in banks.items()}
    matcher = modules.matcher.HungarianMatcher(2.0, 5.0, 5.0, num_points=POINTS)
    solve = modules.matcher.linear_sum_assignment
    with (
        same_points(banks),
        mock.patch.object(modules.matcher, "linear_sum_assignment", side_effect=solve) as solver,
    ):
        matches = matcher(output, targets)
    for i, (call, (proposals, segments)) in enumerate(zip(solver.call_args_list, matches, strict=True)):
        arrays |= {f"cost/{i}": call.args[0], f"proposals/{i}": proposals, f"segments/{i}": segments}
    for no_object, ranks in itertools.product((0.0, 0.1), (1, 2)):
        criterion = modules.criterion.SetCriterion(
            5, matcher, {}, no_object, ["labels", "masks"], POINTS, 3, 0.75
        )
        with same_points(banks), mock.patch.object(modules.criterion, "get_world_size", return_value=ranks):
            losses = criterion(output, targets)
        for name, loss in losses.items():
            arrays[f"{name}/{no_object}/{ranks}"] = loss
    save("mask2former_training", arrays)


@torch.no_grad()
def pointrend() -> None:
    """Row 21: values at points, and where the unsure points lie."""
    rng = np.random.default_rng(21)
    module = references.point_features()
    masks = coarse(rng, 4, 1, 9, 7)
    banks = {count: torch.from_numpy(rng.random((1, count, 2), dtype=np.float32)) for count in (120, 10)}
    with same_points(banks):
        points = module.get_uncertain_point_coords_with_randomness(masks, lambda x: -x.abs(), 40, 3, 0.75)
    sampled = module.point_sample(masks, banks[120].expand(4, -1, -1), align_corners=False)
    arrays = {"masks": masks[:, 0], "candidates": banks[120], "elsewhere": banks[10]}
    save("pointrend", {**arrays, "points": points, "sampled": sampled[:, 0]})


@torch.no_grad()
def mask2former_inference() -> None:
    """Row 22: 100 masks; classes and thresholds as the test names them."""
    rng = np.random.default_rng(22)
    model = references.mask2former().model.MaskFormer
    small = torch.nn.functional.interpolate(
        6 * coarse(rng, 1, 100, 5, 6, mean=-1.25), size=(24, 32), mode="bilinear"
    )
    masks = (16 * small[0]).round() / 16
    arrays: dict[str, Any] = {"masks": masks}
    for classes in (5, 133):
        logits = 4 * coarse(rng, 100, classes + 1)
        arrays[f"{classes}/logits"] = logits
        for overlap, threshold in itertools.product((0.5, 0.8), (0.5, 0.8, 1.0)):
            self = inference_settings(classes, overlap, threshold)
            ids, segments = model.panoptic_inference(self, logits, masks)
            key = f"{classes}/panoptic/{overlap}/{threshold}"
            arrays[key] = ids.to(torch.uint8)
            arrays[f"{key}/classes"] = [segment["category_id"] for segment in segments]
        semantic = model.semantic_inference(self, logits, masks)
        arrays[f"{classes}/semantic"] = semantic.argmax(0).to(torch.uint8)
        arrays[f"{classes}/semantic_best"] = semantic.amax(0)
        found = model.instance_inference(self, logits, masks)
        order = found.scores.argsort(descending=True)
        arrays[f"{classes}/instance_classes"] = found.pred_classes[order]
        arrays[f"{classes}/instance_scores"] = found.scores[order]
        arrays[f"{classes}/instance_masks"] = np.packbits(found.pred_masks[order].numpy() > 0)
    save("mask2former_inference", arrays)


def inference_settings(classes: int, overlap: float, threshold: float) -> Any:
    """What the three methods read of their model: even classes are things."""
    things = {k: k for k in range(0, classes, 2)}
    return SimpleNamespace(
        sem_seg_head=SimpleNamespace(num_classes=classes),
        metadata=SimpleNamespace(thing_dataset_id_to_contiguous_id=things),
        object_mask_threshold=threshold,
        overlap_threshold=overlap,
        num_queries=100,
        device="cpu",
        test_topk_per_image=100,
        panoptic_on=True,
    )


def label_maps(rng: np.random.Generator, classes: int, ignore: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Four pictures in blocks; predictions are often right, and name classes that have no pixel."""
    blocks = rng.integers(0, max(classes // 2, 2), (4, 6, 8)).repeat(4, axis=1).repeat(4, axis=2)
    truth = np.where(rng.random(blocks.shape) < 0.1, ignore, blocks)
    predicted = np.where(rng.random(blocks.shape) < 0.3, rng.integers(0, classes, blocks.shape), blocks)
    return truth.astype(np.uint16), predicted.astype(np.uint16)


def semantic() -> None:
    """Row 24: both formulas with each data set's number for pixels that do not count."""
    rng = np.random.default_rng(24)
    modules = references.semantic_evaluators()
    np.int, np.float = int, float  # type: ignore[attr-defined]  # MAFT+ is older than NumPy 1.24
    arrays: dict[str, Any] = {}
    for classes, ignore in ((150, 255), (847, 65535), (65, 65)):
        truth, predicted = label_maps(rng, classes, ignore)
        arrays |= {f"{ignore}/truth": truth, f"{ignore}/predicted": predicted}
        for formula, module in modules.items():
            scores = evaluate_pictures(module, module.SemSegEvaluator, truth, predicted, classes, ignore)
            arrays[f"{ignore}/{formula}/mIoU"] = scores["mIoU"]
            arrays[f"{ignore}/{formula}/IoU"] = [scores[f"IoU-{k}"] for k in range(classes)]
    save("semantic", arrays)


def evaluate_pictures(
    module: Any, evaluator: Any, truth: NDArray[Any], predicted: NDArray[Any], classes: int, ignore: int
) -> dict[str, float]:
    """Runs an evaluator of detectron2's kind on pictures in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        records = []
        for number, picture in enumerate(truth):
            path = f"{folder}/{number}.png"
            PIL.Image.fromarray(picture).save(path)
            records.append({"file_name": str(number), "sem_seg_file_name": path})
        outputs = [
            {
                "sem_seg": torch.nn.functional.one_hot(torch.from_numpy(p.astype(np.int64)), classes).permute(
                    2, 0, 1
                )
            }
            for p in predicted
        ]
        with metadata(module, records, classes, ignore):
            scorer = evaluator("pictures", distributed=False)
        scorer.reset()
        scorer.process(records, outputs)
        return dict(scorer.evaluate()["sem_seg"])


@contextmanager
def metadata(module: Any, records: list[dict[str, Any]], classes: int, ignore: int) -> Iterator[None]:
    facts = SimpleNamespace(stuff_classes=[str(k) for k in range(classes)], ignore_label=ignore)
    with (
        mock.patch.object(module, "DatasetCatalog", {"pictures": records}),
        mock.patch.object(module, "MetadataCatalog", {"pictures": facts}),
    ):
        yield


def mask_accuracy() -> None:
    """Row 25: a class for each ground-truth mask, one mask a class or one a segment."""
    rng = np.random.default_rng(25)
    module = references.mask_accuracy()
    truth, _ = label_maps(rng, 20, 255)
    segments = [rng.integers(0, 9, count) for count in (15, 1, 18, 7)]
    seen = np.arange(20) % 3 == 0
    arrays: dict[str, Any] = {"truth": truth, "seen": seen}
    for kind, evaluator, counts in (
        ("semantic", module.MaskAccEvaluator, [len(np.setdiff1d(t, 255)) for t in truth]),
        ("panoptic", module.PanMaskAccEvaluator, [len(s) for s in segments]),
    ):
        classes = [np.setdiff1d(t, 255) for t in truth] if kind == "semantic" else segments
        named = [
            np.where(rng.random(n) < 0.6, c, rng.integers(0, 20, n))
            for n, c in zip(counts, classes, strict=True)
        ]
        scores = score_masks(module, evaluator, truth, segments, named, seen)
        for i, (true, name) in enumerate(zip(classes, named, strict=True)):
            arrays |= {f"{kind}/classes/{i}": true, f"{kind}/named/{i}": name}
        for ours, theirs in (("all", "mMaskAcc"), ("seen", "mMaskAcc(S)"), ("unseen", "mMaskAcc(U)")):
            arrays[f"{kind}/{ours}"] = scores[theirs]
        arrays[f"{kind}/per_class"] = [scores[f"MaskAcc-{k}"] for k in range(20)]
    save("mask_accuracy", arrays)


def score_masks(
    module: Any,
    evaluator: Any,
    truth: NDArray[Any],
    segments: list[NDArray[Any]],
    named: list[NDArray[Any]],
    seen: Any,
) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        records: list[dict[str, Any]] = []
        for number, picture in enumerate(truth):
            path = f"{folder}/{number}.png"
            PIL.Image.fromarray(picture).save(path)
            info = [{"category_id": int(k)} for k in segments[number]]
            records.append({"file_name": str(number), "sem_seg_file_name": path, "segments_info": info})
        with metadata(module, records, 20, 255):
            scorer = evaluator("pictures", distributed=False, output_dir=folder)
        outputs = [
            {"mask_cls": torch.from_numpy(name), "category_overlapping_mask": torch.from_numpy(seen)}
            for name in named
        ]
        scorer.process(records, outputs)
        return dict(scorer.evaluate()["mask_acc"])


def jitter() -> None:
    """Row 29: sizes and offsets of 200 draws, and where a painted rectangle lands."""
    rng = np.random.default_rng(29)
    module = references.transforms()
    size, draws, frames = 96, [], []
    for _ in range(200):
        height, width = rng.integers(20, 300, 2).tolist()
        scale, offset = rng.uniform(0.1, 2.0), rng.random()
        resize, crop = jitter_transforms(module, (height, width), size, (scale, offset))
        draws.append([height, width, scale, offset])
        cut, pad = crop.transforms
        frames.append([resize.new_h, resize.new_w, cut.y0, cut.x0, pad.y1, pad.x1])
    arrays: dict[str, Any] = {"size": size, "draws": draws, "frames": frames}
    painted = np.zeros((60, 90), dtype=np.uint8)
    painted[12:48, 20:70] = 200
    for i, draw in enumerate([(0.3, 0.0), (0.77, 0.4), (1.0, 0.2), (1.9, 0.63)]):
        resize, crop = jitter_transforms(module, painted.shape, size, draw)
        arrays[f"draw/{i}"] = draw
        arrays[f"image/{i}"] = crop.apply_image(resize.apply_image(painted))
        arrays[f"mask/{i}"] = crop.apply_segmentation(resize.apply_segmentation(painted))
    save("jitter", {**arrays, "painted": painted})


def jitter_transforms(module: Any, shape: tuple[int, ...], size: int, draw: tuple[float, float]) -> Any:
    """Both augmentations with the two random numbers given."""
    with mock.patch.object(np.random, "uniform", side_effect=draw):
        resize = module.ResizeScale(0.1, 2.0, size, size).get_transform(np.zeros(shape))
        crop = module.FixedSizeCrop((size, size)).get_transform(np.zeros((resize.new_h, resize.new_w)))
    return resize, crop


MAKERS: list[Callable[[], None]] = [
    maskclip,
    masqclip,
    fc_clip,
    mask2former_training,
    pointrend,
    mask2former_inference,
    semantic,
    mask_accuracy,
    jitter,
]

if __name__ == "__main__":
    logging.basicConfig()
    logger.setLevel(logging.INFO)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    wanted = sys.argv[1:]
    for make in MAKERS:
        if not wanted or make.__name__ in wanted:
            make()
