"""How far long work is: bars on a terminal, a line now and then in a file, nothing in a library.

A command says once where progress is shown (`showing`); whatever works long says how far it is (`counted`, `tracked`)
and need not know whether anybody looks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from maw.io.escaping import visible

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["counted", "duration", "showing", "tracked"]

Item = TypeVar("Item")

EVERY = 60.0
"""Seconds between two lines where there is no terminal."""

SOON = 0.5
"""Seconds after which a bar appears."""

TICK = 0.1
"""Seconds between two changes of a bar: telling it of every item costs next to nothing."""

_display: _Display | None = None


@contextmanager
def showing(console: Console, *, every: float | None = None) -> Generator[None]:
    """Show on this console what `counted` and `tracked` are told meanwhile.

    Args:
        console: a terminal gets bars, which go when they are done; anything else gets plain lines.
        every: seconds between two lines of the same work; None is `EVERY`.

    Example:
        >>> from rich.console import Console
        >>> with showing(Console(), every=0.0), counted("counting", 2) as tell:
        ...     tell(1)  # doctest: +ELLIPSIS
        counting: 1 of 2, ...
    """
    global _display  # noqa: PLW0603
    before, _display = _display, _Display(console, EVERY if every is None else every)
    try:
        yield
    finally:
        _display.close()
        _display = before


@contextmanager
def counted(what: str, total: int | None = None, *, done: int = 0) -> Generator[Callable[[int], None]]:
    """Give a function that is told how many more are done.

    Args:
        what: what is being done.
        total: how many there are; None where nobody knows.
        done: how many were done before; they do not count in the rate.
    """
    if _display is None:
        yield lambda more: None
        return
    work = _Work(_display, what, total, done)
    try:
        yield work
    finally:
        work.end()


def tracked(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items and tell how many have been taken.

    >>> list(tracked("ab", "letters", 2))
    ['a', 'b']
    """
    with counted(what, total) as tell:
        for item in items:
            yield item
            tell(1)


class _Display:
    """The bars of one console, which share one place on it; or its lines."""

    def __init__(self, console: Console, every: float) -> None:
        self.console, self.every = console, TICK if console.is_terminal else every
        from rich.progress import BarColumn, Progress, TextColumn

        what, text = (TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[text]"))
        self.bars = None
        if console.is_terminal:  # what is printed meanwhile goes above the bars, but not from a pipe to them
            redirect = sys.stdout.isatty()
            self.bars = Progress(what, BarColumn(20), text, console=console, transient=True, redirect_stdout=redirect)

    def close(self) -> None:
        """Take the bars away."""
        if self.bars is not None:
            self.bars.stop()


class _Work:
    """One thing that is counted."""

    def __init__(self, display: _Display, what: str, total: int | None, done: int) -> None:
        self.display, self.what, self.total = display, visible(what), total
        self.before = self.done = done
        self.start = self.shown = time.monotonic()
        self.task = None

    def __call__(self, more: int) -> None:
        self.done += more
        now, bars = time.monotonic(), self.display.bars
        if now - self.shown < self.display.every:
            return
        self.shown = now
        if bars is None:
            line = f"{self.what}: {self._text(now)}"
            self.display.console.print(line, highlight=False, markup=False, soft_wrap=True)
        elif self.task is not None:
            bars.update(self.task, completed=self.done, text=self._text(now))
        elif now - self.start >= SOON:
            self.task = bars.add_task(self.what, total=self.total, completed=self.done, text=self._text(now))
            bars.start()

    def end(self) -> None:
        """It is done, or given up."""
        bars = self.display.bars
        if bars is not None and self.task is not None:
            bars.remove_task(self.task)
            if not bars.tasks:
                bars.stop()

    def _text(self, now: float) -> str:
        """How many of how many, how fast, and how long it will take at that."""
        rate = (self.done - self.before) / max(now - self.start, 1e-9)
        speed = f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"
        if self.total is None:
            return f"{self.done:,}, {speed}"
        left = duration(max(self.total - self.done, 0) / rate) if rate else "?"
        return f"{self.done:,} of {self.total:,}, {speed}, {left} left"


def duration(seconds: float) -> str:
    """Whole seconds below two minutes, else minutes, else hours.

    >>> duration(75), duration(600), duration(9000)
    ('75 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
