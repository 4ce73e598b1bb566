"""The plots of the report, as SVG to be put inside an HTML page.

A plot is drawn with matplotlib's objects on the SVG backend: no pyplot, no display, the same bytes for the same input.
Text stays text, and every colour becomes a CSS variable of the page, so that one plot serves light and dark. Colour
never carries meaning alone: whatever has a colour has a written label as well.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maw.errors import MAWError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["POINTS", "Difference", "Plot", "curves", "differences", "dots", "family", "strips"]

POINTS = 100  # points of a curve at most: a longer one is averaged in steps of equal length
SHADES = 8.0  # depth usage of SHADES times the uniform share, or 1 / SHADES of it, has the fullest colour

# Colours that nothing else uses: `_svg` replaces each by the CSS variable of the same name.
COLOURS = {"ink": "#010203", "muted": "#010204", "line": "#010205", "band": "#010206", "other": "#010207"}
COLOURS |= {"maw": "#010208", "dense": "#010209", "reference": "#01020a", "control": "#01020b"}
LESS, MORE = (0.20, 0.55, 0.85), (0.90, 0.45, 0.0)  # of depth usage; readable on light and on dark

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "maw",
    "text.parse_math": False,  # a name with dollar signs is a name
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.edgecolor": COLOURS["line"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.5,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
}
_TICKS = {"labelsize": 8.0, "color": COLOURS["line"], "labelcolor": COLOURS["muted"]}
SETTINGS |= {f"{axis}tick.{name}": value for axis in "xy" for name, value in _TICKS.items()}
WIDTH = 4.4  # inches: 317 points, so that 9-point letters stay readable on a phone


@dataclass(frozen=True)
class Plot:
    """One plot: its name, unique in the page, its title, the SVG, and what it shows in a sentence or two."""

    name: str
    title: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Difference:
    """A paired difference: its label, mean, interval, and the smallest difference its test would find."""

    variant: str
    baseline: str
    mean: float
    interval: tuple[float, float] | None
    smallest_detectable: float | None


def family(variant: str) -> str:
    """Return which colour a variant has: `reference` (no training), `dense`, `maw`, or `control` for all others.

    >>> [family(name) for name in ("bm25", "dense-lora", "maw-full", "literal")]
    ['reference', 'dense', 'maw', 'control']
    """
    if variant in {"bm25", "untuned"}:
        return "reference"
    prefix = variant.split("-", maxsplit=1)[0]
    return prefix if prefix in {"dense", "maw"} else "control"


def dots(name: str, title: str, values: Mapping[str, Sequence[float]], label: str, reference: float | None) -> Plot:
    """A metric by variant: one dot a seed, a short line at the mean, a dashed line at the reference value."""

    def draw(figure: Figure) -> None:
        axes: Axes = figure.subplots()
        if reference is not None:
            axes.axvline(reference, color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 3)))
        for row, (variant, found) in enumerate(values.items()):
            colour = COLOURS[family(variant)]
            shift = [0.0] if len(found) == 1 else [0.5 * k / (len(found) - 1) - 0.25 for k in range(len(found))]
            axes.plot(found, [row + s for s in shift], "o", color=colour, markersize=5, alpha=0.8, markeredgewidth=0)
            if len(found) > 1:
                mean = math.fsum(found) / len(found)
                axes.plot([mean, mean], [row - 0.38, row + 0.38], color=COLOURS["ink"], linewidth=1.2)
        _rows(axes, list(values))
        axes.set_xlabel(label)

    seeds = max((len(found) for found in values.values()), default=0)
    several = "Each dot is one seed, the short line their mean."
    single = "Each dot is one variant; one seed was run, so the plot cannot show how far seeds lie apart."
    dashed = " The dashed line is the untuned encoder." if reference is not None else ""
    end = " Further right is better; the axis need not start at 0."
    height = 0.75 + 0.3 * max(len(values), 2)
    return Plot(name, title, _svg(name, title, height, draw), (several if seeds > 1 else single) + dashed + end)


def differences(name: str, title: str, found: Sequence[Difference], label: str) -> Plot:
    """Paired differences with their intervals, the zero line, and the range in which the test is blind."""

    def draw(figure: Figure) -> None:
        axes: Axes = figure.subplots()
        axes.axvline(0, color=COLOURS["ink"], linewidth=1)
        for row, one in enumerate(found):
            if one.smallest_detectable is not None:
                width = 2 * one.smallest_detectable
                axes.barh(row, width, 0.5, -one.smallest_detectable, color=COLOURS["band"], linewidth=0, zorder=0)
            colour = COLOURS[family(one.variant)]
            if one.interval is not None:
                axes.plot(one.interval, [row, row], color=colour, linewidth=2, marker="|", markersize=8)
            axes.plot([one.mean], [row], "o", color=colour, markersize=6, markeredgewidth=0)
        _rows(axes, [f"{one.variant}\nminus {one.baseline}" for one in found])
        axes.set_xlabel(label)

    caption = (
        "Each dot is the mean over queries of the variant's value minus its baseline's, the line through it the "
        "interval: where that crosses zero, no difference is shown. The pale bar reaches as far as the smallest "
        "difference this test would find: a dot inside it says little either way."
    )
    height = 0.75 + 0.42 * max(len(found), 2)
    return Plot(name, title, _svg(name, title, height, draw), caption)


def curves(
    name: str, title: str, runs: Mapping[str, Sequence[Mapping[float, float]]], label: str, caption: str
) -> Plot:
    """Curves over training steps, one panel a variant: its seeds as thin lines, the other variants' means pale behind.

    `runs` has a list of curves for each variant, one a seed; a curve is step -> value. `caption` says what the values
    mean; how to read the panels is added.
    """
    short = {variant: [_shortened(curve) for curve in found] for variant, found in runs.items()}
    means = {variant: _shortened(_mean(found)) for variant, found in runs.items()}
    columns = min(len(runs), 2 if len(runs) <= 4 else 3)
    lines = math.ceil(len(runs) / columns)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for panel in panels.flat[len(short) :]:
            panel.set_axis_off()
        for place, (variant, found) in enumerate(short.items()):
            panel = panels.flat[place]
            for other, mean in means.items():
                if other != variant:
                    _line(panel, mean, color=COLOURS["other"], linewidth=0.7)
            for curve in found:
                _line(panel, curve, color=COLOURS[family(variant)], linewidth=0.9)
            panel.set_title(variant, loc="left", pad=3)
            panel.grid(visible=True, axis="y")
            panel.locator_params(nbins=4 if columns < 3 else 3)
            if place + columns >= len(short):
                panel.set_xlabel("step")
                panel.tick_params(labelbottom=True)
        figure.supylabel(label, fontsize=9)

    longest = max(len(curve) for found in runs.values() for curve in found)
    reading = " One panel a variant: a thin line is one seed"
    reading += ", the pale lines are the other variants' means." if len(runs) > 1 else "."
    if longest > POINTS:
        reading += f" Longer logs are averaged to {POINTS} points a curve."
    return Plot(name, title, _svg(name, title, 0.45 + 1.35 * lines, draw), caption + reading)


def strips(name: str, title: str, usage: Mapping[str, Sequence[Sequence[float]]]) -> Plot:
    """Depth usage against the uniform share 1 / D: a strip a variant, a row a seed and layer, a cell a depth."""
    from matplotlib.colors import LinearSegmentedColormap

    # No colour at all where a depth is used as often as the others, so that the page shows through.
    ends = [(0.0, (*LESS, 1.0)), (0.5, (*LESS, 0.0)), (0.5, (*MORE, 0.0)), (1.0, (*MORE, 1.0))]
    shades = LinearSegmentedColormap.from_list("usage", ends)
    seeds = [max(len(found), 2) for found in usage.values()]
    limit = math.log2(SHADES)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(
            len(usage) + 1, 1, squeeze=False, height_ratios=[0.3 + 0.11 * count for count in seeds] + [0.12]
        )
        for panel, (variant, found) in zip(panels.flat, usage.items(), strict=False):
            width = max(len(row) for row in found)
            cells = [[_relative(row, d, limit) for d in range(width)] for row in found]
            panel.imshow(cells, cmap=shades, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
            panel.set_title(variant, loc="left", pad=3)
            panel.set_yticks([])
            panel.set_xticks(sorted({0, *range(0, width, max(1, math.ceil(width / 8))), width - 1}))
            if width > 8:  # the last label would run into the one before it
                panel.set_xticks([d for d in panel.get_xticks() if d in (0, width - 1) or width - 1 - d >= width / 16])
            panel.spines[:].set_visible(True)
        key = panels.flat[-1]
        key.imshow(
            [[2 * limit * k / 60 - limit for k in range(61)]], cmap=shades, vmin=-limit, vmax=limit, aspect="auto"
        )
        key.set_yticks([])
        key.set_xticks([0, 20, 30, 40, 60], ["1/8 or less", "half", "1/D", "double", "8 times or more"])
        key.get_xticklabels()[0].set_horizontalalignment("left")
        key.get_xticklabels()[-1].set_horizontalalignment("right")

    caption = (
        "How often the policy would choose each depth, at the last logged step: one cell a depth (0 to D - 1), one row "
        "a seed, or one a layer of each seed. Without colour: as often as under uniform choice, 1/D; orange: more "
        "often; blue: more rarely. A strip that is blue but for a few orange cells has collapsed onto them."
    )
    height = 0.55 + sum(0.36 + 0.11 * count for count in seeds)
    return Plot(name, title, _svg(name, title, height, draw), caption)


def _relative(row: Sequence[float], depth: int, limit: float) -> float:
    """log2 of a depth's share relative to 1 / D, within the shades there are; NaN past the row's end."""
    if depth >= len(row) or not math.isfinite(row[depth]):
        return math.nan
    return max(-limit, min(limit, math.log2(max(row[depth] * len(row), 2.0**-limit))))


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels, color=COLOURS["ink"])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=True, axis="x")
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=5)


def _line(axes: Axes, curve: Mapping[float, float], **style: Any) -> None:
    single = {"marker": "o", "markersize": 3} if len(curve) == 1 else {}
    axes.plot(list(curve), list(curve.values()), **style, **single)


def _mean(found: Sequence[Mapping[float, float]]) -> dict[float, float]:
    """The mean over seeds at each step, where all of them have one; at their own steps where they share none."""
    shared = set.intersection(*(set(curve) for curve in found)) or set().union(*(set(curve) for curve in found))
    values = {step: [curve[step] for curve in found if step in curve] for step in sorted(shared)}
    return {step: math.fsum(those) / len(those) for step, those in values.items()}


def _shortened(curve: Mapping[float, float]) -> dict[float, float]:
    """At most POINTS points: the means of consecutive groups, in the order of the steps."""
    points = sorted(curve.items())
    size = math.ceil(len(points) / POINTS)
    groups = (
        [points[begin : begin + size] for begin in range(0, len(points), size)] if size > 1 else [[p] for p in points]
    )
    return {
        math.fsum(step for step, _ in group) / len(group): math.fsum(value for _, value in group) / len(group)
        for group in groups
    }


def _svg(name: str, title: str, height: float, draw: Any) -> str:
    """Draw on a new figure and return an SVG element for an HTML page: titled, with its own ids and CSS colours."""
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise MAWError("the report needs matplotlib: pip install 'maw-attention[retrieval]'") from None

    def rounded(number: re.Match[str]) -> str:
        return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")

    written = io.StringIO()
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the reader's font may have it
        matplotlib.rcdefaults()  # a person's own settings do not reach the report
        with matplotlib.rc_context(SETTINGS):
            figure = Figure(figsize=(WIDTH, height))
            draw(figure)
            FigureCanvasSVG(figure).print_svg(written)
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)  # the date among it
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)  # it would apply to the whole page
    text = re.sub(r"(?<= )xlink:href=", "href=", text)
    text = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"-?\d+\.\d+", rounded, path[0]), text)
    for variable, colour in COLOURS.items():
        text = re.sub(rf"(fill|stroke): {colour}", rf"\1: var(--{variable})", text)
    box = text[text.index("viewBox=") :].split('"')[1]
    head = f'<svg viewBox="{box}" role="img" aria-labelledby="{name}-title">'
    return f'{head}<title id="{name}-title">{html.escape(title)}</title>{text[text.index(">") + 1 :].strip()}'
