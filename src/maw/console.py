"""What `maw` prints: consoles, messages and warnings, in which control characters of a text are shown as escapes.

See `maw.io.escaping` for what is escaped. Words in brackets and colons are shown as they are, too: rich would take
`[red]` for a colour and `:smile:` for a picture.
"""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich import console as rich_console
from rich.segment import Segment
from rich.text import Text

from maw.io.escaping import visible

__all__ = ["Console", "complain", "escaped_notices"]


class Console(rich_console.Console):
    """rich's console, in which texts are shown letter for letter and control characters as escapes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """A text as rich lays it out; tables measure it in this form."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: Any, options: rich_console.ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is drawn; only rich itself may say things to the terminal."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)


def complain(message: str) -> None:
    """Print a message on standard error."""
    print(visible(message), file=sys.stderr)


@contextmanager
def escaped_notices() -> Generator[None]:
    """Escape warnings and records of logging, of every library, and from here on what nobody caught."""
    format_warning, record = warnings.formatwarning, logging.getLogRecordFactory()

    def shown(*given: Any, **named: Any) -> str:
        return visible(format_warning(*given, **named))

    warnings.formatwarning = shown  # ty: ignore[invalid-assignment]
    logging.setLogRecordFactory(_Record)
    sys.excepthook = _show_uncaught
    try:
        yield
    finally:
        warnings.formatwarning = format_warning
        logging.setLogRecordFactory(record)


class _Record(logging.LogRecord):
    def getMessage(self) -> str:
        return visible(super().getMessage())


def _show_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    complain("".join(traceback.format_exception(kind, error, trace)).rstrip())
