"""Average precision of instances, matched image by image and counted by hotcoco, as COCO does."""

import copy
import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from hotcoco import StreamingEval
from numpy.typing import NDArray

from fisa_model.prediction import Objectness, Prediction
from fisa_model.vocabulary import Vocabulary
from fisa_platform.mask_codec import run_length

_ALL_AREAS, _MOST_DETECTIONS = 0, -1


def true_instances(
    ids: NDArray[np.int32], segments: Sequence[Mapping[str, Any]], vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    """The things of an id map [H, W] as ground truth of `InstanceMetrics`."""
    is_thing = {category.id: category.is_thing for category in vocabulary.categories}
    return [
        {
            "category_id": segment["category_id"],
            "iscrowd": int(segment["iscrowd"]),
            "segmentation": run_length(ids == segment["id"]),
        }
        for segment in segments
        if is_thing[segment["category_id"]]
    ]


def found_instances(
    prediction: Prediction, vocabulary: Vocabulary, objectness: Objectness
) -> list[dict[str, Any]]:
    """The things that a prediction holds, 100 at most, in the form of `schema.INSTANCE`."""
    instances = prediction.instance(vocabulary.is_thing, objectness=objectness)
    masks = {instance.proposal: instance.mask for instance in instances}
    counts = {proposal: run_length(mask)["counts"] for proposal, mask in masks.items()}
    return [
        {
            "category_id": vocabulary.ids[instance.class_index],
            "score": instance.score,
            "counts": counts[instance.proposal],
        }
        for instance in instances
    ]


class InstanceMetrics:
    """AP of things, over any number of images. Pickles; `merge` adds another worker's images."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        things = [{"id": c.id, "name": c.name} for c in vocabulary.categories if c.is_thing]
        self._matches = StreamingEval(things, iou_type="segm")

    def update(
        self,
        image_id: str,
        size: tuple[int, int],
        truth: Sequence[Mapping[str, Any]],
        found: Sequence[Mapping[str, Any]],
    ) -> None:
        """Match one image.

        Args:
            image_id: a different one for every image.
            size: (H, W).
            truth: category_id, iscrowd and segmentation (compressed run lengths) of each thing.
            found: category_id, score and counts (the run lengths) of each instance.

        Raises:
            KeyError: a category_id is no thing's.
        """
        image = {"id": _number(image_id), "height": size[0], "width": size[1]}
        numbered = enumerate(truth, start=1)
        self._matches.update(
            [image],
            [{**instance, "id": number, "image_id": image["id"]} for number, instance in numbered],
            [
                {
                    "image_id": image["id"],
                    "category_id": instance["category_id"],
                    "score": instance["score"],
                    "segmentation": {"size": list(size), "counts": instance["counts"]},
                }
                for instance in found
            ],
        )

    def merge(self, other: "InstanceMetrics") -> None:
        """Add other images."""
        if other.vocabulary != self.vocabulary:
            raise ValueError("metrics of two vocabularies do not merge")
        self._matches = StreamingEval.merge([self._matches, other._matches])

    def per_class(self) -> dict[int, tuple[float, float]]:
        """AP (IoU .5 to .95) and AP50 in percent of each thing's category id with ground truth."""
        evaluated = copy.copy(self._matches).finalize()
        evaluated.accumulate()
        assert evaluated.eval is not None
        # [IoU thresholds, recalls, classes, areas, limits of detections]; -1 where there is no ground truth.
        precision = np.asarray(evaluated.eval["precision"])[..., _ALL_AREAS, _MOST_DETECTIONS]
        return {
            category_id: (100 * float(values.mean()), 100 * float(values[0].mean()))
            for category_id, values in zip(
                evaluated.params.cat_ids, np.moveaxis(precision, 2, 0), strict=True
            )
            if (values >= 0).any()
        }

    def result(self, subsets: Mapping[str, Collection[int]]) -> dict[str, dict[str, float]]:
        """AP and AP50, means over the things with ground truth, for each named set of ids that has one."""
        of_class = self.per_class()
        means = {
            name: np.mean([values for category_id, values in of_class.items() if category_id in ids], axis=0)
            for name, ids in subsets.items()
            if of_class.keys() & set(ids)
        }
        return {name: {"AP": float(ap), "AP50": float(ap50)} for name, (ap, ap50) in means.items()}


def _number(image_id: str) -> int:
    """COCO's images have numbers for ids, which must be the same in every worker."""
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=7).digest())
