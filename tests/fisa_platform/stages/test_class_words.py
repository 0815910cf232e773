"""The words of a class list, from the spec of `shard` to the vocabulary that every later stage reads."""

from pathlib import Path
from typing import Any

import pytest

from fisa_platform.spec import job_from_data


def config_of(shared_data: Path, **changes: Any) -> Any:
    source = shared_data / "coco_panoptic"
    coco = {
        "images_uri": str(source / "images"),
        "panoptic_uri": str(source / "panoptic"),
        "json_uri": str(source / "panoptic.json"),
        **changes,
    }
    return job_from_data({"stage": "shard", "config": {"coco": coco, "output_uri": "/out"}}).config


def test_prompts_use_the_lists_words_and_reports_the_datasets_own(shared_data: Path) -> None:
    plain, worded = (
        config_of(shared_data, **changes).source.read().vocabulary
        for changes in ({}, {"class_list": "coco_panoptic"})
    )
    assert plain is not None and worded is not None
    assert plain.names == worded.names
    wall = worded.index_of_id(199)
    assert plain.categories[wall].prompt_names == ("wall-other-merged",)
    assert worded.categories[wall].prompt_names[0] == "wall"
    assert worded.categories[wall].name == "wall-other-merged"


def test_words_may_come_from_a_file(shared_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\n".join(f"{k}:word {k},other {k}" for k in range(133)))
    index = config_of(shared_data, class_list="coco_panoptic", prompt_names_uri=str(path)).source.read()
    assert index.vocabulary is not None
    assert index.vocabulary.categories[0].prompt_names == ("word 0", "other 0")


def test_the_list_of_another_dataset_is_refused(shared_data: Path) -> None:
    with pytest.raises(ValueError, match="name the class list of the same dataset"):
        config_of(shared_data, class_list="ade20k_150").source.read()


def test_a_file_of_words_needs_its_list(shared_data: Path) -> None:
    with pytest.raises(ValueError, match="class_list is none; name the list it is for"):
        config_of(shared_data, prompt_names_uri="/words.txt")
