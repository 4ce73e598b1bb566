"""Reading a folder in BEIR's layout, strictly: what cannot be used as it stands is refused by file and line.

`corpus.jsonl` holds one object a line with `_id`, `text` and optionally `title` (absent, null or text); `queries.jsonl`
one with `_id` and `text`; `qrels/SPLIT.tsv` a header and the columns query-id, corpus-id, score (an integer grade).
Every `.tsv` in `qrels` is a split named by its file. Each file may be packed with gzip, then with .gz after its name.
Other fields and other files are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from maw.errors import MAWError
from maw.retrieval.data.corpora import hold_file
from maw.retrieval.data.dataset import RetrievalDataset
from maw.retrieval.data.judgements import JudgementFile, check_train_apart, read_judgements
from maw.retrieval.data.lines import read_lines
from maw.retrieval.data.text_records import json_record, named, unpacked_names

__all__ = ["read_beir"]

LAYOUT = "beir-3"
LINES = 'an object a line, {"_id": "1", "text": "..."}'


def read_beir(folder: Path, name: str | None = None, *, strict: bool = False) -> RetrievalDataset:
    """Read a folder in BEIR's layout.

    A document's text is its title and text joined by one space, stripped. The same judgement given twice is counted
    in `counts["repeated_judgements"]`; train queries whose text an evaluation split has too are dropped and listed in
    `counts["dropped_train_queries"]`. Evaluation splits may overlap. Judged documents that the corpus lacks, as five of
    BEIR's ArguAna, are counted in `counts["judged_but_not_in_collection"]`.

    Args:
        folder: where `corpus.jsonl`, `queries.jsonl` and `qrels/` are.
        name: the name of the data set; "beir:FOLDER" where it is not given.
        strict: whether a judged document that the corpus lacks is refused.

    Returns:
        The data set; `checksums` has the SHA-256 of every file read, unpacked.

    Raises:
        MAWError: a file is missing or empty, a line is malformed, an id is repeated, a judged query has no text, a
            judgement is given twice with different grades, or a query is both in train and in an evaluation split. The
            message names the file and, where there is one, the line.
    """
    if not folder.is_dir():
        raise MAWError(f"wanted a BEIR folder, but {folder} is not a folder: check the path after beir:")
    checksums: dict[str, str] = {}
    documents = _read_texts(folder, "corpus.jsonl", checksums, titles=True)
    queries = _read_texts(folder, "queries.jsonl", checksums, titles=False)
    paths = unpacked_names(folder / "qrels", "*.tsv")
    if not paths:
        raise MAWError(
            f"wanted judgements in {folder / 'qrels'}, found no .tsv file there: add qrels/test.tsv or another"
        )
    files: dict[str, JudgementFile] = {}
    for path in paths:
        found = read_judgements(named(path), checksums, f"qrels/{path.name}", header_needed=True)
        found.check_queries(queries, "queries.jsonl")
        if strict:
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
        lacking_documents=True,
        repeated_judgements={split: found.repeated for split, found in files.items() if found.repeated},
    )


def _read_texts(folder: Path, name: str, checksums: dict[str, str], *, titles: bool) -> Mapping[str, str]:
    path = named(folder / name)
    records = partial(_records, path, name, titles=titles)
    return hold_file(path, f"{LAYOUT} {'titles' if titles else 'texts'}", records, checksums, name)


def _records(path: Path, key: str, checksums: dict[str, str], *, titles: bool) -> Iterator[tuple[str, str]]:
    for number, line in read_lines(path, checksums, key, layout=LINES):
        yield json_record(path, number, line, titles=titles)
