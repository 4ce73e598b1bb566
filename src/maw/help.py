"""The help of the command line: for each command one screen of 80 columns and 40 lines, made from its class."""

from __future__ import annotations

import ast
import inspect
import textwrap
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple

import tyro

__all__ = ["EXIT_STATUS", "command_screen", "screen"]

WIDTH = 80
COLUMN = 27
NARROW = 13

EXIT_STATUS = {
    0: "done",
    1: "an error nobody foresaw, with a traceback: please report it",
    2: "bad input: one line says what was wanted, what was got, what to do",
    130: "interrupted: what was finished is kept, the same command goes on",
    141: "whoever read the output has closed it",
    143: "told to end by SIGTERM: as after an interruption",
}

EXAMPLES = {
    "benchmark": (
        "maw benchmark",
        "maw benchmark --dataset beir:FOLDER --seeds 5 --variants dense-lora,maw-lora",
        "maw benchmark --msmarco --dry-run",
    ),
    "train": (
        "maw train --variant maw-lora --dataset beir:FOLDER --output model/",
        "torchrun --nproc-per-node 8 -m maw train --variant maw-full --output model/",
    ),
    "evaluate": (
        "maw evaluate model/ --dataset ir:beir/nfcorpus --json",
        "maw evaluate --run run.trec --qrels qrels.tsv",
    ),
    "encode": (
        "maw encode model/ corpus.jsonl --output vectors/",
        "maw encode model/ collection.tsv --output vectors/ --dry-run",
        "torchrun --nproc-per-node 8 -m maw encode model/ corpus.jsonl --output v/",
    ),
    "search": (
        'maw search model/ vectors/ "what is a depth slice" --corpus corpus.jsonl',
        "maw search model/ vectors/ --queries queries.jsonl --run run.trec",
    ),
    "data": ("maw data ir:beir/nfcorpus", "maw data beir:FOLDER --json"),
    "report": ("maw report maw-results/pydocs-quick",),
    "inspect": (
        'maw inspect model/ "some text" --html page.html',
        "maw inspect model/ --file texts.txt --layer -1 --head 3 --json",
    ),
}


def screen(commands: Mapping[str, type]) -> str:
    """What `maw --help` prints.

    Args:
        commands: name to class.
    """
    lines = [
        "usage: maw COMMAND [options]      maw COMMAND --help      maw --version",
        "",
        "Multi-Attention-Weight attention for text encoders: put it in, train, compare.",
        "",
    ]
    lines += _rows(((name, (command.__doc__ or "").partition("\n")[0]) for name, command in commands.items()), NARROW)
    lines += ["", "examples:"]
    lines += [f"  {EXAMPLES[name][0]}" for name in ("benchmark", "train", "evaluate", "encode", "search")]
    lines += ["", "exit status:", *_rows(((str(status), text) for status, text in EXIT_STATUS.items()), NARROW)]
    lines += ["", "Progress goes to standard error, as lines where that is no terminal."]
    return "\n".join(lines) + "\n"


def command_screen(name: str, command: type) -> str:
    """What `maw NAME --help` prints.

    Args:
        name: the command's.
        command: its class; the docstring under a field is its help, one without goes into a list at the end.
    """
    groups = [list(_options(command))]
    groups += [list(_options(kind)) for kind in typing.get_type_hints(command).values() if is_dataclass(kind)]
    shown = [option for group in groups for option in group]
    needed = " ".join(option.label for option in shown if option.required or option.positional)
    lines = [f"usage: maw {name} {needed} [options]".replace("  ", " "), ""]
    for paragraph in inspect.cleandoc(command.__doc__ or "").split("\n\n"):
        lines += textwrap.wrap(paragraph, WIDTH)
    lines.append("")
    for group in groups:
        lines += _rows((option.label.strip("[]"), option.text) for option in group if option.text)
    if also := [option.label for option in shown if not option.text]:
        lines += textwrap.wrap(
            "also: " + ", ".join(also), WIDTH, initial_indent="  ", subsequent_indent=" " * 8, break_on_hyphens=False
        )
    lines += ["", "examples:", *(f"  {example}" for example in EXAMPLES[name])]
    return "\n".join(lines) + "\n"


class _Option(NamedTuple):
    label: str
    text: str
    positional: bool
    required: bool


def _options(command: Any) -> Iterator[_Option]:
    """What a class takes, without the classes in it."""
    texts, kinds = _docstrings(command), typing.get_type_hints(command, include_extras=True)
    for field in fields(command):
        kind, notes = kinds[field.name], ()
        if is_dataclass(kind):
            continue
        if typing.get_origin(kind) is typing.Annotated:
            kind, *notes = typing.get_args(kind)
        named = {key: value for note in notes for key in ("name", "metavar") if (value := getattr(note, key, None))}
        positional = tyro.conf.Positional in notes
        required = field.default is MISSING and field.default_factory is MISSING
        metavar = named.get("metavar") or ("" if kind is bool else _metavar(kind, field.name if positional else None))
        option = f"--{named.get('name') or field.name.replace('_', '-')}"
        label = metavar if positional else f"{option} {metavar}".strip()
        text = " ".join(texts.get(field.name, "").split()).removesuffix(".")
        if positional and not required:
            label = f"[{label}]"
        yield _Option(label, text + _default(field, text) if text else "", positional, required)


def _docstrings(command: type) -> dict[str, str]:
    """The text under each field."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(command))).body
    body = getattr(tree, "body", [])
    return {
        field.target.id: text.value.value
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _metavar(kind: Any, name: str | None) -> str:
    kinds = [one for one in (typing.get_args(kind) or (kind,)) if one is not NoneType]
    if typing.get_origin(kind) is Literal or typing.get_origin(kinds[0]) is Literal:
        return "|".join(typing.get_args(kinds[0]) or typing.get_args(kind))
    if name is not None:
        return name.upper()
    return {int: "N", float: "X", Path: "PATH"}.get(kinds[0], "NAME")


def _default(field: Field, text: str) -> str:
    shown = (
        field.default not in (None, False, MISSING, "", "{}")
        and "default" not in text
        and str(field.default) not in text
    )
    return f" ({field.default})" if shown else ""


def _rows(rows: Iterable[tuple[str, str]], column: int = COLUMN) -> list[str]:
    """Two columns; the second is wrapped."""
    lines = []
    for name, text in rows:
        first, *more = textwrap.wrap(text, WIDTH - column, break_on_hyphens=False) or [""]
        left = f"  {name}"
        if len(left) >= column:
            lines.append(left)
            left = ""
        lines.append(f"{left:{column}}{first}".rstrip())
        lines += [" " * column + line for line in more]
    return lines
