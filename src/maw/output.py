"""What a command prints: sentences for people, or with --json one JSON object and the sentences on standard error."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from maw.console import Console
from maw.io.escaping import json_line
from maw.progress import showing

__all__ = ["Output", "speaking"]


class Output:
    """Where a command speaks.

    Args:
        as_json: whether standard output gets nothing but JSON.
        quiet: whether nothing is said at all, as by all processes but the first.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        console = Console(quiet=quiet, stderr=as_json)
        # a file or a pipe gets lines long enough for the table
        self.console = console if console.is_terminal else Console(width=140, quiet=quiet, stderr=as_json)

    def say(self, text: str) -> None:
        """One or more lines for people, letter for letter; control characters are escaped."""
        self.console.print(text, soft_wrap=True)

    def result(self, value: Any) -> None:
        """What a script reads, where JSON is asked for."""
        if self.as_json and not self.quiet:
            print(json_line(value))


@contextmanager
def speaking(*, as_json: bool = False, quiet: bool = False, progress: bool = True) -> Generator[Output]:
    """An `Output`; meanwhile standard error shows how far long work is, if `progress` and not `quiet`."""
    with showing(Console(stderr=True, quiet=quiet or not progress)):
        yield Output(as_json=as_json, quiet=quiet)
