"""Reading a folder in BEIR's layout, strictly: what cannot be used as it stands is refused by file and line.

`corpus.jsonl` holds one object a line with `_id`, `text` and optionally `title` (absent, null or text); `queries.jsonl`
one with `_id` and `text`; `qrels/SPLIT.tsv` a header and the columns query-id, corpus-id, score (an integer grade).
Every `.tsv` in `qrels` is a split named by its file. Other fields and other files are not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from maw.errors import MAWError
from maw.io.ids import check_id
from maw.retrieval.data.corpora import hold_file
from maw.retrieval.data.dataset import RetrievalDataset
from maw.retrieval.data.judgements import JudgementFile, check_train_apart, read_judgements
from maw.retrieval.data.lines import json_value, read_lines, refuse, short

__all__ = ["read_beir"]

LAYOUT = "beir-2"
LINES = 'an object a line, {"_id": "1", "text": "..."}'


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
    files: dict[str, JudgementFile] = {}
    for path in paths:
        found = read_judgements(path, checksums, f"qrels/{path.name}", header_needed=True)
        found.check_queries(queries, "queries.jsonl")
        found.check_documents(documents, "corpus.jsonl")
        files[path.stem] = found
    check_train_apart(files)
    return RetrievalDataset.from_parts(
        name or f"beir:{folder}",
        documents,
        queries,
        {split: found.grades for split, found in files.items()},
        checksums=checksums,
        drop_own=folder.name.lower() == "arguana",
        repeated_judgements={split: found.repeated for split, found in files.items() if found.repeated},
    )


def _read_texts(path: Path, checksums: dict[str, str], *, titles: bool) -> Mapping[str, str]:
    records = partial(_records, path, titles=titles)
    return hold_file(path, f"{LAYOUT} {'titles' if titles else 'texts'}", records, checksums, path.name)


def _records(path: Path, checksums: dict[str, str], *, titles: bool) -> Iterator[tuple[str, str]]:
    for number, line in read_lines(path, checksums, path.name, layout=LINES):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            refuse(path, number, f"wanted a JSON object, got {short(line)} ({error})")
        if not isinstance(record, dict):
            refuse(path, number, f"wanted a JSON object, got {short(line)}")
        for field in ("_id", "text"):
            if field not in record:
                refuse(path, number, f"wanted the field {field!r}, got only {', '.join(map(repr, record)) or 'none'}")
            _check_text(path, number, field, record[field])
        title = record.get("title") if titles else None
        if title is not None:
            _check_text(path, number, "title", title)
        if problem := check_id(record["_id"]):
            refuse(path, number, f"{problem}: rename {short(record['_id'])}")
        yield record["_id"], f"{title or ''} {record['text']}".strip() if titles else record["text"]


def _check_text(path: Path, number: int, field: str, value: object) -> None:
    if not isinstance(value, str):
        refuse(path, number, f"wanted text in {field!r}, got {json_value(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        refuse(path, number, f"wanted text in {field!r}, got half of a surrogate pair, which is no character")
