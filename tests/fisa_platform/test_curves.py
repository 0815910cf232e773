"""The drawing of a scaling study."""

from typing import Any
from xml.etree import ElementTree

import pytest

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
    assert len(marks(svg)) == 1
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


def test_another_metric_may_be_drawn() -> None:
    rows = {f"A, {value}": [{**cell("A", value, 1, "all"), "all": {"mIoU": 3.0}}] for value in (1, 2)}
    assert "mIoU, all classes" in texts(draw_curves(rows, label="x", published={}, metric="mIoU"))


def test_a_band_spans_the_seeds() -> None:
    """Another seed that lies outside moves the band; one that lies inside moves only the line."""
    outside, inside = study("all"), study("all")
    outside["FISA, 0.1"].append(cell("FISA", 0.1, 9, "all"))
    inside["FISA, 0.1"].append(cell("FISA", 0.1, 1, "all"))
    drawn = [bands(draw_curves(rows, label="x", published={})) for rows in (study("all"), outside, inside)]
    assert drawn[0] == drawn[2] != drawn[1]
    assert len(drawn[0]) == 2


def test_lines_are_means_and_levels_are_where_they_belong() -> None:
    """A frozen row at an arm's mean lies as high as its line; so does a published number."""
    rows = {f"A, {value}": [cell("A", value, seed, "all") for seed in (1, 4)] for value in (0, 100)}
    mean = 10 * (1 + 4) / 2
    rows["frozen"] = [{"all": {"PQ": mean}}]
    svg = draw_curves(rows, label="x", published={"paper": [(100, mean + 100)]})
    first, last, level, _ = (height for line in lines(svg) for height in (line[0][1], line[-1][1]))
    assert first == pytest.approx(level)
    assert marks(svg) == [pytest.approx(last)]


@pytest.mark.parametrize(
    ("values", "middle"),
    [((1, 10, 100), 1 / 2), ((0, 50, 100), 1 / 2), ((10, 50, 99), 40 / 89), ((0.1, 0.3, 1), 0.4771)],
)
def test_the_axis_is_logarithmic_from_a_factor_of_ten(values: tuple[float, ...], middle: float) -> None:
    rows = {f"A, {value}": [cell("A", value, 1, "all")] for value in values}
    [line] = lines(draw_curves(rows, label="x", published={}))
    (left, _), (between, _), (right, _) = line
    assert (between - left) / (right - left) == pytest.approx(middle, abs=1e-3)


def elements(svg: str, kind: str) -> list[ElementTree.Element]:
    """What the axes hold, by the start of its id."""
    axes = [g for g in ElementTree.fromstring(svg).iter(f"{SVG}g") if g.get("id", "").startswith("axes_")]
    return [g for axis in axes for g in axis.findall(f"{SVG}g") if g.get("id", "").startswith(kind)]


def lines(svg: str) -> list[list[tuple[float, float]]]:
    """Points of the lines in the axes, arms and levels."""
    paths = [path.get("d", "") for line in elements(svg, "line2d") for path in line.findall(f"{SVG}path")]
    words = [path.replace("M", " ").replace("L", " ").split() for path in paths]
    return [list(zip(map(float, w[::2]), map(float, w[1::2]), strict=True)) for w in words]


def marks(svg: str) -> list[float]:
    """Heights of the published numbers, which are marks without a line."""
    alone = [line for line in elements(svg, "line2d") if line.find(f"{SVG}path") is None]
    return [float(use.get("y", "")) for line in alone for use in line.iter(f"{SVG}use")]


def bands(svg: str) -> list[str]:
    """Outlines of the filled areas."""
    groups = [g for g in ElementTree.fromstring(svg).iter(f"{SVG}g") if "FillBetween" in g.get("id", "")]
    return [path.get("d", "") for group in groups for path in group.iter(f"{SVG}path")]
