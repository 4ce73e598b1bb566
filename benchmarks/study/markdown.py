"""Tables of the study's page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from maw.benchmark.comparison import Comparison, correct
from maw.benchmark.formats import probability

__all__ = ["comparisons", "table"]


def comparisons(found: Sequence[tuple[str, Comparison]]) -> str:
    """Comparisons by training set, as one family for Holm's correction."""
    if not found:
        return "No two of them have a seed in common yet."
    lines = []
    for (train, _), own in zip(found, correct([comparison for _, comparison in found]), strict=True):
        low, high = own.interval
        lines.append(
            [
                *(train, own.variant, own.baseline, own.seeds, own.queries, f"{own.mean_difference:+.4f}"),
                *(f"{low:+.4f} to {high:+.4f}", probability(own.p_value), probability(own.p_value_corrected)),
                *(f"{own.smallest_detectable:.4f}", own.verdict),
            ]
        )
    heads = [
        "training set",
        "variant",
        "against",
        "seeds",
        "queries",
        "difference",
        "95 % interval",
        "p",
        "corrected p",
    ]
    return table([*heads, "would find", "verdict"], lines)


def table(heads: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)
