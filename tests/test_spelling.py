"""Messages at the command line: options by their flags, no Python spelling and no module."""

from __future__ import annotations

import ast
import doctest
import json
import re
from pathlib import Path

import pytest

import maw
import maw.spelling as module
from maw.cli import COMMANDS, main
from maw.spelling import as_typed, flags

SOURCE = Path(maw.__file__).parent
TERMINAL = ("retrieval", "display", "benchmark", "io")
"""What the commands are made of; the rest is attached to models by people who write Python."""
PYTHON = {
    "src/maw/retrieval/training/losses.py": "an argument of AuxiliaryLoss, which commands never leave out",
    "src/maw/retrieval/training/rollouts.py": "losses that only Python can name",
    "src/maw/retrieval/vectors/tokenising.py": "an executor that only Python can pass",
}
SPELLINGS = re.compile(r"\bNone\b|\bTrue\b|\bFalse\b|NoneType|\bir_measures\b|\bmaw\.(?!py)[a-z]|\b(list|dict|tuple)\[")


@pytest.mark.parametrize(
    ("message", "typed"),
    [
        ("mini_batch_size must be at most 8", "--mini-batch-size must be at most 8"),
        ("save_steps must be at least 1, got 0", "--save-every must be at least 1, got 0"),
        ("num_heads is 3", "--maw-num-heads is 3"),
        ("take dtype='float32'", "take --dtype float32"),
        ("use views='frame' or 'auto'", 'use "views": "frame" in --maw-settings or \'auto\''),
        ("tau_start must be above 0, got None", '"tau_start" in --maw-settings must be above 0, got null'),
        ("calibrate must be true or false, got True", "calibrate must be true or false, got true"),
        ("seed 3 and depth 4 are words", "seed 3 and depth 4 are words"),
        ("c.jsonl, line 3: got 'the max_length of \\'it'", "c.jsonl, line 3: got 'the max_length of \\'it'"),
        ("/data/max_length/x and x_max_length", "/data/max_length/x and x_max_length"),
    ],
)
def test_options_are_named_by_their_flags(message: str, typed: str) -> None:
    assert as_typed(message, COMMANDS["train"]) == typed


def test_other_commands_have_other_options() -> None:
    assert as_typed("max_length and mini_batch_size", COMMANDS["evaluate"]) == "--max-length and mini_batch_size"
    assert as_typed("max_length", None) == "max_length"
    for command in COMMANDS.values():
        assert all(re.fullmatch(r"--[a-z-]+", flag) for flag in flags(command).values())
    assert "query" not in flags(COMMANDS["search"]), "it has no flag"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--hard-negatives", "-1"], "--hard-negatives must be 0 or more, got -1"),
        (["--batch-size", "2", "--mini-batch-size", "3"], "--mini-batch-size must be at most the batch size 2, got 3"),
        (["--save-every", "0"], "--save-every must be at least 1, got 0"),
        (
            ["--negative-margin", "0.1"],
            "--negative-margin and --negative-files choose hard negatives, but --hard-negatives is",
        ),
        (["--maw-settings", '{"tau_start": false}'], '"tau_start" in --maw-settings must be'),
        (["--maw-settings", '{"calibrate": null}'], "calibrate must be true or false, got null"),
    ],
)
def test_as_typed(given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["train", "--variant", "maw-lora", "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*command, *given]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert not SPELLINGS.search(err)


@pytest.mark.parametrize(
    "record", [None, True, [None], {"_id": None, "text": "x"}, {"_id": "a", "text": True}, {"_id": "a", "text": []}]
)
def test_values_of_files_are_spelled_as_in_files(record, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text(json.dumps(record) + "\n")
    assert main(["data", f"beir:{tmp_path}"]) == 2
    assert not SPELLINGS.search(capsys.readouterr().err)


def errors(path: Path) -> list[str]:
    """The texts of all errors that a file raises, without what is filled in."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
            if name in ("MAWError", "refuse"):
                parts = [part for argument in node.args for part in ast.walk(argument)]
                found += [
                    str(part.value) for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)
                ]
    return found


def test_no_error_of_the_commands_has_a_python_spelling() -> None:
    paths = [*SOURCE.glob("*command*.py"), *SOURCE.glob("*options.py"), SOURCE / "cli.py"]
    paths += [path for part in TERMINAL for path in (SOURCE / part).rglob("*.py")]
    wrong = {}
    for path in paths:
        name = f"src/maw/{path.relative_to(SOURCE).as_posix()}"
        texts = [text for text in errors(path) if SPELLINGS.search(text)]
        if texts and name not in PYTHON:
            wrong[name] = texts
    assert not wrong


def test_the_examples_run() -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
