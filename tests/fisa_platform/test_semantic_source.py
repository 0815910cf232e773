"""Label maps of semantic segmentation, as data sets and their tools write them."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fisa_model.pictures import decode_image
from fisa_platform import storage
from fisa_platform.evaluation.label_maps import VOID, encode_label_map
from fisa_platform.panoptic_png import decode_panoptic
from fisa_platform.schema import INDEX, REJECTED
from fisa_platform.sources.semantic import LabelValues, decode_labels
from fisa_platform.spec import job_from_data
from fisa_platform.stages.shard import load_images

THREE = LabelValues({0: 10, 1: 11, 2: 12})


def encoded(values: Any, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture = values if isinstance(values, Image.Image) else Image.fromarray(np.asarray(values))
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def packed_png(bits: int, values: list[int]) -> bytes:
    """One row of grey, several pixels a byte, as optimisers of PNGs write it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = sum(value << bits * place for place, value in enumerate(reversed(values)))
    header = struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" + row.to_bytes(len(values) * bits // 8, "big"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def config_of(**semantic: Any) -> Any:
    config = {"semantic": semantic, "output_uri": "/out"}
    return job_from_data({"stage": "shard", "config": config}).config


def source_of(folder: Path, **changes: Any) -> Any:
    uris = {"images_uri": str(folder / "images"), "labels_uri": str(folder / "labels")}
    return config_of(**uris, **({"classes": ["sky", "road"]} | changes)).semantic


def write_files(folder: Path, *names: str) -> None:
    for name in names:
        storage.write_bytes(str(folder / name), b"not looked at")


@pytest.mark.parametrize(
    ("data", "values"),
    [
        (encoded(np.uint8([[0, 149, 255]])), [0, 149, 255]),
        (encoded(np.uint16([[0, 846, 65_535]])), [0, 846, 65_535]),
        (encoded(np.uint16([[0, 846, 65_535]]), "TIFF"), [0, 846, 65_535]),
        (encoded(np.uint16([[0, 846]]), "TIFF", compression="tiff_lzw"), [0, 846]),
        (packed_png(1, [0, 1, 1, 0, 0, 0, 1, 0]), [0, 1, 1, 0, 0, 0, 1, 0]),
        (packed_png(2, [0, 1, 2, 3]), [0, 1, 2, 3]),
        (packed_png(4, [0, 5, 9, 15]), [0, 5, 9, 15]),
    ],
    ids=["8 bits", "16 bits", "TIFF", "LZW", "1 bit", "2 bits", "4 bits"],
)
def test_values_are_read_as_they_were_written(data: bytes, values: list[int]) -> None:
    assert decode_labels(data).tolist() == [values]


def test_a_palette_has_its_indices_for_values() -> None:
    picture = Image.fromarray(np.uint8([[0, 1, 2]]), mode="P")
    picture.putpalette([90, 0, 0, 0, 90, 0, 9, 9, 9])
    assert decode_labels(encoded(picture)).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(np.zeros((2, 2, 3), np.uint8)), "mode RGB .RGB., which says no class; save a PNG of one"),
        (encoded(np.zeros((2, 2, 2), np.uint8)), "mode LA .LA., which says no class"),
        (encoded(np.zeros((2, 2), np.float32), "TIFF"), "mode F .F;32F., which says no class"),
        (encoded(np.int32([[3, 70_000]]), "TIFF"), "mode I .I;32S., which says no class"),
        # White is 0, so that 0, 1, 2 would be read as 255, 254, 253.
        (encoded(np.uint8([[0, 1]]), "TIFF", tiffinfo={262: 0}), "mode L .L;I., which says no class"),
        (encoded(np.uint8([[1]]), "JPEG"), "bytes that are no PNG or TIFF"),
        (encoded(Image.new("1", (10_001, 10_000))), "10001 x 10000 pixels, more than 100,000,000; scale it"),
        (encoded(np.zeros((64, 64), np.uint8))[:60], "cannot be read"),
        (b"", "0 bytes that are no PNG"),
    ],
    ids=["colours", "alpha", "float", "32 bits", "white is 0", "JPEG", "huge", "cut", "empty"],
)
def test_what_has_no_values_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode_labels(data)


def test_each_class_of_an_image_is_a_segment_and_the_rest_is_void() -> None:
    ids, segments = THREE.read(encoded(np.uint8([[2, 0, 2], [255, 2, 0]])))
    assert ids.tolist() == [[13, 11, 13], [0, 13, 11]]
    assert segments == [
        {"id": 11, "category_id": 10, "area": 2, "iscrowd": False},
        {"id": 13, "category_id": 12, "area": 3, "iscrowd": False},
    ]


def test_a_value_that_is_no_class_is_void_only_where_it_cannot_be_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"value 3; the classes are 0 to 2, and void is 255 or 65535"):
        THREE.read(encoded(np.uint8([[0, 3]])))
    from_two = LabelValues({2: 0})
    assert from_two.read(encoded(np.uint8([[0, 2]])))[0].tolist() == [[0, 1]]
    with pytest.raises(ValueError, match=r"value 1; the classes are 2 to 2, and void is 0 or 255 or 65535"):
        from_two.read(encoded(np.uint8([[1, 2]])))
    by_ids = LabelValues({7: 7, 11: 11}, others_are_void=True)
    assert by_ids.read(encoded(np.uint8([[7, 9, 11, 30]])))[0].tolist() == [[8, 0, 12, 0]]
    many = LabelValues({value: value for value in range(847)})
    ids, segments = many.read(encoded(np.uint16([[255, 65_535]])))
    assert ids.tolist() == [[256, 0]]
    assert [segment["category_id"] for segment in segments] == [255]


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ({"class_list": "ade20k_150", "offset": 1}, {1: "wall", 150: "flag"}),
        ({"class_list": "ade20k_847"}, {0: "wall", 846: None}),
        ({"class_list": "pascal_context_59"}, {0: "aeroplane", 58: None}),
        ({"class_list": "cityscapes", "values": "ids"}, {7: "road", 33: "bicycle"}),
        ({"class_list": "cityscapes"}, {0: "road", 18: "bicycle"}),
        ({"class_list": "coco_stuff", "values": "ids", "offset": -1}, {0: "person", 181: None}),
        ({"class_list": "coco_stuff"}, {0: "person", 170: None}),
        ({"class_list": "mapillary_vistas", "values": "ids", "offset": -1}, {0: "Bird", 64: None}),
        ({"classes": ["sky", "road, street"]}, {0: "sky", 1: "road"}),
    ],
    ids=str,
)
def test_values_of_the_public_data_sets(spec: dict[str, Any], values: dict[int, str | None]) -> None:
    source = config_of(images_uri="/images", labels_uri="/labels", **spec).semantic
    vocabulary = source.vocabulary()
    assert not any(vocabulary.is_thing)
    assert source.label_values().others_are_void == ("values" in spec)
    category_ids = source.label_values().category_ids
    assert len(category_ids) == len(vocabulary)
    assert (min(category_ids), max(category_ids)) == (min(values), max(values))
    for value, name in values.items():
        found = vocabulary.categories[vocabulary.index_of_id(category_ids[value])].name
        assert name is None or found == name


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({}, "exactly one of class_list and classes must be given, got none"),
        ({"class_list": "cityscapes", "classes": ["road"]}, "must be given, got both"),
        ({"classes": ["road"], "values": "ids"}, "values 'ids' are those of a class_list"),
        ({"classes": ["road"], "prompt_names_uri": "/words"}, "class_list is none; name the list it is for"),
        ({"classes": ["road"], "label_suffix": ""}, "label_suffix is empty; leave it out for any suffix"),
        ({"class_list": "ade20k"}, "did you mean 'ade20k_847'"),
        ({"classes": ["sky", "sky"]}, "class name 'sky' occurs more than once"),
        ({"classes": ["sky", "road"], "offset": 65_535}, "have the values 65535 to 65536; they must be 0 to"),
        (
            {"classes": ["sky", "road"], "offset": -1},
            "offset is -1, with which the classes have the values",
        ),
        (
            {"classes": ["sky"], "labels_uri": "/images"},
            "are both /images; give image_suffix and",
        ),
    ],
    ids=str,
)
def test_a_spec_that_does_not_say_the_classes_is_refused(spec: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        config_of(**{"images_uri": "/images", "labels_uri": "/labels", **spec})


def test_output_among_the_labels_is_refused() -> None:
    uris = {"images_uri": "/data/images", "labels_uri": "/data/labels", "classes": ["sky"]}
    config = {"semantic": uris, "output_uri": "/data/labels/table"}
    with pytest.raises(ValueError, match="lies in a folder that this job reads, /data/labels"):
        job_from_data({"stage": "shard", "config": config})


def test_cityscapes_files_find_their_images(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        "images/ulm/ulm_1_leftImg8bit.png",
        "images/bonn/bonn_1_leftImg8bit.png",
        "labels/ulm/ulm_1_gtFine_labelIds.png",
        "labels/ulm/ulm_1_gtFine_color.png",
        "labels/bonn/bonn_1_gtFine_labelIds.png",
    )
    suffixes = {"image_suffix": "_leftImg8bit.png", "label_suffix": "_gtFine_labelIds.png"}
    index = source_of(tmp_path, **suffixes).read()
    assert index.rows.schema == INDEX and index.rejected.num_rows == 0
    assert [(row["image_id"], row["file_name"], row["panoptic_uri"]) for row in index.rows.to_pylist()] == [
        (
            f"{city}/{city}_1",
            f"{city}/{city}_1_leftImg8bit.png",
            f"{tmp_path}/labels/{city}/{city}_1_gtFine_labelIds.png",
        )
        for city in ("bonn", "ulm")
    ]


def test_an_image_without_labels_is_left_out_and_labels_without_an_image_are_rejected(tmp_path: Path) -> None:
    write_files(tmp_path, "images/a.jpg", "images/b.jpg", "labels/a.png", "labels/c.png", "labels/list.txt")
    # Two images of one name are a matter of labels only where they have some.
    write_files(tmp_path, "images/b.png", "images/d.jpg", "images/d.png", "labels/d.png")
    index = source_of(tmp_path).read()
    assert index.rows["image_id"].to_pylist() == ["a", "d"]
    assert index.left_out == 1
    assert index.rejected.schema == REJECTED
    assert [(row["image_id"], row["file_name"]) for row in index.rejected.to_pylist()] == [
        ("d", "d.png"),
        ("c", "c.png"),
    ]
    assert index.rejected["reason"][1].as_py() == f"no image of this name in {tmp_path}/images"


def test_a_file_that_is_called_as_the_suffix_is_none(tmp_path: Path) -> None:
    write_files(tmp_path, "images/a.jpg", "images/.jpg", "images/_x.jpg", "images/a_x.jpg", "labels/a.png")
    index = source_of(tmp_path, image_suffix="_X.jpg").read()
    assert index.rows["file_name"].to_pylist() == ["a_x.jpg"]


def test_names_that_are_not_text_are_rejected_once(tmp_path: Path) -> None:
    write_files(tmp_path, "images/a.jpg", "labels/a.png")
    for folder, suffix in (("images", b".jpg"), ("labels", b".png")):
        Path(os.fsdecode(os.fsencode(tmp_path / folder) + b"/\xff" + suffix)).write_bytes(b"")
    rejected = source_of(tmp_path).read().rejected.to_pylist()
    assert [(row["image_id"], row["reason"]) for row in rejected] == [
        ("\\xff", "its name is not UTF-8; rename it")
    ]


def test_one_folder_may_hold_both(tmp_path: Path) -> None:
    write_files(tmp_path, "both/a.jpg", "both/a.png")
    uris = {"images_uri": str(tmp_path / "both"), "labels_uri": str(tmp_path / "both")}
    index = config_of(**uris, classes=["sky"], image_suffix=".jpg", label_suffix=".png").semantic.read()
    assert index.rows["panoptic_uri"].to_pylist() == [f"{tmp_path}/both/a.png"]
    assert index.rejected.num_rows == index.left_out == 0


def test_words_of_a_file_stand_in_for_the_lists(tmp_path: Path) -> None:
    write_files(tmp_path, "images/a.jpg", "labels/a.png")
    (tmp_path / "words.txt").write_text("\n".join(f"{k}:word {k}" for k in range(19)))
    words = {"classes": [], "class_list": "cityscapes", "prompt_names_uri": str(tmp_path / "words.txt")}
    vocabulary = source_of(tmp_path, **words).read().vocabulary
    assert vocabulary.categories[18].prompt_names == ("word 18",)


def test_names_that_do_not_meet_are_said(tmp_path: Path) -> None:
    write_files(tmp_path, "images/a_leftImg8bit.png", "labels/a_gtFine_labelIds.png")
    with pytest.raises(ValueError, match=r"called 'a_leftImg8bit', label maps 'a_gtFine_labelIds'; set"):
        source_of(tmp_path).read()
    with pytest.raises(ValueError, match=r"no label map in this folder; expected files ending in _no\.png"):
        source_of(tmp_path, label_suffix="_no.png").read()
    write_files(tmp_path, "labels/a_gtFine_labelIds.tif")
    with pytest.raises(ValueError, match=r"labelIds\.png and .*labelIds\.tif are both label maps of a_gt"):
        source_of(tmp_path).read()


def test_real_label_maps_become_ground_truth(shared_data: Path) -> None:
    folder = shared_data / "ade20k_150"
    uris = {"images_uri": str(folder / "images"), "labels_uri": str(folder / "annotations")}
    source = config_of(**uris, class_list="ade20k_150", offset=1).semantic
    rows = load_images(source.read().rows, source.label_values()).to_pylist()
    assert [row["image_id"] for row in rows] == ["ADE_val_00000001", "ADE_val_00000002"]
    for row in rows:
        assert row["reason"] is None
        labels = np.asarray(Image.open(folder / "annotations" / f"{row['image_id']}.png"))
        ids = decode_panoptic(row["panoptic"])
        assert ids.shape == decode_image(row["image"]).shape[:2]
        # The list's ids are the labels less one, and a segment's id is its category's plus one.
        assert np.array_equal(ids, labels)
        counted = {segment["category_id"] + 1: segment["area"] for segment in row["segments_info"]}
        assert counted == {label: int((labels == label).sum()) for label in np.unique(labels) if label}


def test_labels_of_another_size_or_class_are_rejected_with_the_reason(tmp_path: Path) -> None:
    for name, labels in {"right": [[0, 1]], "tall": [[0], [1]], "foreign": [[0, 2]]}.items():
        storage.write_bytes(f"{tmp_path}/images/{name}.png", encoded(np.zeros((1, 2, 3), np.uint8)))
        storage.write_bytes(f"{tmp_path}/labels/{name}.png", encoded(np.uint8(labels)))
    source = source_of(tmp_path)
    rows = load_images(source.read().rows, source.label_values()).to_pylist()
    reasons = {row["image_id"]: row["reason"] for row in rows}
    assert reasons["right"] is None
    assert reasons["tall"] == "ground truth is 2 x 1, the image is 1 x 2 (height x width)"
    assert reasons["foreign"] == (
        "label map has the value 2; the classes are 0 to 1, and void is 255 or 65535; "
        "check the class list, `values` and `offset`"
    )


@pytest.mark.parametrize(("classes", "void"), [(3, 255), (255, 255), (256, 65_535), (847, 65_535)])
def test_label_maps_that_label_writes_are_read(classes: int, void: int) -> None:
    labels = np.random.default_rng(0).integers(VOID, classes, (20, 30)).astype(np.int32)
    labels[0, :2] = VOID, classes - 1
    values = decode_labels(encode_label_map(labels, classes))
    assert np.array_equal(values, np.where(labels == VOID, void, labels))
    ids, segments = LabelValues({value: value for value in range(classes)}).read(
        encode_label_map(labels, classes)
    )
    assert np.array_equal(ids, labels + 1)
    assert sum(segment["area"] for segment in segments) == (labels != VOID).sum()
