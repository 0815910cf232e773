"""RefCOCO's files, as they are published and as they come when something is wrong."""

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fisa_platform.mask_codec import decode_runs
from fisa_platform.schema import INDEX
from fisa_platform.sources.index import Index
from fisa_platform.sources.refcoco import read_refcoco

HEIGHT, WIDTH = 6, 8
SQUARE = [[1, 1, 4, 1, 4, 4, 1, 4]]

Read = Callable[..., Index]


def reference(image_id: int, ann_id: int, *sentences: str, split: str = "val") -> dict[str, Any]:
    said = [{"sent": sentence, "raw": sentence, "tokens": sentence.split()} for sentence in sentences]
    return {"image_id": image_id, "ann_id": ann_id, "split": split, "sentences": said}


def annotation(id_: int, segmentation: Any = SQUARE) -> dict[str, Any]:
    return {"id": id_, "segmentation": segmentation, "iscrowd": 0}


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Writes the files and reads them; images 1 and 2 are there."""

    def write_and_read(
        references: Any, annotations: list[dict[str, Any]], *, ids: tuple[int, ...] = (1, 2)
    ) -> Index:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for number in (1, 2):
            Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(folder / f"{number}.png")
        data = references if isinstance(references, bytes) else pickle.dumps(references, protocol=2)
        (tmp_path / "refs.p").write_bytes(data)
        images = [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in ids]
        instances = {"images": images, "annotations": annotations}
        (tmp_path / "instances.json").write_text(json.dumps(instances))
        return read_refcoco(str(folder), str(tmp_path / "refs.p"), str(tmp_path / "instances.json"), "val")

    return write_and_read


def test_expressions_of_a_split_are_gathered_by_image_and_object(read: Read) -> None:
    references = [
        reference(2, 20, "left man", "man, in red "),
        reference(1, 10, "dog"),
        reference(2, 21, "right man"),
        reference(2, 20, "him again"),
        reference(1, 11, "cat", split="testA"),
    ]
    runs = {"size": [HEIGHT, WIDTH], "counts": [6, 12, 30]}
    index = read(references, [annotation(10), annotation(20, runs), annotation(21), annotation(99, "unread")])
    assert index.rows.schema == INDEX and index.rejected.num_rows == 0 and index.vocabulary is None
    first, second = index.rows.to_pylist()
    assert (first["image_id"], first["file_name"], first["height"]) == ("1", "1.png", HEIGHT)
    assert first["image_uri"].endswith("/images/1.png") and first["segments_info"] is None
    assert [item["expressions"] for item in first["referred"]] == [["dog"]]
    assert [item["expressions"] for item in second["referred"]] == [
        ["left man", "man, in red", "him again"],
        ["right man"],
    ]
    columns, square = decode_runs([item["counts"] for item in second["referred"]], HEIGHT, WIDTH)
    assert columns[:, 1:3].all() and columns.sum() == 12
    assert square[1:4, 1:4].all() and square.sum() == 9


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, None])
def test_references_may_be_any_pickle_of_plain_values_or_json(read: Read, protocol: int | None) -> None:
    references = [reference(1, 10, "dög")]
    data = json.dumps(references).encode() if protocol is None else pickle.dumps(references, protocol)
    [row] = read(data, [annotation(10)]).rows.to_pylist()
    assert row["referred"][0]["expressions"] == ["dög"]


def test_texts_of_python_2_are_read(read: Read) -> None:
    """Its texts are bytes, in an opcode that Python 3 does not write."""
    text = pickle.dumps([reference(1, 10, "dog")], protocol=0).replace(b"Vdog\n", b"S'd\\xc3\\xb6g'\n")
    [row] = read(text, [annotation(10)]).rows.to_pylist()
    assert row["referred"][0]["expressions"] == ["dög"]


class Runs:
    """What a pickle may hold in place of data."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_asks_for_code_is_refused_and_not_run(read: Read, tmp_path: Path) -> None:
    trap = tmp_path / "run"
    with pytest.raises(
        ValueError, match=r"refs\.p: cannot be read \(it asks for posix\.mkdir\); expected refs"
    ):
        read(pickle.dumps([Runs(trap)]), [annotation(10)])
    assert not trap.exists()


@pytest.mark.parametrize(
    ("references", "message"),
    [
        (b"no pickle", "cannot be read"),
        (b"[1, ", "cannot be read"),
        (b"", "cannot be read"),
        ([], "holds no list of references, but list"),
        ({"refs": 1}, "holds no list of references, but dict"),
        ([1], "reference 0 is int, expected a mapping"),
        ([{"ann_id": 1, "split": "val"}], "reference 0 has no image_id and no sentences"),
        ([reference(1, 10, "dog", split="train")] * 3, "no reference is of split 'val'; it has train (3)"),
        (
            [{**reference(1, 10), "sentences": "dog"}],
            "reference 0 has the sentence 'dog'; expected",
        ),
    ],
)
def test_references_of_another_form_are_refused(read: Read, references: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read(references, [annotation(10)])


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "three points or more"),
        ([[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]], "three points or more"),
        ([[1e9, 1, 4, 1, 4, 4]], "coordinate 1000000000.0, in an image of 6 x 8"),
        ([[1, 1, "x", 1, 4, 4]], "cannot be used"),
        ([[1, 1, 1, 1, 1, 1]], "it has no pixel"),
        ({"size": [HEIGHT, WIDTH], "counts": [6, 12]}, "not those of 6 x 8 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [60, -12]}, "not those of 6 x 8 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [6.5, 11.5, 30]}, "not those of 6 x 8 pixels"),
        ({"size": [WIDTH, HEIGHT], "counts": [48]}, "`size` [6, 8]"),
        ({"size": [HEIGHT, WIDTH], "counts": "0n1"}, "`counts` as a list"),
        (5, "cannot be used"),
        (None, "cannot be used"),
    ],
)
def test_an_image_whose_object_has_no_mask_is_rejected(read: Read, segmentation: Any, message: str) -> None:
    index = read(
        [reference(1, 10, "dog"), reference(2, 20, "cat")], [annotation(10, segmentation), annotation(20)]
    )
    assert index.rows["image_id"].to_pylist() == ["2"]
    [rejected] = index.rejected.to_pylist()
    assert rejected["file_name"] == "1.png"
    assert "the segmentation of annotation 10 cannot be used" in rejected["reason"]
    assert message in rejected["reason"]


def test_what_the_instances_lack_is_rejected(read: Read) -> None:
    references = [
        reference(1, 10, "dog"),
        reference(2, 20, "cat"),
        reference(3, 30, "no file"),
        reference(4, 40, "no image"),
    ]
    index = read(references, [annotation(20), annotation(30), annotation(40)], ids=(1, 2, 2, 3))
    assert index.rows["image_id"].to_pylist() == ["2"]
    reasons = {(row["image_id"], row["reason"].split("/")[-1]) for row in index.rejected.to_pylist()}
    assert reasons == {
        ("1", "annotation 10, which is referred to, is not among the instances"),
        ("2", "instances.json"),
        ("3", "3.png does not exist"),
        ("4", "instances.json has no image of this id"),
    }


def test_files_that_are_no_instances_are_named(read: Read) -> None:
    with pytest.raises(ValueError, match=r"not the instances of RefCOCO: annotations\[0\] has no seg"):
        read([reference(1, 10, "dog")], [{"id": 10}])


def test_an_object_of_several_polygons_is_all_of_them(read: Read) -> None:
    """As one that something stands in front of; a part that is no polygon is left out, as in detectron2."""
    parts = [[0, 0, 2, 0, 2, 2, 0, 2], [5, 3, 8, 3, 8, 6, 5, 6], [1, 1, 2, 2]]
    [row] = read([reference(1, 10, "dog")], [annotation(10, parts)]).rows.to_pylist()
    [mask] = decode_runs([row["referred"][0]["counts"]], HEIGHT, WIDTH)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[:2, :2] = expected[3:, 5:] = True
    assert np.array_equal(mask, expected)


def test_sentences_without_words_are_left_out_and_others_are_one_line(read: Read) -> None:
    references = [reference(1, 10, " ", "left\n  dog", "\ud800 dog"), reference(1, 11, ""), reference(2, 20)]
    index = read(json.dumps(references).encode(), [annotation(10), annotation(11), annotation(20)])
    [row] = index.rows.to_pylist()
    assert [item["expressions"] for item in row["referred"]] == [["left dog", "? dog"]]
    assert index.rejected.num_rows == 0


def test_json_may_begin_with_a_byte_order_mark(read: Read) -> None:
    data = b"\xef\xbb\xbf" + json.dumps([reference(1, 10, "dog")]).encode()
    assert read(data, [annotation(10)]).rows.num_rows == 1


def test_an_object_of_another_image_is_rejected(read: Read) -> None:
    """The instances of another data set may have the same ids."""
    of_images = [{**annotation(10), "image_id": 2}, {**annotation(20), "image_id": 2}]
    index = read([reference(1, 10, "dog"), reference(2, 20, "cat")], of_images)
    assert index.rows["image_id"].to_pylist() == ["2"]
    [rejected] = index.rejected.to_pylist()
    assert rejected["reason"].startswith("annotation 10, which is referred to, is of image 2 among")
