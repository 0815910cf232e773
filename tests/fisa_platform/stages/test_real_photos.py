"""The stages on real photos: shard, propose, evaluate and label, in one chain for each data set."""

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zipped_coco import zipped_coco

from fisa_model.config import fisa_toy
from fisa_model.mask_generators import MaskProposals
from fisa_model.pictures import decode_image
from fisa_model.predictor import FISAPredictor
from fisa_model.vocabulary import Vocabulary
from fisa_platform import manifest, storage
from fisa_platform.manifest import Version
from fisa_platform.mask_codec import encode_proposals
from fisa_platform.panoptic_png import decode_panoptic
from fisa_platform.rows import TableRows
from fisa_platform.schema import IMAGES, PREDICTIONS, PROPOSALS
from fisa_platform.tables import failable_table, write_batch

Run = Callable[..., Version]

PHOTOS = {"coco_panoptic": 2, "coco_stuff": 13}
ORACLE = {"coco_panoptic": {"PQ": 40, "mIoU": 56}, "coco_stuff": {"PQ": 39, "mIoU": 62}}
"""About what the regions of Felzenszwalb's segmentation allow at most."""
TOY_BASELINE = {"frozen": {"clip": {"model": "toy"}, "image_size": 224}}


only_coco_panoptic = pytest.mark.parametrize("chain", ["coco_panoptic"], indirect=True, scope="module")


@dataclass(frozen=True)
class Chain:
    """What the stages made of one data set."""

    source: Path
    folder: Path
    images: Version
    proposals: Version
    oracle: Version

    @property
    def rows(self) -> list[dict[str, Any]]:
        return list(TableRows(self.images.files("images/"), IMAGES.names))


@pytest.fixture(scope="module", params=list(PHOTOS))
def chain(
    request: pytest.FixtureRequest, run: Run, shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Chain:
    source, folder = shared_data / request.param, tmp_path_factory.mktemp(request.param)
    uris = {name: str(folder / name) for name in ("images", "proposals", "oracle")}
    coco = {
        "images_uri": str(source / "images"),
        "panoptic_uri": str(source / "panoptic"),
        "json_uri": str(source / "panoptic.json"),
    }
    images = run("shard", coco=coco, output_uri=uris["images"])
    proposals = run(
        "propose", images_uri=uris["images"], generator="felzenszwalb", output_uri=uris["proposals"]
    )
    oracle = evaluate(
        run,
        uris["images"],
        uris["proposals"],
        uris["oracle"],
        other_rules={"same": {}, "nothing is sure": {"object_threshold": 1.0, "objectness": "none"}},
    )
    return Chain(source, folder, images, proposals, oracle)


def evaluate(run: Run, images_uri: str, proposals_uri: str, output_uri: str, **config: Any) -> Version:
    return run(
        "evaluate", images_uri=images_uri, proposals_uri=proposals_uri, output_uri=output_uri, **config
    )


def propose_ground_truth(images: Version, output_uri: str) -> Version:
    """A table of proposals that are the ground truth's own masks."""
    rows = []
    for row in TableRows(images.files("images/"), IMAGES.names):
        ids = decode_panoptic(row["panoptic"])
        masks = np.stack([ids == segment["id"] for segment in row["segments_info"]])
        logits = np.where(masks, np.float32(1), np.float32(-1))
        proposals = MaskProposals(logits, np.ones(len(masks), np.float32))
        rows.append({**row, **encode_proposals(proposals, *ids.shape)})
    pending = manifest.new_version(output_uri, "74" * 8)
    table = failable_table(PROPOSALS, rows)
    write_batch(table, output_uri=pending.uri, name="proposals", schema=PROPOSALS)
    return manifest.commit(pending, stage="propose", config={}, inputs={}, seconds=0, rows=len(rows))


def test_every_photo_is_in_the_table_once_and_unchanged(chain: Chain) -> None:
    document = json.loads((chain.source / "panoptic.json").read_text())
    assert [row["image_id"] for row in chain.rows] == sorted(str(image["id"]) for image in document["images"])
    assert chain.images.manifest.rows == PHOTOS[chain.source.name] == len(document["images"])
    assert chain.images.manifest.extra["rejected"] == 0
    pngs = {str(entry["image_id"]): entry["file_name"] for entry in document["annotations"]}
    for row in chain.rows:
        assert row["image"] == (chain.source / "images" / row["file_name"]).read_bytes()
        assert row["panoptic"] == (chain.source / "panoptic" / pngs[row["image_id"]]).read_bytes()


def test_zips_are_sharded_as_the_folders_are(run: Run, chain: Chain, tmp_path: Path) -> None:
    coco = zipped_coco(chain.source, tmp_path)
    images = run("shard", coco=coco, output_uri=str(tmp_path / "table"))
    assert list(TableRows(images.files("images/"), IMAGES.names)) == chain.rows


def test_label_maps_are_scored_as_they_are(run: Run, shared_data: Path, tmp_path: Path) -> None:
    folder, uris = shared_data / "ade20k_150", {name: str(tmp_path / name) for name in ("images", "truth")}
    semantic = {"images_uri": str(folder / "images"), "labels_uri": str(folder / "annotations")}
    ade = {**semantic, "class_list": "ade20k_150", "offset": 1}
    images = run("shard", semantic=ade, output_uri=uris["images"])
    assert (images.manifest.rows, len(images.manifest.vocabulary or [])) == (2, 150)
    propose_ground_truth(images, uris["truth"])
    scores = evaluate(run, images.uri, uris["truth"], str(tmp_path / "perfect")).manifest.extra["scores"]
    assert scores["all"] == scores["stuff"]
    assert {scores["all"][metric] for metric in ("PQ", "mIoU")} == {100.0}
    assert "AP" not in scores["all"]


def test_the_vocabulary_is_the_sources(chain: Chain) -> None:
    document = json.loads((chain.source / "panoptic.json").read_text())
    vocabulary = chain.images.manifest.vocabulary
    assert vocabulary is not None
    assert [(c["id"], c["name"]) for c in vocabulary] == [
        (c["id"], c["name"]) for c in document["categories"]
    ]


def test_proposals_cut_every_photo_into_regions(chain: Chain) -> None:
    rows = list(TableRows(chain.proposals.files("proposals/"), PROPOSALS.names))
    assert [row["image_id"] for row in rows] == [row["image_id"] for row in chain.rows]
    for row, image in zip(rows, chain.rows, strict=True):
        assert (row["height"], row["width"]) == (image["height"], image["width"])
        size = row["masks"][0]["height"] * row["masks"][0]["width"]
        assert sum(mask["area"] for mask in row["masks"]) == size


def test_the_oracle_loses_only_what_the_regions_lose(chain: Chain) -> None:
    scores = chain.oracle.manifest.extra["scores"]["all"]
    expected = ORACLE[chain.source.name]
    assert {metric: scores[metric] for metric in expected} == pytest.approx(expected, abs=3)


def test_other_rules_are_scored_on_the_same_class_scores(chain: Chain) -> None:
    scores, others = (chain.oracle.manifest.extra[name] for name in ("scores", "scores_by_other_rules"))
    assert others["same"] == scores
    assert ("AP" in scores["all"]) == ("thing" in scores)
    strict = others["nothing is sure"]
    assert {values["PQ"] for values in strict.values()} == {0}
    # Labels do not depend on thresholds, and Felzenszwalb's regions are all as sure.
    assert {name: values["mIoU"] for name, values in strict.items()} == {
        name: values["mIoU"] for name, values in scores.items()
    }


def test_ground_truth_as_prediction_scores_exactly_100(chain: Chain, run: Run) -> None:
    truth = propose_ground_truth(chain.images, str(chain.folder / "truth"))
    perfect = evaluate(run, chain.images.uri, truth.uri, str(chain.folder / "perfect"))
    scores = perfect.manifest.extra["scores"]
    assert set(scores) == {"all", "thing", "stuff"}
    for subset in scores.values():
        assert {subset[metric] for metric in ("PQ", "SQ", "RQ", "mIoU")} == {100.0}
    assert {name: subset["AP"] for name, subset in scores.items() if "AP" in subset} == {
        "all": pytest.approx(100),
        "thing": pytest.approx(100),
    }


@only_coco_panoptic
def test_a_frozen_clip_names_real_photos(chain: Chain, run: Run) -> None:
    """The toy CLIP has never seen a photo, so its scores say nothing; that they are whole and add up does."""
    output_uri = str(chain.folder / "frozen")
    seen_uri = chain.images.uri
    frozen = evaluate(
        run,
        chain.images.uri,
        chain.proposals.uri,
        output_uri,
        classifier=TOY_BASELINE,
        seen_uri=seen_uri,
        mask_accuracy="segments",
        instance_ap=False,
    )
    scores = frozen.manifest.extra["scores"]
    assert set(scores) == {"all", "seen", "thing", "stuff"}
    assert scores["seen"] == scores["all"]
    assert not any("AP" in subset for subset in scores.values())
    assert all(0 <= value <= 100 for subset in scores.values() for value in subset.values())
    assert scores["all"]["mask_acc"] == pytest.approx(accuracy_on_true_masks(chain))
    predictions = TableRows(frozen.files("predictions/"), PREDICTIONS.names)
    assert predictions.ids == [row["image_id"] for row in chain.rows]
    for row in predictions:
        check_prediction(row, known_ids={c["id"] for c in chain.images.manifest.vocabulary or []})


def accuracy_on_true_masks(chain: Chain) -> float:
    """Percent of the segments of a class that the frozen CLIP names right, mean over classes."""
    vocabulary = Vocabulary.from_json(chain.images.manifest.vocabulary or [])
    predictor = FISAPredictor.baseline(fisa_toy())
    tokens = predictor.encode_vocabulary(vocabulary)
    right: dict[int, list[bool]] = defaultdict(list)
    for row in chain.rows:
        image, ids = decode_image(row["image"]), decode_panoptic(row["panoptic"])
        for segment in row["segments_info"]:
            mask = np.where(ids == segment["id"], np.float32(10), np.float32(-10))
            proposals = MaskProposals(mask[None], np.ones(1, np.float32))
            (prediction,) = predictor.predict([image], [proposals], tokens)
            best = vocabulary.categories[int(prediction.class_probs[0].argmax())]
            right[segment["category_id"]].append(best.id == segment["category_id"])
    return 100 * float(np.mean([np.mean(found) for found in right.values()]))


def test_a_folder_of_photos_is_labelled_with_words_typed_by_hand(
    run: Run, shared_data: Path, tmp_path: Path
) -> None:
    source = shared_data / "coco_panoptic" / "images"
    images = run("shard", folder={"images_uri": str(source)}, output_uri=str(tmp_path / "images"))
    assert images.manifest.vocabulary is None
    labels = run(
        "label",
        images_uri=images.uri,
        output_uri=str(tmp_path / "labels"),
        classifier=TOY_BASELINE,
        things=["dog", "person, man, woman"],
        stuff=["wall", "floor"],
        limit=1,
        panoptic={"object_threshold": 0.0},
    )
    (first, _) = TableRows(images.files("images/"), IMAGES.names)
    assert first["panoptic"] is None
    (row,) = TableRows(labels.files("predictions/"), PREDICTIONS.names)
    assert row["image_id"] == first["image_id"] == "000000142238"
    assert row["segments_info"]
    check_prediction(row, known_ids={1, 2, 3, 4})
    document = storage.read_json(labels.file("panoptic.json"))
    assert [c["name"] for c in document["categories"]] == ["dog", "person", "wall", "floor"]
    (annotation,) = document["annotations"]
    assert annotation["image_id"] == 142238  # COCO's own, of which the name is made
    png = storage.read_bytes(storage.join(labels.folder("panoptic"), annotation["file_name"]))
    assert png == row["panoptic"]
    (name,) = storage.list_files(labels.folder("overlays"))
    overlay = decode_image(storage.read_bytes(storage.join(labels.folder("overlays"), name)))
    assert overlay.shape[0] * first["width"] == overlay.shape[1] * first["height"]


def check_prediction(row: dict[str, Any], known_ids: set[int]) -> None:
    """The picture and the list of segments say the same."""
    ids = decode_panoptic(row["panoptic"])
    assert ids.shape == (row["height"], row["width"])
    segments = {segment["id"]: segment for segment in row["segments_info"]}
    painted, areas = np.unique(ids[ids > 0], return_counts=True)
    assert dict(zip(painted.tolist(), areas.tolist(), strict=True)) == {
        number: segment["area"] for number, segment in segments.items()
    }
    assert {segment["category_id"] for segment in segments.values()} <= known_ids
