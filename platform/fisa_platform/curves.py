"""Curves of a scaling study: a score over what was varied, one line an arm, as SVG."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fisa_platform.svg import plain_text, svg_text

Cells = Sequence[Mapping[str, Any]]
"""Scores by subset and metric, one entry a seed; those of an arm also have `arm` and `value`."""

PANELS = ("all", "seen", "unseen")
"""Subsets, where there are scores for them."""

_LOGARITHMIC_FROM = 10
"""Ratio of the largest to the smallest value from which the axis is logarithmic."""

_MARKS = "sD^v*P"
_DASHES = ("--", ":", "-.")


def draw_curves(
    rows: Mapping[str, Cells],
    *,
    label: str,
    published: Mapping[str, Sequence[tuple[float, float]]],
    metric: str = "PQ",
) -> str:
    """An SVG: the mean over seeds as a line, from the least to the greatest as a band.

    Args:
        rows: the table of a study; a row without an arm, such as a frozen baseline, is a level line.
        label: of the axis.
        published: marks in the panel of all classes, pairs of value and metric by name.
        metric: what is drawn, a key of the scores.
    """
    with plain_text():
        panels = [
            subset for subset in PANELS if all(metric in c.get(subset, {}) for c in _flat(rows.values()))
        ]
        figure = Figure(figsize=(1 + 3.4 * len(panels), 3.6), layout="constrained")
        for axes, subset in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw_arms(axes, _points(rows, subset, metric))
            levels = {name: cells[0][subset][metric] for name, cells in rows.items() if "arm" not in cells[0]}
            for place, (name, level) in enumerate(levels.items()):
                axes.axhline(level, color="0.35", linestyle=_DASHES[place % len(_DASHES)], label=name)
            for place, (name, pairs) in enumerate(published.items() if subset == "all" else ()):
                mark = _MARKS[place % len(_MARKS)]
                axes.plot(*zip(*pairs, strict=True), mark, color="0.2", fillstyle="none", label=name)
            axes.set_xlabel(label)
            axes.set_ylabel(f"{metric}, {subset} classes")
        lines, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(lines, names, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return svg_text(figure)


def _flat(groups: Any) -> list[Mapping[str, Any]]:
    return [cell for cells in groups for cell in cells]


def _points(rows: Mapping[str, Cells], subset: str, metric: str) -> dict[str, dict[float, list[float]]]:
    """The score of each seed, by arm and value."""
    points: dict[str, dict[float, list[float]]] = {}
    for cell in _flat(rows.values()):
        if "arm" in cell:
            points.setdefault(cell["arm"], {}).setdefault(cell["value"], []).append(cell[subset][metric])
    return points


def _draw_arms(axes: Axes, arms: Mapping[str, Mapping[float, list[float]]]) -> None:
    for place, (arm, points) in enumerate(arms.items()):
        values, colour = sorted(points), f"C{place}"
        seeds = [points[value] for value in values]
        means = [sum(scores) / len(scores) for scores in seeds]
        axes.plot(values, means, marker="o", markersize=3.5, color=colour, label=arm)
        axes.fill_between(values, list(map(min, seeds)), list(map(max, seeds)), color=colour, alpha=0.18)
    values = sorted({value for points in arms.values() for value in points})
    if values[0] > 0 and values[-1] >= _LOGARITHMIC_FROM * values[0]:
        axes.set_xscale("log")
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.minorticks_off()
    axes.grid(visible=True, alpha=0.2, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
