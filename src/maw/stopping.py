"""Being told to end by SIGTERM, as batch systems and containers do: what was begun is put away, as at Ctrl-C."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Terminated", "terminable"]

SAME = 2.0
"""Seconds."""

AGAIN = 0.05
"""Seconds until a signal is sent again whose exception was dropped."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came; every part of the program, and other libraries, let it pass as they do an interruption."""


@contextmanager
def terminable() -> Generator[None]:
    """Raise `Terminated` when SIGTERM comes meanwhile.

    Some senders send it twice at once, to a process and to its group: what comes within two seconds is the same.

    Python drops what is raised while an object is put away (in a weak reference's callback or in `__del__`), which is
    where signals often come in a training. The signal is then sent again.

    Where something else was to happen at SIGTERM, as where it is ignored, and in other threads than the first, that
    stays.
    """
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    handler, usual = _Handler(), sys.unraisablehook
    try:
        signal.signal(signal.SIGTERM, handler)
    except ValueError:  # not the first thread
        yield
        return

    def dropped(what: sys.UnraisableHookArgs) -> None:
        number = {Terminated: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}.get(what.exc_type)
        if number is None:
            usual(what)
            return
        handler.last = -math.inf
        again = threading.Timer(AGAIN, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = usual
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
