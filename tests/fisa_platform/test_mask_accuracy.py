import pickle

import numpy as np
import pytest

from fisa_model.vocabulary import Category, Vocabulary
from fisa_platform.evaluation.mask_accuracy import MaskAccuracy, true_masks

VOCABULARY = Vocabulary((Category(1, "cat"), Category(4, "dog"), Category(9, "grass", False)))
ALL = {"all": {1, 4, 9}}


def counted(*images, vocabulary=VOCABULARY):
    accuracy = MaskAccuracy(vocabulary)
    for classes, predicted in images:
        accuracy.update(np.array(classes), np.array(predicted))
    return accuracy


def test_every_class_counts_the_same_however_many_masks_it_has():
    accuracy = counted(([0, 0, 0, 1], [0, 0, 2, 2]))
    assert accuracy.per_class() == {1: pytest.approx(200 / 3), 4: 0}
    assert accuracy.result({**ALL, "cats": {1}, "grass": {9}}) == {
        "all": pytest.approx(100 / 3),
        "cats": pytest.approx(200 / 3),
    }


def test_halves_merge_into_the_whole_after_a_journey():
    first, second = ([0, 1], [0, 2]), ([1, 1, 2], [1, 0, 2])
    half = counted(first)
    half.merge(pickle.loads(pickle.dumps(counted(second))))
    assert half.result(ALL) == counted(first, second).result(ALL)
    with pytest.raises(ValueError, match="two vocabularies"):
        half.merge(MaskAccuracy(Vocabulary.from_names(["cat"])))


def test_a_class_for_every_mask():
    with pytest.raises(ValueError, match="2 masks came with 1 predicted classes"):
        counted(([0, 1], [0]))


def test_masks_of_classes_and_of_segments():
    ids = np.array([[5, 5, 0, 7], [6, 6, 8, 8]], dtype=np.int32)
    # Nothing shows of segment 3, which others cover.
    segments = [{"id": i, "category_id": k} for i, k in ((5, 4), (3, 1), (6, 9), (7, 4), (8, 9))]
    merged = true_masks(ids, segments, VOCABULARY)
    assert merged.classes.tolist() == [1, 2]
    assert merged.masks.astype(int).tolist() == [
        [[1, 1, 0, 1], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [1, 1, 1, 1]],
    ]
    single = true_masks(ids, segments, VOCABULARY, merge="segments")
    assert single.classes.tolist() == [1, 2, 1, 2]
    assert single.masks.sum(axis=(1, 2)).tolist() == [2, 2, 1, 2]
    assert true_masks(ids, [], VOCABULARY).masks.shape == (0, 2, 4)


@pytest.mark.parametrize(("kind", "merge"), [("semantic", "classes"), ("panoptic", "segments")])
def test_scores_are_maskclip_plus_pluss(reference, kind, merge):
    """Four pictures of up to 20 classes; their numbers are stored in tests/fisa_model/parity."""
    arrays = reference("mask_accuracy")
    vocabulary = Vocabulary(tuple(Category(k, f"class {k}") for k in range(20)))
    accuracy = MaskAccuracy(vocabulary)
    for i, picture in enumerate(arrays["truth"].astype(np.int32)):
        classes = arrays[f"{kind}/classes/{i}"]
        if merge == "classes":
            segments = [{"id": k + 1, "category_id": k} for k in range(20)]
            found = true_masks(np.where(picture == 255, 0, picture + 1), segments, vocabulary)
            assert found.classes.tolist() == classes.tolist()
        accuracy.update(classes, arrays[f"{kind}/named/{i}"])
    seen = set(np.flatnonzero(arrays["seen"]).tolist())
    subsets = {"all": set(range(20)), "seen": seen, "unseen": set(range(20)) - seen}
    scores = accuracy.result(subsets)
    assert scores == {name: pytest.approx(float(arrays[f"{kind}/{name}"]), rel=1e-14) for name in subsets}
    assert len(set(scores.values())) == 3
    per_class = arrays[f"{kind}/per_class"]
    assert accuracy.per_class() == {k: per_class[k] for k in np.flatnonzero(~np.isnan(per_class)).tolist()}
