"""The report's plots of results: a metric by variant, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maw.benchmark.svg import COLOURS, Plot, draw_svg, family, label_rows, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Difference", "differences", "dots"]


@dataclass(frozen=True)
class Difference:
    """A paired difference: its label, mean, interval, and the smallest difference its test would find."""

    variant: str
    baseline: str
    mean: float
    interval: tuple[float, float] | None
    smallest_detectable: float | None


def dots(
    name: str,
    title: str,
    values: Mapping[str, Sequence[float]],
    intervals: Mapping[str, tuple[float, float] | None],
    label: str,
    reference: float | None,
) -> Plot:
    """A metric by variant: one dot a seed, the interval, a short line at the mean, a dashed one at the reference."""

    def draw(figure: Figure) -> None:
        axes: Axes = figure.subplots()
        if reference is not None:
            axes.axvline(reference, color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 3)))
        for row, (variant, found) in enumerate(values.items()):
            colour = COLOURS[family(variant)]
            interval = intervals.get(variant)
            if interval is not None:
                axes.plot(interval, [row, row], color=COLOURS["other"], linewidth=1.2, marker="|", markersize=7)
            shift = [0.0] if len(found) == 1 else [0.5 * k / (len(found) - 1) - 0.25 for k in range(len(found))]
            axes.plot(found, [row + s for s in shift], "o", color=colour, markersize=5, alpha=0.8, markeredgewidth=0)
            if len(found) > 1:
                mean = math.fsum(found) / len(found)
                axes.plot([mean, mean], [row - 0.38, row + 0.38], color=COLOURS["ink"], linewidth=1.2)
        label_rows(axes, [short(variant) for variant in values])
        axes.set_xlabel(label)

    seeds = max((len(found) for found in values.values()), default=0)
    several = "Each dot is one seed, the upright line their mean."
    single = "Each dot is one variant; one seed was run, so the plot cannot show how far seeds lie apart."
    caption = several if seeds > 1 else single
    if any(interval is not None for interval in intervals.values()):
        caption += (
            " The pale line is the 95 % interval of the mean: how far it may lie off for other queries"
            + (" and seeds" if seeds > 1 else "")
            + "; the paired differences are sharper, because both systems answer the same queries."
        )
    if reference is not None:
        caption += " The dashed line is the untuned encoder."
    caption += " Further right is better; the axis need not start at 0."
    return Plot(name, title, draw_svg(name, title, 0.75 + 0.32 * max(len(values), 2), draw), caption)


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
        label_rows(axes, [f"{short(one.variant)}\nminus {short(one.baseline)}" for one in found])
        axes.set_xlabel(label)

    caption = (
        "Each dot is the mean over queries of the variant's value minus its baseline's, the line through it the "
        "interval: where that crosses zero, no difference is shown. The pale bar reaches as far as the smallest "
        "difference this test would find: a dot inside it says little either way."
    )
    return Plot(name, title, draw_svg(name, title, 0.75 + 0.46 * max(len(found), 2), draw), caption)
