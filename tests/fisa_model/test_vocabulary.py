"""Names, ids and synonyms."""

from typing import Any

import pytest

from fisa_model.vocabulary import LITERAL, TEMPLATES, Category, Vocabulary, get_templates

SOFA_AND_GRASS = Vocabulary(
    (Category(63, "couch", synonyms=("sofa",)), Category(193, "grass", is_thing=False))
)


def test_names_become_things_with_ids_from_one() -> None:
    vocabulary = Vocabulary.from_names(["cat", "sofa, couch"])
    assert vocabulary.ids == (1, 2)
    assert vocabulary.names == ("cat", "sofa")
    assert vocabulary.categories[1].prompt_names == ("sofa", "couch")
    assert vocabulary.is_thing == (True, True)


def test_json_is_cocos_and_comes_back() -> None:
    rows = SOFA_AND_GRASS.to_json()
    assert rows[1] == {"id": 193, "name": "grass", "isthing": 0, "synonyms": []}
    assert Vocabulary.from_json(rows) == SOFA_AND_GRASS
    coco = [{"supercategory": "furniture", "isthing": 1, "id": 63, "name": "couch", "color": [1, 2, 3]}]
    assert Vocabulary.from_json(coco).names == ("couch",)


WALL = Category(199, "wall-other-merged", is_thing=False, prompted_as=("wall", "concrete wall"))


def test_prompts_may_name_a_class_otherwise() -> None:
    assert WALL.prompt_names == ("wall", "concrete wall")
    vocabulary = Vocabulary((WALL,))
    assert vocabulary.names == ("wall-other-merged",)
    [row] = vocabulary.to_json()
    assert row == {
        "id": 199,
        "name": "wall-other-merged",
        "isthing": 0,
        "synonyms": [],
        "prompted_as": ["wall", "concrete wall"],
    }
    assert Vocabulary.from_json([row]) == vocabulary


def test_literal_names_a_class_as_its_dataset_does() -> None:
    vocabulary = Vocabulary((WALL, *SOFA_AND_GRASS.categories))
    names = [category.prompt_names for category in vocabulary.in_preset(LITERAL).categories]
    assert names == [("wall-other-merged",), ("couch", "sofa"), ("grass",)]
    assert vocabulary.in_preset("vild") is vocabulary


def test_a_class_list_lends_its_prompt_names() -> None:
    listed = Vocabulary((WALL, *SOFA_AND_GRASS.categories))
    read = Vocabulary((Category(63, "couch"), Category(199, "wall-other-merged ", is_thing=True)))
    prompted = read.prompted_by(listed)
    assert [category.prompt_names for category in prompted.categories] == [
        ("couch", "sofa"),
        ("wall", "concrete wall"),
    ]
    assert (prompted.ids, prompted.names, prompted.is_thing) == (read.ids, read.names, read.is_thing)


def test_the_class_list_of_another_dataset_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"category id 5 \('sea'\) is not in the class list, whose ids are 63, 193; name"
    ):
        Vocabulary((Category(5, "sea"),)).prompted_by(SOFA_AND_GRASS)
    with pytest.raises(
        ValueError, match="category id 63 is 'sofa' here and 'couch' in the class list; name the class list"
    ):
        Vocabulary((Category(63, "sofa"),)).prompted_by(SOFA_AND_GRASS)


def test_classes_that_share_a_name() -> None:
    vocabulary = Vocabulary.from_names(["settee, sofa", "wall", "Grass", "wall-other-merged"])
    other = Vocabulary((WALL, *SOFA_AND_GRASS.categories))
    assert other.shares_name_with(vocabulary) == (True, True, True)
    assert vocabulary.shares_name_with(other) == (True, True, True, False)


def test_index_of_id() -> None:
    assert SOFA_AND_GRASS.index_of_id(193) == 1
    with pytest.raises(ValueError, match="category id 5 is not in the vocabulary; its ids are 63, 193"):
        SOFA_AND_GRASS.index_of_id(5)


def test_templates_are_known_by_name() -> None:
    assert len(TEMPLATES["vild"]) == 14
    assert all(template.count("{}") == 1 for templates in TEMPLATES.values() for template in templates)
    with pytest.raises(
        ValueError, match="unknown prompt templates 'vlid'; choose one of literal, photo, vild"
    ):
        get_templates("vlid")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "the vocabulary has no classes"),
        (["cat", "CAT"], "class name 'cat' occurs more than once"),
        (["cafe\u0301", "Caf\u00e9"], "class name 'caf\u00e9' occurs more than once"),
        (["traffic light", "traffic  light"], "class name 'traffic light' occurs more than once"),
        (["sky, outdoors", "grass, Outdoors"], "class name 'outdoors' occurs more than once"),
        (["cat, feline", "feline"], "class name 'feline' occurs more than once"),
        (["cat", 1], "class names must be text, got 1"),
        (["cat", " , "], "class name ' , ' is empty"),
        ("cat", "class names must be a list of strings, got the string 'cat'"),
        ({"cat": 1}, "class names must be a list of strings, got dict"),
        (None, "class names must be a list of strings, got NoneType"),
    ],
)
def test_mistakes_in_names_are_named(names: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_names(names)


def test_a_word_may_be_said_twice_of_one_class() -> None:
    assert Vocabulary.from_names(["cat, Cat", "dog"]).names == ("cat", "dog")


def test_synonyms_of_a_category_are_a_tuple() -> None:
    synonyms: Any = "puppy"
    with pytest.raises(ValueError, match="category 1: synonyms must be a tuple of names, got 'puppy'"):
        Category(1, "dog", synonyms=synonyms)


def test_mistakes_in_json_are_named() -> None:
    with pytest.raises(ValueError, match="category id 1 occurs more than once"):
        Vocabulary.from_json([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}])
    with pytest.raises(ValueError, match="lacks 'name'"):
        Vocabulary.from_json([{"id": 1}])
    for value in (None, "true", 2):
        with pytest.raises(ValueError, match=f"category 'a': isthing must be 0 or 1, got {value!r}"):
            Vocabulary.from_json([{"id": 1, "name": "a", "isthing": value}])
    assert Vocabulary.from_json([{"id": 1, "name": "a", "isthing": "0"}]).is_thing == (False,)
    with pytest.raises(ValueError, match="synonyms must be a list"):
        Vocabulary.from_json([{"id": 1, "name": "a", "synonyms": "b"}])
    with pytest.raises(ValueError, match="prompted_as must be a list"):
        Vocabulary.from_json([{"id": 1, "name": "a", "prompted_as": "b"}])
    with pytest.raises(ValueError, match=r"category 1: a name is empty in \('a', ' '\)"):
        Vocabulary.from_json([{"id": 1, "name": "a", "prompted_as": [" "]}])


def test_names_that_are_no_text_are_named() -> None:
    for row in ({"id": 1, "name": None}, {"id": 1, "name": "a", "synonyms": [2]}):
        with pytest.raises(ValueError, match="category 1: a name must be text, got"):
            Vocabulary.from_json([row])
