"""The toy world: what its names promise, and that a seed fixes it."""

import numpy as np

from fisa_platform.sources import toyworld


def test_the_split_of_names() -> None:
    seen, everything = toyworld.vocabulary("seen"), toyworld.vocabulary("all")
    counts = [
        sum(category.is_thing == is_thing for category in vocabulary.categories)
        for vocabulary in (seen, everything)
        for is_thing in (True, False)
    ]
    assert counts == [32, 6, 48, 9]
    assert set(seen.categories) < set(everything.categories)


def test_each_part_of_an_unseen_name_is_seen_in_other_combinations() -> None:
    for part in ("pattern", "colour", "shape"):
        values = {
            is_seen: {getattr(t, part) for t in toyworld.THINGS if t.is_seen is is_seen}
            for is_seen in (True, False)
        }
        assert values[True] == values[False]


def test_training_scenes_show_seen_names_only() -> None:
    seen = set(toyworld.vocabulary("seen").ids)
    for index in range(30):
        assert set(toyworld.draw_scene(5, index, "seen").category_ids.values()) <= seen


def test_evaluation_scenes_show_unseen_names_too() -> None:
    unseen = set(toyworld.vocabulary("all").ids) - set(toyworld.vocabulary("seen").ids)
    shown = [set(toyworld.draw_scene(5, index, "all").category_ids.values()) for index in range(30)]
    assert any(ids & unseen for ids in shown)


def test_every_pixel_has_a_segment_and_every_segment_enough_pixels() -> None:
    for index in range(20):
        scene = toyworld.draw_scene(1, index, "all")
        ids, areas = np.unique(scene.ids, return_counts=True)
        assert set(ids.tolist()) == set(scene.category_ids)
        assert areas.min() >= 400


def test_a_scene_is_fixed_by_seed_and_index() -> None:
    first, again, other = (toyworld.draw_scene(3, index, "all") for index in (7, 7, 8))
    assert (first.image == again.image).all() and (first.ids == again.ids).all()
    assert (first.image != other.image).any()


def test_training_and_evaluation_scenes_of_one_seed_differ() -> None:
    assert (toyworld.draw_scene(3, 0, "all").image != toyworld.draw_scene(3, 0, "seen").image).any()


def test_index_points_to_scenes() -> None:
    index = toyworld.index(seed=4, count=3, names="seen")
    assert index.rows["image_id"].to_pylist() == ["0", "1", "2"]
    assert (
        toyworld.draw_uri(index.rows["image_uri"][2].as_py()).image == toyworld.draw_scene(4, 2, "seen").image
    ).all()


def test_single_objects_are_named_by_the_vocabulary() -> None:
    names = set(toyworld.vocabulary("all").names)
    drawn = {toyworld.draw_object(0, index)[1] for index in range(300)}
    assert drawn <= names and len(drawn) > 50
