"""Reading text files strictly, line by line: what cannot be used is refused by file and line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from maw.errors import MAWError

__all__ = ["read_lines", "refuse", "short"]


def refuse(path: Path, line: int, problem: str) -> NoReturn:
    """Raise MAWError for one line of a file.

    >>> refuse(Path("qrels.tsv"), 3, "wanted 3 columns")
    Traceback (most recent call last):
    ...
    maw.errors.MAWError: qrels.tsv, line 3: wanted 3 columns
    """
    raise MAWError(f"{path}, line {line}: {problem}")


def short(line: str) -> str:
    """Return what an error quotes of a line: at most 80 characters."""
    return repr(line if len(line) <= 80 else line[:77] + "...")


def read_lines(path: Path, checksums: dict[str, str], key: str, *, layout: str) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text without its end) of every line; at the end, note the SHA-256 of the whole file.

    Args:
        path: a file in UTF-8; lines end with a line feed, with or without a carriage return before it.
        checksums: gets the SHA-256 under `key`.
        key: the name of the file in `checksums`.
        layout: what a message about a missing file says to look at.

    Raises:
        MAWError: the file is missing or empty, or a line is not UTF-8.
    """
    if not path.is_file():
        raise MAWError(f"wanted the file {path}, but it is not there: see the layout in {layout}")
    digest, number = hashlib.sha256(), 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            digest.update(raw)
            yield number, _decode(path, number, raw).rstrip("\r\n")
    if not number:
        raise MAWError(f"{path}, line 1: wanted at least one line, but the file is empty")
    checksums[key] = digest.hexdigest()


def _decode(path: Path, number: int, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        refuse(path, number, f"wanted UTF-8, got the byte 0x{raw[error.start]:02x} as byte {error.start + 1} of it")
