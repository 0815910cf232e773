"""The drawing of a scaling study."""

from typing import Any
from xml.etree import ElementTree

from fisa_platform.curves import draw_curves

SVG = "{http://www.w3.org/2000/svg}"


def cell(arm: str, value: float, seed: int, *subsets: str) -> dict[str, Any]:
    scores = {subset: {"PQ": 10.0 * seed + value} for subset in subsets}
    return {**scores, "arm": arm, "value": value, "seed": seed}


def study(*subsets: str) -> dict[str, Any]:
    rows: dict[str, Any] = {"frozen CLIP": [{subset: {"PQ": 5.0} for subset in subsets}]}
    for arm in ("FISA", "SEVE"):
        for value in (0.01, 0.1, 1):
            rows[f"{arm}, {value}"] = [cell(arm, value, seed, *subsets) for seed in (1, 2)]
    return rows


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_every_arm_level_and_published_number_is_named_once() -> None:
    rows = study("all", "seen", "unseen")
    svg = draw_curves(rows, label="part of COCO", published={"the paper": [(1, 27.5)]})
    found = texts(svg)
    for name in ("FISA", "SEVE", "frozen CLIP", "the paper"):
        assert found.count(name) == 1
    assert found.count("part of COCO") == 3
    assert [text for text in found if text.startswith("PQ, ")] == [
        "PQ, all classes",
        "PQ, seen classes",
        "PQ, unseen classes",
    ]
    assert found.count("0.01") == 3
    assert svg == draw_curves(rows, label="part of COCO", published={"the paper": [(1, 27.5)]})


def test_a_study_without_a_split_has_one_panel() -> None:
    found = texts(draw_curves(study("all"), label="iterations", published={}))
    assert [text for text in found if text.startswith("PQ, ")] == ["PQ, all classes"]


def test_a_band_spans_the_seeds() -> None:
    """Another seed that lies outside moves the band; one that lies inside moves only the line."""
    outside, inside = study("all"), study("all")
    outside["FISA, 0.1"].append(cell("FISA", 0.1, 9, "all"))
    inside["FISA, 0.1"].append(cell("FISA", 0.1, 1, "all"))
    drawn = [bands(draw_curves(rows, label="x", published={})) for rows in (study("all"), outside, inside)]
    assert drawn[0] == drawn[2] != drawn[1]
    assert len(drawn[0]) == 2


def bands(svg: str) -> list[str]:
    """Outlines of the filled areas."""
    groups = [g for g in ElementTree.fromstring(svg).iter(f"{SVG}g") if "FillBetween" in g.get("id", "")]
    return [path.get("d", "") for group in groups for path in group.iter(f"{SVG}path")]
