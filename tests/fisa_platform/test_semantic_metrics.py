import pickle

import numpy as np
import pytest

from fisa_model.vocabulary import Category, Vocabulary
from fisa_platform.evaluation.label_maps import VOID, class_labels
from fisa_platform.evaluation.semantic import SemanticMetrics

VOCABULARY = Vocabulary((Category(1, "cat"), Category(4, "dog"), Category(9, "grass", False)))
SUBSETS = {"all": {1, 4, 9}, "thing": {1, 4}, "stuff": {9}}


def scored(gt, pred):
    metrics = SemanticMetrics(VOCABULARY)
    metrics.update(np.array(gt), np.array(pred))
    return metrics


def test_intersection_over_union_of_each_class():
    metrics = scored([[0, 0, 1, 1]], [[0, 1, 1, 1]])
    assert metrics.per_class() == {1: 50, 4: pytest.approx(200 / 3)}
    assert metrics.result(SUBSETS)["all"]["mIoU"] == pytest.approx((50 + 200 / 3) / 2)


def test_pixels_without_ground_truth_do_not_count():
    assert scored([[0, VOID, VOID]], [[0, 0, 1]]).result(SUBSETS)["all"] == {"mIoU": 100, "mIoU_old": 100}


def test_a_void_prediction_is_a_miss():
    assert scored([[0, 0]], [[0, VOID]]).per_class() == {1: 50}


def test_the_old_formula_also_divides_by_classes_that_are_only_predicted():
    result = scored([[0, 0, 0, 0]], [[0, 0, 0, 2]]).result(SUBSETS)
    assert result == {
        "all": {"mIoU": 75, "mIoU_old": 37.5},
        "thing": {"mIoU": 75, "mIoU_old": 75},
    }


def test_random_pictures_agree_with_the_definition():
    rng = np.random.default_rng(0)
    gt, pred = rng.integers(-1, 3, size=(2, 5, 40, 30))
    metrics = SemanticMetrics(VOCABULARY)
    for truth, predicted in zip(gt, pred, strict=True):
        metrics.update(truth, predicted)
    counted = gt != VOID
    expected = [
        100 * ((gt == k) & (pred == k)).sum() / (counted & ((gt == k) | (pred == k))).sum() for k in range(3)
    ]
    assert list(metrics.per_class().values()) == pytest.approx(expected)


def test_halves_merge_into_the_whole_after_a_journey():
    gt, pred = np.random.default_rng(1).integers(-1, 3, size=(2, 4, 20, 20))
    halves = [scored(gt[:2], pred[:2]), scored(gt[2:], pred[2:])]
    halves[0].merge(pickle.loads(pickle.dumps(halves[1])))
    assert halves[0].result(SUBSETS) == scored(gt, pred).result(SUBSETS)


def test_metrics_of_two_vocabularies_do_not_merge():
    with pytest.raises(ValueError, match="two vocabularies"):
        SemanticMetrics(VOCABULARY).merge(SemanticMetrics(Vocabulary.from_names(["cat"])))


def test_class_labels_of_an_id_map():
    ids = np.array([[0, 70_000, 70_000], [5, 5, 8]], dtype=np.int32)
    segments = [{"id": 70_000, "category_id": 9}, {"id": 5, "category_id": 4}]
    assert class_labels(ids, segments, VOCABULARY).tolist() == [[VOID, 2, 2], [1, 1, VOID]]
    assert class_labels(ids, [], VOCABULARY).tolist() == [[VOID] * 3] * 2


@pytest.mark.parametrize(("ignored", "classes"), [(255, 150), (65535, 847), (65, 65)])
def test_both_formulas_are_detectron2s(reference, ignored, classes):
    """Its evaluator of today, and of v0.6 as MAFT+ has it; their numbers are in tests/fisa_model/parity."""
    arrays = {name.removeprefix(f"{ignored}/"): array for name, array in reference("semantic").items()}
    vocabulary = Vocabulary(tuple(Category(k, f"class {k}") for k in range(classes)))
    metrics = SemanticMetrics(vocabulary)
    for truth, predicted in zip(arrays["truth"].astype(np.int64), arrays["predicted"], strict=True):
        metrics.update(np.where(truth == ignored, VOID, truth), predicted)
    scores = metrics.result({"all": set(range(classes))})["all"]
    assert scores["mIoU"] == pytest.approx(float(arrays["new/mIoU"]), rel=1e-14)
    assert scores["mIoU_old"] == pytest.approx(float(arrays["old/mIoU"]), rel=1e-14)
    assert scores["mIoU"] > 1.5 * scores["mIoU_old"]
    for formula in ("new", "old"):
        ious = arrays[f"{formula}/IoU"]
        scored = np.flatnonzero(~np.isnan(ious))
        assert list(metrics.per_class()) == scored.tolist()
        assert list(metrics.per_class().values()) == pytest.approx(ious[scored].tolist(), rel=1e-14)
