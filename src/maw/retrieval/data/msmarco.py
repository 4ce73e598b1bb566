"""Reading a folder with MS MARCO's own passage files.

    collection.tsv       id <TAB> passage
    queries.SPLIT.tsv    id <TAB> query
    qrels.SPLIT.tsv      judgements in any form that `maw.retrieval.data.judgements` reads

Every `qrels.SPLIT.tsv` is a split and needs its `queries.SPLIT.tsv`; names may have dots: `qrels.dev.small.tsv` is the
split dev.small. Each file may be packed with gzip, then with .gz after its name. Queries without such judgements are
not read. TREC Deep Learning's files come with other names: call `2019qrels-pass.txt` qrels.dl19.tsv and
`msmarco-test2019-queries.tsv` queries.dl19.tsv. Files of triples (`*triples*.tsv`) and of the first thousand passages
of training queries (`top1000.train*`), packed with gzip or not, are the given negatives of
`maw.retrieval.training.negatives`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from maw.errors import MAWError
from maw.retrieval.data.corpora import hold_file
from maw.retrieval.data.dataset import RetrievalDataset
from maw.retrieval.data.judgements import JudgementFile, check_train_apart, read_judgements
from maw.retrieval.data.lines import read_lines, refuse
from maw.retrieval.data.text_records import named, table_record, unpacked_names

__all__ = ["read_msmarco_folder"]

LAYOUT = "msmarco-3"
LINES = "a text a line: id, tab and text"
LICENCE = "MS MARCO's terms: non-commercial research only"
PASSAGES = 8_841_823
"""In MS MARCO's own collection; where there are other numbers of them, the texts may be anybody's."""


def read_msmarco_folder(folder: Path, name: str | None = None, *, strict: bool = False) -> RetrievalDataset:
    """Read a folder with MS MARCO's own passage files.

    Judged passages that the collection lacks are counted in `counts["judged_but_not_in_collection"]`.

    Args:
        folder: where `collection.tsv`, `queries.*.tsv` and `qrels.*.tsv` are.
        name: the name of the data set; "msmarco:FOLDER" where it is not given.
        strict: whether a judged passage that the collection lacks is refused.

    Returns:
        The data set; `checksums` has the SHA-256 of every file read, unpacked. Its licence is MS MARCO's where the
        collection has as many passages as MS MARCO's; others may have texts of their own in the same layout.

    Raises:
        MAWError: a file is missing or empty, a line is malformed, an id is repeated, a query has no text, or a query
            is both in train and in another split. The message names the file and, where there is one, the line.
    """
    if not folder.is_dir():
        raise MAWError(f"wanted a folder with MS MARCO's files, but {folder} is not one: check the path after msmarco:")
    paths = unpacked_names(folder, "qrels.*.tsv")
    if not paths:
        raise MAWError(
            f"wanted judgements in {folder}, found no qrels.SPLIT.tsv there: add qrels.dev.small.tsv or another, and "
            "the queries.SPLIT.tsv that belongs to it"
        )
    checksums: dict[str, str] = {}
    files: dict[str, JudgementFile] = {}
    queries: dict[str, str] = {}
    for path in paths:
        split = path.name.removeprefix("qrels.").removesuffix(".tsv")
        asked = folder / f"queries.{split}.tsv"
        if not named(asked).is_file():
            raise MAWError(f"{path} judges queries whose texts should be in {asked}, but that file is not there")
        files[split] = read_judgements(named(path), checksums, path.name)
        texts = _read_texts(asked, checksums)
        for number, (identifier, text) in enumerate(texts.items(), start=1):
            if queries.setdefault(identifier, text) != text:
                refuse(asked, number, f"query {identifier!r} has another text than in a file read before")
        files[split].check_queries(queries, asked.name)
    check_train_apart(files)
    documents = _read_texts(folder / "collection.tsv", checksums)
    if strict:
        for found in files.values():
            found.check_documents(documents, "collection.tsv")
    return RetrievalDataset.from_parts(
        name or f"msmarco:{folder}",
        documents,
        queries,
        {split: found.grades for split, found in files.items()},
        checksums=checksums,
        licence=LICENCE if len(documents) == PASSAGES else "unknown: you gave the files",
        negative_files=sorted({*folder.glob("*triples*.tsv*"), *folder.glob("top1000.train*")}),
        lacking_documents=True,
        repeated_judgements={split: found.repeated for split, found in files.items() if found.repeated},
    )


def _read_texts(path: Path, checksums: dict[str, str]) -> Mapping[str, str]:
    there, key = named(path), path.name
    return hold_file(there, LAYOUT, partial(_records, there, key), checksums, key)


def _records(path: Path, key: str, checksums: dict[str, str]) -> Iterator[tuple[str, str]]:
    for number, line in read_lines(path, checksums, key, layout=LINES):
        yield table_record(path, number, line)
