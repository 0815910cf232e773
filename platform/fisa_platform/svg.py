"""Figures of matplotlib as SVG."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import matplotlib
from matplotlib.figure import Figure

_SETTINGS = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "fisa",  # ids do not change from run to run
    "font.family": "sans-serif",
    "text.parse_math": False,  # a "$" in a name is no formula
}


@contextmanager
def plain_text() -> Iterator[None]:
    """Settings for text as it is; a figure keeps some of them from when it was made."""
    with matplotlib.rc_context(cast(Any, _SETTINGS)):
        yield


def svg_text(figure: Figure, *, transparent: bool = False) -> str:
    """The `svg` element of a figure; one with names in it is to be made under `plain_text`."""
    buffer = io.StringIO()
    with plain_text():
        figure.savefig(buffer, format="svg", transparent=transparent, metadata={"Date": None})
    drawing = buffer.getvalue()
    return drawing[drawing.index("<svg") :]
