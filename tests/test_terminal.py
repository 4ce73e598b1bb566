"""The command line as a program: help on one screen, exit statuses, and quick starts."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import tyro

import maw
from maw import commands, help
from maw.cli import COMMANDS, main

SCREENS = {"": ["--help"], **{name: [name, "--help"] for name in COMMANDS}}
DOCS = Path(__file__).resolve().parents[1] / "docs" / "terminal.md"


def program(*words: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "maw", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


@pytest.mark.parametrize("words", SCREENS.values(), ids=SCREENS.keys())
def test_help_fits_a_screen_and_has_an_example(words, capsys):
    assert main(words) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert len(lines) <= 39, "80 x 40, with the prompt below"
    assert max(map(len, lines)) <= 80
    assert "examples:" in lines
    assert "\x1b" not in out


def options_of(command):
    """The options that tyro takes, by the names of the fields."""
    for name, kind in get_type_hints(command).items():
        if is_dataclass(kind):
            yield from options_of(kind)
        else:
            yield name


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option(name):
    shown = help.command_screen(name, COMMANDS[name])
    named = {"maw_layers": "maw-layer-indices", "save_steps": "save-every"}
    positional = {option.label.strip("[]") for option in help._options(COMMANDS[name]) if option.positional}
    for field in options_of(COMMANDS[name]):
        option = named.get(field, field.replace("_", "-"))
        assert f"--{option}" in shown or field.upper() in positional or "TEXT ..." in positional, option


@pytest.mark.parametrize(
    ("name", "example"), [(name, example) for name, examples in help.EXAMPLES.items() for example in examples]
)
def test_examples_are_commands(name, example):
    words = shlex.split(example.partition("maw ")[2])
    assert words.pop(0) == name
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    assert isinstance(tyro.cli(COMMANDS[name], args=words, config=config), COMMANDS[name])


def test_every_command_has_examples():
    assert COMMANDS.keys() == help.EXAMPLES.keys()


def test_starting_is_light():
    heavy = "{'torch', 'transformers', 'numpy', 'sentence_transformers', 'rich.progress', 'datasets'}"
    code = f"import sys; from maw.cli import main; main(['--help']); sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False).returncode == 0


# Exit statuses


def test_statuses_are_in_the_help_and_on_the_page(capsys):
    main(["--help"])
    out, page = " ".join(capsys.readouterr().out.split()), DOCS.read_text(encoding="utf-8")
    for status, text in help.EXIT_STATUS.items():
        assert f" {status} {text} " in out
        assert f"| {status} | {text} |" in page


def test_bad_input_is_2(capsys):
    assert main([]) == 2
    assert "usage: maw COMMAND" in capsys.readouterr().err
    assert main(["serch"]) == 2
    assert "maw: no such command: 'serch'; there are benchmark, train" in capsys.readouterr().err
    assert main(["evaluate"]) == 2
    assert capsys.readouterr().err.startswith("maw: wanted a model to evaluate, or a run file")
    for words in (["encode"], ["train", "--variant", "maw-lora", "--output", "x", "--nonsense"]):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 2
    assert "--nonsense" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "maw: interrupted; what was finished is kept"),
        (OSError(28, "No space left on device", "x.trec"), 2, "maw: cannot read or write x.trec: No space left"),
    ],
)
def test_other_ends(monkeypatch, capsys, error, status, words):
    def fail(command, words):
        raise error

    monkeypatch.setattr(commands, "execute", fail)
    assert main(["data", "pydocs"]) == status
    assert words in capsys.readouterr().err


def test_what_nobody_foresaw_is_1_with_a_traceback():
    code = "from maw import cli, commands; commands.execute = lambda *_: 1 / 0; cli.main(['data', 'pydocs'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 1
    assert "ZeroDivisionError" in run.stderr


def test_a_reader_that_leaves_is_141():
    code = (
        "import sys; from maw import cli, commands\n"
        "commands.execute = lambda *_: [print('x' * 1000) for _ in range(1000)] and 0\n"
        "sys.exit(cli.main(['data', 'pydocs']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(timeout=120) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_the_version_and_the_name_of_the_program():
    assert program("--version").stdout.strip() == maw.__version__
