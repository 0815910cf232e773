"""The shipped class lists against the counts and tables of their datasets."""

import json
import os
from pathlib import Path

import open_clip
import pytest
import torch

from fisa_model.class_lists import CLASS_LISTS, load_class_list, read_prompt_names
from fisa_model.text_encoder import TextEncoder
from fisa_model.vocabulary import LITERAL, Vocabulary, get_templates

# Classes, things, names to prompt with, classes that share a name with COCO panoptic.
COUNTS = {
    "coco_panoptic": (133, 80, 240, 133),
    "coco_stuff": (171, 80, 268, 159),
    "ade20k_150": (150, 100, 250, 73),
    "ade20k_847": (847, 0, 1116, 116),
    "pascal_context_59": (59, 0, 104, 51),
    "pascal_context_459": (459, 0, 527, 97),
    "mapillary_vistas": (65, 37, 136, 27),
    "cityscapes": (19, 8, 44, 16),
}

# FC-CLIP's file, its names and the classes that share one with its COCO panoptic.
FC_CLIP = {
    "coco_panoptic": ("coco_panoptic", 254, 133),
    "coco_stuff": ("coco_stuff", 328, 135),
    "ade20k_150": ("ade20k_150", 403, 64),
    "ade20k_847": ("ade20k_847", 1342, 101),
    "pascal_context_59": ("pascal_ctx_59", 160, 51),
    "pascal_context_459": ("pascal_ctx_459", 559, 85),
    "mapillary_vistas": ("mapillary_vistas", 153, 26),
    "cityscapes": ("cityscapes", 60, 17),
}


def count_names(vocabulary: Vocabulary) -> int:
    return sum(len(category.prompt_names) for category in vocabulary.categories)


def name_lines(path: Path) -> set[str]:
    return {line.strip() for line in path.read_text().splitlines() if line.strip()}


@pytest.mark.parametrize("name", CLASS_LISTS)
def test_counts(name: str) -> None:
    vocabulary = load_class_list(name)
    shared = vocabulary.shares_name_with(load_class_list("coco_panoptic"))
    assert (len(vocabulary), sum(vocabulary.is_thing), count_names(vocabulary), sum(shared)) == COUNTS[name]


@pytest.mark.parametrize("name", CLASS_LISTS)
def test_ids_ascend_and_names_are_trimmed(name: str) -> None:
    vocabulary = load_class_list(name)
    assert list(vocabulary.ids) == sorted(set(vocabulary.ids))
    for category in vocabulary.categories:
        assert len(set(category.prompt_names)) == len(category.prompt_names), category
        for word in (category.name, *category.prompt_names):
            assert word == word.strip(), category
        assert not any("," in word for word in category.prompt_names), category


@pytest.mark.parametrize("name", CLASS_LISTS)
def test_every_prompt_fits_clips_77_tokens(name: str) -> None:
    tokenizer = open_clip.get_tokenizer("ViT-L-14-336-quickgelu")
    longest = max(get_templates("vild"), key=lambda template: len(tokenizer.encode(template.format("x"))))
    vocabulary = load_class_list(name)
    words = {word for c in vocabulary.categories for word in (c.name, *c.prompt_names)}
    # A start and an end token stand around the words.
    assert max(len(tokenizer.encode(longest.format(word))) for word in words) + 2 <= 77


def test_ids_are_the_datasets() -> None:
    assert load_class_list("coco_panoptic").ids[-1] == 200
    assert load_class_list("coco_stuff").ids[-1] == 182
    assert load_class_list("ade20k_150").ids == tuple(range(150))
    assert load_class_list("ade20k_847").ids == tuple(range(847))
    assert load_class_list("pascal_context_59").ids == tuple(range(59))
    assert load_class_list("pascal_context_459").ids == tuple(range(459))
    assert load_class_list("mapillary_vistas").ids == tuple(range(1, 66))
    assert load_class_list("cityscapes").ids == (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)


def test_literal_says_the_datasets_own_names() -> None:
    coco = load_class_list("coco_panoptic")
    wall = coco.categories[coco.index_of_id(199)]
    assert (wall.name, wall.prompt_names[0]) == ("wall-other-merged", "wall")
    assert coco.in_preset(LITERAL).categories[coco.index_of_id(199)].prompt_names == ("wall-other-merged",)
    ade = load_class_list("ade20k_150")
    assert ade.in_preset("vild") == ade
    literal = [category.prompt_names for category in ade.in_preset(LITERAL).categories]
    assert (literal[6], literal[8]) == (("road, route",), ("window",))


def test_classes_of_one_list_may_share_a_name(text_encoder: TextEncoder) -> None:
    ade = load_class_list("ade20k_847")
    assert [category.id for category in ade.categories if "fish tank" in category.prompt_names] == [333, 631]
    assert Vocabulary.from_json(ade.to_json()) == ade
    tokens = text_encoder.encode(ade, ("{}",))
    assert (tokens.num_classes, len(tokens.classifier)) == (847, 1116)
    aquarium, tank = ade.categories[333].prompt_names, ade.categories[631].prompt_names
    rows = [tokens.classifier[tokens.class_index == index] for index in (333, 631)]
    assert torch.equal(rows[0][aquarium.index("fish tank")], rows[1][tank.index("fish tank")])


def test_coco_panoptic_agrees_with_its_annotations(shared_data: Path) -> None:
    rows = json.loads((shared_data / "coco_panoptic" / "panoptic.json").read_text())["categories"]
    listed = load_class_list("coco_panoptic")
    assert [(c.id, c.name, c.is_thing) for c in listed.categories] == [
        (row["id"], row["name"], bool(row["isthing"])) for row in sorted(rows, key=lambda row: row["id"])
    ]
    assert Vocabulary.from_json(rows).prompted_by(listed) == listed


def test_coco_stuff_agrees_with_its_annotations(shared_data: Path) -> None:
    rows = json.loads((shared_data / "coco_stuff" / "panoptic.json").read_text())["categories"]
    table = {row["id"]: (row["name"], bool(row["isthing"])) for row in rows}
    for category in load_class_list("coco_stuff").categories:
        assert table[category.id] == (category.name, category.is_thing)


def test_own_names_agree_with_mseg(shared_data: Path) -> None:
    names = shared_data / "names"
    assert set(load_class_list("coco_panoptic").names) == name_lines(names / "coco-panoptic-133.txt")
    assert set(load_class_list("mapillary_vistas").names) == name_lines(names / "mapillary-public65.txt") - {
        "Unlabeled"
    }
    context = name_lines(names / "pascal-context-60.txt") - {"background"}
    assert set(load_class_list("pascal_context_59").names) == context
    # Some of these have blanks there that the dataset's table has not.
    lines = (names / "pascal-context-460.txt").read_text().splitlines()
    together = tuple(line.replace(" ", "") for line in lines[1:])
    assert tuple(n.replace(" ", "") for n in load_class_list("pascal_context_459").names) == together


def test_ade20k_agrees_with_the_challenges_table(shared_data: Path) -> None:
    lines = (shared_data / "ade20k_150" / "objectInfo150.txt").read_text().splitlines()[1:]
    ade = load_class_list("ade20k_150")
    for category, line in zip(ade.categories, lines, strict=True):
        label, *_, words = line.split("\t")
        theirs = {word.strip() for word in words.split(",")}
        ours = {*category.name.split(", "), *category.prompt_names}
        assert int(label) == category.id + 1
        assert ours & theirs, (category, words)


@pytest.mark.parametrize("name", CLASS_LISTS)
def test_fc_clips_names_give_its_counts(name: str) -> None:
    checkout = os.environ.get("FC_CLIP_CHECKOUT")
    if not checkout:
        pytest.skip("set FC_CLIP_CHECKOUT to a checkout of bytedance/fc-clip")

    def load(class_list: str) -> Vocabulary:
        file_name = f"{FC_CLIP[class_list][0]}_with_prompt_eng.txt"
        return load_class_list(class_list, Path(checkout) / "fcclip" / "data" / "datasets" / file_name)

    vocabulary = load(name)
    shared = vocabulary.shares_name_with(load("coco_panoptic"))
    assert (count_names(vocabulary), sum(shared)) == FC_CLIP[name][1:]


def test_a_file_brings_its_own_prompt_names(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    lines = [f"{k}:word {k}, other {k}" for k in range(1, 20)]
    path.write_text("\n".join(["0:invalid_class_id", *lines, ""]))
    vocabulary = load_class_list("cityscapes", path)
    assert vocabulary.names == load_class_list("cityscapes").names
    assert vocabulary.categories[0].prompt_names == ("word 1", "other 1")
    path.write_text("\n".join(lines[:18]))
    with pytest.raises(ValueError, match=r"has 18 classes, cityscapes has 19; give the file of the same"):
        load_class_list("cityscapes", path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0:a\n1 b", r"line 2: expected 'index:name,synonym', got '1 b'"),
        ("0:a\n1:b,,c", r"line 2: expected 'index:name,synonym'"),
        ("1:a\n0:b", r"line 2: index 0 follows 1; sort the lines by index"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "names.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompt_names(path)


def test_a_missing_file_and_an_unknown_list_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"names\.txt: cannot be read as prompt names"):
        read_prompt_names(tmp_path / "names.txt")
    with pytest.raises(ValueError, match="unknown class list 'coco'; choose one of coco_panoptic, coco_st"):
        load_class_list("coco")
