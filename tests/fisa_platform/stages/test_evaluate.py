"""Scores of a table, whatever its workers have in hand and however many ground truths it has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fisa_model.config import fisa_toy
from fisa_model.vocabulary import Vocabulary
from fisa_platform import storage
from fisa_platform.classifier import ClassifierConfig
from fisa_platform.manifest import Version, commit, new_version
from fisa_platform.panoptic_png import decode_panoptic, encode_panoptic
from fisa_platform.rows import TableRows
from fisa_platform.schema import IMAGES
from fisa_platform.sources import toyworld
from fisa_platform.stages.evaluate import EvaluateConfig, Scored
from fisa_platform.stages.evaluate_worker import Evaluator
from fisa_platform.tables import failable_table, write_batch

FROZEN = {"frozen": {"clip": {"model": "toy"}, "image_size": 224}}
COARSE = Vocabulary.from_names(["shape"], stuff=["ground"])

Run = Callable[..., Version]


@pytest.fixture(scope="module")
def images(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Version:
    output = tmp_path_factory.mktemp("images")
    return run("shard", toyworld={"scenes": 12, "names": "all"}, output_uri=str(output))


@pytest.fixture(scope="module")
def masks(run: Run, images: Version, tmp_path_factory: pytest.TempPathFactory) -> Version:
    output = tmp_path_factory.mktemp("masks")
    return run("propose", images_uri=images.uri, generator="felzenszwalb", output_uri=str(output))


@pytest.fixture(scope="module")
def coarse(images: Version, tmp_path_factory: pytest.TempPathFactory) -> Version:
    return coarse_truth(images, tmp_path_factory.mktemp("coarse"))


def coarse_truth(
    images: Version, folder: Path, *, more: int = 0, vocabulary: Vocabulary | None = COARSE, **changes: Any
) -> Version:
    """The same images, whose segments are of two classes, the first one void; and so many more images.

    `changes` are made to the first row.
    """
    things = {c.id for c in toyworld.vocabulary("all").categories if c.is_thing}
    rows = list(TableRows(images.files("images/"), IMAGES.names))
    for row in rows:
        row["segments_info"] = row["segments_info"][1:]
        ids = decode_panoptic(row["panoptic"])
        void = ~np.isin(ids, [segment["id"] for segment in row["segments_info"]])
        row["panoptic"] = encode_panoptic(np.where(void, 0, ids))
        for segment in row["segments_info"]:
            segment["category_id"] = 1 if segment["category_id"] in things else 2
    rows[0] |= changes
    rows += [{**rows[0], "image_id": f"more {number}"} for number in range(more)]
    pending = new_version(str(folder), "50" * 8)
    # In another order, and in several files.
    for start in range(0, len(rows), 5):
        batch = failable_table(IMAGES, rows[start : start + 5][::-1])
        write_batch(batch, output_uri=pending.uri, name="images", schema=IMAGES)
    categories = None if vocabulary is None else vocabulary.to_json()
    return commit(
        pending, stage="shard", config={}, inputs={}, seconds=0, rows=len(rows), vocabulary=categories
    )


def flat(found: dict[str, Any]) -> dict[str, float]:
    """Every score under one name."""
    by_rules = {"": found["scores"], **found["scores_by_other_rules"]}
    return {
        f"{rules} {subset} {metric}": value
        for rules, subsets in by_rules.items()
        for subset, metrics in subsets.items()
        for metric, value in metrics.items()
    }


@pytest.fixture
def evaluate(run: Run, images: Version, masks: Version, tmp_path: Path) -> Run:
    def scored(name: str, *, compute: dict[str, float] | None = None, **config: Any) -> Version:
        settings: dict[str, Any] = {
            "images_uri": images.uri,
            "proposals_uri": masks.uri,
            "classifier": FROZEN,
            "other_rules": {"without objectness": {"objectness": "none"}},
            "mask_accuracy": "segments",
            "batch_size": 2,
            "rows_per_file": 4,
            "output_uri": str(tmp_path / name),
            **config,
        }
        return run("evaluate", compute=compute or {}, **settings)

    return scored


def test_a_worker_with_several_batches_in_hand_scores_the_same(evaluate: Run) -> None:
    one = flat(evaluate("one").manifest.extra)
    assert one[" all PQ"] > 10
    three = flat(evaluate("three", compute={"gpus_per_worker": 1, "cpus_per_worker": 3}).manifest.extra)
    # The order in which files are added up rounds otherwise.
    assert three == pytest.approx(one, abs=1e-6)


@pytest.mark.parametrize("classifier", [FROZEN, None], ids=["CLIP", "oracle"])
def test_two_ground_truths_in_one_pass_score_as_two_jobs(
    evaluate: Run, coarse: Version, classifier: dict[str, Any] | None
) -> None:
    asked = {"classifier": classifier, "mask_accuracy": "segments" if classifier else None}
    together = evaluate("together", other_truth_uris={"coarse": coarse.uri}, **asked)
    fine = evaluate("fine", **asked)
    alone = evaluate("alone", images_uri=coarse.uri, **asked)
    extra = together.manifest.extra
    assert flat(extra) == pytest.approx(flat(fine.manifest.extra), abs=1e-6)
    assert flat(extra["by_other_truth"]["coarse"]) == pytest.approx(flat(alone.manifest.extra), abs=1e-6)
    in_full, in_full_alone = (storage.read_json(v.file("metrics.json")) for v in (together, alone))
    assert [c["name"] for c in in_full["by_other_truth"]["coarse"]["classes"]] == ["shape", "ground"]
    assert in_full["scores"] == extra["scores"] and len(in_full["classes"]) > 10
    for ours, theirs in zip(
        in_full["by_other_truth"]["coarse"]["classes"], in_full_alone["classes"], strict=True
    ):
        assert ours == pytest.approx(theirs, abs=1e-6)
    assert flat(alone.manifest.extra) != pytest.approx(flat(fine.manifest.extra), abs=1)
    assert together.manifest.vocabulary == fine.manifest.vocabulary
    tables = [version.dataset("predictions/").to_table().sort_by("image_id") for version in (together, fine)]
    assert tables[0].equals(tables[1])


def test_tables_have_the_names_of_truth_and_rules() -> None:
    scores = {"all": {"PQ": 12.34}}
    scored = Scored({"scores": scores, "scores_by_other_rules": {"strict": scores}}, [])
    titles = [line for line in scored.text().splitlines() if "PQ" not in line and "12.3" not in line]
    assert titles == ["strict"]
    titles = [line for line in scored.text("coarse").splitlines() if "PQ" not in line and "12.3" not in line]
    assert titles == ["coarse", "coarse, strict"]


def test_images_are_encoded_once_for_all_ground_truths(
    images: Version, masks: Version, coarse: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvaluateConfig(
        images_uri=images.uri,
        proposals_uri=masks.uri,
        output_uri="nowhere",
        classifier=ClassifierConfig(frozen=fisa_toy()),
        other_truth_uris={"coarse": coarse.uri, "again": images.uri},
    )
    fine = toyworld.vocabulary("all")
    evaluator = Evaluator(config, [fine, COARSE, fine])
    assert evaluator.predictor is not None
    encoded: list[int] = []
    encode = evaluator.predictor.encode_images
    monkeypatch.setattr(
        evaluator.predictor, "encode_images", lambda batch: (encoded.append(len(batch)), encode(batch))[1]
    )
    batch = images.dataset("images/").to_table().slice(0, 3)
    [first, *_] = evaluator(batch).to_pylist()
    assert encoded == [3]
    assert [len(other["segments_info"]) > 0 for other in first["by_other_truth"]] == [True, True]
    assert first["by_other_truth"][1]["segments_info"] == first["segments_info"]


def test_ground_truth_of_other_images_is_refused(evaluate: Run, images: Version, tmp_path: Path) -> None:
    size = "224 x 224 pixels"
    for number, (changes, image, here, there) in enumerate(
        (
            ({"image_id": "another"}, "0", f"000000.jpg of {size}", "not there"),
            ({"height": 100}, "0", f"000000.jpg of {size}", "000000.jpg of 100 x 224 pixels"),
            ({"file_name": "x.jpg"}, "0", f"000000.jpg of {size}", f"x.jpg of {size}"),
            ({"more": 1}, "more 0", "not there", f"000000.jpg of {size}"),
        )
    ):
        other = coarse_truth(images, tmp_path / str(number), **changes)
        problem = rf"other_truth_uris\.coarse: image {image} is {here} in .* and {there} in "
        with pytest.raises(ValueError, match=problem):
            evaluate("refused", other_truth_uris={"coarse": other.uri})


def test_other_tables_are_refused(evaluate: Run, images: Version, masks: Version, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.other_truth_uris\.masks: .* holds no version of images"):
        evaluate("refused", other_truth_uris={"masks": masks.uri})
    bare = coarse_truth(images, tmp_path / "bare", vocabulary=None)
    with pytest.raises(ValueError, match="has no ground truth to score against, and so no classes; give"):
        evaluate("refused", other_truth_uris={"bare": bare.uri})
    with pytest.raises(ValueError, match=rf"{bare.uri}: has no ground truth .*, and so no classes"):
        evaluate("refused", seen_uri=bare.uri)


def test_a_ground_truth_has_a_name() -> None:
    with pytest.raises(ValueError, match="other_truth_uris must have names, got an empty one"):
        EvaluateConfig(images_uri="a", proposals_uri="b", output_uri="c", other_truth_uris={"": "d"})
