"""Segments, labels and instances from drawn masks."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fisa_model import postprocess
from fisa_model.postprocess import instance, panoptic, semantic, semantic_scores


def draw(*rows: str) -> Tensor:
    """'#' is in the mask."""
    return 10.0 * torch.tensor([[1.0 if pixel == "#" else -1.0 for pixel in row] for row in rows])


def sure_of(*classes: tuple[int, float], of: int = 2) -> Tensor:
    """A row for each (class, probability); the rest is shared by the other classes."""
    rows = torch.stack([torch.full((of,), (1 - p) / max(of - 1, 1)) for _, p in classes])
    for row, (k, p) in zip(rows, classes, strict=True):
        row[k] = p
    return rows


def test_overlap_goes_to_the_more_confident_proposal() -> None:
    left, right = draw("##..", "##.."), draw(".###", ".###")
    result = panoptic(
        sure_of((0, 0.9), (1, 0.6)), torch.stack([left, right]), is_thing=[True, True], overlap_threshold=0.5
    )
    assert result.ids.tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]
    assert [(s.class_index, s.area) for s in result.segments] == [(0, 4), (1, 4)]


def test_a_proposal_that_loses_most_of_its_pixels_is_dropped() -> None:
    left, middle = draw("###.", "###."), draw(".###", ".###")
    result = panoptic(
        sure_of((0, 0.9), (1, 0.6)), torch.stack([left, middle]), is_thing=[True, True], overlap_threshold=0.5
    )
    assert result.ids.tolist() == [[1, 1, 1, 0], [1, 1, 1, 0]]


def test_stuff_is_merged_and_things_are_not() -> None:
    masks = torch.stack([draw("#...", "#..."), draw("...#", "...#")])
    probs = sure_of((0, 0.9), (0, 0.8))
    stuff = panoptic(probs, masks, is_thing=[False, True])
    things = panoptic(probs, masks, is_thing=[True, True])
    assert stuff.ids.tolist() == [[1, 0, 0, 1], [1, 0, 0, 1]]
    assert [(s.area, round(s.score, 3)) for s in stuff.segments] == [(4, 0.9)]
    assert things.ids.tolist() == [[1, 0, 0, 2], [1, 0, 0, 2]]


def test_pixels_outside_every_mask_are_void() -> None:
    result = panoptic(sure_of((0, 0.9)), draw("#.", "..")[None], is_thing=[True, True])
    assert result.ids.tolist() == [[1, 0], [0, 0]]


def test_unsure_proposals_and_low_objectness_are_dropped() -> None:
    masks, probs = draw("##", "##")[None], sure_of((0, 0.5))
    assert panoptic(probs, masks, is_thing=[True, True], object_threshold=0.5).segments == []
    assert len(panoptic(probs, masks, is_thing=[True, True], object_threshold=0.4).segments) == 1
    doubtful = torch.tensor([0.5])
    assert panoptic(probs, masks, is_thing=[True, True], scores=doubtful, object_threshold=0.4).segments == []


def test_no_proposals_are_all_void() -> None:
    empty = torch.zeros(0, 2, 3)
    assert (
        panoptic(torch.zeros(0, 2), empty, is_thing=[True, True], size=(2, 3)).ids.tolist() == [[0] * 3] * 2
    )
    assert semantic(torch.zeros(0, 2), empty, size=(2, 3)).tolist() == [[2] * 3] * 2
    assert instance(torch.zeros(0, 2), empty, is_thing=[True, True], size=(2, 3)) == []


def reference_panoptic(
    probs: Tensor, logits: Tensor, is_thing: list[bool], object_threshold: float, overlap_threshold: float
) -> tuple[Tensor, list[tuple[int, int]]]:
    """The published rules on whole arrays, one proposal after the other."""
    scores, labels = probs.max(-1)
    keep = scores > object_threshold
    scores, labels, masks = scores[keep], labels[keep], logits[keep].sigmoid()
    ids = torch.zeros(logits.shape[1:], dtype=torch.int32)
    if not len(scores):
        return ids, []
    winners = (scores[:, None, None] * masks).argmax(0)
    found: list[tuple[int, int]] = []
    stuff: dict[int, int] = {}
    for k, label in enumerate(labels.tolist()):
        won, claimed = winners == k, masks[k] >= 0.5
        both = won & claimed
        if not won.any() or not claimed.any() or not both.any():
            continue
        if won.sum().item() / claimed.sum().item() < overlap_threshold:
            continue
        if not is_thing[label]:
            if label in stuff:
                ids[both] = stuff[label]
                continue
            stuff[label] = len(found) + 1
        found.append((len(found) + 1, label))
        ids[both] = len(found)
    return ids, found


@pytest.mark.parametrize("classes", [5, 133])
@pytest.mark.parametrize("overlap_threshold", [0.5, 0.8])
def test_equals_the_published_rules(classes: int, overlap_threshold: float) -> None:
    generator = torch.Generator().manual_seed(classes)
    probs = (3 * torch.randn(100, classes, generator=generator)).softmax(-1)
    logits = F.interpolate(
        8 * torch.randn(1, 100, 6, 8, generator=generator) - 12, size=(48, 64), mode="bilinear"
    )[0]
    is_thing = [k % 2 == 0 for k in range(classes)]
    ids, found = reference_panoptic(probs, logits, is_thing, 0.3, overlap_threshold)
    result = panoptic(probs, logits, is_thing=is_thing, overlap_threshold=overlap_threshold)
    assert len(found) > 1
    assert np.array_equal(result.ids, ids.numpy())
    assert [(s.id, s.class_index) for s in result.segments] == found
    assert [s.area for s in result.segments] == [(result.ids == s.id).sum() for s in result.segments]


def test_semantic_is_the_sum_over_proposals() -> None:
    probs, logits = torch.rand(7, 5), torch.randn(7, 6, 8)
    expected = torch.einsum("qk,qhw->khw", probs, logits.sigmoid())
    torch.testing.assert_close(semantic_scores(probs, logits), expected)
    assert np.array_equal(semantic(probs, logits), expected.argmax(0).numpy())


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    probs, logits, size = torch.randn(9, 4).softmax(-1), 3 * torch.randn(9, 6, 7), (50, 31)
    thing = [True, False, True, False]
    whole = (
        panoptic(probs, logits, is_thing=thing, size=size),
        semantic(probs, logits, size=size),
        instance(probs, logits, is_thing=thing, size=size),
    )
    monkeypatch.setattr(postprocess, "VALUES_PER_TILE", 31 * 13 * 3)
    assert np.array_equal(panoptic(probs, logits, is_thing=thing, size=size).ids, whole[0].ids)
    assert np.array_equal(semantic(probs, logits, size=size), whole[1])
    for again, before in zip(instance(probs, logits, is_thing=thing, size=size), whole[2], strict=True):
        assert np.array_equal(again.mask, before.mask)


@pytest.mark.parametrize("size", [(50, 31), (6, 7), (6, 31), (50, 7)])
def test_upsampling_is_torchs_bilinear(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    monkeypatch.setattr(postprocess, "VALUES_PER_TILE", 60)
    logits = torch.randn(3, 6, 7).half()
    tiles = torch.cat([tile for _, tile in postprocess._tiles(logits, size, values=3)], dim=1)
    expected = F.interpolate(logits[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(tiles, expected, atol=1e-5, rtol=0)


def test_instances_are_things_scored_by_class_and_mask() -> None:
    masks = torch.stack([draw("##", ".."), draw("..", "##")])
    found = instance(sure_of((0, 0.9), (1, 0.8)), masks, is_thing=[True, False])
    assert [(i.proposal, i.class_index, i.mask.tolist()) for i in found] == [
        (0, 0, [[True, True], [False, False]]),
        (1, 0, [[False, False], [True, True]]),
    ]
    sureness = torch.tensor(10.0).sigmoid().item()
    assert found[0].score == pytest.approx(0.9 * sureness, rel=1e-5)
    assert found[1].score == pytest.approx(0.2 * sureness, rel=1e-5)


def test_things_may_be_said_as_coco_does() -> None:
    """With 1 and 0."""
    masks = torch.stack([draw("##", ".."), draw("..", "##")])
    scores = sure_of((0, 0.9), (1, 0.8))
    numbers = [(i.class_index, i.score) for i in instance(scores, masks, is_thing=[0, 1])]
    assert numbers == [(i.class_index, i.score) for i in instance(scores, masks, is_thing=[False, True])]
    assert [class_index for class_index, _ in numbers] == [1, 1]


@pytest.mark.parametrize("rule", [panoptic, instance])
@pytest.mark.parametrize("is_thing", [[True], [True, False, False]])
def test_things_are_said_of_every_class(rule: Any, is_thing: list[bool]) -> None:
    with pytest.raises(ValueError, match=f"each of the 2 classes .* got {len(is_thing)} values"):
        rule(sure_of((0, 0.9)), draw("##", "..")[None], is_thing=is_thing)


def test_nan_is_named() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        panoptic(torch.full((1, 2), torch.nan), torch.zeros(1, 2, 2), is_thing=[True, True])


PEAK_OF = """
import resource, torch
from fisa_model.postprocess import panoptic, semantic

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

probs, logits = torch.rand(5, 847), torch.randn(5, 40, 30)
semantic(probs, logits), panoptic(probs, logits, is_thing=[True] * 847)
before = peak()
semantic(probs, logits, size=(4000, 3000))
panoptic(probs, logits, is_thing=[True] * 847, size=(4000, 3000))
print(peak() - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_image() -> None:
    """847 classes on 12 megapixels: all class scores at once would be 41 GB."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PEAK_OF], cwd=root, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 512 * 1024**2
