"""Input that cannot be used is set aside with the reason; too much of it fails the job."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fisa_model.config import CLIPConfig, FISAConfig, PanopticConfig
from fisa_model.mask_generators import MaskProposals
from fisa_model.mask_generators.mask2former import Mask2FormerGenerator
from fisa_model.pictures import decode_image
from fisa_model.vocabulary import Vocabulary
from fisa_platform import manifest, storage
from fisa_platform.classifier import ClassifierConfig
from fisa_platform.manifest import Version
from fisa_platform.mask_codec import decode_proposals, encode_proposals
from fisa_platform.panoptic_png import decode_panoptic, encode_panoptic
from fisa_platform.rows import TableRows
from fisa_platform.schema import IMAGES, PROPOSALS, REJECTED
from fisa_platform.serving.segmenter import load_segmenter
from fisa_platform.sources.index import read_image_folder
from fisa_platform.stages.evaluate import EvaluateConfig
from fisa_platform.stages.evaluate_worker import Evaluator
from fisa_platform.stages.label import LabelConfig, Labeller
from fisa_platform.stages.propose import ProposeConfig, Proposer, decode_images
from fisa_platform.stages.shard import load_images
from fisa_platform.tables import failable_table, write_batch

Run = Callable[..., Version]

HEIGHT, WIDTH = 48, 64
IDS = np.repeat([[5, 9]], HEIGHT, axis=0).repeat(WIDTH // 2, axis=1)
TOY_CLASSIFIER = ClassifierConfig(frozen=FISAConfig(clip=CLIPConfig(model="toy"), image_size=224))


def photo(height: int = HEIGHT, width: int = WIDTH) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format="JPEG")
    return buffer.getvalue()


BAD = {
    "cut": "image cannot be decoded",
    "text": "not an image that can be read",
    "empty": r"not an image that can be read \(0 bytes\)",
    "huge": r"image has 10001 x 10000 pixels, more than 100,000,000",
    "absent": "image .*/images/absent.jpg does not exist",
    "unlisted": "panoptic PNG has segment 7, which segments_info lacks",
    "resized": "image is 48 x 60 pixels .*, the JSON says 48 x 64",
    "cropped": "ground truth is 48 x 32, the image is 48 x 64",
    "no_truth": "panoptic PNG .*/panoptic/no_truth.png does not exist",
    "unannotated": "the JSON has no annotations for this image",
}
"""Name of a damaged image, and the reason that it is rejected for."""

ODD = ("good", "cmyk", "covered", "deep", "png", "tiny", "turned")
"""Names of images that are read as they are meant."""


def picture(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def odd_images() -> dict[str, bytes]:
    """Grey of one shade, in every form that is not the usual one; `deep` has 16 bits a pixel."""
    grey = Image.new("RGB", (WIDTH, HEIGHT), (153, 153, 153))
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "cmyk": picture(grey.convert("CMYK"), quality=95),
        "deep": picture(Image.fromarray(np.full((HEIGHT, WIDTH), 153 * 257, np.uint16)), "PNG"),
        "png": picture(grey, "PNG"),
        "tiny": picture(grey.crop((0, 0, 1, 1))),
        "turned": picture(grey.transpose(Image.Transpose.ROTATE_90), exif=turned, quality=95),
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A data set in COCO panoptic form: good and odd images, and one for each way of being damaged."""
    folder = tmp_path_factory.mktemp("source")
    images = {name: photo() for name in (*ODD, *BAD)} | odd_images()
    images["cut"] = images["cut"][: len(images["cut"]) // 2]
    images["text"] = b"404 Not Found"
    images["empty"] = b""
    images["huge"] = picture(Image.new("1", (10_001, 10_000)), "PNG")
    images["resized"] = photo(width=60)
    del images["absent"]
    truths = {name: encode_panoptic(IDS) for name in (*ODD, *BAD)}
    truths["tiny"] = encode_panoptic(IDS[:1, :1])
    truths["unlisted"] = encode_panoptic(np.where(IDS == 9, 7, IDS))
    truths["covered"] = encode_panoptic(np.where(IDS == 9, 5, IDS))
    truths["cropped"] = encode_panoptic(IDS[:, :32])
    del truths["no_truth"]
    for name, data in images.items():
        storage.write_bytes(f"{folder}/images/{name}.jpg", data)
    for name, data in truths.items():
        storage.write_bytes(f"{folder}/panoptic/{name}.png", data)
    segments = [{"id": 5, "category_id": 1, "area": 1536}, {"id": 9, "category_id": 2, "area": 1536}]
    one_segment = ("unlisted", "tiny")
    entries = [
        {"id": name, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH}
        if name != "tiny"
        else {"id": name, "file_name": f"{name}.jpg", "height": 1, "width": 1}
        for name in (*ODD, *BAD)
    ]
    document = {
        # The last one has the id of the first.
        "images": [*entries, entries[0]],
        "annotations": [
            {
                "image_id": name,
                "file_name": f"{name}.png",
                "segments_info": segments[:1] if name in one_segment else segments,
            }
            for name in (*ODD, *BAD)
            if name != "unannotated"
        ],
        "categories": Vocabulary.from_names(["left", "right"]).to_json(),
    }
    storage.write_json(f"{folder}/panoptic.json", document)
    return {
        "images_uri": f"{folder}/images",
        "panoptic_uri": f"{folder}/panoptic",
        "json_uri": f"{folder}/panoptic.json",
    }


def rejections(version: Version) -> list[tuple[str, str]]:
    tables = [pq.read_table(uri) for uri in version.files("rejected/")]
    assert all(table.schema.equals(REJECTED) for table in tables)
    return sorted((row["image_id"], row["reason"]) for table in tables for row in table.to_pylist())


def test_every_damaged_image_is_rejected_with_its_reason_and_an_odd_one_read(
    run: Run, source: dict[str, str], tmp_path: Path
) -> None:
    version = run("shard", coco=source, output_uri=str(tmp_path / "images"), max_rejected_fraction=0.9)
    rows = {row["image_id"]: row for row in TableRows(version.files("images/"), IMAGES.names)}
    assert rows.keys() == set(ODD)
    assert {name: rows[name]["orientation"] for name in ODD} == {**dict.fromkeys(ODD, 1), "turned": 6}
    found = rejections(version)
    assert (version.manifest.rows, version.manifest.extra["rejected"]) == (len(ODD), len(BAD) + 1)
    counted, truth = version.manifest.extra["message"].split("; ")
    assert counted == f"{len(ODD)} images, {len(BAD) + 1} rejected"
    assert truth.startswith("2 of 2 classes, 0% void, most of all left ")
    again = [reason for name, reason in found if name == "good"]
    assert again == ["image id good occurs more than once in the JSON"]
    reasons = {name: reason for name, reason in found if name != "good"}
    assert reasons.keys() == BAD.keys()
    for name, reason in BAD.items():
        assert re.match(reason, reasons[name]), (name, reasons[name])
    for name in odd_images():
        height, width = (1, 1) if name == "tiny" else (HEIGHT, WIDTH)
        pixels = decode_image(rows[name]["image"])
        assert pixels.shape == (height, width, 3)
        assert np.abs(pixels.astype(int) - 153).max() <= 2, name
    proposals = run(
        "propose", images_uri=version.uri, generator="oracle", output_uri=str(tmp_path / "proposals")
    )
    assert (proposals.manifest.rows, proposals.manifest.extra["rejected"]) == (len(ODD), 0)


def test_label_maps_that_are_void_altogether_are_refused(run: Run, tmp_path: Path) -> None:
    for folder, picture in {
        "images": Image.new("RGB", (8, 6)),
        "labels": Image.new("L", (8, 6), 255),
    }.items():
        (tmp_path / folder).mkdir()
        picture.save(tmp_path / folder / "a.png")
    source = {"images_uri": str(tmp_path / "images"), "labels_uri": str(tmp_path / "labels")}
    with pytest.raises(ValueError, match=r"no image has a segment, all is void; check .* and `offset`"):
        run("shard", semantic={**source, "classes": ["grass", "sky"]}, output_uri=str(tmp_path / "table"))


def test_too_many_damaged_images_fail_the_job_and_the_reasons_stay(
    run: Run, source: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "images"
    with pytest.raises(ValueError) as caught:
        run("shard", coco=source, output_uri=str(output), max_rejected_fraction=0.25)
    found = re.match(
        r"11 of 18 images were rejected, max_rejected_fraction is 0\.25; all reasons are in (\S+), "
        r"for example absent\.jpg: image \S+ does not exist",
        str(caught.value),
    )
    assert found, str(caught.value)
    assert set(pq.read_table(found[1])["image_id"].to_pylist()) == {*BAD, "good"}
    assert list(output.rglob("manifest.json")) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two images without ground truth, one that is none, and a file that nobody should look at."""
    path = tmp_path_factory.mktemp("folder")
    for name, data in {"a.jpg": photo(), "b.jpg": photo(60, 40), "c.png": b"", "notes.txt": b"x"}.items():
        (path / name).write_bytes(data)
    return str(path)


def test_a_folder_without_ground_truth_is_sharded_but_not_scored(
    run: Run, folder: str, tmp_path: Path
) -> None:
    images = run(
        "shard",
        folder={"images_uri": folder},
        output_uri=str(tmp_path / "images"),
        max_rejected_fraction=0.5,
    )
    rows = list(TableRows(images.files("images/"), IMAGES.names))
    assert [row["image_id"] for row in rows] == ["a", "b"]
    assert {row["panoptic"] for row in rows} == {None}
    assert images.manifest.vocabulary is None
    masks = run(
        "propose", images_uri=images.uri, generator="felzenszwalb", output_uri=str(tmp_path / "masks")
    )
    uris = {"images_uri": images.uri, "proposals_uri": masks.uri}
    with pytest.raises(ValueError, match="has no ground truth to score against"):
        run("evaluate", **uris, output_uri=str(tmp_path / "scores"))


def test_a_folder_is_labelled_as_it_is(folder: str) -> None:
    config = LabelConfig(
        images_uri=folder, output_uri="unused", classifier=TOY_CLASSIFIER, things=("red circle",)
    )
    labeller = Labeller(config, Vocabulary.from_names(["red circle"]))
    rows = labeller(load_images(read_image_folder(folder).rows)).to_pylist()
    reasons = {row["image_id"]: row["reason"] for row in rows}
    assert reasons == {"a": None, "b": None, "c": "not an image that can be read (0 bytes)"}
    sizes = {row["image_id"]: (row["height"], row["width"]) for row in rows}
    assert sizes == {"a": (HEIGHT, WIDTH), "b": (60, 40), "c": (None, None)}


def test_an_image_without_a_row_of_proposals_is_rejected_and_one_without_a_mask_is_void(
    tmp_path: Path,
) -> None:
    pending = manifest.new_version(str(tmp_path / "proposals"), "50" * 8)
    size = {"height": HEIGHT, "width": WIDTH}
    row = {"image_id": "bare", "file_name": "bare.jpg", **size, "encoding": "rle", "masks": []}
    table = failable_table(PROPOSALS, [row])
    write_batch(table, output_uri=pending.uri, name="proposals", schema=PROPOSALS)
    version = manifest.commit(pending, stage="propose", config={}, inputs={}, seconds=0, rows=1)
    config = EvaluateConfig(
        images_uri="unused", proposals_uri=version.uri, output_uri="unused", classifier=TOY_CLASSIFIER
    )
    evaluator = Evaluator(config, [Vocabulary.from_names(["left", "right"])])
    truth = {
        "image": photo(),
        "panoptic": encode_panoptic(IDS),
        "segments_info": [
            {"id": number, "category_id": category, "area": 1536, "iscrowd": False}
            for number, category in ((5, 1), (9, 2))
        ],
    }
    batch = [{"image_id": name, "file_name": f"{name}.jpg", **truth} for name in ("bare", "missing")]
    rows = {row["image_id"]: row for row in evaluator(pa.Table.from_pylist(batch)).to_pylist()}
    assert rows["missing"]["reason"].startswith("the proposals table has no row for this image")
    assert rows["bare"]["segments_info"] == []
    assert not decode_panoptic(rows["bare"]["panoptic"]).any()
    assert (decode_panoptic(rows["bare"]["semantic"]) == 2).all()


def test_further_rules_see_the_same_class_scores_with_and_without_objectness(tmp_path: Path) -> None:
    """All proposals are hardly objects, which only rules that ask the generator mind."""
    pending = manifest.new_version(str(tmp_path / "proposals"), "50" * 8)
    masks = np.where(np.stack([IDS == 5, IDS == 9]), np.float32(10), np.float32(-10))
    proposals = encode_proposals(MaskProposals(masks, np.full(2, 1e-6, np.float32)), HEIGHT, WIDTH)
    table = failable_table(PROPOSALS, [{"image_id": "a", "file_name": "a.jpg", **proposals}])
    write_batch(table, output_uri=pending.uri, name="proposals", schema=PROPOSALS)
    version = manifest.commit(pending, stage="propose", config={}, inputs={}, seconds=0, rows=1)
    sure, unsure = (
        PanopticConfig(object_threshold=0.01, objectness=objectness) for objectness in ("none", "generator")
    )
    config = EvaluateConfig(
        images_uri="unused",
        proposals_uri=version.uri,
        output_uri="unused",
        classifier=TOY_CLASSIFIER,
        panoptic=unsure,
        other_rules={"sure": sure, "same": unsure},
    )
    evaluator = Evaluator(config, [Vocabulary.from_names(["left", "right"])])
    truth = {"image": photo(), "panoptic": encode_panoptic(IDS), "segments_info": []}
    (row,) = evaluator(pa.Table.from_pylist([{"image_id": "a", "file_name": "a.jpg", **truth}])).to_pylist()
    found = [len(result["segments_info"]) for result in [row, *row["by_other_rules"]]]
    assert found == [0, 2, 0]


def test_the_test_size_of_a_generator_reaches_its_network(mask2former_folder: Path) -> None:
    named: dict[str, Any] = {
        "generator": "mask2former",
        "generator_weights": str(mask2former_folder),
        "generator_size": (40, 60),
    }
    proposer = Proposer(ProposeConfig(images_uri="images", output_uri="unused", **named), "cpu")
    shared: dict[str, Any] = {"images_uri": "images", "output_uri": "unused", "classifier": TOY_CLASSIFIER}
    labeller = Labeller(LabelConfig(**shared, things=("cat",), **named), Vocabulary.from_names(["cat"]))
    segmenter = load_segmenter(TOY_CLASSIFIER, *named.values())
    for generator in (proposer.generator, labeller.predictor.generator, segmenter.predictor.generator):
        assert isinstance(generator, Mask2FormerGenerator)
        assert (generator.shortest, generator.longest) == (40, 60)
    with pytest.raises(ValueError, match=r"generator_size is \[40, 60\], but with proposals_uri no"):
        LabelConfig(**shared, things=("cat",), **named, proposals_uri="proposals")


def propose_config(generator: str) -> ProposeConfig:
    return ProposeConfig(images_uri="", output_uri="", generator=generator)  # type: ignore[arg-type]


def propose(config: ProposeConfig, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the images table, decoded two at a time, to failable rows of proposals."""
    table, proposer = pa.Table.from_pylist(rows), Proposer(config, "cpu")
    decoded = decode_images(table, rows_at_once=2, needs_truth=config.generator == "oracle")
    return [row for batch in decoded for row in proposer(batch).to_pylist()]


def test_a_damaged_image_in_a_table_is_rejected_by_propose() -> None:
    images = {"a": photo(), "b": photo()[:-700], "c": photo(40, 30)}
    batch = [{"image_id": name, "file_name": f"{name}.jpg", "image": image} for name, image in images.items()]
    first, damaged, last = propose(propose_config("felzenszwalb"), batch)
    assert damaged["reason"].startswith("image cannot be decoded")
    assert damaged["masks"] is None
    assert (first["reason"], first["height"], first["width"]) == (None, HEIGHT, WIDTH)
    assert (last["image_id"], last["height"], last["width"]) == ("c", 40, 30)


def test_the_oracle_proposes_the_ground_truth_and_rejects_an_image_without() -> None:
    segments = [{"id": number, "category_id": 1, "area": 1536, "iscrowd": False} for number in (5, 9)]
    rows = [
        {
            "image_id": name,
            "file_name": f"{name}.jpg",
            "image": photo(),
            "panoptic": png,
            "segments_info": info,
        }
        for name, png, info in (("a", encode_panoptic(IDS), segments), ("b", None, None))
    ]
    with_truth, without = propose(propose_config("oracle"), rows)
    masks = decode_proposals(with_truth).mask_logits >= 0
    assert np.array_equal(masks, IDS == np.array([5, 9])[:, None, None])
    assert without["reason"] == "generator 'oracle' needs ground truth, which this image lacks"
    with pytest.raises(ValueError, match="generator_weights: 'oracle' has none, got 'x'; remove it"):
        ProposeConfig(images_uri="a", output_uri="b", generator="oracle", generator_weights="x")
