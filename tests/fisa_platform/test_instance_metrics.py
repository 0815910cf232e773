"""AP against pycocotools, which takes whole data sets."""

import contextlib
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fisa_model.prediction import Prediction
from fisa_model.vocabulary import Category, Vocabulary
from fisa_platform.evaluation.instances import InstanceMetrics, found_instances, true_instances
from fisa_platform.mask_codec import run_lengths

VOCABULARY = Vocabulary(
    (Category(3, "cat"), Category(4, "dog"), Category(9, "grass", is_thing=False), Category(11, "emu"))
)
SUBSETS = {"all": {3, 4, 9, 11}, "seen": {3, 9}, "stuff": {9}}
SIZE = (40, 60)

Picture = tuple[str, list[dict[str, Any]], list[dict[str, Any]]]


def draw(seed: int) -> Picture:
    """Random rectangles for ground truth, one of them a crowd, and shifted ones as what was found."""
    rng = np.random.default_rng(seed)
    ids, segments, found = np.zeros(SIZE, np.int32), [], []
    for number in range(1, 8):
        top, left = rng.integers(0, 30), rng.integers(0, 45)
        height, width = rng.integers(4, 20, 2)
        category_id = int(rng.choice([3, 4, 9]))
        ids[top : top + height, left : left + width] = number
        segments.append({"id": number, "category_id": category_id, "iscrowd": number == 1})
        for _ in range(2):
            mask = np.zeros(SIZE, bool)
            y, x = (max(0, place + int(rng.integers(-2, 3))) for place in (top, left))
            mask[y : y + height, x : x + width] = True
            (run,) = run_lengths(mask[None])
            said = category_id if category_id != 9 and rng.random() < 0.8 else int(rng.choice([4, 11]))
            found.append({"category_id": said, "score": float(rng.random()), "counts": run["counts"]})
    there = [segment for segment in segments if (ids == segment["id"]).any()]
    return f"picture {seed}", true_instances(ids, there, VOCABULARY), found


PICTURES = [draw(seed) for seed in range(12)]
PICTURES += [("nothing found", PICTURES[0][1], []), ("nothing there", [], draw(100)[2])]


def metrics_of(pictures: list[Picture]) -> InstanceMetrics:
    metrics = InstanceMetrics(VOCABULARY)
    for image_id, truth, found in pictures:
        metrics.update(image_id, SIZE, truth, found)
    return metrics


def pycocotools_precision(things: list[int]) -> np.ndarray:
    """[IoU thresholds, recalls, classes] at all areas and 100 detections."""
    whole: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": [{"id": i} for i in things]}
    results = []
    for number, (_, truth, found) in enumerate(PICTURES, start=1):
        whole["images"].append({"id": number, "height": SIZE[0], "width": SIZE[1]})
        for instance in truth:
            area = int(coco_mask.area(instance["segmentation"]))
            fields = {"id": len(whole["annotations"]) + 1, "image_id": number, "area": area}
            whole["annotations"].append({**instance, **fields})
        results += [
            {
                "image_id": number,
                "category_id": instance["category_id"],
                "score": instance["score"],
                "segmentation": {"size": list(SIZE), "counts": instance["counts"]},
            }
            for instance in found
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth_set = COCO()
        truth_set.dataset = whole
        truth_set.createIndex()
        evaluated = COCOeval(truth_set, truth_set.loadRes(results), "segm")
        evaluated.evaluate()
        evaluated.accumulate()
    precision: np.ndarray = evaluated.eval["precision"][..., 0, -1]
    return precision


def test_averages_are_pycocotools() -> None:
    precision = pycocotools_precision([3, 4, 11])
    found = metrics_of(PICTURES).per_class()
    assert set(found) == {3, 4}  # emus are found, and none is there
    for category_id, place in ((3, 0), (4, 1)):
        ap, ap50 = found[category_id]
        assert ap == pytest.approx(100 * precision[:, :, place].mean(), rel=1e-12)
        assert ap50 == pytest.approx(100 * precision[0, :, place].mean(), rel=1e-12)
        assert 0 < ap < ap50 < 100


def test_subsets_average_over_their_things() -> None:
    metrics = metrics_of(PICTURES)
    of_class, scores = metrics.per_class(), metrics.result(SUBSETS)
    assert scores["all"]["AP"] == pytest.approx((of_class[3][0] + of_class[4][0]) / 2)
    assert scores["seen"] == {"AP": of_class[3][0], "AP50": of_class[3][1]}
    assert "stuff" not in scores


def test_halves_merge_into_the_whole_after_a_journey() -> None:
    half, other = metrics_of(PICTURES[:5]), metrics_of(PICTURES[5:])
    half.merge(pickle.loads(pickle.dumps(other)))
    assert half.per_class() == metrics_of(PICTURES).per_class()
    assert half.per_class() == half.per_class()  # asking consumes nothing
    with pytest.raises(ValueError, match="metrics of two vocabularies do not merge"):
        half.merge(InstanceMetrics(Vocabulary.from_names(["cat"])))


def test_ground_truth_as_prediction_scores_100() -> None:
    pictures = [
        (
            image_id,
            truth,
            [
                {"category_id": i["category_id"], "score": 1.0, "counts": i["segmentation"]["counts"]}
                for i in truth
                if not i["iscrowd"]
            ],
        )
        for image_id, truth, _ in PICTURES
    ]
    scores = metrics_of(pictures).per_class()
    assert set(scores) == {3, 4}
    for ap, ap50 in scores.values():
        assert ap == pytest.approx(100)
        assert ap50 == pytest.approx(100)


def test_stuff_and_empty_pictures_have_no_average() -> None:
    assert metrics_of([("empty", [], [])]).result(SUBSETS) == {}
    stuff = InstanceMetrics(Vocabulary((Category(9, "grass", is_thing=False),)))
    stuff.update("a", SIZE, [], [])
    assert stuff.result({"all": {9}}) == {}


def test_an_instance_of_several_classes_has_the_same_mask_in_each() -> None:
    left = torch.full((8, 12), -9.0)
    left[:, :5] = 9.0
    classes = torch.tensor([[0.6, 0.3, 0.0, 0.05], [0.1, 0.2, 0.45, 0.15]])
    prediction = Prediction(classes, torch.stack([left, -left]), torch.ones(2), SIZE)
    expected = {
        (VOCABULARY.ids[instance.class_index], round(instance.score, 5)): instance.mask
        for instance in prediction.instance(VOCABULARY.is_thing)
    }
    found = found_instances(prediction, VOCABULARY, "generator")
    assert [instance["category_id"] for instance in found] == [3, 4, 4, 11, 3, 11]
    for instance in found:
        mask = coco_mask.decode({"size": list(SIZE), "counts": instance["counts"]})
        assert (mask == expected[instance["category_id"], round(instance["score"], 5)]).all()
