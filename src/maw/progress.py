"""How far a long command is: a bar on a terminal, a line now and then in a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["counting", "duration"]

EVERY = 60.0
"""Seconds between two lines where there is no terminal."""


@contextmanager
def counting(
    console: Console, what: str, *, shown: bool = True, every: float = EVERY
) -> Generator[Callable[[int], Callable[[int], None]]]:
    """Give a function that is told how many there are and returns one that is told how many more are done.

    Args:
        console: where it is shown.
        what: what is being done.
        shown: whether it is shown at all.
        every: seconds between two lines where the console is no terminal.

    Example:
        >>> with counting(Console(), "counting", every=0.0) as begin:
        ...     begin(2)(1)  # doctest: +ELLIPSIS
        counting: 1 of 2, ...
    """
    if not shown:
        yield lambda total: lambda done: None
    elif console.is_terminal:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
        with Progress(TextColumn(what), *columns, console=console) as progress:
            yield lambda total: _Bar(progress, total)
    else:
        yield lambda total: _Lines(console, what, total, every)


class _Bar:
    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.start, self.done = progress, time.monotonic(), 0
        self.task = progress.add_task("", total=total, rate="")

    def __call__(self, more: int) -> None:
        self.done += more
        rate = self.done / max(time.monotonic() - self.start, 1e-9)
        self.progress.update(self.task, advance=more, rate=f"{rate:,.0f}/s")


class _Lines:
    def __init__(self, console: Console, what: str, total: int, every: float) -> None:
        self.console, self.what, self.total, self.every = console, what, total, every
        self.start = self.shown = time.monotonic()
        self.done = 0

    def __call__(self, more: int) -> None:
        self.done += more
        now = time.monotonic()
        if now - self.shown < self.every:
            return
        self.shown = now
        rate = self.done / max(now - self.start, 1e-9)
        left = (self.total - self.done) / rate
        self.console.print(
            f"{self.what}: {self.done:,} of {self.total:,}, {rate:,.0f}/s, {left:,.0f} s left", highlight=False
        )


def duration(seconds: float) -> str:
    """Whole seconds below two minutes, else minutes, else hours.

    >>> duration(75), duration(600), duration(9000)
    ('75 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
