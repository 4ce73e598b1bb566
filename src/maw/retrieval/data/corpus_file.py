"""A corpus in one file, read in blocks of whole lines: never the whole of it, and any part of it again.

`corpus.jsonl` holds one object a line with `_id`, `text` and optionally `title` (BEIR's layout; a document's text is
title and text joined by one space); `collection.tsv` an id, a tab and a text (MS MARCO's). Either may be compressed
with gzip (`.gz`). A block is bytes: it is taken apart where its texts are needed, often in another process.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NoReturn

from maw.errors import MAWError
from maw.retrieval.data.lines import refuse, short

__all__ = ["Block", "CorpusFile"]


@dataclass(frozen=True)
class Block:
    """Some consecutive lines of a corpus: document i is line i + 1."""

    path: str
    first: int
    """The number of the first document, from 0."""
    raw: bytes

    def records(self) -> list[tuple[str, str]]:
        """Id and text of every document.

        Raises:
            MAWError: a line cannot be used; the message names the file and the line.

        Example:
            >>> Block("corpus.jsonl", 0, b'{"_id": "d", "title": "MAW", "text": "Depth slices."}').records()
            [('d', 'MAW Depth slices.')]
            >>> Block("collection.tsv", 7, b"d: Depth slices.").records()
            Traceback (most recent call last):
            ...
            maw.errors.MAWError: collection.tsv, line 8: wanted an id, a tab and a text, got 'd: Depth slices.'
        """
        parse = _parse_json if _suffix(self.path) == ".jsonl" else _parse_columns
        lines = self.raw.split(b"\n")
        if not lines[-1]:
            lines.pop()
        return [parse(self, number, line) for number, line in enumerate(lines, start=self.first + 1)]

    def ids(self) -> list[str]:
        """The ids alone; every line is checked as for `records`."""
        return [identifier for identifier, _ in self.records()]

    def texts(self) -> list[str]:
        """The texts alone."""
        return [text for _, text in self.records()]

    def refuse(self, line: int, problem: str) -> NoReturn:
        """Raise MAWError for a line."""
        refuse(Path(self.path), line, problem)


class CorpusFile:
    """A corpus in one file.

    Args:
        path: a file that ends in .jsonl, .jsonl.gz, .tsv or .tsv.gz.

    Raises:
        MAWError: there is no such file, or its name does not say what is in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if _suffix(self.path) not in (".jsonl", ".tsv"):
            raise MAWError(
                f"a corpus must be a file that ends in .jsonl or .tsv, with or without .gz after it, got {self.path}: "
                "write one document a line, see maw.retrieval.data.corpus_file"
            )
        if not self.path.is_file():
            raise MAWError(f"wanted the corpus {self.path}, but there is no such file: check the path")

    def stamp(self) -> tuple[int, int]:
        """Size and time of change: while they stay, the file was not written to."""
        found = self.path.stat()
        return found.st_size, found.st_mtime_ns

    def open(self) -> gzip.GzipFile | BinaryIO:
        """Open it for `blocks`; a compressed file is read on from where it is, so parts are best taken in order."""
        return gzip.open(self.path) if self.path.suffix == ".gz" else self.path.open("rb", buffering=2**20)

    def blocks(
        self,
        *,
        lines: int,
        first: int = 0,
        offset: int = 0,
        stop: int | None = None,
        border: int | None = None,
        file: gzip.GzipFile | BinaryIO | None = None,
    ) -> Iterator[Block]:
        """Yield the documents from `first` to before `stop` in blocks.

        Args:
            lines: how many documents a block has, at most.
            first: the first document.
            offset: where it begins, in bytes of the uncompressed file.
            stop: where to end; None is the end of the file.
            border: no block reaches across a multiple of this.
            file: what `open` gave, to take several parts; None opens it for this one.

        Raises:
            MAWError: the file ends too early, or is no whole gzip file.
        """
        with self.open() if file is None else nullcontext(file) as source:
            try:
                source.seek(offset)
                while stop is None or first < stop:
                    wanted = lines if stop is None else min(lines, stop - first)
                    wanted = wanted if border is None else min(wanted, border - first % border)
                    part = list(islice(source, wanted))
                    if part:
                        yield Block(str(self.path), first, b"".join(part))
                    first += len(part)
                    if len(part) < wanted:
                        if stop is not None:
                            raise MAWError(f"{self.path} ends after line {first}, but it had {stop}: it was changed")
                        return
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise MAWError(f"{self.path} is damaged after line {first}: {error}") from error


def _suffix(path: Path | str) -> str:
    return Path(str(path).removesuffix(".gz")).suffix


def _decode(block: Block, number: int, raw: bytes) -> str:
    try:
        return raw.decode("utf-8").rstrip("\r")
    except UnicodeDecodeError as error:
        block.refuse(number, f"wanted UTF-8, got the byte 0x{raw[error.start]:02x} as byte {error.start + 1} of it")


def _parse_json(block: Block, number: int, raw: bytes) -> tuple[str, str]:
    line = _decode(block, number, raw)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        block.refuse(number, f"wanted a JSON object, got {short(line)} ({error})")
    if not isinstance(record, dict):
        block.refuse(number, f"wanted a JSON object, got {short(line)}")
    for field in ("_id", "text"):
        if field not in record:
            block.refuse(number, f"wanted the field {field!r}, got only {', '.join(map(repr, record)) or 'none'}")
    title = record.get("title")
    for field, value in (("_id", record["_id"]), ("text", record["text"]), ("title", title)):
        if not isinstance(value, str) and not (field == "title" and value is None):
            block.refuse(number, f"wanted text in {field!r}, got {type(value).__name__} {value!r:.80}")
        if "\\u" in line and value is not None:  # only an escape can spell half of a pair
            _check_characters(block, number, field, value)
    _check_id(block, number, record["_id"])
    return record["_id"], f"{title or ''} {record['text']}".strip()


def _parse_columns(block: Block, number: int, raw: bytes) -> tuple[str, str]:
    line = _decode(block, number, raw)
    columns = line.split("\t")
    if len(columns) != 2:
        block.refuse(number, f"wanted an id, a tab and a text, got {short(line)}")
    _check_id(block, number, columns[0])
    return columns[0], columns[1].strip()


def _check_id(block: Block, number: int, identifier: str) -> None:
    if not identifier or any(mark in identifier for mark in "\n\r\0"):
        block.refuse(number, f"wanted an id in one line of text, got {identifier[:80]!r}")


def _check_characters(block: Block, number: int, field: str, value: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        block.refuse(number, f"wanted text in {field!r}, got half of a surrogate pair, which is no character")
