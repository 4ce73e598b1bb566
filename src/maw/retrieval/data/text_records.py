"""One line of a file to an id and a text: one place for all who read such files, to evaluate, to encode or to search.

    {"_id": "d1", "title": "perhaps", "text": "..."}   BEIR: a document is title and text joined by one space
    d1 <TAB> ...                                        MS MARCO

White space around a text is no part of it. A query has no title; where a line gives one it is not looked at.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from maw.io.ids import check_id
from maw.retrieval.data.lines import json_value, refuse, short

__all__ = ["json_record", "named", "table_record", "unpacked_names"]


def json_record(path: Path, number: int, line: str, *, titles: bool) -> tuple[str, str]:
    """Id and text of a line in BEIR's layout.

    Args:
        path, number: the file and the line, for messages.
        line: the line without its end.
        titles: whether a title belongs to the text, as a document's does.

    Raises:
        MAWError: it is no object with an id and a text.

    >>> json_record(Path("corpus.jsonl"), 1, '{"_id": "d", "title": "T", "text": " a "}', titles=True)
    ('d', 'T  a')
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        refuse(path, number, f"wanted a JSON object, got {short(line)} ({error})")
    if not isinstance(record, dict):
        refuse(path, number, f"wanted a JSON object, got {short(line)}")
    for field in ("_id", "text"):
        if field not in record:
            refuse(path, number, f"wanted the field {field!r}, got only {', '.join(map(repr, record)) or 'none'}")
    title = record.get("title") if titles else None
    for field, value in (("_id", record["_id"]), ("text", record["text"]), ("title", title or "")):
        if not isinstance(value, str):
            refuse(path, number, f"wanted text in {field!r}, got {json_value(value)}")
        if "\\u" in line and not _is_writable(value):  # only an escape can spell half of a pair
            refuse(path, number, f"wanted text in {field!r}, got half of a surrogate pair, which is no character")
    _check_id(path, number, record["_id"])
    return record["_id"], f"{title or ''} {record['text']}".strip()


def table_record(path: Path, number: int, line: str) -> tuple[str, str]:
    """Id and text of a line in MS MARCO's layout.

    Args:
        path, number: the file and the line, for messages.
        line: the line without its end.

    Raises:
        MAWError: it is not an id, a tab and a text.

    >>> table_record(Path("collection.tsv"), 1, "0\\tA river. ")
    ('0', 'A river.')
    """
    columns = line.split("\t")
    while len(columns) > 2 and not columns[-1].strip():  # what follows a text that ends with tabs
        columns.pop()
    if len(columns) != 2:
        refuse(path, number, f"wanted 2 columns, an id, a tab and a text, got {len(columns)}: {short(line)}")
    _check_id(path, number, columns[0])
    return columns[0], columns[1].strip()


def named(path: Path) -> Path:
    """The file of this name; where there is none, the one with .gz after it."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.exists() else path


def unpacked_names(folder: Path, pattern: str) -> list[Path]:
    """The files that match, without the .gz of those that are packed: for `named`.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("dev.tsv.gz", "test.tsv", "test.tsv.gz", "old.tsv.bak"):
    ...     (folder / name).touch()
    >>> [path.name for path in unpacked_names(folder, "*.tsv")]
    ['dev.tsv', 'test.tsv']
    """
    if folder.is_dir():
        os.listdir(folder)  # `glob` finds nothing in a folder that may not be read
    packed = (path.with_name(path.name.removesuffix(".gz")) for path in folder.glob(f"{pattern}.gz"))
    return sorted({*folder.glob(pattern), *packed})


def _check_id(path: Path, number: int, identifier: str) -> None:
    if problem := check_id(identifier):
        refuse(path, number, f"{problem}: rename {short(identifier)}")


def _is_writable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
