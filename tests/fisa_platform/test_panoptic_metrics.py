import copy
import pickle

import numpy as np
import pytest
from panopticapi.evaluation import pq_compute_single_core

from fisa_model.vocabulary import Category, Vocabulary
from fisa_platform import storage
from fisa_platform.evaluation.label_maps import class_labels
from fisa_platform.evaluation.panoptic import PanopticMetrics
from fisa_platform.evaluation.summary import Metrics, standard_subsets
from fisa_platform.panoptic_png import decode_panoptic, encode_panoptic
from fisa_platform.sources.coco import read_coco_panoptic

VOCABULARY = Vocabulary(
    (Category(1, "cat"), Category(4, "dog"), Category(9, "grass", False), Category(12, "sky", False))
)
IDS = VOCABULARY.ids


def segments_of(ids, category_of, crowds=()):
    """Segments of a small id map, with counted areas."""
    return [
        {"id": i, "category_id": category_of[i], "area": int((ids == i).sum()), "iscrowd": i in crowds}
        for i in np.unique(ids).tolist()
        if i
    ]


def scored(gt, gt_categories, pred, pred_categories, crowds=()):
    gt, pred = np.array(gt, dtype=np.int32), np.array(pred, dtype=np.int32)
    metrics = PanopticMetrics(VOCABULARY)
    metrics.update(gt, segments_of(gt, gt_categories, crowds), pred, segments_of(pred, pred_categories))
    return {quality.name: quality for quality in metrics.per_class()}


def test_a_match_needs_more_than_half_of_the_union():
    cat = scored([[1, 1, 1, 0]], {1: 1}, [[5, 5, 0, 0]], {5: 1})["cat"]
    assert (cat.true_positives, cat.sq, cat.rq) == (1, pytest.approx(200 / 3), 100)
    cat = scored([[1, 1, 2, 2]], {1: 1, 2: 9}, [[5, 0, 0, 0]], {5: 1})["cat"]
    assert (cat.true_positives, cat.false_positives, cat.false_negatives) == (0, 1, 1)


def test_pixels_on_void_do_not_count_against_a_prediction():
    assert scored([[1, 1, 0, 0]], {1: 1}, [[5, 5, 5, 0]], {5: 1})["cat"].pq == 100


def test_a_prediction_mostly_on_void_is_no_false_alarm():
    assert "cat" not in scored([[1, 0, 0, 0]], {1: 9}, [[5, 5, 5, 0]], {5: 1})


def test_a_prediction_mostly_on_a_crowd_of_its_class_is_no_false_alarm():
    crowd = [[7, 7, 7, 1]]
    assert scored(crowd, {7: 1, 1: 9}, [[5, 5, 5, 5]], {5: 1}, crowds={7}).keys() == {"grass"}
    assert scored(crowd, {7: 1, 1: 9}, [[5, 5, 5, 5]], {5: 4}, crowds={7})["dog"].false_positives == 1


def test_a_crowd_is_never_a_miss():
    assert scored([[7, 7]], {7: 1}, [[0, 0]], {}, crowds={7}) == {}


def test_the_wrong_class_is_a_miss_and_a_false_alarm():
    found = scored([[1, 1]], {1: 1}, [[5, 5]], {5: 4})
    assert (found["cat"].false_negatives, found["dog"].false_positives) == (1, 1)


def test_the_area_of_ground_truth_is_the_one_that_is_stated():
    # ADE20K counts a stuff segment's pixels before things are painted over them.
    ids = np.array([[1, 1, 1, 1]], dtype=np.int32)
    grass = {"id": 1, "category_id": 9, "area": 5, "iscrowd": False}
    metrics = PanopticMetrics(VOCABULARY)
    metrics.update(ids, [grass], ids, [grass])
    assert metrics.result({"all": set(IDS)})["all"]["PQ"] == pytest.approx(80)


@pytest.mark.parametrize(
    ("pred_segments", "message"),
    [
        ([], r"\[5\] only in the map"),
        ([{"id": 5, "category_id": 1}, {"id": 6, "category_id": 1}], r"\[6\] only in the list"),
        ([{"id": 5, "category_id": 2}], "segment 5 has category id 2, which the vocabulary"),
    ],
)
def test_a_prediction_that_contradicts_itself_is_refused(pred_segments, message):
    with pytest.raises(ValueError, match=message):
        PanopticMetrics(VOCABULARY).update(
            np.zeros((1, 2), np.int32), [], np.full((1, 2), 5, np.int32), pred_segments
        )


def test_pictures_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"ground truth is \(1, 2\) pixels"):
        PanopticMetrics(VOCABULARY).update(np.zeros((1, 2), np.int32), [], np.zeros((2, 1), np.int32), [])


# --- Against panopticapi, on random pictures with crowds, void, stated areas, covered segments ---


def random_image(rng, size=(24, 32)):
    """Ground truth and a prediction that shares most of its boundaries, so that many pairs pass IoU 0.5."""
    blocks = rng.integers(0, 9, size=(size[0] // 8, size[1] // 8)).repeat(8, axis=0).repeat(8, axis=1)
    gt = blocks * 70_001
    shifted = np.roll(blocks, rng.integers(-2, 3, size=2), axis=(0, 1))
    pred = np.where(rng.random(size) < 0.9, shifted, 0) * 3
    gt_category = {i: IDS[rng.integers(4)] for i in np.unique(gt).tolist()}
    pred_category = {i: gt_category.get(i // 3 * 70_001, IDS[0]) for i in np.unique(pred).tolist()}
    wrong = {i: IDS[rng.integers(4)] for i in pred_category if rng.random() < 0.2}
    crowds = {i for i in gt_category if rng.random() < 0.25}
    gt_segments = segments_of(gt, gt_category, crowds)
    for segment in gt_segments:
        segment["area"] += int(rng.integers(0, 2) * rng.integers(0, 20))
    # What other things cover has no pixel, but is ground truth.
    gt_segments.append(
        {"id": 7, "category_id": IDS[rng.integers(4)], "area": 9, "iscrowd": rng.random() < 0.3}
    )
    return (
        gt.astype(np.int32),
        gt_segments,
        pred.astype(np.int32),
        segments_of(pred, {**pred_category, **wrong}),
    )


@pytest.fixture(scope="module")
def random_images():
    rng = np.random.default_rng(0)
    return [random_image(rng) for _ in range(60)]


def reference(images, folder):
    """panopticapi's own counts, read from PNG files as it reads them."""
    pairs = []
    for number, (gt, gt_segments, pred, pred_segments) in enumerate(images):
        entries = []
        for kind, ids, segments in (("gt", gt, gt_segments), ("pred", pred, pred_segments)):
            (folder / kind).mkdir(exist_ok=True)
            (folder / kind / f"{number}.png").write_bytes(encode_panoptic(ids))
            copied = copy.deepcopy(segments)  # panopticapi writes counted areas into its input
            entries.append({"image_id": number, "file_name": f"{number}.png", "segments_info": copied})
        pairs.append(tuple(entries))
    categories = {category.id: {"isthing": int(category.is_thing)} for category in VOCABULARY.categories}
    return pq_compute_single_core(0, pairs, str(folder / "gt"), str(folder / "pred"), categories), categories


def counted(images):
    metrics = PanopticMetrics(VOCABULARY)
    for image in images:
        metrics.update(*image)
    return metrics


def test_counts_are_panopticapis(random_images, tmp_path):
    counts, _ = reference(random_images, tmp_path)
    found = counted(random_images).per_class()
    assert len(found) == 4
    for quality in found:
        expected = counts[quality.category_id]
        assert (quality.true_positives, quality.false_positives) == (expected.tp, expected.fp)
        assert quality.false_negatives == expected.fn
        assert quality.sq == 100 * (expected.iou / expected.tp)
        assert min(expected.tp, expected.fp, expected.fn) > 10


def test_averages_are_panopticapis(random_images, tmp_path):
    counts, categories = reference(random_images, tmp_path)
    results = counted(random_images).result(standard_subsets(VOCABULARY))
    for subset, isthing in (("all", None), ("thing", True), ("stuff", False)):
        expected, _ = counts.pq_average(categories, isthing)
        for key in ("PQ", "SQ", "RQ"):
            assert results[subset][key] == pytest.approx(100 * expected[key.lower()], rel=1e-14)


def test_halves_merge_into_the_whole_after_a_journey(random_images):
    first, second = counted(random_images[:25]), counted(random_images[25:])
    first.merge(pickle.loads(pickle.dumps(second)))
    subsets = standard_subsets(VOCABULARY)
    whole = counted(random_images).result(subsets)
    assert first.result(subsets) == {name: pytest.approx(scores) for name, scores in whole.items()}


def test_metrics_of_two_vocabularies_do_not_merge():
    with pytest.raises(ValueError, match="two vocabularies"):
        PanopticMetrics(VOCABULARY).merge(PanopticMetrics(Vocabulary.from_names(["cat"])))


def test_a_subset_without_ground_truth_is_left_out(random_images):
    gt = np.ones((1, 2), np.int32)
    metrics = PanopticMetrics(VOCABULARY)
    metrics.update(gt, segments_of(gt, {1: 1}), gt, [{"id": 1, "category_id": 12}])
    assert metrics.result(standard_subsets(VOCABULARY)).keys() == {"all", "thing"}


def test_seen_is_what_any_name_was_trained_on():
    trained = Vocabulary((Category(80, "kitty", synonyms=("cat",)), Category(81, "sky")))
    subsets = standard_subsets(VOCABULARY, seen=trained)
    assert subsets["all"] == {1, 4, 9, 12}
    assert (subsets["seen"], subsets["unseen"]) == ({1, 12}, {4, 9})
    assert (subsets["thing"], subsets["stuff"]) == ({1, 4}, {9, 12})


@pytest.mark.parametrize("name", ["coco_panoptic", "coco_stuff"])
def test_ground_truth_as_prediction_scores_exactly_100(shared_data, name):
    root = f"{shared_data}/{name}"
    index = read_coco_panoptic(f"{root}/images", f"{root}/panoptic", f"{root}/panoptic.json")
    metrics = Metrics(index.vocabulary)
    for row in index.rows.to_pylist():
        ids = decode_panoptic(storage.read_bytes(row["panoptic_uri"]))
        metrics.panoptic.update(ids, row["segments_info"], ids, row["segments_info"])
        labels = class_labels(ids, row["segments_info"], index.vocabulary)
        metrics.semantic.update(labels, labels)
    summary = metrics.result(standard_subsets(index.vocabulary))
    perfect = {"PQ": 100.0, "SQ": 100.0, "RQ": 100.0, "mIoU": 100.0, "mIoU_old": 100.0}
    assert summary == {"all": perfect, "thing": perfect, "stuff": perfect}
