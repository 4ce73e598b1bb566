"""Values of `results.json` as people read them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

__all__ = [
    "count",
    "duration",
    "flat",
    "memory",
    "metric",
    "number",
    "probability",
    "share",
    "signed",
    "values",
    "words",
]


def number(value: object) -> float | None:
    """A finite number, or None for anything else."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def values(found: Iterable[object]) -> list[float]:
    """The finite numbers among these."""
    return [got for value in found if (got := number(value)) is not None]


def words(value: object, missing: str = "not recorded") -> str:
    """Any value as words for people; `missing` is for what is not there.

    >>> words({"train": 600, "tau": None}), words([-1]), words(None)
    ('train 600, tau none', '-1', 'not recorded')
    """
    if value is None or value in ("", [], {}):
        return missing
    if isinstance(value, dict):
        return ", ".join(f"{name} {words(one, 'none')}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(words(one, "none") for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def flat(entries: Mapping[str, object], before: str = "") -> dict[str, object]:
    """The same entries without nesting.

    >>> flat({"pairs": 3, "splits": {"test": {"queries": 2}}})
    {'pairs': 3, 'splits, test, queries': 2}
    """
    found: dict[str, object] = {}
    for name, value in entries.items():
        found |= flat(value, f"{before}{name}, ") if isinstance(value, dict) and value else {f"{before}{name}": value}
    return found


def metric(value: object) -> str:
    """A metric, or a dash for what is no finite number; so in all of these."""
    return "—" if (got := number(value)) is None else f"{got:.4f}".replace("-", "−")


def signed(value: object) -> str:
    """A difference, with its sign.

    >>> signed(0.25), signed(-0.00001)
    ('+0.2500', '0.0000')
    """
    if (got := number(value)) is None:
        return "—"
    return f"{got:+.4f}".replace("-", "−") if abs(got) >= 0.00005 else "0.0000"


def probability(value: object) -> str:
    """A p-value: never 0."""
    return "—" if (got := number(value)) is None else f"{got:.4f}" if got >= 0.0001 else "< 0.0001"


def share(value: object) -> str:
    """A share in percent.

    >>> share(0.8333)
    '83 %'
    """
    return "—" if (got := number(value)) is None else f"{100 * got:.0f} %"


def count(value: object) -> str:
    """A whole number with separators."""
    return "—" if (got := number(value)) is None else f"{got:,.0f}"


def duration(value: object) -> str:
    """Seconds for people.

    >>> [duration(seconds) for seconds in (0.25, 61.2, 301.2, 7384)]
    ['0.2 s', '1 min 1 s', '5 min 1 s', '2 h 3 min']
    """
    if (got := number(value)) is None:
        return "—"
    if got < 59.5:
        return f"{got:.1f} s" if got < 10 else f"{got:.0f} s"
    minutes, seconds = divmod(round(got), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def memory(value: object) -> str:
    """Bytes for people.

    >>> memory(100 * 2**20), memory(1.5 * 2**30)
    ('100 MiB', '1.50 GiB')
    """
    if (got := number(value)) is None:
        return "—"
    return f"{got / 2**20:.0f} MiB" if got < 2**30 else f"{got / 2**30:.2f} GiB"
