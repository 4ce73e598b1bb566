from __future__ import annotations

import io
import re
import subprocess
import sys

from rich.console import Console

from maw import progress


def shown(total: int | None, steps: list[int], *, terminal: bool, done: int = 0, **options) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=100)
    with progress.showing(console, **options), progress.counted("encoding", total, done=done) as tell:
        for step in steps:
            tell(step)
    return file.getvalue()


def test_a_terminal_gets_a_bar_with_rate_and_time_left(monkeypatch):
    monkeypatch.setattr(progress, "SOON", 0.0)
    monkeypatch.setattr(progress, "TICK", 0.0)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown(2000, [500], terminal=True))
    assert re.search(r"encoding .*500 of 2,000, [\d,]+/s, \d+ s left", text)


def test_short_work_gets_no_bar():
    assert shown(2000, [500, 500], terminal=True) == ""


def test_a_file_gets_a_line_now_and_then():
    text = shown(2000, [500, 500], terminal=False, every=0.0)
    assert re.fullmatch(
        r"encoding: 500 of 2,000, [\d,]+/s, \d+ s left\nencoding: 1,000 of 2,000, [\d,]+/s, \d+ s left\n", text
    )
    assert shown(2000, [500, 1500], terminal=False) == "", "it was not long"


def test_what_was_done_before_does_not_count_in_the_rate(monkeypatch):
    clock = iter([0.0, 1.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert shown(100, [10], terminal=False, done=50, every=0.0) == "encoding: 60 of 100, 10/s, 4 s left\n"


def test_an_unknown_number_has_no_time_left():
    assert re.fullmatch(r"encoding: 500, [\d,]+/s\n", shown(None, [500], terminal=False, every=0.0))


def test_several_bars_share_one_place_and_go(monkeypatch):
    monkeypatch.setattr(progress, "SOON", 0.0)
    monkeypatch.setattr(progress, "TICK", 0.0)
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress.showing(console), progress.counted("outer", 2) as outer:
        outer(1)
        assert list(progress.tracked(range(3), "inner", 3)) == [0, 1, 2]
        (bar,) = progress._display.bars.tasks
        assert bar.description == "outer"
    assert progress._display is None


def test_nothing_is_shown_where_nobody_looks(capsys):
    with progress.counted("encoding", 10) as tell:
        tell(10)
    assert capsys.readouterr() == ("", "")


def test_it_is_as_light_as_what_uses_it():
    code = "import sys, maw.progress; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
