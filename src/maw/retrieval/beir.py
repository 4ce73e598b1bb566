"""Reading a folder in BEIR's layout, strictly: what cannot be used as it stands is refused by file and line.

`corpus.jsonl` holds one object a line with `_id`, `text` and optionally `title` (absent, null or text); `queries.jsonl`
one with `_id` and `text`; `qrels/SPLIT.tsv` a header and the columns query-id, corpus-id, score (an integer grade).
Every `.tsv` in `qrels` is a split named by its file. Other fields and other files are not looked at.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from maw.errors import MAWError
from maw.retrieval.datasets import TRAIN, RetrievalDataset

__all__ = ["read_beir"]

HEADER = ["query-id", "corpus-id", "score"]


def read_beir(folder: Path, name: str | None = None) -> RetrievalDataset:
    """Read a folder in BEIR's layout.

    A document's text is its title and text joined by one space, stripped. The same judgement given twice is counted
    in `counts["repeated_judgements"]`; train queries whose text an evaluation split has too are dropped and listed in
    `counts["dropped_train_queries"]`. Evaluation splits may overlap.

    Args:
        folder: where `corpus.jsonl`, `queries.jsonl` and `qrels/` are.
        name: the name of the data set; "beir:FOLDER" where it is not given.

    Returns:
        The data set; `checksums` has the SHA-256 of every file read.

    Raises:
        MAWError: a file is missing or empty, a line is malformed, an id is repeated or unknown, a judgement is given
            twice with different grades, or a query is both in train and in an evaluation split. The message names the
            file and, where there is one, the line.
    """
    if not folder.is_dir():
        raise MAWError(f"wanted a BEIR folder, but {folder} is not a folder: check the path after beir:")
    checksums: dict[str, str] = {}
    corpus, asked = folder / "corpus.jsonl", folder / "queries.jsonl"
    documents = _read_texts(corpus, checksums, titles=True)
    queries = _read_texts(asked, checksums, titles=False)
    paths = sorted((folder / "qrels").glob("*.tsv"))
    if not paths:
        raise MAWError(
            f"wanted judgements in {folder / 'qrels'}, found no .tsv file there: add qrels/test.tsv or another"
        )
    qrels: dict[str, dict[str, dict[str, int]]] = {}
    lines: dict[str, dict[str, dict[str, int]]] = {}
    repeated: dict[str, int] = {}
    for path in paths:
        grades, where, again = _read_qrels(path, checksums, documents, queries)
        qrels[path.stem], lines[path.stem] = grades, where
        if again:
            repeated[path.stem] = again
    for path in paths:
        for query in qrels[path.stem]:
            if path.stem != TRAIN and query in qrels.get(TRAIN, {}):
                one, two = (next(iter(lines[split][query].values())) for split in (path.stem, TRAIN))
                _refuse(path, one, f"query {query!r} is also in {TRAIN}.tsv, line {two}: remove it from one of the two")
    return RetrievalDataset.from_parts(
        name or f"beir:{folder}", documents, queries, qrels, checksums=checksums, repeated_judgements=repeated
    )


def _refuse(path: Path, line: int, problem: str) -> NoReturn:
    raise MAWError(f"{path}, line {line}: {problem}")


def _short(line: str) -> str:
    return repr(line if len(line) <= 80 else line[:77] + "...")


def _read_lines(path: Path, checksums: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text without its end); at the end, note the SHA-256 of the whole file."""
    if not path.is_file():
        raise MAWError(f"wanted the file {path}, but it is not there: see the layout in maw.retrieval.beir")
    digest, number = hashlib.sha256(), 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            digest.update(raw)
            yield number, _decode(path, number, raw).rstrip("\r\n")
    if not number:
        raise MAWError(f"{path}, line 1: wanted at least one line, but the file is empty")
    checksums[f"qrels/{path.name}" if path.suffix == ".tsv" else path.name] = digest.hexdigest()


def _decode(path: Path, number: int, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse(path, number, f"wanted UTF-8, got the byte 0x{raw[error.start]:02x} as byte {error.start + 1} of it")


def _read_texts(path: Path, checksums: dict[str, str], *, titles: bool) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, line in _read_lines(path, checksums):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            _refuse(path, number, f"wanted a JSON object, got {_short(line)} ({error})")
        if not isinstance(record, dict):
            _refuse(path, number, f"wanted a JSON object, got {_short(line)}")
        for field in ("_id", "text"):
            if field not in record:
                _refuse(path, number, f"wanted the field {field!r}, got only {', '.join(map(repr, record)) or 'none'}")
            _check_text(path, number, field, record[field])
        title = record.get("title") if titles else None
        if title is not None:
            _check_text(path, number, "title", title)
        identifier = record["_id"]
        if not identifier:
            _refuse(path, number, "wanted an id in '_id', got an empty text")
        if identifier in texts:  # no line is skipped, so an id's place is its line
            first = list(texts).index(identifier) + 1
            _refuse(path, number, f"id {identifier!r} was given in line {first} already: ids must be unique")
        texts[identifier] = f"{title or ''} {record['text']}".strip() if titles else record["text"]
    return texts


def _check_text(path: Path, number: int, field: str, value: object) -> None:
    if not isinstance(value, str):
        _refuse(path, number, f"wanted text in {field!r}, got {type(value).__name__} {value!r:.80}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        _refuse(path, number, f"wanted text in {field!r}, got half of a surrogate pair, which is no character")


def _read_qrels(
    path: Path, checksums: dict[str, str], documents: dict[str, str], queries: dict[str, str]
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, int]], int]:
    """Return the grades, the line of each, and how many judgements were repeated with the same grade."""
    grades: dict[str, dict[str, int]] = {}
    lines: dict[str, dict[str, int]] = {}
    repeated = 0
    for number, line in _read_lines(path, checksums):
        columns = line.split("\t")
        if number == 1:
            if columns != HEADER:
                wanted = "<TAB>".join(HEADER)
                _refuse(path, 1, f"wanted the header {wanted}, got {_short(line)}: add it as the first line")
            continue
        if len(columns) != 3:
            _refuse(path, number, f"wanted 3 columns separated by tabs, got {len(columns)}: {_short(line)}")
        query, document, text = columns
        if not re.fullmatch(r"-?[0-9]{1,9}", text):
            _refuse(path, number, f"wanted an integer grade in the third column, got {_short(text)}")
        if query not in queries:
            _refuse(path, number, f"query {query!r} is not in queries.jsonl")
        if document not in documents:
            _refuse(path, number, f"document {document!r} is not in corpus.jsonl")
        grade, row = int(text), grades.setdefault(query, {})
        if document in row:
            first = lines[query][document]
            if row[document] != grade:
                pair = f"query {query!r} and document {document!r}"
                _refuse(path, number, f"{pair} have grade {grade} here and {row[document]} in line {first}: keep one")
            repeated += 1
            continue
        row[document] = grade
        lines.setdefault(query, {})[document] = number
    if not grades:
        _refuse(path, 2, "wanted at least one judgement after the header, got none")
    return grades, lines, repeated
