"""`--help` fits a screen, has examples, and names the options that the commands take; nothing slow is needed for it."""

from __future__ import annotations

import doctest
import re
import shlex
import subprocess
import sys

import pytest

from maw import help as screens
from maw.cli import main

COMMANDS = [name for name in screens.HELP if name]


def full(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help-all"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def options(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) - {
        "--help",
        "--help-all",
        "--nproc-per-node",
        "--version",
    }


@pytest.mark.parametrize("name", screens.HELP)
def test_a_screen_is_a_screen(name):
    lines = screens.HELP[name].splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert any(line.startswith(f"  maw {name}".rstrip()) for line in lines), "an example"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_screen_names_the_options_that_there_are(command, capsys):
    taken = options(full(command, capsys))
    listed = {
        option for line in screens.HELP[command].splitlines() if line.startswith("  --") for option in options(line)
    }
    assert listed == taken
    assert options(screens.HELP[command]) == taken


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["train", "--help"], ["train", "-h", "--variant", "x"]])
def test_help_is_printed(words, capsys):
    assert main(words) == 0
    assert capsys.readouterr().out.startswith(f"maw {words[0]}:" if len(words) > 1 else "maw: ")


def test_no_words_are_no_command(capsys):
    assert main([]) == 2
    assert "maw benchmark" in capsys.readouterr().err


def test_every_variant_is_named():
    from maw.benchmark.variants import VARIANTS

    words = re.findall(r"[\w-]+", screens.HELP["benchmark"])
    assert [name for name in VARIANTS if name not in words] == []


def test_every_command_is_on_the_first_screen():
    assert [name for name in COMMANDS if f"  maw {name} " not in screens.HELP[""]] == []


@pytest.mark.parametrize("name", screens.HELP)
def test_examples_are_taken(name, capsys, monkeypatch):
    """Every example parses; what it would do is not done."""
    from maw import commands

    seen = []
    monkeypatch.setattr(commands, "execute", lambda command, words: seen.append(command) or 0)
    for line in screens.HELP[name].splitlines():
        words = shlex.split(re.sub(r"   +.*| \.\.\.$", "", line.strip())) if line.startswith("  maw ") else []
        if len(words) > 2 or words == ["maw", "benchmark"]:
            assert main(words[1:]) == 0, line
    assert seen


def test_what_asks_for_help_is_understood():
    assert doctest.testmod(screens).failed == 0


def test_help_imports_nothing_heavy():
    heavy = ("torch", "numpy", "transformers")
    code = f"import sys; from maw.cli import main; main(['-h']); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
