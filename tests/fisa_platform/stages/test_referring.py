"""From RefCOCO's files to the paper's table 3 (f), on scenes of the toy world."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refcoco_form import write_refcoco

from fisa_model.config import EnsembleConfig, fisa_toy
from fisa_model.mask_generators import MaskProposals
from fisa_model.pictures import decode_image
from fisa_model.predictor import FISAPredictor
from fisa_model.referring import refer
from fisa_platform import inspection
from fisa_platform.classifier import ClassifierConfig, load_predictor
from fisa_platform.manifest import Version, commit, new_version
from fisa_platform.mask_codec import decode_runs, encode_proposals
from fisa_platform.rows import ProposalRows, TableRows
from fisa_platform.schema import IMAGES, PROPOSALS, REFERENTS
from fisa_platform.segment_summary import summarise_referred
from fisa_platform.stages.evaluate_referring import EvaluateReferringConfig
from fisa_platform.tables import failable_table, write_batch

FROZEN = {"frozen": {"clip": {"model": "toy"}, "image_size": 224}}

Run = Callable[..., Version]


@pytest.fixture(scope="module")
def images(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Version:
    folder = tmp_path_factory.mktemp("refcoco")
    source = write_refcoco(folder, 12)
    return run("shard", refcoco=source, output_uri=str(folder / "table"))


@pytest.fixture(scope="module")
def proposals(run: Run, images: Version, tmp_path_factory: pytest.TempPathFactory) -> Version:
    return run(
        "propose",
        images_uri=images.uri,
        generator="felzenszwalb",
        output_uri=str(tmp_path_factory.mktemp("masks")),
    )


@pytest.fixture(scope="module")
def predictor() -> FISAPredictor:
    return load_predictor(ClassifierConfig(frozen=fisa_toy()), caches_words=False)


def expressions_of(row: dict[str, Any]) -> list[str]:
    return [text for item in row["referred"] for text in item["expressions"]]


def test_expressions_come_with_their_images(images: Version) -> None:
    rows = list(TableRows(images.files("images/"), IMAGES.names))
    assert [row["image_id"] for row in rows] == ["0", "10", "2", "4", "6", "8"]  # of split val
    assert all(row["panoptic"] is None for row in rows)
    number = sum(len(expressions_of(row)) for row in rows)
    objects = sum(len(row["referred"]) for row in rows)
    said = summarise_referred(images.files("images/"))
    assert said == f"{objects} objects, meant by {number} expressions"
    shape = rows[0]["height"], rows[0]["width"]
    masks = decode_runs([item["counts"] for item in rows[0]["referred"]], *shape)
    assert 0 < masks.sum(axis=0).max() <= 1  # segments of a scene do not overlap


def test_the_stage_says_what_the_predictor_says(
    run: Run, images: Version, proposals: Version, predictor: FISAPredictor, tmp_path: Path
) -> None:
    version = run(
        "evaluate_referring",
        compute={"gpus_per_worker": 1, "cpus_per_worker": 3},
        images_uri=images.uri,
        proposals_uri=proposals.uri,
        classifier=FROZEN,
        rows_per_file=4,
        output_uri=str(tmp_path),
    )
    masks_of = ProposalRows(proposals.uri)
    intersections, unions, best = [], [], []
    truths = {row["image_id"]: row for row in TableRows(images.files("images/"), IMAGES.names)}
    found = list(TableRows(version.files("referents/"), REFERENTS.names))
    assert [row["image_id"] for row in found] == list(truths)
    for row in found:
        truth = truths[row["image_id"]]
        expressions = expressions_of(truth)
        masks = masks_of[row["image_id"]]
        expected = refer(predictor, decode_image(truth["image"]), expressions, proposals=masks)
        shape = truth["height"], truth["width"]
        meant = [item["counts"] for item in truth["referred"] for _ in item["expressions"]]
        for referent, ours, counts in zip(row["referents"], expected, meant, strict=True):
            assert referent["expression"] == ours.expression
            assert referent["similarity"] == pytest.approx(ours.similarity, abs=1e-5)
            assert np.array_equal(decode_runs([referent["counts"]], *shape)[0], ours.mask)
            true = decode_runs([counts], *shape)[0]
            intersections.append((ours.mask & true).sum())
            unions.append((ours.mask | true).sum())
            best.append(max((m & true).sum() / (m | true).sum() for m in masks.mask_logits >= 0))
    scores = version.manifest.extra["scores"]
    assert version.manifest.extra["expressions"] == len(unions) > 20
    assert scores["oIoU"] == pytest.approx(100 * sum(intersections) / sum(unions))
    assert scores["mIoU"] == pytest.approx(100 * np.mean(np.divide(intersections, unions)))
    assert scores["best"] == pytest.approx(100 * np.mean(best), abs=1e-4)
    assert scores["mIoU"] > 30
    for drawn in (images, version):
        assert inspection.show(drawn, 2).width == 2 * inspection.WIDTH


def test_images_without_masks_count_and_those_without_a_row_are_rejected(
    run: Run, images: Version, tmp_path: Path
) -> None:
    """A score over fewer images would be another score."""
    ids = [row["image_id"] for row in TableRows(images.files("images/"), ["image_id"])]
    nothing = MaskProposals(np.zeros((0, 224, 224), np.float32), np.zeros(0, np.float32))

    def table(name: str, ids: list[str]) -> str:
        pending = new_version(str(tmp_path / name), "50" * 8)
        rows = [{"image_id": i, "file_name": i, **encode_proposals(nothing, 224, 224)} for i in ids]
        write_batch(
            failable_table(PROPOSALS, rows), output_uri=pending.uri, name="proposals", schema=PROPOSALS
        )
        return commit(pending, stage="propose", config={}, inputs={}, seconds=0, rows=len(ids)).uri

    settings = {"images_uri": images.uri, "classifier": FROZEN, "output_uri": str(tmp_path / "scores")}
    version = run("evaluate_referring", proposals_uri=table("nothing", ids), **settings)
    assert set(version.manifest.extra["scores"].values()) == {0.0}
    with pytest.raises(ValueError, match=r"1 of 6 images were rejected.*has no row for this image"):
        run("evaluate_referring", proposals_uri=table("fewer", ids[1:]), **settings)


def test_tables_without_expressions_are_refused(run: Run, proposals: Version, tmp_path: Path) -> None:
    scenes = run("shard", toyworld={"scenes": 2, "names": "all"}, output_uri=str(tmp_path / "scenes"))
    with pytest.raises(ValueError, match="no referring expressions; give what `shard` wrote from `refcoco`"):
        run(
            "evaluate_referring",
            images_uri=scenes.uri,
            proposals_uri=proposals.uri,
            classifier=FROZEN,
            output_uri=str(tmp_path / "scores"),
        )


def test_a_split_that_is_not_there_is_named(run: Run, tmp_path: Path) -> None:
    source = write_refcoco(tmp_path / "data", 2)
    with pytest.raises(ValueError, match=r"is of split 'testA'; it has train \(\d+\), val \(\d+\)"):
        run("shard", refcoco={**source, "split": "testA"}, output_uri=str(tmp_path / "table"))


def test_an_ensemble_is_refused() -> None:
    with pytest.raises(ValueError, match="an expression is no class, seen or not; leave it out"):
        EvaluateReferringConfig(
            images_uri="a",
            proposals_uri="b",
            output_uri="c",
            classifier=ClassifierConfig(weights_uri="d", ensemble=EnsembleConfig()),
        )
