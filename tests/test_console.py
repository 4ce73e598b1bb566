"""Nothing that a command shows can act on the terminal or the page that shows it."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import subprocess
import sys
import warnings
from contextlib import suppress

import pytest
from rich.table import Table
from rich.text import Text
from toys import encoder

from maw.cli import main
from maw.console import Console, complain, escaped_notices
from maw.io.escaping import visible
from maw.progress import counted, showing

NASTY = "[red]a[/red] :smile: \x1b[31m \x9b31m \x07 \x7f \u202egpj.exe\u2066 \x1b]0;title\x07"
SHOWN = visible(NASTY)


def acts(text):
    """The characters in it that a terminal would obey."""
    return {character for character in text if visible(character) != character}


@pytest.mark.parametrize("terminal", [True, False])
def test_texts_are_shown_letter_for_letter(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, color_system=None, width=200)
    table = Table(NASTY)
    table.add_row(NASTY)
    console.print(NASTY)
    console.print(Text(NASTY.replace("\x07", "")))
    console.print(table)
    with showing(console, every=0.0), counted(f"reading {NASTY}", 3) as tell:
        tell(1)
    said = console.file.getvalue()
    assert said.count(SHOWN) == (3 if terminal else 4), "the bar of a terminal is not drawn so soon"
    assert not acts(said)


def test_a_bar_has_no_markup(monkeypatch):
    monkeypatch.setattr("maw.progress.SOON", 0.0)
    monkeypatch.setattr("maw.progress.TICK", 0.0)
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=200)
    with showing(console), counted(f"reading {NASTY}", 3) as tell:
        tell(1)
        tell(1)
    assert f"reading {SHOWN}" in console.file.getvalue()
    assert "\x9b" not in console.file.getvalue()


def test_colours_are_rich_s_own():
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(Text("\x1b[31mno", style="bold"))
    assert console.file.getvalue() == "\x1b[1m\\x1b[31mno\x1b[0m\n"


def test_notices_are_escaped(capsys, caplog):
    before = warnings.formatwarning, logging.getLogRecordFactory()
    with escaped_notices():
        assert not acts(warnings.formatwarning(NASTY, UserWarning, "file", 1))
        logging.getLogger("anybody").warning("%s", NASTY)
    assert caplog.records[-1].getMessage() == SHOWN
    assert (warnings.formatwarning, logging.getLogRecordFactory()) == before
    complain(NASTY)
    assert capsys.readouterr().err == SHOWN + "\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An encoder, a corpus with everything in its texts, titles and names, and its store."""
    folder = tmp_path_factory.mktemp("made")
    encoder().save_pretrained(str(folder / "model"), create_model_card=False)
    corpus = folder / "corpus-\x1b[31m-\u202e.jsonl"
    rows = [{"_id": f"d{number}", "title": NASTY, "text": f"{number} {NASTY}\nline\ttab"} for number in range(3)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [str(folder / "model"), str(corpus), "--output", str(folder / "store"), "--device", "cpu"]
    assert not acts((done := maw("encode", *given)).stdout + done.stderr)
    assert done.returncode == 0, done.stderr
    return folder


def maw(*words, **options):
    options = options or {"capture_output": True, "text": True}
    return subprocess.run([sys.executable, "-m", "maw", *words], check=False, timeout=120, **options)


def search(made, *more):
    (corpus,) = made.glob("corpus*")
    given = [str(made / "model"), str(made / "store"), "what", "--device", "cpu"]
    return ["search", *given, "--corpus", str(corpus), *more]


@pytest.mark.slow
def test_search_shows_texts_without_obeying_them(made):
    done = maw(*search(made))
    assert done.returncode == 0, done.stderr
    assert not acts(done.stdout + done.stderr)
    assert len(done.stdout.splitlines()) == 3, "one line a hit"
    assert done.stdout.count(SHOWN) == 6, "title and text"


@pytest.mark.slow
def test_json_is_whole_and_cannot_act(made):
    done = maw(*search(made, "--json"))
    assert not acts(done.stdout + done.stderr)
    assert NASTY in json.loads(done.stdout)["hits"][0]["text"]


@pytest.mark.slow
def test_a_terminal_gets_what_rich_says_and_no_more(made):
    leader, follower = pty.openpty()
    done = maw(*search(made), stdout=follower, stderr=follower, env={**os.environ, "TERM": "xterm"})
    os.close(follower)
    said = b""
    while chunk := _read(leader):
        said += chunk
    assert done.returncode == 0, said
    text = said.decode()
    assert "\\x1b[31m" in text
    assert "\x1b[31m" not in text
    assert "\x1b]0;" not in text
    assert not acts(text) & set("\x9b\x07\x7f\u202e\u2066")


def _read(number):
    try:
        return os.read(number, 4096)
    except OSError:  # the other end is closed
        return b""


@pytest.mark.slow
def test_errors_show_names_of_files_and_what_is_in_them(made, tmp_path):
    for name, content in (("a\x1b[31mb\udcff.jsonl", "{}\n"), ("b.jsonl", '{"_id": "\\u001b[31m", "text": 3}\n')):
        path = tmp_path / name
        path.write_text(content)
        done = maw("encode", str(made / "model"), str(path), "--output", str(tmp_path / "out"))
        assert done.returncode == 2
        assert not acts(done.stdout + done.stderr)
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words", [["search", "\x1b[31m"], ["\x1b[31m"], ["data", "beir:/\x1b[31m"], ["encode", "--\x9b31m"]]
)
def test_usage_errors_too(words, capsys):
    with suppress(SystemExit):
        assert main(words) == 2
    said = capsys.readouterr()
    assert said.err
    assert not acts(said.out + said.err)
