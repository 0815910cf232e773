"""The report of a run: one self-contained HTML page with its numbers, loss curve, pictures and provenance."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fisa_model.vocabulary import Vocabulary
from fisa_platform.evaluation.summary import SUBSETS
from fisa_platform.rendering import class_colour
from fisa_platform.svg import svg_text

METRICS = ("PQ", "SQ", "RQ", "AP", "mIoU")
"""Columns of the results table."""

HEADLINES = ("all", "seen", "unseen")
"""Subsets whose PQ stands above the table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """One row of comparison: the baseline, or what it is compared with."""

    name: str
    """As the reader should see it, such as "Frozen CLIP"."""

    scores: Mapping[str, Mapping[str, float]]
    """Percent by subset, then by metric, as `evaluation.summary.Metrics` gives them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One image of a panel."""

    caption: str
    data: bytes
    """An encoded PNG or JPEG."""

    @property
    def data_uri(self) -> str:
        kind = "png" if self.data.startswith(b"\x89PNG") else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """Pictures of one image side by side: the image, ground truth, each system."""

    title: str
    """Names the image."""

    pictures: Sequence[Picture]


@dataclass(frozen=True, kw_only=True, slots=True)
class Word:
    """A class of the vocabulary, with the colour it has in the pictures."""

    name: str
    colour: str
    """CSS colour."""

    seen: bool | None = None
    """Whether training used this name; None where there was no training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """A table of what made these numbers, such as versions, digests, or a stage's config."""

    title: str
    entries: Mapping[str, object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything on the page, in its order; a part that is empty is left out."""

    title: str
    summary: str
    """One sentence that says what was run."""

    systems: Sequence[System]
    """The first is the baseline; differences are the last less the first."""

    loss: Sequence[tuple[int, float]] = ()
    """Training step and loss."""

    panels: Sequence[Panel] = ()
    words: Sequence[Word] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall time of each stage, in order."""

    provenance: Sequence[Provenance] = ()


def words_of(vocabulary: Vocabulary, seen_ids: set[int] | None = None) -> list[Word]:
    """Words in the colours of `rendering.draw_segments`; `seen_ids` as `standard_subsets` gives them."""
    return [
        Word(
            name=category.name,
            colour="#{:02x}{:02x}{:02x}".format(*class_colour(index)),
            seen=None if seen_ids is None else category.id in seen_ids,
        )
        for index, category in enumerate(vocabulary.categories)
    ]


def render_report(report: Report) -> str:
    """The page as HTML: no script, and nothing that is loaded from elsewhere."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "difference": _difference, "duration": _duration}
    scored = {name for system in report.systems for name in system.scores}
    return environment.get_template("report.html").render(
        report=report,
        subsets=[name for name in SUBSETS if name in scored],
        headlines=[name for name in HEADLINES if name in scored],
        metrics=METRICS,
        compared=len(report.systems) > 1,
        loss_curve=Markup(_loss_curve(report.loss)) if report.loss else "",
        word_groups=_word_groups(report.words),
    )


def _word_groups(words: Sequence[Word]) -> dict[str, list[Word]]:
    """Words under the heading that says whether training used them, without the headings that have none."""
    groups = {
        "Trained on": [word for word in words if word.seen],
        "Never trained on": [word for word in words if word.seen is False],
        "Vocabulary": [word for word in words if word.seen is None],
    }
    return {heading: members for heading, members in groups.items() if members}


_MISSING = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"


def _number(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.1f}"


def _difference(after: float | None, before: float | None) -> str:
    """The signed difference of two numbers as they are shown, so that a reader's subtraction agrees."""
    if after is None or before is None:
        return _MISSING
    change = round(after, 1) - round(before, 1)
    sign = "+" if change > 0.05 else _MINUS if change < -0.05 else "±"
    return f"{sign}{abs(change):.1f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


# A colour that no plot uses: it becomes the page's text colour, light or dark.
_TEXT_COLOUR = "#010203"
_LINE_COLOUR = "#e0572e"


def _loss_curve(loss: Sequence[tuple[int, float]]) -> str:
    """The loss over steps as an SVG element: each value, and their moving average."""
    steps, values = np.array([step for step, _ in loss]), np.array([value for _, value in loss])
    figure = Figure(figsize=(5, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, values, color=_LINE_COLOUR, alpha=0.35, linewidth=0.8)
    axes.plot(steps, _smoothed(values), color=_LINE_COLOUR, linewidth=1.8)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.margins(x=0.01)
    axes.grid(visible=True, color=_TEXT_COLOUR, alpha=0.12, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(_TEXT_COLOUR)
    axes.tick_params(colors=_TEXT_COLOUR, labelsize=8)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=_TEXT_COLOUR, fontsize=8.5)
    return svg_text(figure, transparent=True).replace(_TEXT_COLOUR, "currentColor")


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred moving average over a tenth of the values, over fewer near both ends."""
    middle = np.arange(len(values))
    half = np.minimum(max(1, len(values) // 20), np.minimum(middle, middle[::-1]))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    smoothed: NDArray[np.float64] = (sums[middle + half + 1] - sums[middle - half]) / (2 * half + 1)
    return smoothed
