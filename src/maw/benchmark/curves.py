"""The report's training curves: one panel a variant, its seeds as lines, or as a band where there are many."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeAlias

from maw.benchmark.svg import COLOURS, Plot, draw_svg, family, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LINES", "POINTS", "curves"]

POINTS = 100
"""Points of a curve at most: a longer one is averaged in steps of equal length."""
LINES = 10
"""Seeds that are drawn as a line each; of more, the range and the mean are."""

Curve: TypeAlias = Mapping[float, float]
"""Step -> value."""


def curves(
    name: str, title: str, runs: Mapping[str, Sequence[Curve]], label: str, caption: str, *, lowest: float | None = None
) -> Plot:
    """Curves over training steps, one panel a variant: its seeds as thin lines, the other variants' means pale behind.

    `runs` has a list of curves for each variant, one a seed. `caption` says what the values mean; how to read the
    panels is added. `lowest` is where the axis begins, for values that cannot be lower.
    """
    means = {variant: _shortened(_mean(found)) for variant, found in runs.items()}
    columns = min(len(runs), 2 if len(runs) <= 4 else 3)
    lines = math.ceil(len(runs) / columns)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for panel in panels.flat[len(runs) :]:
            panel.set_axis_off()
        for place, (variant, found) in enumerate(runs.items()):
            panel = panels.flat[place]
            for other, mean in means.items():
                if other != variant:
                    _line(panel, mean, color=COLOURS["other"], linewidth=0.7)
            _own(panel, found, means[variant], COLOURS[family(variant)])
            panel.set_title(short(variant), loc="left", pad=3)
            panel.grid(visible=True, axis="y")
            panel.locator_params(nbins=4 if columns < 3 else 3)
            if place + columns >= len(runs):
                panel.tick_params(labelbottom=True)
        if lowest is not None:
            highest = max(value for found in runs.values() for curve in found for value in curve.values())
            span = max(0.05, 1.05 * (highest - lowest))
            panels[0, 0].set_ylim(lowest - 0.03 * span, lowest + span)  # a line along the lowest value is seen
        figure.supylabel(label, fontsize=10)
        figure.supxlabel("step", fontsize=10)

    many = max(len(found) for found in runs.values()) > LINES
    longest = max(len(curve) for found in runs.values() for curve in found)
    reading = " One panel a variant: a thin line is one seed"
    if many:
        reading += f", and of more than {LINES} seeds the band is their range and the line their mean"
    reading += "; the pale lines are the other variants' means." if len(runs) > 1 else "."
    if longest > POINTS:
        reading += f" Longer logs are averaged to {POINTS} points a curve."
    return Plot(name, title, draw_svg(name, title, 0.45 + 1.35 * lines, draw), caption + reading)


def _own(panel: Axes, found: Sequence[Curve], mean: Curve, colour: str) -> None:
    """A variant's own curves."""
    if len(found) <= LINES:
        for curve in found:
            _line(panel, _shortened(curve), color=colour, linewidth=0.9)
        return
    low, high = (_shortened(_mean(found, ends)) for ends in (min, max))
    panel.fill_between(list(low), list(low.values()), list(high.values()), color=colour, alpha=0.25, linewidth=0)
    _line(panel, mean, color=colour, linewidth=1.1)


def _line(axes: Axes, curve: Curve, **style: Any) -> None:
    single = {"marker": "o", "markersize": 3} if len(curve) == 1 else {}
    axes.plot(list(curve), list(curve.values()), **style, **single)


def _mean(found: Sequence[Curve], summary: Callable[[Sequence[float]], float] = fmean) -> dict[float, float]:
    """The mean over seeds, or another summary, at each step that at least half of them have; so one that was stopped
    cuts off nothing.

    >>> _mean([{1: 2.0, 2: 4.0}, {1: 4.0}, {1: 6.0, 3: 1.0}])
    {1: 4.0}
    >>> _mean([{1: 2.0}, {2: 4.0}])
    {1: 2.0, 2: 4.0}
    """
    values: dict[float, list[float]] = {}
    for curve in found:
        for step, value in curve.items():
            values.setdefault(step, []).append(value)
    return {step: summary(those) for step, those in sorted(values.items()) if 2 * len(those) >= len(found)}


def _shortened(curve: Curve) -> dict[float, float]:
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
