"""The report's picture of depth usage, by layer and kind of input, and its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from maw.benchmark.svg import COLOURS, Plot, draw_svg, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SHADES", "Usage", "figures", "strips", "usage_lines"]

SHADES = 8.0
"""Depth usage of SHADES times the uniform share, or 1 / SHADES of it, has the fullest colour."""
TOGETHER = 4
"""Variants in one figure."""
LESS, MORE = (0.20, 0.55, 0.85), (0.90, 0.45, 0.0)  # readable on light and on dark


NAMES = {"query": "queries", "document": "documents"}


@dataclass(frozen=True)
class Usage:
    """The shares of the depths in one layer of one run: `kind` is "query", "document", or "training" for both."""

    variant: str
    seed: int | None
    layer: int
    kind: str
    shares: Sequence[float]


def figures(name: str, title: str, found: Sequence[Usage], kinds: Sequence[str]) -> list[Plot]:
    """`strips` of up to `TOGETHER` variants each."""
    variants = list(dict.fromkeys(one.variant for one in found))
    groups = [variants[begin : begin + TOGETHER] for begin in range(0, len(variants), TOGETHER)]
    made = []
    for number, group in enumerate(groups, start=1):
        those = [one for one in found if one.variant in group]
        of_all = f" ({number} of {len(groups)})" if len(groups) > 1 else ""
        made.append(strips(f"{name}-{number}" if number > 1 else name, title + of_all, those, kinds))
    return made


def strips(name: str, title: str, found: Sequence[Usage], kinds: Sequence[str]) -> Plot:
    """Depth usage against the uniform share 1 / D: a line of panels a variant, a panel a kind, a row a layer and seed.

    Args:
        name: unique in the page.
        title: of the plot.
        found: everything that is drawn.
        kinds: the kinds of input, a column each.
    """
    from matplotlib.colors import LinearSegmentedColormap

    # No colour at all where a depth is used as often as the others, so that the page shows through.
    ends = [(0.0, (*LESS, 1.0)), (0.5, (*LESS, 0.0)), (0.5, (*MORE, 0.0)), (1.0, (*MORE, 1.0))]
    shades = LinearSegmentedColormap.from_list("usage", ends)
    variants = list(dict.fromkeys(one.variant for one in found))
    rows = {
        variant: [[one for one in found if (one.variant, one.kind) == (variant, kind)] for kind in kinds]
        for variant in variants
    }
    heights = [0.42 + min(1.6, 0.11 * max(2, *(len(those) for those in rows[variant]))) for variant in variants]

    def draw(figure: Figure) -> None:
        grid = figure.add_gridspec(len(variants) + 1, len(kinds), height_ratios=[*heights, 0.32])
        for line, variant in enumerate(variants):
            for column, kind in enumerate(kinds):
                panel = figure.add_subplot(grid[line, column])
                _panel(panel, rows[variant][column], shades)
                panel.set_title(
                    short(variant) if len(kinds) == 1 else f"{short(variant)}, {NAMES[kind]}", loc="left", pad=3
                )
                if column:
                    panel.set_yticks([])
        _key(figure.add_subplot(grid[-1, :]), shades)

    caption = (
        "How much each depth weighs, the mean over texts: one cell a depth (0 to D - 1), one row a seed in each layer. "
        "Without colour: as much as under uniform weights, 1/D; orange: more, blue: less, fullest from 8 times or 1/8 "
        "on. A strip that is blue but for a few orange cells has collapsed onto them."
    )
    return Plot(name, title, draw_svg(name, title, 0.2 + sum(heights) + 0.42, draw), caption)


def _panel(panel: Axes, those: Sequence[Usage], shades: Any) -> None:
    width = max((len(one.shares) for one in those), default=1)
    limit = math.log2(SHADES)
    ordered = sorted(those, key=lambda one: (one.layer, -1 if one.seed is None else one.seed))
    cells = [[_relative(one.shares, depth, limit) for depth in range(width)] for one in ordered] or [[math.nan]]
    panel.imshow(cells, cmap=shades, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    layers = [one.layer for one in ordered]
    middle = {layer: layers.index(layer) + (layers.count(layer) - 1) / 2 for layer in dict.fromkeys(layers)}
    word = "MAW layer" if any(one.kind == "training" for one in ordered) else "layer"  # logs count MAW's layers alone
    shown = list(middle)[:: max(1, math.ceil(len(middle) / 6))]
    panel.set_yticks([middle[layer] for layer in shown], [f"{word} {layer}" for layer in shown])
    panel.tick_params(axis="y", length=0)
    for layer in list(middle)[1:]:
        panel.axhline(layers.index(layer) - 0.5, color=COLOURS["line"], linewidth=0.6)
    panel.set_xticks([0, width - 1] if width > 1 else [0])
    panel.get_xticklabels()[-1].set_horizontalalignment("right")
    panel.get_xticklabels()[0].set_horizontalalignment("left")
    panel.spines[:].set_visible(True)


def _key(key: Axes, shades: Any) -> None:
    limit = math.log2(SHADES)
    cells = [[2 * limit * k / 60 - limit for k in range(61)]]
    key.imshow(cells, cmap=shades, vmin=-limit, vmax=limit, aspect="auto")
    key.set_yticks([])
    key.set_xticks([0, 20, 30, 40, 60], ["1/8", "half", "1/D", "double", "8 times"])
    key.get_xticklabels()[0].set_horizontalalignment("left")
    key.get_xticklabels()[-1].set_horizontalalignment("right")


def _relative(row: Sequence[float], depth: int, limit: float) -> float:
    """log2 of a depth's share relative to 1 / D, within the shades there are; NaN past the row's end."""
    if depth >= len(row) or not math.isfinite(row[depth]):
        return math.nan
    return max(-limit, min(limit, math.log2(max(row[depth] * len(row), 2.0**-limit))))


def usage_lines(found: Sequence[Usage]) -> list[dict[str, Any]]:
    """The same in numbers: for every variant and layer, means over seeds.

    Returns:
        `variant`, `layer`, `depth`, `seeds`; `query` and `document`: how many depths their mean weights amount to
        (exp of the entropy); `shared`: the part of their weights that both kinds have in common, the sum of the smaller
        shares.

    >>> usage_lines([Usage("maw", 0, 5, "query", [0.5, 0.5]), Usage("maw", 0, 5, "document", [1.0, 0.0])])
    [{'variant': 'maw', 'layer': 5, 'depth': 2, 'seeds': 1, 'query': 2.0, 'document': 1.0, 'shared': 0.5}]
    """
    lines = []
    for variant, layer in dict.fromkeys((one.variant, one.layer) for one in found):
        kinds = {
            kind: {
                one.seed: one.shares for one in found if (one.variant, one.layer, one.kind) == (variant, layer, kind)
            }
            for kind in ("query", "document")
        }
        both = [seed for seed in kinds["query"] if seed in kinds["document"]]
        if both:
            common = [sum(map(min, kinds["query"][seed], kinds["document"][seed])) for seed in both]
            effective = {kind: fmean(_effective(shares[seed]) for seed in both) for kind, shares in kinds.items()}
            depth = len(kinds["query"][both[0]])
            lines.append(
                {"variant": variant, "layer": layer, "depth": depth, "seeds": len(both), **effective}
                | {"shared": fmean(common)}
            )
    return lines


def _effective(shares: Sequence[float]) -> float:
    return round(math.exp(-sum(share * math.log(share) for share in shares if share > 0)), 6)
