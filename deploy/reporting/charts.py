"""The pictures of a report, drawn once, by Matplotlib: as SVG whose colours the page sets, and as PNG."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from deploy.reporting.curves import Points
from deploy.reporting.words import harmless, one_line

INK, GRID = "#1f2328", "#d0d7de"
SERIES = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#9a6700", "#1b7c83", "#57606a")
"""Of the variants, in their order, on white; where there are more they begin anew, with another dash."""
DARK_INK, DARK_GRID = "#e6edf3", "#30363d"
DARK_SERIES = ("#58a6ff", "#f0883e", "#3fb950", "#bc8cff", "#f778ba", "#d29922", "#56d4dd", "#8b949e")
Dash = tuple[float, tuple[float, ...]]
SOLID: Dash = (0, ())
DOTTED: Dash = (0, (1, 1.5))
DASHES: tuple[Dash, ...] = (SOLID, (0, (5, 2)), (0, (2, 1)), (0, (6, 2, 1, 2)))
WIDTH_IN = 5.0
"""As wide as a phone, at the size at which its text can be read there; wider screens have two beside each other."""
STYLE: Mapping[Any, Any] = {
    "svg.fonttype": "none",  # text, not outlines of it
    "svg.hashsalt": "qherd",  # the same runs have the same page
    "text.parse_math": False,  # a run may be called $\frac
    "font.size": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "path.simplify_threshold": 0.25,
}


@dataclass(frozen=True)
class Line:
    """A line through points <float64>[P], NaN where it is interrupted, in the colour of a series. ``thin``: one of
    several runs; ``dotted``: one that does not count. ``band``: its interval, low and high <float64>[P]."""

    x: Points
    y: Points
    series: int
    label: str = ""
    thin: bool = False
    dotted: bool = False
    band: tuple[Points, Points] | None = None


@dataclass(frozen=True)
class Lines:
    """Lines over a common axis. ``share``: the values are shares of 1."""

    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    share: bool = False


@dataclass(frozen=True)
class Mark:
    """One row of ``Marks``: its single values, the middle of them, and its interval."""

    label: str
    values: tuple[float, ...]
    middle: float
    interval: tuple[float, float] | None
    series: int


@dataclass(frozen=True)
class Marks:
    """Values beside each other, a row each. ``reference``: where a line stands; ``share``: they are shares of 1."""

    x_label: str
    marks: tuple[Mark, ...]
    reference: float | None = None
    share: bool = False


@dataclass(frozen=True)
class Chart:
    """A picture with its title, and in words what it shows."""

    title: str
    description: str
    drawing: Lines | Marks


def svg(chart: Chart, key: str) -> str:
    """Returns an ``<svg>`` element to stand in a page that has ``COLOURS``; ``key`` is unique there."""
    drawn = io.StringIO()
    _save(chart, lambda figure: figure.savefig(drawn, format="svg", transparent=True, metadata=_UNDATED))
    text = drawn.getvalue()
    body = text[text.index("<svg ") :]
    body = body[body.index(">") + 1 :]
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{key}-", body)  # several pictures share the page
    # a tenth of a point is enough for a path
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(?<=\.\d)\d+", "", path[0]), body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    size = re.search(r'viewBox="([\d. ]+)"', text)
    assert size is not None
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{size[1]}" '
        f'role="img" aria-labelledby="{key}-t {key}-d"><title id="{key}-t">{escape(harmless(chart.title))}</title>'
        f'<desc id="{key}-d">{escape(harmless(chart.description))}</desc>{body.strip()}'
    )


def png(chart: Chart) -> bytes:
    """Returns the picture as PNG, on white."""
    drawn = io.BytesIO()
    _save(chart, lambda figure: figure.savefig(drawn, format="png", dpi=150, facecolor="white", metadata=_UNNAMED))
    return drawn.getvalue()


_UNDATED: Mapping[str, None] = {"Date": None}
_UNNAMED: Mapping[str, None] = {"Software": None}
_VARIABLES = {INK: "ink", GRID: "grid", **{colour: f"s{i}" for i, colour in enumerate(SERIES)}}


def colours(ink: str, grid: str, series: Sequence[str]) -> str:
    """Returns the CSS that gives the pictures' colours their values."""
    values = zip(_VARIABLES.values(), (ink, grid, *series), strict=True)
    return " ".join(f"--{name}: {value};" for name, value in values)


def _save(chart: Chart, save: Callable[[Figure], None]) -> None:
    """Draws a chart and saves it."""
    drawing = chart.drawing
    with mpl.rc_context({**STYLE}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that Matplotlib's font has not: browsers have others
        if isinstance(drawing, Lines):
            save(_lines_figure(drawing))
        else:
            save(_marks_figure(drawing))


def _axes_of(height_in: float, left_in: float, below_in: float) -> tuple[Figure, Axes]:
    """Returns a figure and its axes, of that height and with so much room to their left and below. Matplotlib's own
    layouts draw everything twice."""
    whole_in = height_in + below_in + 0.1
    figure = Figure(figsize=(WIDTH_IN, whole_in))
    place = (left_in / WIDTH_IN, below_in / whole_in, 1 - (left_in + 0.15) / WIDTH_IN, height_in / whole_in)
    return figure, figure.add_axes(place)


def _lines_figure(drawing: Lines) -> Figure:
    """Returns a figure with its legend below the axes: within them it would hide curves."""
    named = [(_plain(line.label), _look(line.series)) for line in drawing.lines if line.label]
    columns = 1 if max((len(label) for label, _ in named), default=0) > 24 else 2
    legend_in = 0.2 * math.ceil(len(named) / columns) + 0.1 if len(named) > 1 else 0.0
    figure, axes = _axes_of(2.4, 0.65, 0.5 + legend_in)
    _draw_lines(axes, drawing)
    if len(named) > 1:
        handles = [Line2D([], [], color=colour, linestyle=dash, linewidth=2) for _, (colour, dash) in named]
        figure.legend(handles, [label for label, _ in named], loc="lower center", ncols=columns, borderpad=0.2)
    return figure


def _draw_lines(axes: Axes, drawing: Lines) -> None:
    for line in drawing.lines:
        colour, dash = _look(line.series)
        if line.band is not None:
            axes.fill_between(line.x, *line.band, color=colour, alpha=0.2, linewidth=0)
        axes.plot(
            line.x,
            line.y,
            color=colour,
            linestyle=DOTTED if line.dotted else dash,
            linewidth=0.8 if line.thin else 2,
            alpha=0.45 if line.thin else 1,
        )
    axes.set_xlabel(_plain(drawing.x_label))
    axes.set_ylabel(_plain(drawing.y_label))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    if drawing.share:
        axes.set_ylim(-0.02, 1.02)
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def _marks_figure(drawing: Marks) -> Figure:
    labels = [_plain(mark.label) for mark in drawing.marks]
    figure, axes = _axes_of(0.38 * len(labels), min(0.3 + 0.075 * max(map(len, labels)), 0.6 * WIDTH_IN), 0.5)
    _draw_marks(axes, drawing, labels)
    return figure


def _draw_marks(axes: Axes, drawing: Marks, labels: Sequence[str]) -> None:
    rows = range(len(drawing.marks))
    for row, mark in zip(rows, drawing.marks, strict=True):
        colour, _ = _look(mark.series)
        if mark.interval is not None:
            axes.plot(mark.interval, (row, row), color=colour, linewidth=6, alpha=0.35, solid_capstyle="butt")
        axes.plot(mark.values, np.full(len(mark.values), row), "o", color=colour, markersize=4, alpha=0.6, mew=0)
        axes.plot(mark.middle, row, "|", color=INK, markersize=14, markeredgewidth=2)
    axes.set_yticks(rows, labels)
    axes.set_ylim(len(drawing.marks) - 0.4, -0.6)
    axes.set_xlabel(_plain(drawing.x_label))
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if drawing.share:
        axes.set_xlim(-0.03, 1.03)
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    if drawing.reference is not None:
        axes.axvline(drawing.reference, color=INK, linewidth=0.8, linestyle=DOTTED)


def _look(series: int) -> tuple[str, Dash]:
    """Returns a series' colour and dash."""
    return SERIES[series % len(SERIES)], DASHES[series // len(SERIES) % len(DASHES)]


def _plain(label: str) -> str:
    """Returns a name of any origin as a short line. Matplotlib leaves out what begins with an underscore."""
    line = one_line(label).lstrip("_")
    return (line if len(line) <= 40 else f"{line[:39]}…") or "?"


def short(value: float) -> str:
    """Returns a number as an axis has it: 250k, 1.5M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{name}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")
