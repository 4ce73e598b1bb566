"""Being told to end by SIGTERM, as batch systems and containers do: what was begun is put away, as at Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Terminated", "terminable"]


class Terminated(KeyboardInterrupt):
    """SIGTERM came; every part of the program, and other libraries, let it pass as they do an interruption."""


@contextmanager
def terminable() -> Generator[None]:
    """Raise `Terminated` when SIGTERM comes meanwhile, once: what comes while everything is put away changes nothing.

    Where something else was to happen at SIGTERM, as where it is ignored, and in other threads than the first, that
    stays.
    """
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    try:
        signal.signal(signal.SIGTERM, _terminate)
    except ValueError:  # not the first thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated
