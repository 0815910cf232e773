"""A model that cannot learn a few pictures by heart has a mistake in it: from masks to the class of each."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP

from fisa_model.clip_weights import CLIPFacts
from fisa_model.config import AdapterConfig, SEVEConfig
from fisa_model.criterion import Criterion
from fisa_model.fisa import FISA
from fisa_model.image_tower import ImageTower
from fisa_model.mask_attention import DistributionAdapter
from fisa_model.matcher import HungarianMatcher, Target
from fisa_model.objective import FISAObjective, TrainingBatch
from fisa_model.pictures import decode_image
from fisa_model.seve import SEVE
from fisa_model.simo import freeze, parameter_groups
from fisa_model.text_encoder import ClassTokens
from fisa_model.transforms import PROPOSAL_STRIDE, pad_proposals, to_clip_input
from fisa_model.visual_encoder import MaskTokenEncoder
from fisa_model.vocabulary import Vocabulary
from fisa_platform import storage
from fisa_platform.evaluation.mask_accuracy import MaskAccuracy, true_masks
from fisa_platform.panoptic_png import decode_panoptic
from fisa_platform.sources.coco import read_coco_panoptic
from fisa_platform.training.optim import ScheduleConfig, build_optimizer, build_schedule

SIZE, MEAN, STD = 96, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@pytest.fixture(autouse=True)
def one_thread():
    """Products of small matrices wait for a second thread longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_model():
    """A CLIP of four layers that nobody trained, and SEVE; all of it learns."""
    torch.manual_seed(0)
    vision = {"image_size": SIZE, "layers": 4, "width": 128, "patch_size": 8, "head_width": 32}
    text = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
    clip = CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    model = FISA(
        visual_encoder=MaskTokenEncoder(ImageTower.read(clip.visual), image_size=SIZE),
        seve=SEVE(SEVEConfig(query_width=64), width=128, text_width=64, layers=4),
        adapter=DistributionAdapter(AdapterConfig(layers=0)),
        clip=CLIPFacts("", 30.0, MEAN, STD),
    )
    freeze(model, "full")
    return model


def batch_of(pictures, truths):
    """Ground truth is what is proposed, and what is asked for. A mask smaller than a cell fills that cell."""
    masks = [
        F.adaptive_max_pool2d(torch.from_numpy(truth.masks).float(), SIZE // PROPOSAL_STRIDE)
        for truth in truths
    ]
    proposals, valid = pad_proposals([20 * mask - 10 for mask in masks])
    images = torch.stack([to_clip_input(p, image_size=SIZE, mean=MEAN, std=STD) for p in pictures])
    targets = [
        Target(torch.from_numpy(truth.classes), mask > 0) for truth, mask in zip(truths, masks, strict=True)
    ]
    return TrainingBatch(images, proposals, valid, targets)


def accuracy_after(steps, pictures, truths, vocabulary):
    """Percent of masks that get their class, mean over classes, after as many steps on all pictures."""
    model, batch = small_model(), batch_of(pictures, truths)
    rows = F.normalize(torch.randn(len(vocabulary), 64), dim=-1)
    words = ClassTokens(rows, torch.arange(len(vocabulary)), rows)
    objective = FISAObjective(model, HungarianMatcher(num_points=256), Criterion(mask_losses=False), words)
    optimizer = build_optimizer(parameter_groups(model, learning_rate=2e-3, query_scale=1.0))
    schedule = build_schedule(optimizer, ScheduleConfig(kind="cosine", warmup_steps=steps // 4), steps)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        named = model(batch.images, batch.proposals, words).class_logits.argmax(-1).numpy()
    accuracy = MaskAccuracy(vocabulary)
    for truth, classes in zip(truths, named, strict=True):
        accuracy.update(truth.classes, classes[: len(truth.classes)])
    return accuracy.result({"all": set(vocabulary.ids)})["all"]


def test_eight_drawn_pictures_are_learnt_by_heart():
    """Noisy blocks of four colours each; a colour means another class in every picture."""
    rng = np.random.default_rng(0)
    vocabulary = Vocabulary.from_names([f"class {k}" for k in range(10)])
    pictures, truths = [], []
    for _ in range(8):
        blocks = np.kron(rng.integers(1, 5, (4, 4)), np.ones((24, 24))).astype(np.int32)
        colours = rng.integers(0, 180, (5, 3))[blocks]
        pictures.append((colours + rng.integers(0, 70, (SIZE, SIZE, 3))).astype(np.uint8))
        classes = rng.choice(10, 4, replace=False) + 1
        segments = [{"id": i, "category_id": int(k)} for i, k in enumerate(classes, start=1)]
        truths.append(true_masks(blocks, segments, vocabulary))
    assert accuracy_after(60, pictures, truths, vocabulary) > 95


def test_thirteen_photos_are_learnt_by_heart(shared_data):
    """Photos with COCO-Stuff labels: 92 pairs of a photo and a class."""
    root = f"{shared_data}/coco_stuff"
    index = read_coco_panoptic(f"{root}/images", f"{root}/panoptic", f"{root}/panoptic.json")
    pictures = [decode_image(storage.read_bytes(row["image_uri"])) for row in index.rows.to_pylist()]
    maps = [decode_panoptic(storage.read_bytes(row["panoptic_uri"])) for row in index.rows.to_pylist()]
    truths = [
        true_masks(ids, row["segments_info"], index.vocabulary)
        for ids, row in zip(maps, index.rows.to_pylist(), strict=True)
    ]
    assert sum(len(truth.classes) for truth in truths) == 92
    assert accuracy_after(60, pictures, truths, index.vocabulary) > 95
