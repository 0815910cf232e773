"""Labels of a folder and of a table, and of a run that goes on where another was killed."""

import contextlib
import io
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from labels import assert_same_labels
from PIL import Image
from pycocotools.coco import COCO
from ray.exceptions import RayError

from fisa_model.class_lists import load_class_list
from fisa_model.vocabulary import Category, Vocabulary
from fisa_platform import storage
from fisa_platform.garbage import find_garbage
from fisa_platform.manifest import MANIFEST_NAME, Version
from fisa_platform.panoptic_png import decode_panoptic
from fisa_platform.rows import TableRows
from fisa_platform.schema import IMAGES, PREDICTIONS
from fisa_platform.spec import job_from_data
from fisa_platform.stages.label import Labeller, read_vocabulary
from fisa_platform.tables import image_places

Run = Callable[..., Version]
SCENES, ROWS_PER_FILE = 12, 4


@pytest.fixture(scope="module")
def images(run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    output_uri = str(tmp_path_factory.mktemp("label") / "images")
    return run("shard", toyworld={"scenes": SCENES, "names": "all"}, output_uri=output_uri).uri


@pytest.fixture(scope="module")
def folder(images: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same scenes as files, a second file of one's name, and one that is damaged."""
    pictures = tmp_path_factory.mktemp("label") / "pictures"

    uris = sorted(set(image_places(images)["uri"].to_pylist()))
    for row in TableRows(uris, ["image_id", "image"]):
        storage.write_bytes(f"{pictures}/some/{row['image_id']}.jpg", row["image"])
    first = sorted((pictures / "some").iterdir())[0]
    Image.new("RGB", (9, 9)).save(first.with_suffix(".png"))
    (pictures / "cut.jpg").write_bytes(first.read_bytes()[:500])
    return str(pictures)


COMMON: dict[str, Any] = {
    "classifier": {"frozen": {"clip": {"model": "toy"}, "image_size": 224}},
    "things": ["plain red circle", "striped blue star"],
    "stuff": ["grass"],
}


def label(run: Run, images_uri: str, output: Path, *, threshold: float = 0.0, **config: Any) -> Version:
    return run(
        "label",
        images_uri=images_uri,
        output_uri=str(output),
        **COMMON,
        panoptic={"object_threshold": threshold},
        batch_size=2,
        rows_per_file=ROWS_PER_FILE,
        **config,
    )


def test_a_class_list_labels_with_the_ids_of_its_data_set(run: Run, images: str, tmp_path: Path) -> None:
    labels = run(
        "label",
        images_uri=images,
        output_uri=str(tmp_path / "labels"),
        classifier={"frozen": {"clip": {"model": "toy"}, "image_size": 224}},
        class_list="coco_panoptic",
        panoptic={"object_threshold": 0.0},
        limit=1,
    )
    document = storage.read_json(labels.file("panoptic.json"))
    assert [c["id"] for c in document["categories"]] == list(load_class_list("coco_panoptic").ids)
    (annotation,) = document["annotations"]
    assert annotation["segments_info"]
    assert {s["category_id"] for s in annotation["segments_info"]} <= {
        c["id"] for c in document["categories"]
    }


@pytest.mark.parametrize(
    ("words", "got"),
    [
        ({}, "got none"),
        ({"things": ["cat"], "class_list": "cityscapes"}, "got things and stuff and class_list"),
        ({"vocabulary_uri": "/table", "stuff": ["sky"]}, "got things and stuff and vocabulary_uri"),
    ],
    ids=str,
)
def test_the_classes_are_named_in_one_way(words: dict[str, Any], got: str) -> None:
    config = {"images_uri": "/in", "output_uri": "/out", "classifier": {"weights_uri": "/weights"}, **words}
    with pytest.raises(ValueError, match=f"one of things and stuff, class_list, vocabulary_uri .*{got}"):
        job_from_data({"stage": "label", "config": config})


def pictures_of(version: Version) -> dict[str, bytes]:
    """Every PNG and overlay by its name in the run's folder."""
    run_uri = storage.join(version.uri, version.manifest.run_id or "")
    names = [name for name in storage.list_files(run_uri) if name.endswith(("png", "jpg"))]
    return {name: storage.read_bytes(storage.join(run_uri, name)) for name in names}


def read_categories(version: Version) -> tuple[Category, ...]:
    return Vocabulary.from_json(version.manifest.vocabulary or []).categories


def rows_of(version: Version) -> list[dict[str, Any]]:
    return list(TableRows(version.files("predictions/"), PREDICTIONS.names))


def forget(version: Version, file: str) -> None:
    """Leave a version as if its run had been killed before it wrote a file."""
    storage.remove(storage.join(version.uri, MANIFEST_NAME))
    storage.remove(storage.join(version.uri.rpartition("/")[0], "latest.json"))
    storage.remove(file)


def test_a_picture_that_is_gone_is_named(run: Run, images: str, tmp_path: Path) -> None:
    whole = label(run, images, tmp_path, limit=6)
    Path(whole.folder("overlays"), sorted(storage.list_files(whole.folder("overlays")))[0]).unlink()
    forget(whole, whole.files("predictions/")[-1])
    # Ray Data puts a class of its own around it here, where the tests' Ray was not started by the platform.
    with pytest.raises(RayError, match=r"picture that belongs to it is gone .*; delete this file"):
        label(run, images, tmp_path, limit=6)


@pytest.mark.parametrize("source", ["images", "folder"])
def test_a_killed_run_is_gone_on_with(
    run: Run, source: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    images_uri: str = request.getfixturevalue(source)
    # Label maps are made of what was written, overlays are copied.
    settings = {"max_rejected_fraction": 0.2, "semantic_maps": True}
    whole = label(run, images_uri, tmp_path, **settings)
    files, rows, pictures = whole.files("predictions/"), rows_of(whole), pictures_of(whole)
    document = storage.read_json(whole.file("panoptic.json"))
    assert len(rows) == SCENES
    assert len(files) >= SCENES / ROWS_PER_FILE
    assert len(pictures) == 3 * SCENES
    forget(whole, files[0])
    capsys.readouterr()
    again = label(run, images_uri, tmp_path, **settings)
    done = len(TableRows(files[1:], ["image_id"])) + (source == "folder")
    assert f"{done} images were done by a run that did not end" in capsys.readouterr().out
    assert again.manifest.run_id != whole.manifest.run_id
    assert set(files[1:]) < set(again.files("predictions/"))
    assert_same_labels(rows_of(again), rows)
    assert pictures_of(again) == pictures
    again_document = storage.read_json(again.file("panoptic.json"))
    assert_same_labels(again_document.pop("annotations"), document.pop("annotations"))
    assert again_document == document
    assert again.manifest.extra["rejected"] == (2 if source == "folder" else 0)


def test_a_refused_job_goes_on_when_more_may_be_rejected(
    run: Run, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="2 of 14 images were rejected"):
        label(run, folder, tmp_path)
    version = label(run, folder, tmp_path, max_rejected_fraction=0.2)
    assert f"{SCENES + 1} images were done by a run that did not end" in capsys.readouterr().out
    assert (version.manifest.rows, version.manifest.extra["rejected"]) == (SCENES, 2)


@pytest.mark.parametrize("has_table", [False, True])
def test_a_worker_with_several_batches_in_hand_finds_the_same(
    run: Run, images: str, tmp_path: Path, *, has_table: bool
) -> None:
    config: dict[str, Any] = {}
    if has_table:
        table = run(
            "propose", images_uri=images, generator="felzenszwalb", output_uri=str(tmp_path / "proposals")
        )
        config = {"proposals_uri": table.uri}
    one = label(run, images, tmp_path / "one", **config)
    compute = {"gpus_per_worker": 1, "cpus_per_worker": 3}
    three = label(run, images, tmp_path / "three", compute=compute, **config)
    assert_same_labels(rows_of(three), rows_of(one))


def test_pictures_are_counted_and_kept(run: Run, images: str, tmp_path: Path) -> None:
    version = label(run, images, tmp_path, limit=3)
    folders = {folder.path.partition("/")[2]: folder for folder in version.manifest.folders}
    sizes = {name: len(picture) for name, picture in pictures_of(version).items()}
    for name in ("panoptic", "overlays"):
        found = [size for path, size in sizes.items() if path.startswith(f"{name}/")]
        assert (folders[name].files, folders[name].bytes) == (3, sum(found))
        assert len(storage.list_files(version.folder(name))) == 3
    assert not [file.path for file in version.manifest.files if file.path.endswith((".png", ".jpg"))]
    with pytest.raises(FileNotFoundError, match="has no folder 'masks'; it has panoptic, overlays"):
        version.folder("masks")
    assert list(find_garbage(version.uri)) == []


def test_one_batch_at_a_time_is_in_the_classifier(images: str) -> None:
    config = job_from_data(
        {"stage": "label", "config": {**COMMON, "images_uri": images, "output_uri": "x"}}
    ).config
    worker = Labeller(config, read_vocabulary(config))
    empty = pa.table({name: pa.array([], pa.string()) for name in ("image_id", "file_name", "image")})
    with ThreadPoolExecutor(1) as pool:
        with worker.in_model:
            waiting = pool.submit(worker, empty)
            assert not wait([waiting], timeout=0.5).done
        assert waiting.result(timeout=60).num_rows == 0


def test_the_generators_arithmetic_is_passed_on(images: str, mask2former_folder: Path) -> None:
    network = {
        "generator": "mask2former",
        "generator_weights": str(mask2former_folder),
        "generator_precision": "bf16",
    }
    given = {**COMMON, **network, "images_uri": images, "output_uri": "x"}
    config = job_from_data({"stage": "label", "config": given}).config
    assert Labeller(config, read_vocabulary(config)).predictor.generator.precision == "bf16"  # type: ignore[attr-defined]
    with pytest.raises(
        ValueError, match="generator_precision is 'bf16', but with proposals_uri no generator"
    ):
        job_from_data({"stage": "label", "config": {**given, "proposals_uri": "y"}})
    with pytest.raises(ValueError, match="'felzenszwalb' is no network to compute in bf16"):
        job_from_data(
            {"stage": "label", "config": {**given, "generator": "felzenszwalb", "generator_weights": None}}
        )


def test_the_last_line_says_what_was_found(run: Run, images: str, tmp_path: Path) -> None:
    version = label(run, images, tmp_path / "all", limit=2)
    counted, found, place = version.manifest.extra["message"].split("; ")
    assert counted == "2 images, 0 rejected"
    assert re.fullmatch(r"[23] of 3 classes, \d+% void, most of all .*", found)
    assert place == f"COCO panoptic labels: {version.file('panoptic.json')}"
    void = label(run, images, tmp_path / "void", limit=2, threshold=1.0)
    assert "; nothing was found: name what is in the pictures, or lower " in void.manifest.extra["message"]


def test_instances_are_the_panoptic_segments_as_pycocotools_reads_them(
    run: Run, images: str, tmp_path: Path
) -> None:
    version = label(run, images, tmp_path, limit=3)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(version.file("instances.json"))
    panoptic = storage.read_json(version.file("panoptic.json"))
    assert list(coco.imgs.values()) == panoptic["images"]
    assert coco.dataset["categories"] == panoptic["categories"]
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    for image in panoptic["annotations"]:
        png = storage.read_bytes(storage.join(version.folder("panoptic"), image["file_name"]))
        ids = decode_panoptic(png)
        of_image = coco.imgToAnns[image["image_id"]]
        assert image["segments_info"]
        for segment, instance in zip(image["segments_info"], of_image, strict=True):
            assert np.array_equal(coco.annToMask(instance), ids == segment["id"])
            for field in ("category_id", "area", "bbox", "score"):
                assert instance[field] == segment[field]


def test_label_maps_are_a_data_set_for_shard(run: Run, folder: str, tmp_path: Path) -> None:
    labels = label(run, folder, tmp_path / "labels", max_rejected_fraction=0.2, semantic_maps=True)
    table = run(
        "shard",
        semantic={
            "images_uri": folder,
            "labels_uri": labels.folder("semantic"),
            "classes": [*COMMON["things"], *COMMON["stuff"]],
        },
        output_uri=str(tmp_path / "table"),
        max_rejected_fraction=0.2,
    )
    found = {row["file_name"]: row for row in TableRows(table.files("images/"), IMAGES.names)}
    assert len(found) == SCENES
    place = {category.id: index for index, category in enumerate(read_categories(labels))}
    for row in rows_of(labels):
        areas: Counter[int] = Counter()
        for segment in row["segments_info"]:
            areas[place[segment["category_id"]]] += segment["area"]
        truth = found[row["file_name"]]["segments_info"]
        assert {segment["category_id"]: segment["area"] for segment in truth} == areas
    assert [f.path.rpartition("/")[2] for f in labels.manifest.folders] == [
        "panoptic",
        "semantic",
        "overlays",
    ]


def test_overlays_and_instances_may_be_left_out(run: Run, images: str, tmp_path: Path) -> None:
    version = label(run, images, tmp_path, limit=1, overlays=False, instances_json=False)
    assert not [uri for uri in version.files() if uri.endswith("instances.json")]
    assert [Path(name).suffix for name in pictures_of(version)] == [".png"]
    assert [folder.path.rpartition("/")[2] for folder in version.manifest.folders] == ["panoptic"]


@pytest.mark.parametrize("of_a_table", [False, True])
def test_pictures_whose_labels_would_lie_in_one_place_are_refused_before_the_work(
    run: Run, tmp_path: Path, *, of_a_table: bool
) -> None:
    for name in ("a.jpg", "a.png/b.jpg"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / "pictures" / name)
    source = str(tmp_path / "pictures")
    if of_a_table:
        source = run("shard", folder={"images_uri": source}, output_uri=str(tmp_path / "images")).uri
    with pytest.raises(ValueError, match=r"labels of 'a.jpg' and of what is in the folder 'a.png' would lie"):
        label(run, source, tmp_path / "labels")
