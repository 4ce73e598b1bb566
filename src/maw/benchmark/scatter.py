"""The report's scatter of a variant against its twin, query by query, small for any number of queries.

Values are rounded to a grid, and all cells of like count are one SVG path: seven thousand queries take a few kilobytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

import numpy as np

from maw.benchmark.per_query import Pair
from maw.benchmark.svg import Plot, opening_tag, short

__all__ = ["GRID", "scatter"]

GRID = 32
"""Cells along each axis."""
COUNTS = ((1, 3.0), (2, 4.0), (5, 5.0), (10, 6.0), (30, 7.0), (100, 8.0))  # from so many queries on, side in units
LEFT, TOP, SIZE = 52, 10, 260  # of the square, in units of the drawing
WIDTH, HEIGHT = LEFT + SIZE + 22, TOP + SIZE + 62


def scatter(name: str, title: str, compared: Pair, labels: tuple[str, str], moved: Sequence[int]) -> Plot:
    """One square a cell of the grid, as large as it has queries; rings with numbers where the queries moved most.

    Args:
        name: unique in the page.
        title: what assistive technology reads.
        compared: the values; means over seeds are drawn.
        labels: of the axis to the right (the twin) and of the axis upwards (the variant).
        moved: places of queries, in the order of their numbers, which begin with 1.
    """
    largest = max(float(compared.before.max()), float(compared.after.max()))
    top = next((end for end in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if largest <= end), largest)
    x, y = (np.round(values / top * GRID).astype(int) for values in (compared.before, compared.after))
    cells = Counter(zip(x.tolist(), y.tolist(), strict=True))
    paths: dict[tuple[str, int], list[str]] = {}
    for (right, up), count in sorted(cells.items()):
        level = max(place for place, (least, _) in enumerate(COUNTS) if count >= least)
        side = COUNTS[level][1]
        kind = "up" if up > right else "down" if up < right else "same"
        at = f"M{_x(right) - side / 2:.4g} {_y(up) - side / 2:.4g}h{side:g}v{side:g}h-{side:g}z"
        paths.setdefault((kind, level), []).append(at)
    drawn = [f'<path class="{kind}" d="{"".join(those)}"/>' for (kind, _), those in sorted(paths.items())]
    svg = "".join([opening_tag(name, title, f"0 0 {WIDTH} {HEIGHT}"), _frame(top, labels), *drawn])
    svg += "".join([*_rings([(int(x[place]), int(y[place])) for place in moved]), _key(), "</svg>"])
    difference = np.round(compared.after - compared.before, 12)
    up, down = int((difference > 0).sum()), int((difference < 0).sum())
    caption = (
        f"Each square stands for queries with about these values, the larger the more. Above the line the variant is "
        f"better ({up:,} queries), below it the twin is ({down:,}), on it they are equal "
        f"({len(difference) - up - down:,}). Values are rounded to a grid of {GRID} by {GRID}"
        + ("; they are means over seeds." if len(compared.seeds) > 1 else ".")
    )
    if moved:
        caption += " Numbered rings: the queries that moved most, listed beside it."
    return Plot(name, title, svg, caption)


def _x(right: float) -> float:
    return LEFT + SIZE * right / GRID


def _y(up: float) -> float:
    return TOP + SIZE * (1 - up / GRID)


def _frame(top: float, labels: tuple[str, str]) -> str:
    left, bottom = LEFT - 6, TOP + SIZE + 6
    grid = "".join(
        f"M{_x(GRID * k / 4):g} {TOP - 6}V{bottom}M{left} {_y(GRID * k / 4):g}H{LEFT + SIZE + 6}" for k in range(5)
    )
    words = "".join(
        f'<text class="tick" text-anchor="middle" x="{_x(GRID * k / 4):g}" y="{bottom + 13}">{top * k / 4:.3g}</text>'
        f'<text class="tick" text-anchor="end" x="{left - 3}" y="{_y(GRID * k / 4) + 4:g}">{top * k / 4:.3g}</text>'
        for k in range(5)
    )
    middle = TOP + SIZE / 2
    return (
        f'<path class="grid" d="{grid}"/><path class="diagonal" d="M{_x(0):g} {_y(0):g}L{_x(GRID):g} {_y(GRID):g}"/>'
        f'{words}<text text-anchor="middle" x="{LEFT + SIZE / 2:g}" y="{bottom + 28}">{escape(short(labels[0]))}</text>'
        f'<text text-anchor="middle" transform="translate(12 {middle:g}) rotate(-90)">{escape(short(labels[1]))}</text>'
    )


def _rings(places: Sequence[tuple[int, int]]) -> list[str]:
    """One ring for each place; those that touch share one label with the numbers of all their queries."""
    drawn = [
        f'<circle class="ring" cx="{_x(right):.4g}" cy="{_y(up):.4g}" r="6"/>' for right, up in dict.fromkeys(places)
    ]
    groups: list[list[int]] = []
    for number, (right, up) in enumerate(places):
        near = [those for those in groups if any(_touch(places[other], (right, up)) for other in those)]
        joined = [other for those in near for other in those]
        groups = [those for those in groups if those not in near] + [[*joined, number]]
    for those in groups:
        right = sum(places[one][0] for one in those) / len(those)
        highest, lowest = (end(places[one][1] for one in those) for end in (max, min))
        y = _y(lowest) + 18 if highest > 0.85 * GRID else _y(highest) - 10
        label = _ranges(sorted(one + 1 for one in those))
        drawn.append(f'<text class="number" text-anchor="middle" x="{_x(right):.4g}" y="{y:.4g}">{label}</text>')
    return drawn


def _touch(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return max(abs(one[0] - other[0]), abs(one[1] - other[1])) <= 2


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, with a dash for what follows each other.

    >>> _ranges([1, 2, 3, 6])
    '1–3, 6'
    """
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in found)


def _key() -> str:
    """What the sizes mean."""
    y, x = TOP + SIZE + 52, 62.0
    parts = [f'<text class="tick" x="4" y="{y}">queries</text>']
    for place, (least, side) in enumerate(COUNTS):
        following = COUNTS[place + 1][0] - 1 if place + 1 < len(COUNTS) else None
        words = f"{least}+" if following is None else f"{least}" if following == least else f"{least}–{following}"
        parts.append(
            f'<path class="same" d="M{x - side / 2:g} {y - 4 - side / 2:g}h{side:g}v{side:g}h-{side:g}z"/>'
            f'<text class="tick" x="{x + 8:g}" y="{y}">{words}</text>'
        )
        x += 22 + 6 * len(words)
    return "".join(parts)
