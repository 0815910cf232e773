import numpy as np
import pytest
import torch

from fisa_model.mask_generators import LOGIT
from fisa_model.postprocess import panoptic
from fisa_model.vocabulary import Category, Vocabulary
from fisa_platform import storage
from fisa_platform.evaluation.oracle import oracle_class_probs
from fisa_platform.evaluation.panoptic import PanopticMetrics
from fisa_platform.panoptic_png import decode_panoptic
from fisa_platform.sources.coco import read_coco_panoptic

VOCABULARY = Vocabulary((Category(1, "cat"), Category(9, "grass", False)))
#   cat 5 on the left, grass 6 on the right, void below.
IDS = np.array([[5, 5, 6, 6], [5, 5, 6, 6], [0, 0, 0, 0]], dtype=np.int32)
SEGMENTS = [{"id": 5, "category_id": 1}, {"id": 6, "category_id": 9}]


def probs_of(*pictures):
    masks = np.array([[[mark == "#" for mark in line] for line in picture] for picture in pictures])
    return oracle_class_probs(masks, IDS, SEGMENTS, VOCABULARY)


def test_a_proposal_gets_the_class_that_most_of_its_pixels_have():
    probs = probs_of(["##..", "##..", "...."], [".###", "..##", "...."], ["#...", "....", "...."])
    assert probs.argmax(axis=1).tolist() == [0, 1, 0]
    assert probs.max(axis=1) == pytest.approx([1.0, 0.9 + 0.1 * 4 / 5, 0.9 + 0.1 * 1 / 4])
    assert (probs > 0).sum(axis=1).tolist() == [1, 1, 1]


def test_a_proposal_that_is_mostly_void_or_empty_gets_no_class():
    assert not probs_of(["....", "#...", "##.."], ["....", "....", "...."]).any()


def test_proposals_may_be_stored_smaller_than_the_image():
    large = IDS.repeat(10, axis=0).repeat(10, axis=1)
    masks = np.array([[[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]], dtype=bool)
    assert oracle_class_probs(masks, large, SEGMENTS, VOCABULARY).tolist() == [[0, 1]]


@pytest.fixture
def sample(shared_data):
    """The vocabulary of two real photos, and the ids and segments of each."""
    root = f"{shared_data}/coco_panoptic"
    index = read_coco_panoptic(f"{root}/images", f"{root}/panoptic", f"{root}/panoptic.json")
    maps = [decode_panoptic(storage.read_bytes(row["panoptic_uri"])) for row in index.rows.to_pylist()]
    return index.vocabulary, [
        (ids, row["segments_info"]) for ids, row in zip(maps, index.rows.to_pylist(), strict=True)
    ]


def test_ground_truth_masks_get_their_own_classes(sample):
    vocabulary, truths = sample
    for ids, segments in truths:
        masks = np.stack([ids == segment["id"] for segment in segments])
        probs = oracle_class_probs(masks, ids, segments, vocabulary)
        own = [vocabulary.index_of_id(segment["category_id"]) for segment in segments]
        assert probs.argmax(axis=1).tolist() == own
        assert (probs.max(axis=1) == 1).all()


def test_ground_truth_masks_score_100_through_the_ordinary_post_processing(sample):
    vocabulary, truths = sample
    metrics = PanopticMetrics(vocabulary)
    for ids, segments in truths:
        masks = np.stack([ids == segment["id"] for segment in segments])
        probs = torch.from_numpy(oracle_class_probs(masks, ids, segments, vocabulary))
        logits = torch.where(torch.from_numpy(masks), LOGIT, -LOGIT)
        result = panoptic(probs, logits, is_thing=vocabulary.is_thing, size=ids.shape)
        found = [{"id": s.id, "category_id": vocabulary.ids[s.class_index]} for s in result.segments]
        metrics.update(ids, segments, result.ids, found)
    assert metrics.result({"all": vocabulary.ids})["all"] == {"PQ": 100, "SQ": 100, "RQ": 100}
