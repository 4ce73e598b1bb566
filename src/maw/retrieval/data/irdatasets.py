"""Data sets by their ids in ir_datasets: MS MARCO, BEIR, LoTTE and whatever else has documents, queries and judgements.

ir_datasets downloads, checks and reads; here an id becomes splits:

- an id with judgements of its own is one split, named by what the id adds to that of its documents:
  beir/nfcorpus/test -> test, lotte/writing/test/search -> search; where it adds nothing: test;
- an id without judgements has the ids one level below it that search the same documents as its splits:
  beir/nfcorpus -> train, dev, test; lotte/writing/test -> forum, search;
- msmarco-passage has the four of the specification: train, dev/small and the judged parts of trec-dl-2019 and -2020.

A document's text is what ir_datasets calls its default text, else its field text, stripped: title and text joined by
one space in BEIR.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from maw.errors import MAWError
from maw.io.ids import check_id
from maw.retrieval.data.corpora import Origin, hold_texts
from maw.retrieval.data.dataset import RetrievalDataset
from maw.retrieval.data.msmarco import LICENCE
from maw.retrieval.data.texts import content_checksum

__all__ = ["MSMARCO_SPLITS", "read_ir", "read_msmarco"]

MSMARCO_SPLITS = ("train", "dev/small", "trec-dl-2019/judged", "trec-dl-2020/judged")
LAYOUT = "ir-2"


def read_msmarco(*, strict: bool = False) -> RetrievalDataset:
    """The MS MARCO passages with their training queries, the small development set, and TREC DL 2019 and 2020.

    Args:
        strict: as in `read_ir`.

    Raises:
        MAWError: the data are not there and cannot be had; the message names every file and its place.
    """
    return read_ir("msmarco-passage", name="msmarco", strict=strict)


def read_ir(identifier: str, name: str | None = None, *, strict: bool = False) -> RetrievalDataset:
    """Read a data set by its id in ir_datasets; how an id becomes splits is said at the top of this file.

    Judged documents that the collection lacks are counted in `counts["judged_but_not_in_collection"]`.

    Args:
        identifier: such as "beir/scifact" or "msmarco-passage/trec-dl-2019/judged".
        name: the name of the data set; "ir:ID" where it is not given.
        strict: whether a judged document that the collection lacks is refused.

    Returns:
        The data set; `checksums` has the SHA-256 of the ids and texts, and of the judgements of every split.

    Raises:
        MAWError: ir_datasets is not installed or has no such id, the id has no documents, queries or judgements, the
            data cannot be had (the message says what was tried and which file goes where), or they contradict
            themselves.
    """
    from maw.retrieval.data.irdatasets_files import check_home, explain

    ir = _library()
    if identifier.partition("/")[0] == "msmarco-passage":
        check_home(ir)
    parts = _splits(ir, identifier)
    handler = next(iter(parts.values()))
    documents_id = ir.docs_parent_id(handler)
    try:
        loaded = {split: ir.load(part) for split, part in parts.items()}
        return _read(ir, name or f"ir:{identifier}", documents_id, loaded, strict=strict)
    except MAWError:
        raise
    except Exception as error:  # a download that fails, a damaged archive, a line that its reader cannot take
        raise MAWError(explain(ir, identifier, error)) from error


def _library() -> Any:
    try:
        import ir_datasets
    except ImportError as error:
        raise MAWError(f"ir_datasets is not installed ({error}): pip install 'maw-attention[retrieval]'") from error
    return ir_datasets


def _splits(ir: Any, identifier: str) -> dict[str, str]:
    """Split -> id."""
    try:
        data = ir.load(identifier)
    except KeyError:
        near = difflib.get_close_matches(identifier, list(ir.registry), n=3, cutoff=0.5)
        raise MAWError(
            f"ir_datasets {ir.__version__} has no data set {identifier!r}: "
            + (f"did you mean {', '.join(near)}?" if near else "its ids are listed at ir-datasets.com")
        ) from None
    if identifier == "msmarco-passage":
        return {split: f"{identifier}/{split}" for split in MSMARCO_SPLITS}
    below = [name for name in ir.registry if name.startswith(f"{identifier}/")]
    if data.has_docs() and data.has_queries() and data.has_qrels():
        parent = ir.docs_parent_id(identifier)
        return {identifier.removeprefix(parent).strip("/") or "test": identifier}
    children = [name for name in below if "/" not in name.removeprefix(f"{identifier}/")]
    usable = [
        name
        for name in children
        if data.has_docs()
        and ir.load(name).has_queries()
        and ir.load(name).has_qrels()
        and ir.docs_parent_id(name) == ir.docs_parent_id(identifier)
    ]
    if not usable:
        whole = [name for name in below if all(ir.load(name).has(part) for part in ("docs", "queries", "qrels"))]
        shown = ", ".join(whole[:6]) + (f" and {len(whole) - 6} more" if len(whole) > 6 else "")
        raise MAWError(
            f"{identifier} has no documents with queries and judgements of its own: "
            + (f"name one below it: {shown}" if whole else "name a data set that has all three")
        )
    return {name.removeprefix(f"{identifier}/"): name for name in usable}


def _read(ir: Any, name: str, documents_id: str, parts: Mapping[str, Any], *, strict: bool) -> RetrievalDataset:
    checksums: dict[str, str] = {}
    qrels: dict[str, dict[str, dict[str, int]]] = {}
    queries: dict[str, str] = {}
    repeated: dict[str, int] = {}
    for split, part in parts.items():
        qrels[split], again = _judgements(f"{name}, split {split}", part.qrels_iter())
        if again:
            repeated[split] = again
        for identifier, text in ((query.query_id, _text(query, name)) for query in part.queries_iter()):
            _check_id(name, identifier)
            if queries.setdefault(identifier, text) != text:
                raise MAWError(f"{name}: query {identifier!r} of the split {split} has another text in a split before")
        checksums[f"qrels/{split}"] = _checksum(qrels[split])
    documents = _documents(ir, documents_id, next(iter(parts.values())))
    checksums |= {"documents": content_checksum(documents), "queries": content_checksum(queries)}
    return RetrievalDataset.from_parts(
        name,
        documents,
        queries,
        qrels,
        checksums=checksums,
        licence=LICENCE if documents_id.startswith(("msmarco", "beir/msmarco")) else None,
        drop_own=documents_id == "beir/arguana",
        relevant_grade=dict.fromkeys(parts, 1) if documents_id.startswith("msmarco-document") else None,
        lacking_documents=not strict,
        repeated_judgements=repeated,
        source={"ir_datasets": f"{documents_id} ({ir.__version__})"},
    )


def _documents(ir: Any, documents_id: str, part: Any) -> Mapping[str, str]:
    # ir_datasets checks what it downloads, and reads its own copies after that; so do we
    stamp: dict[str, Any] = {"home": str(ir.util.home_path().resolve()), "version": ir.__version__}
    if (path := _documents_file(part)) is not None:
        there = path.stat()
        stamp |= {"size": there.st_size, "modified": there.st_mtime_ns}
    origin = Origin(f"{LAYOUT} {documents_id} {stamp['home']}", stamp)

    def repeated(identifier: str, first: int, second: int) -> NoReturn:
        places = f"number {first + 1} and number {second + 1}"
        raise MAWError(f"{documents_id}: the documents {places} both have the id {identifier!r}: ids must be unique")

    def records() -> Iterator[tuple[str, str]]:
        for document in part.docs_iter():
            _check_id(documents_id, document.doc_id)
            yield document.doc_id, _text(document, documents_id)

    return hold_texts(origin, records, repeated)


def _documents_file(part: Any) -> Path | None:
    """The file that holds the documents, where there is one and ir_datasets has it already."""
    try:
        path = Path(part.docs_path(force=False))
    except (AttributeError, TypeError):  # documents of many files, or of one that cannot be asked for without fetching
        return None
    return path if path.is_file() else None


def _text(record: Any, name: str) -> str:
    if hasattr(record, "default_text"):
        return record.default_text().strip()
    if isinstance(getattr(record, "text", None), str):
        return record.text.strip()
    kind, fields = type(record).__name__, ", ".join(record._fields)
    raise MAWError(f"{name}: wanted texts, but ir_datasets has none for a {kind} ({fields}): it is not supported")


def _check_id(name: str, identifier: str) -> None:
    if problem := check_id(identifier):
        raise MAWError(f"{name}: {problem}: {identifier!r} cannot be used")


def _judgements(where: str, rows: Iterable[Any]) -> tuple[dict[str, dict[str, int]], int]:
    grades: dict[str, dict[str, int]] = {}
    repeated = 0
    for row in rows:
        judged, grade = grades.setdefault(row.query_id, {}), int(row.relevance)
        if row.doc_id not in judged:
            judged[row.doc_id] = grade
        elif judged[row.doc_id] == grade:
            repeated += 1
        else:
            pair = f"query {row.query_id!r} and document {row.doc_id!r}"
            raise MAWError(f"{where}: {pair} have the grades {judged[row.doc_id]} and {grade}: it must be one")
    return grades, repeated


def _checksum(grades: Mapping[str, Mapping[str, int]]) -> str:
    digest = hashlib.sha256()
    for query, row in grades.items():
        for document, grade in row.items():
            digest.update(f"{query}\t{document}\t{grade}\n".encode())
    return digest.hexdigest()
