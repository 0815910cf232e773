"""Scores of a table, whatever its workers have in hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fisa_platform.manifest import Version


def test_a_worker_with_several_batches_in_hand_scores_the_same(
    run: Callable[..., Version], tmp_path: Path
) -> None:
    images = run("shard", toyworld={"scenes": 12, "names": "all"}, output_uri=str(tmp_path / "images")).uri
    masks = run(
        "propose", images_uri=images, generator="felzenszwalb", output_uri=str(tmp_path / "masks")
    ).uri

    def scores(name: str, **compute: float) -> dict[str, Any]:
        version = run(
            "evaluate",
            compute=dict(compute),
            images_uri=images,
            proposals_uri=masks,
            classifier={"frozen": {"clip": {"model": "toy"}, "image_size": 224}},
            other_rules={"without objectness": {"objectness": "none"}},
            mask_accuracy="segments",
            batch_size=2,
            rows_per_file=4,
            output_uri=str(tmp_path / name),
        )
        found = {"": version.manifest.extra["scores"], **version.manifest.extra["scores_by_other_rules"]}
        return {
            f"{rules} {subset} {metric}": value
            for rules, subsets in found.items()
            for subset, metrics in subsets.items()
            for metric, value in metrics.items()
        }

    one = scores("one")
    assert one[" all PQ"] > 10
    # The order in which files are added up rounds otherwise.
    assert scores("three", gpus_per_worker=1, cpus_per_worker=3) == pytest.approx(one, abs=1e-6)
