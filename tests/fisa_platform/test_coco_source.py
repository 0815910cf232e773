import copy
import os
import zipfile

import numpy as np
import pytest

from fisa_model.vocabulary import Category, Vocabulary
from fisa_platform import storage
from fisa_platform.panoptic_png import decode_panoptic, encode_panoptic, panoptic_problem
from fisa_platform.schema import INDEX, REJECTED
from fisa_platform.sources.coco import read_coco_panoptic
from fisa_platform.sources.index import read_image_folder

VOCABULARY = Vocabulary((Category(3, "cat"), Category(7, "grass", is_thing=False)))
CATEGORIES = VOCABULARY.to_json()
IDS = np.array([[5, 5, 9], [5, 9, 9]], dtype=np.int32)
DOCUMENT = {
    "images": [{"id": 1, "file_name": "one.jpg", "height": 2, "width": 3}],
    "annotations": [
        {
            "image_id": 1,
            "file_name": "one.png",
            "segments_info": [
                {"id": 5, "category_id": 3, "area": 3, "iscrowd": 0},
                {"id": 9, "category_id": 7, "area": 3, "iscrowd": 1},
            ],
        }
    ],
    "categories": VOCABULARY.to_json(),
}


def read(folder, document):
    """Write a source of one image, whose bytes nobody looks at here, and read its index."""
    root = str(folder)
    storage.write_bytes(f"{root}/images/one.jpg", b"a photo")
    storage.write_bytes(f"{root}/panoptic/one.png", encode_panoptic(IDS))
    storage.write_json(f"{root}/panoptic.json", document)
    return read_coco_panoptic(f"{root}/images", f"{root}/panoptic", f"{root}/panoptic.json")


def changed(change):
    document = copy.deepcopy(DOCUMENT)
    change(document)
    return document


def test_an_index_row_says_where_everything_is(tmp_path):
    index = read(tmp_path, DOCUMENT)
    assert index.rejected.schema == REJECTED and index.rejected.num_rows == 0
    assert index.vocabulary == VOCABULARY
    assert index.rows.schema == INDEX
    assert index.rows.to_pylist() == [
        {
            "image_id": "1",
            "file_name": "one.jpg",
            "image_uri": f"{tmp_path}/images/one.jpg",
            "panoptic_uri": f"{tmp_path}/panoptic/one.png",
            "height": 2,
            "width": 3,
            "segments_info": [
                {"id": 5, "category_id": 3, "area": 3, "iscrowd": False},
                {"id": 9, "category_id": 7, "area": 3, "iscrowd": True},
            ],
            "referred": None,
        }
    ]


def first_segments(document):
    return document["annotations"][0]["segments_info"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d["images"][0].update(file_name="gone.jpg"), "images/gone.jpg does not exist"),
        (lambda d: d["annotations"][0].update(file_name="gone.png"), "panoptic/gone.png does not exist"),
        (lambda d: d["annotations"][0].update(image_id=2), "no annotations for this image"),
        (lambda d: d["annotations"].append(d["annotations"][0]), "2 annotations for this image"),
        (lambda d: first_segments(d)[1].update(id=5), "segment id 5 occurs more than once"),
        (lambda d: first_segments(d)[1].update(category_id=4), "category id 4, which `categories` lacks"),
        (lambda d: first_segments(d)[1].pop("area"), "a segment of this image has no area"),
        (lambda d: first_segments(d)[1].update(area=None), "has area None; it must be a number of 0 or more"),
        (lambda d: first_segments(d)[1].update(iscrowd="0"), "has iscrowd '0'; it must be a number"),
        (lambda d: d["annotations"][0].update(segments_info=5), "segments_info of this image is no list"),
        (lambda d: d["images"][0].update(file_name="sub/gone.jpg"), "images/sub/gone.jpg does not exist"),
        (
            lambda d: d["images"][0].update(file_name="a/../../x.jpg"),
            "'a/../../x.jpg' leads out of its folder",
        ),
    ],
)
def test_an_image_that_cannot_be_used_is_set_aside_with_the_reason(tmp_path, change, reason):
    index = read(tmp_path, changed(change))
    assert index.rows.num_rows == 0
    assert reason in index.rejected["reason"][0].as_py()


def test_of_two_images_with_one_id_the_second_is_set_aside(tmp_path):
    index = read(tmp_path, changed(lambda d: d["images"].append(d["images"][0])))
    assert index.rows.num_rows == 1
    assert index.rejected["reason"].to_pylist() == ["image id 1 occurs more than once in the JSON"]


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ([], "it has no `categories`, or none in it"),
        (changed(lambda d: d.pop("annotations")), "it has no `annotations`, or none in it"),
        (changed(lambda d: d["images"].clear()), "it has no `images`, or none in it"),
        (
            changed(lambda d: d["annotations"][0].pop("segments_info")),
            r"annotations\[0\] has no segments_info",
        ),
        (changed(lambda d: d["images"][0].pop("height")), r"images\[0\] has no height"),
    ],
)
def test_another_json_is_refused_in_one_sentence(tmp_path, document, problem):
    with pytest.raises(ValueError, match=f"panoptic.json: not COCO panoptic JSON: {problem}; expected"):
        read(tmp_path, document)


@pytest.mark.parametrize("text", ["", "{", '{"categories": [{"id": 1, "name"', "404 Not Found"])
def test_what_is_no_json_is_refused_in_one_sentence(tmp_path, text):
    path = tmp_path / "panoptic.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"panoptic.json: not valid JSON \(.*\); was the file cut"):
        read_coco_panoptic(str(tmp_path), str(tmp_path), str(path))


FOLDER = ("b.PNG", "a.jpg", "a.webp", "notes.txt", ".a.jpg", "sub/c.tif", ".hidden/d.jpg")


def test_a_folder_without_ground_truth_is_a_source_too(tmp_path):
    for name in FOLDER:
        storage.write_bytes(f"{tmp_path}/{name}", b"x")
    check_folder(str(tmp_path))


def check_folder(uri):
    index = read_image_folder(uri)
    assert index.rows["image_id"].to_pylist() == ["a", "b", "sub/c"]
    assert index.rows["image_uri"].to_pylist() == [
        f"{uri}/{name}" for name in ("a.jpg", "b.PNG", "sub/c.tif")
    ]
    assert index.rows["panoptic_uri"].null_count == 3
    assert index.rejected["file_name"].to_pylist() == ["a.webp"]
    assert "as a.jpg; rename one" in index.rejected["reason"][0].as_py()


def test_a_folder_of_a_bucket_is_a_source_too(s3_uri):
    for name in FOLDER:
        storage.write_bytes(f"{s3_uri}/{name}", b"x")
    check_folder(s3_uri)


def test_a_zip_is_a_source_too(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name in FOLDER:
            archive.writestr(f"photos/{name}", b"x")
    check_folder(f"{tmp_path}/photos.zip")


def test_a_name_that_is_no_text_is_set_aside(tmp_path):
    for name in (b"caf\xe9.jpg", b"tea.jpg"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(b"x")
    index = read_image_folder(str(tmp_path))
    assert index.rows["image_id"].to_pylist() == ["tea"]
    assert index.rejected.to_pylist() == [
        {"image_id": "caf\\xe9", "file_name": "caf\\xe9.jpg", "reason": "its name is not UTF-8; rename it"}
    ]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a.jpg: is a file, not a folder or a zip; give the folder"):
        read_image_folder(f"{tmp_path}/a.jpg")


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="absent or empty"):
        read_image_folder(str(tmp_path / "nowhere"))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="no image in this folder"):
        read_image_folder(str(tmp_path))


@pytest.mark.parametrize(("name", "images", "segments"), [("coco_panoptic", 2, 50), ("coco_stuff", 13, 159)])
def test_real_samples_have_no_problem(shared_data, name, images, segments):
    root = f"{shared_data}/{name}"
    index = read_coco_panoptic(f"{root}/images", f"{root}/panoptic", f"{root}/panoptic.json")
    assert (index.rows.num_rows, index.rejected.num_rows) == (images, 0)
    rows = index.rows.to_pylist()
    assert sum(len(row["segments_info"]) for row in rows) == segments
    for row in rows:
        ids = decode_panoptic(storage.read_bytes(row["panoptic_uri"]))
        assert panoptic_problem(ids, row["segments_info"], size=(row["height"], row["width"])) is None
