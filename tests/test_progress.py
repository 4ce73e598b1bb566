from __future__ import annotations

import doctest
import io
import re

from rich.console import Console

from maw import progress


def shown(total: int, steps: list[int], *, terminal: bool, **options) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=100)
    with progress.counting(console, "encoding", **options) as begin:
        tell = begin(total)
        for step in steps:
            tell(step)
    return file.getvalue()


def test_a_terminal_gets_a_bar_with_rate_and_time_left():
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown(2000, [500, 1500], terminal=True))
    assert "encoding" in text
    assert "2000/2000" in text
    assert re.search(r"[\d,]+/s", text)
    assert "0:00:00" in text


def test_a_file_gets_a_line_now_and_then():
    text = shown(2000, [500, 500], terminal=False, every=0.0)
    assert re.fullmatch(
        r"encoding: 500 of 2,000, [\d,]+/s, \d+ s left\nencoding: 1,000 of 2,000, [\d,]+/s, \d+ s left\n", text
    )
    assert shown(2000, [500, 1500], terminal=False) == "", "it was not long"


def test_nothing_is_shown_where_nothing_should():
    assert shown(10, [10], terminal=True, shown=False) == ""


def test_the_example_runs():
    result = doctest.testmod(progress)
    assert result.attempted
    assert not result.failed
