"""The numbers of a report: every metric over all, seen, unseen, thing and stuff classes."""

import itertools
from collections.abc import Collection, Mapping

from fisa_model.vocabulary import Vocabulary
from fisa_platform.evaluation.panoptic import PanopticMetrics
from fisa_platform.evaluation.semantic import SemanticMetrics

SUBSETS = ("all", "seen", "unseen", "thing", "stuff")
"""In the order of tables."""


def standard_subsets(vocabulary: Vocabulary, seen: Vocabulary | None = None) -> dict[str, set[int]]:
    """Category ids of each of SUBSETS; without `seen`, the vocabulary of training, less `seen` and `unseen`.

    A class is seen if any of its names, synonyms included, is a name or synonym that was trained on (the rule
    of FC-CLIP's ensemble), so a class may have different ids in the two vocabularies.
    """
    subsets = {"all": set(vocabulary.ids)}
    if seen is not None:
        shared = vocabulary.shares_name_with(seen)
        subsets["seen"] = set(itertools.compress(vocabulary.ids, shared))
        subsets["unseen"] = subsets["all"] - subsets["seen"]
    subsets["thing"] = {category.id for category in vocabulary.categories if category.is_thing}
    subsets["stuff"] = subsets["all"] - subsets["thing"]
    return subsets


def summarise(
    panoptic: PanopticMetrics, semantic: SemanticMetrics, subsets: Mapping[str, Collection[int]]
) -> dict[str, dict[str, float]]:
    """PQ, SQ, RQ, mIoU and mIoU_old in percent for each subset that ground truth is in."""
    qualities, overlaps = panoptic.result(subsets), semantic.result(subsets)
    return {
        name: {**qualities.get(name, {}), **overlaps.get(name, {})}
        for name in subsets
        if name in qualities or name in overlaps
    }
