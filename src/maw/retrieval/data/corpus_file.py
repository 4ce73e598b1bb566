"""A corpus in one file, read in blocks of whole lines: never the whole of it, and any part of it again.

`corpus.jsonl` holds one object a line with `_id`, `text` and optionally `title` (BEIR's layout; a document's text is
title and text joined by one space); `collection.tsv` an id, a tab and a text (MS MARCO's). Either may be packed with
gzip and may begin with a byte order mark; empty lines at the end are not read. A block is bytes: it is taken apart
where its texts are needed, often in another process. A line becomes a text in `maw.retrieval.data.text_records`.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, NoReturn

from maw.errors import MAWError
from maw.io.reading import BYTE_ORDER_MARK, open_text, saying_what_cannot_be_read
from maw.retrieval.data.lines import decoded, refuse
from maw.retrieval.data.text_records import json_record, table_record

__all__ = ["Block", "CorpusFile"]


@dataclass(frozen=True)
class Block:
    """Some consecutive lines of a corpus: document i is line i + 1."""

    path: str
    first: int
    """The number of the first document, from 0."""
    raw: bytes
    titles: bool = True
    """Whether a title belongs to the text, as in a corpus; in a file of queries it does not."""

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
            maw.errors.MAWError: collection.tsv, line 8: wanted 2 columns, an id, a tab and a text, \
got 1: 'd: Depth slices.'
        """
        path, raw = Path(self.path), self.raw if self.first else self.raw.removeprefix(BYTE_ORDER_MARK)
        lines = raw.split(b"\n")
        if not lines[-1]:
            lines.pop()
        parse = partial(json_record, titles=self.titles) if _suffix(path) == ".jsonl" else table_record
        numbered = enumerate(lines, start=self.first + 1)
        return [parse(path, number, decoded(path, number, line)) for number, line in numbered]

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
        titles: whether a title belongs to the text; not in a file of queries.

    Raises:
        MAWError: there is no such file, or its name does not say what is in it.
    """

    def __init__(self, path: Path, *, titles: bool = True) -> None:
        self.path, self.titles = Path(path), titles
        if _suffix(self.path) not in (".jsonl", ".tsv"):
            raise MAWError(
                f"a corpus must be a file that ends in .jsonl or .tsv, with or without .gz after it, got {self.path}: "
                'write one document a line, as {"_id": "1", "text": "..."} in .jsonl, or as id, tab and text in .tsv'
            )
        if not self.path.is_file():
            raise MAWError(f"wanted the corpus {self.path}, but there is no such file: check the path")

    def stamp(self) -> tuple[int, int]:
        """Size and time of change: while they stay, the file was not written to."""
        found = self.path.stat()
        return found.st_size, found.st_mtime_ns

    def open(self) -> IO[bytes]:
        """Open it for `blocks`; a packed file is read on from where it is, so parts are best taken in order.

        Raises:
            MAWError: it cannot be opened.
        """
        with saying_what_cannot_be_read(self.path):
            return open_text(self.path)

    def blocks(
        self,
        *,
        lines: int,
        first: int = 0,
        offset: int = 0,
        stop: int | None = None,
        border: int | None = None,
        file: IO[bytes] | None = None,
    ) -> Iterator[Block]:
        """Yield the documents from `first` to before `stop` in blocks.

        Args:
            lines: how many documents a block has, at most.
            first: the first document.
            offset: where it begins, in bytes of the unpacked file; a byte order mark belongs to the first document.
            stop: where to end; None is the end of the file.
            border: no block reaches across a multiple of this.
            file: what `open` gave, to take several parts; None opens it for this one.

        Raises:
            MAWError: the file ends too early, or is no whole gzip file.
        """
        with self.open() if file is None else nullcontext(file) as source:
            try:
                source.seek(offset)
                documents = _without_empty_end(source)
                while stop is None or first < stop:
                    wanted = lines if stop is None else min(lines, stop - first)
                    wanted = wanted if border is None else min(wanted, border - first % border)
                    part = list(islice(documents, wanted))
                    if part:
                        yield Block(str(self.path), first, b"".join(part), self.titles)
                    first += len(part)
                    if len(part) < wanted:
                        if stop is not None:
                            raise MAWError(f"{self.path} ends after line {first}, but it had {stop}: it was changed")
                        return
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise MAWError(f"{self.path} is damaged after line {first}: {error}") from error


def _without_empty_end(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines without those at the end that hold nothing but white space; empty lines before the end stay."""
    empty: list[bytes] = []
    for line in lines:
        if line.isspace():
            empty.append(line)
            continue
        yield from empty
        empty.clear()
        yield line


def _suffix(path: Path | str) -> str:
    return Path(str(path).removesuffix(".gz")).suffix
