"""Reading text files strictly, line by line: what cannot be used is refused by file and line."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from maw.errors import MAWError
from maw.io.reading import text_lines

__all__ = ["decoded", "is_comment", "json_value", "read_lines", "refuse", "short"]


_NUMBER = re.compile(r"[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?")


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


def is_comment(where: str, columns: Sequence[str], numbers: Mapping[int, Sequence[int]]) -> bool:
    """Return whether a line is a comment: its first column begins with `#`, as in trec_eval 10.

    Args:
        where: the file and the line.
        columns: of the line, at least one.
        numbers: how many columns a line may have -> which of them hold numbers.

    Raises:
        MAWError: it could as well be a line of a query whose id begins with `#`, which must not be lost.

    >>> is_comment("qrels, line 1", ["#", "by", "hand"], {4: [3]}), is_comment("qrels, line 2", ["q"], {4: [3]})
    (True, False)
    """
    if not columns[0].startswith("#"):
        return False
    wanted = numbers.get(len(columns))
    if wanted is not None and all(_NUMBER.fullmatch(columns[place]) for place in wanted):
        raise MAWError(
            f"{where}: it begins with # as a comment does, but has the columns of any other line: rename its query, "
            "or remove it"
        )
    return True


def json_value(value: object) -> str:
    """Return what an error says of a value that was read from JSON and is of the wrong kind: kind and beginning.

    >>> json_value(None), json_value(1.5), json_value(["x"])
    ('null', 'the number 1.5', 'the list ["x"]')
    """
    kind = {
        bool: "",
        int: "the number ",
        float: "the number ",
        str: "the text ",
        list: "the list ",
        dict: "the object ",
    }
    return f"{kind.get(type(value), '')}{json.dumps(value, ensure_ascii=False):.80}"


def read_lines(path: Path, checksums: dict[str, str], key: str, *, layout: str) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text without its end) of every line; at the end, note the SHA-256 of all of them.

    Empty lines at the end of the file are not read.

    Args:
        path: a file in UTF-8, packed with gzip or not, with a byte order mark or not. Lines end with a line feed, with
            or without a carriage return before it.
        checksums: gets the SHA-256 of the lines, unpacked and without the mark, under `key`.
        key: the name of the file in `checksums`.
        layout: what a message about a missing file says should be in it.

    Raises:
        MAWError: the file is missing, empty or cannot be read, or a line is not UTF-8.
    """
    if not path.is_file():
        raise MAWError(f"wanted the file {path}, but it is not there: it has {layout}")
    digest, number, empty = hashlib.sha256(), 0, 0
    for number, raw in enumerate(text_lines(path), start=1):
        digest.update(raw)
        text = decoded(path, number, raw)
        if not text or text.isspace():
            empty += 1
            continue
        yield from ((number - back, "") for back in range(empty, 0, -1))
        empty = 0
        yield number, text
    if number == empty:
        raise MAWError(f"{path}, line 1: wanted at least one line, but the file is empty or all lines are blank")
    checksums[key] = digest.hexdigest()


def decoded(path: Path, number: int, raw: bytes) -> str:
    """The text of a line without its end.

    Raises:
        MAWError: it is not UTF-8.

    >>> decoded(Path("corpus.tsv"), 1, b"d1\\tcaf\\xc3\\xa9\\r\\n")
    'd1\\tcafé'
    """
    try:
        return raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        refuse(path, number, f"wanted UTF-8, got the byte 0x{raw[error.start]:02x} as byte {error.start + 1} of it")
