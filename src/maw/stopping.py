"""Being told to end by SIGTERM, as batch systems and containers do: what was begun is put away, as at Ctrl-C."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Terminated", "terminable"]

SAME = 2.0
"""Seconds."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came; every part of the program, and other libraries, let it pass as they do an interruption."""


@contextmanager
def terminable() -> Generator[None]:
    """Raise `Terminated` when SIGTERM comes meanwhile.

    Some senders send it twice at once, to a process and to its group: what comes within two seconds is the same.

    Where something else was to happen at SIGTERM, as where it is ignored, and in other threads than the first, that
    stays.
    """
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    try:
        signal.signal(signal.SIGTERM, _Handler())
    except ValueError:  # not the first thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Handler:
    """Raises, where what it raised before is longer than `SAME` ago: it may have been lost in another library."""

    def __init__(self) -> None:
        self.last = -math.inf

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self.last >= SAME:
            self.last = now
            raise Terminated
