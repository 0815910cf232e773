"""Label maps of semantic segmentation, as data sets and their tools write them."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fisa_model.pictures import decode_image
from fisa_platform import storage
from fisa_platform.panoptic_png import decode_panoptic
from fisa_platform.schema import INDEX, REJECTED
from fisa_platform.sources.semantic import LabelValues, decode_labels
from fisa_platform.spec import job_from_data
from fisa_platform.stages.shard import load_images

THREE = LabelValues({0: 10, 1: 11, 2: 12})


def encoded(values: Any, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture = values if isinstance(values, Image.Image) else Image.fromarray(np.asarray(values))
    picture.save(buffer, file_format)
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
        (encoded(np.int32([[3, 70_000]]), "TIFF"), [3, 70_000]),
        (encoded(np.uint8([[7, 8]]), "BMP"), [7, 8]),
        (packed_png(1, [0, 1, 1, 0, 0, 0, 1, 0]), [0, 1, 1, 0, 0, 0, 1, 0]),
        (packed_png(2, [0, 1, 2, 3]), [0, 1, 2, 3]),
        (packed_png(4, [0, 5, 9, 15]), [0, 5, 9, 15]),
    ],
    ids=["8 bits", "16 bits", "TIFF", "32 bits", "BMP", "1 bit", "2 bits", "4 bits"],
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
        (encoded(np.zeros((2, 2, 3), np.uint8)), "mode RGB; it must have one value a pixel, not colours"),
        (encoded(np.uint8([[1]]), "JPEG"), "bytes that are no PNG, TIFF or BMP"),
        (encoded(np.zeros((64, 64), np.uint8))[:60], "cannot be read"),
        (b"", "0 bytes that are no PNG"),
    ],
    ids=["colours", "JPEG", "cut", "empty"],
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
    assert LabelValues({1: 0}).read(encoded(np.uint8([[0, 1]])))[0].tolist() == [[0, 1]]
    by_ids = LabelValues({7: 7, 11: 11}, others_are_void=True)
    assert by_ids.read(encoded(np.uint8([[7, 9, 11, 30]])))[0].tolist() == [[8, 0, 12, 0]]
    with pytest.raises(ValueError, match="values 1 to 70000, beyond 16 bits"):
        by_ids.read(encoded(np.int32([[1, 70_000]]), "TIFF"))
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
    ],
    ids=str,
)
def test_a_spec_that_does_not_say_the_classes_is_refused(spec: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        config_of(images_uri="/images", labels_uri="/labels", **spec)


def test_output_among_the_labels_is_refused() -> None:
    uris = {"images_uri": "/data/images", "labels_uri": "/data/labels", "classes": ["sky"]}
    config = {"semantic": uris, "output_uri": "/data/labels/table"}
    with pytest.raises(ValueError, match="lies in the folder that images are read from"):
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
    index = source_of(tmp_path).read()
    assert index.rows["image_id"].to_pylist() == ["a"]
    assert index.rejected.schema == REJECTED
    assert index.rejected.to_pylist() == [
        {"image_id": "c", "file_name": "c.png", "reason": f"no image of this name in {tmp_path}/images"}
    ]


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
