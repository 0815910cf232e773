"""The JSON of predictions, as the field's tools read it."""

import pytest

from fisa_model.vocabulary import Category, Vocabulary
from fisa_platform import storage
from fisa_platform.coco_export import png_name, write_coco_json
from fisa_platform.sources.coco import read_coco_panoptic

VOCABULARY = Vocabulary((Category(3, "cat"), Category(7, "grass", is_thing=False)))


def export(folder, rows):
    names = [row["image_id"] for row in rows]
    write_coco_json(f"{folder}/panoptic.json", "panoptic", names, rows, VOCABULARY.to_json())


def prediction(image_id, file_name):
    return {
        "image_id": image_id,
        "file_name": file_name,
        "height": 2,
        "width": 3,
        "segments_info": [
            {"id": 5, "category_id": 3, "area": 3, "bbox": [0, 0, 2, 2], "isthing": True, "score": 0.75},
            {"id": 9, "category_id": 7, "area": 3, "bbox": [1, 0, 2, 2], "isthing": False, "score": 0.5},
        ],
    }


def test_exported_predictions_read_back_as_a_source(tmp_path):
    export(
        tmp_path, [prediction(image_id, f"{name}.jpg") for image_id, name in [("1", "one"), ("007", "two")]]
    )
    for name in ("one", "two"):
        storage.write_bytes(f"{tmp_path}/images/{name}.jpg", b"a photo")
        storage.write_bytes(f"{tmp_path}/panoptic/{png_name(f'{name}.jpg')}", b"a map")
    index = read_coco_panoptic(f"{tmp_path}/images", f"{tmp_path}/panoptic", f"{tmp_path}/panoptic.json")
    assert index.rows["image_id"].to_pylist() == ["1", "7"]
    assert index.vocabulary == VOCABULARY
    assert index.rejected.num_rows == 0


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["139", "007", "-1"], [139, 7, -1]),
        (["000000000139"], [139]),
        (["cat", "7"], [1, 2]),
        (["7", "07"], [1, 2]),
        (["\u0663"], [1]),
    ],
)
def test_exported_ids_are_whole_numbers(tmp_path, names, ids):
    rows = [prediction(name, f"{number}.jpg") for number, name in enumerate(names)]
    export(tmp_path, rows)
    document = storage.read_json(f"{tmp_path}/panoptic.json")
    assert [image["id"] for image in document["images"]] == ids
    assert [annotation["image_id"] for annotation in document["annotations"]] == ids


def test_an_export_holds_what_the_field_reads(tmp_path):
    export(tmp_path, [prediction("139", "a/one.jpg"), prediction("7", "two.jpg")])
    document = storage.read_json(f"{tmp_path}/panoptic.json")
    assert [image["id"] for image in document["images"]] == [139, 7]
    assert [annotation["image_id"] for annotation in document["annotations"]] == [139, 7]
    assert document["annotations"][0] == {
        "image_id": 139,
        "file_name": "a/one.png",
        "segments_info": [
            {
                "id": 5,
                "category_id": 3,
                "area": 3,
                "bbox": [0, 0, 2, 2],
                "iscrowd": 0,
                "isthing": 1,
                "score": 0.75,
            },
            {
                "id": 9,
                "category_id": 7,
                "area": 3,
                "bbox": [1, 0, 2, 2],
                "iscrowd": 0,
                "isthing": 0,
                "score": 0.5,
            },
        ],
    }


def test_two_images_that_would_share_a_png_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"written as one.png; rename 'one.webp'"):
        export(tmp_path, [prediction("1", "one.jpg"), prediction("2", "one.webp")])
