"""Messages in the words of the command line: options by their flags, values as they are typed there.

The package says what is wrong with `hard_negatives` or `reward='entropy'` to people who write Python. Who typed
`--hard-negatives` reads that.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

__all__ = ["as_typed", "flags"]

RENAMED = {"depth": "maw_depth_dim", "num_heads": "maw_num_heads", "layers": "maw_layers"}
"""Settings of MAW that have an option of another name."""

WORDS = {"None": "null", "True": "true", "False": "false"}
"""As they are written in JSON and in the files that people hand over."""

_QUOTED = r"(?<![=\w])'(?:[^'\\]|\\.)*'"
"""What a message quotes of a file, which stays as it is."""

_VALUE = r"=(?P<value>'[^']*'|\"[^\"]*\"|[\w.+-]*\w)"


def as_typed(message: str, command: type | None) -> str:
    """Return a message with the options of a command spelled as its flags.

    A name counts as that of an option where it is no plain word (`mini_batch_size`), or is followed by a value
    (`reward='entropy'`). Settings of MAW without a flag of their own are shown as parts of `--maw-settings`.

    Args:
        message: from anywhere in the package.
        command: the class of the command; None leaves names alone.

    >>> from maw.cli import TrainCommand
    >>> as_typed("mini_batch_size must be at most 8, or take reward='entropy', got None", TrainCommand)
    '--mini-batch-size must be at most 8, or take "reward": "entropy" in --maw-settings, got null'
    """
    message = re.sub(r"\bgot (None|True|False)\b", lambda found: f"got {WORDS[found[1]]}", message)
    if command is None:
        return message
    known = flags(command)
    settings = _settings() if "maw_settings" in known else frozenset()
    for name, option in RENAMED.items():
        if option in known and name in settings:
            known[name] = known[option]
    names = sorted({*known, *settings}, key=len, reverse=True)
    pattern = re.compile(
        rf"{_QUOTED}|(?<![\w\"'./-])(?P<name>{'|'.join(map(re.escape, names))})(?:{_VALUE}|(?![\w=./\"'-]))"
    )

    def spelled(found: re.Match[str]) -> str:
        name, value = found["name"], found["value"]
        if name is None or (value is None and "_" not in name):
            return found[0]
        plain = (value or "").strip("'\"")
        if name in known:
            return f"{known[name]} {plain}".strip() if plain not in WORDS else known[name]
        if value is None:
            return f'"{name}" in --maw-settings'
        shown = WORDS.get(plain, plain if re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", plain) else f'"{plain}"')
        return f'"{name}": {shown} in --maw-settings'

    return pattern.sub(spelled, message)


def flags(command: type) -> dict[str, str]:
    """Field -> flag of every option that a command takes, those of its parts too.

    >>> from maw.cli import TrainCommand
    >>> flags(TrainCommand)["save_steps"]
    '--save-every'
    """
    return dict(_flags(command))


def _flags(command: Any) -> Iterator[tuple[str, str]]:
    import tyro

    kinds: Mapping[str, Any] = typing.get_type_hints(command, include_extras=True)
    for field in fields(command):
        kind, notes = kinds[field.name], ()
        if is_dataclass(kind):
            yield from _flags(kind)
            continue
        if typing.get_origin(kind) is typing.Annotated:
            kind, *notes = typing.get_args(kind)
        if tyro.conf.Positional not in notes:
            named = next((name for note in notes if (name := getattr(note, "name", None))), None)
            yield field.name, f"--{named or field.name.replace('_', '-')}"


def _settings() -> frozenset[str]:
    from maw.config import MAWConfig

    return frozenset(field.name for field in fields(MAWConfig))
