"""What `fisa inspect` says and draws."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fisa_model.mask_generators import MaskProposals
from fisa_platform import manifest, storage
from fisa_platform.cli import main
from fisa_platform.manifest import Input, Version
from fisa_platform.mask_codec import encode_proposals
from fisa_platform.panoptic_png import encode_panoptic
from fisa_platform.schema import IMAGES, PREDICTIONS, PROPOSALS
from fisa_platform.sources import toyworld
from fisa_platform.stages.shard import load_images
from fisa_platform.tables import failable_table, write_batch

SCENES = 5


@pytest.fixture
def images(tmp_path: Path) -> Version:
    pending = manifest.new_version(str(tmp_path / "images"), "50" * 8)
    rows = load_images(toyworld.index(seed=1, count=SCENES, names="all").rows)
    failed = [{"image_id": f"bad {n}", "file_name": f"{n}.jpg", "reason": "cut short"} for n in range(7)]
    for table in (rows, failable_table(IMAGES, failed)):
        write_batch(table, output_uri=pending.uri, name="images", schema=IMAGES)
    vocabulary = toyworld.vocabulary("all").to_json()
    return manifest.commit(
        pending, stage="shard", config={}, inputs={}, seconds=1, rows=SCENES, vocabulary=vocabulary
    )


@pytest.fixture
def proposals(images: Version, tmp_path: Path) -> Version:
    """One mask a scene, its left half."""
    pending = manifest.new_version(str(tmp_path / "proposals"), "50" * 8)
    logits = np.full((1, 20, 20), -1, np.float32)
    logits[:, :, :10] = 1
    row = encode_proposals(MaskProposals(logits, np.ones(1, np.float32)), 224, 224)
    ids = images.dataset("images/").to_table(columns=["image_id"])["image_id"].to_pylist()
    table = failable_table(PROPOSALS, [{"image_id": i, "file_name": i, **row} for i in ids])
    write_batch(table, output_uri=pending.uri, name="proposals", schema=PROPOSALS)
    inputs = {"images_uri": Input(uri=images.uri, digest=images.digest)}
    return manifest.commit(pending, stage="propose", config={}, inputs=inputs, seconds=1, rows=SCENES)


def inspect(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *arguments])
    assert ended.value.code == 0


def test_a_version_is_described(images: Version, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(images.uri)
    said = capsys.readouterr().out
    assert f"stage     shard, {SCENES} rows" in said
    megabytes = sum(file.bytes for file in images.manifest.files if "/images/" in file.path) / 1e6
    assert f"images: 1 files, {megabytes:.1f} MB, {SCENES} rows" in said
    assert "rejected: 1 files" in said
    assert f"classes   {len(toyworld.vocabulary('all'))}: " in said
    assert said.count("cut short") == 5
    assert "and 2 more" in said


def test_its_images_are_drawn_with_their_masks(
    images: Version, proposals: Version, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    inspect(proposals.uri, "--show", "3", "--output", str(sheet))
    assert f"from      images_uri: {images.uri}" in capsys.readouterr().out
    drawn = np.asarray(Image.open(sheet))
    assert drawn.shape[1] == 3 * 400
    below = drawn[20:]
    # Grey beside the mask, coloured inside it.
    right, left = below[:, 210:390].astype(int), below[:, 10:190].astype(int)
    assert np.abs(right[..., 0] - right[..., 2]).max() < 3
    assert np.abs(left[..., 0] - left[..., 2]).mean() > 20
    inspect(images.uri, "--show", "99", "--output", str(sheet))
    assert np.asarray(Image.open(sheet)).shape[1] == 4 * 400


def test_scored_predictions_are_drawn_beside_the_truth(
    images: Version, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here all is void in the predictions, so that they are grey and the truth is not."""
    pending = manifest.new_version(str(tmp_path / "scores"), "50" * 8)
    rows = images.dataset("images/").to_table().to_pylist()[:2]
    void = encode_panoptic(np.zeros((rows[0]["height"], rows[0]["width"]), np.int32))
    predictions = [{**row, "panoptic": void, "segments_info": []} for row in rows]
    write_batch(
        failable_table(PREDICTIONS, predictions),
        output_uri=pending.uri,
        name="predictions",
        schema=PREDICTIONS,
    )
    version = manifest.commit(
        pending,
        stage="evaluate",
        config={},
        inputs={"images_uri": Input(uri=images.uri, digest=images.digest)},
        seconds=1,
        rows=2,
        vocabulary=toyworld.vocabulary("all").to_json(),
        extra={"message": "     PQ\nall  12.3"},
    )
    sheet = tmp_path / "sheet.png"
    inspect(version.uri, "--show", "2", "--output", str(sheet))
    assert "     PQ\nall  12.3\n" in capsys.readouterr().out
    drawn = np.asarray(Image.open(sheet)).astype(int)
    assert drawn.shape[1] == 2 * 800
    colour = drawn[120:360].max(axis=-1) - drawn[120:360].min(axis=-1)
    truth, prediction = colour[:, 30:370], colour[:, 430:770]
    assert truth.mean() > 20 and prediction.max() < 8


def test_what_has_no_images_is_not_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pending = manifest.new_version(str(tmp_path), "50" * 8)
    version = manifest.commit(pending, stage="train", config={}, inputs={}, seconds=0)
    with pytest.raises(SystemExit) as ended:
        main(["inspect", version.uri, "--show", "1"])
    assert ended.value.code == 1
    assert "has no images, proposals, predictions or referents to show" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "words"), [("none/x.png", "no such folder"), ("x.txt", "ends in .png")])
def test_a_drawing_that_could_not_be_written_is_not_begun(
    images: Version, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", images.uri, "--show", "1", "--output", str(tmp_path / name)])
    assert ended.value.code == 1
    assert words in capsys.readouterr().err


def test_labels_of_a_folder_are_drawn_on_its_pictures(images: Version, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    pending = manifest.new_version(str(tmp_path / "labels"), "50" * 8)
    rows = images.dataset("images/").to_table().to_pylist()[:2]
    for row in rows:
        storage.write_bytes(f"{folder}/{row['file_name']}", row["image"])
        row["segments_info"] = [
            {**s, "bbox": [0, 0, 1, 1], "isthing": True, "score": 1.0, "counts": b""}
            for s in row["segments_info"]
        ]
    write_batch(
        failable_table(PREDICTIONS, rows), output_uri=pending.uri, name="predictions", schema=PREDICTIONS
    )
    version = manifest.commit(
        pending,
        stage="label",
        config={},
        inputs={"images_uri": Input(uri=str(folder), digest="0")},
        seconds=1,
        rows=2,
        vocabulary=toyworld.vocabulary("all").to_json(),
    )
    inspect(version.uri, "--show", "2", "--output", str(tmp_path / "sheet.png"))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert np.asarray(sheet.convert("L")).std() > 20
