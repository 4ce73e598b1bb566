"""Runs: rankings of documents for queries, and their files.

The order of a ranking: score descending, then document id descending (as strings), which is trec_eval's rule.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from maw.errors import MAWError
from maw.io.atomic import write_whole
from maw.io.ids import check_id
from maw.progress import tracked
from maw.retrieval.ranking.run_lines import run_lines

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Run",
    "check_run_file",
    "check_run_ids",
    "rank_documents",
    "ranked",
    "read_run",
    "without_own",
    "write_run",
]

Run: TypeAlias = Mapping[str, Mapping[str, float]]
"""Query id -> document id -> score; higher is better."""


def ranked(run: Run) -> dict[str, list[str]]:
    """Order the documents of every query: score descending, then document id descending.

    Args:
        run: query id -> document id -> score.

    Returns:
        Query id -> document ids, best first, with the queries in the run's order.

    Raises:
        MAWError: a score is NaN or infinite.

    Example:
        >>> ranked({"q": {"b": 1.0, "a": 1.0, "c": 2.0}})
        {'q': ['c', 'b', 'a']}
    """
    for query, documents in run.items():
        for document, score in documents.items():
            if not math.isfinite(score):
                raise MAWError(
                    f"scores must be finite, got {score} for query {query!r} and document {document!r}: a document "
                    "that was not retrieved is left out of the run"
                )
    return {
        query: sorted(sorted(documents, reverse=True), key=lambda document: -documents[document])
        for query, documents in run.items()
    }


def rank_documents(
    query_ids: Sequence[str],
    document_ids: Sequence[str],
    scores: np.ndarray | Tensor,
    indices: np.ndarray | Tensor,
) -> dict[str, dict[str, float]]:
    """Turn the positions that `maw.retrieval.ranking.search.search` returns into a run.

    `search` breaks ties by position and a run is ranked by id, so `document_ids` should be sorted in
    descending order: then both rules agree on which of several equal documents is the last one in.

    Args:
        query_ids: one id for every row of `scores`.
        document_ids: the id of every position.
        scores: (queries, k).
        indices: (queries, k) positions into `document_ids`.

    Returns:
        Query id -> document id -> score, in the order given.

    Raises:
        MAWError: shapes or ids do not fit, a position does not exist, or a query or document comes twice.

    Example:
        >>> rank_documents(["q"], ["a", "b", "c"], np.array([[0.9, 0.5]]), np.array([[2, 0]]))
        {'q': {'c': 0.9, 'a': 0.5}}
    """
    score, index = _host(scores), _host(indices)
    if score.ndim != 2 or score.shape != index.shape or len(score) != len(query_ids):
        raise MAWError(
            f"scores and indices must both have the shape (queries, k) for {len(query_ids)} queries, got "
            f"{score.shape} and {index.shape}: pass both results of one search and the ids of its queries"
        )
    if len(set(query_ids)) != len(query_ids):
        raise MAWError(f"query ids must be unique, got {len(query_ids) - len(set(query_ids))} repeated: rename them")
    if index.size and (index.min() < 0 or index.max() >= len(document_ids)):
        raise MAWError(
            f"indices must lie in 0 to {len(document_ids) - 1}, got {index.min()} to {index.max()}: pass the ids of "
            "the documents that were searched, in the same order"
        )
    run = {}
    for query, places, values in zip(query_ids, index.tolist(), score.tolist(), strict=True):
        run[query] = {document_ids[place]: value for place, value in zip(places, values, strict=True)}
        if len(run[query]) != len(places):
            raise MAWError(f"a document must come once a query, got one twice for query {query!r}: check document_ids")
    return run


def without_own(run: Run, k: int | None = None) -> dict[str, dict[str, float]]:
    """Leave out of every ranking the document with the query's own id, and keep the first k of the rest.

    In ArguAna the queries are documents, and a system would find each of them first.

    Args:
        run: query id -> document id -> score, best first; one more than k, so that k are left.
        k: how many to keep; None keeps all.

    Example:
        >>> without_own({"a": {"a": 1.0, "b": 0.5, "c": 0.1}}, 1)
        {'a': {'b': 0.5}}
    """
    rest = {query: {name: score for name, score in found.items() if name != query} for query, found in run.items()}
    return {query: dict(islice(found.items(), k)) for query, found in rest.items()}


def write_run(path: str | os.PathLike[str], run: Run, tag: str, *, layout: Literal["trec", "msmarco"] = "trec") -> None:
    """Write a run, one line a retrieved document.

    TREC: `query Q0 document rank score tag`; MS MARCO: `query <TAB> document <TAB> rank`. Lines are in rank order (see
    `ranked`), ranks count from 1, and a score is written so that reading it gives the same number. The file is written
    aside and then renamed, so that a reader never sees half of it. A query without retrieved documents has no line.

    Args:
        path: the file to write; one that exists is replaced.
        run: query id -> document id -> score.
        tag: the name of the system, without spaces.
        layout: "trec" or "msmarco".

    Raises:
        MAWError: an id or the tag is empty or holds white space (which the formats cannot express), a score is not
            finite, the layout is another one, or the file cannot be written.
    """
    target = Path(path)
    check_run_file(target, layout)
    lines = []
    _check_word("the tag", tag)
    for query, documents in tracked(ranked(run).items(), f"preparing {target.name}: queries", len(run)):
        _check_query(query)
        for rank, document in enumerate(documents, start=1):
            _check_word("a document id", document)
            score = float(run[query][document])
            trec = f"{query} Q0 {document} {rank} {score!r} {tag}\n"
            lines.append(trec if layout == "trec" else f"{query}\t{document}\t{rank}\n")
    write_whole(target, (line.encode() for line in tracked(lines, f"writing {target.name}: lines", len(lines))))


def check_run_file(path: Path, layout: str = "trec") -> None:
    """Refuse before any ranking a place or a layout in which `write_run` cannot write.

    Raises:
        MAWError: the layout is another one, the folder does not exist, or the path is itself a folder.
    """
    if layout not in ("trec", "msmarco"):
        raise MAWError(f"the layout of a run file must be 'trec' or 'msmarco', got {layout!r}: choose one of them")
    if not path.parent.is_dir():
        raise MAWError(f"the run file needs a folder that exists, got {str(path)!r}: create the folder first")
    if path.is_dir():
        raise MAWError(f"the run must go into a file, got the folder {str(path)!r}: give a name in it")


def check_run_ids(queries: Iterable[str], documents: Iterable[str]) -> None:
    """Refuse before any ranking ids that `write_run` cannot write.

    Raises:
        MAWError: an id is empty or holds white space.

    >>> check_run_ids(["q1"], ["d1", "d 2"])
    Traceback (most recent call last):
    ...
    maw.errors.MAWError: a document id must be one word in a run file, got 'd 2': the columns are separated by white \
space
    """
    for query in queries:
        _check_query(query)
    for document in documents:
        _check_word("a document id", document)


def read_run(path: str | os.PathLike[str], *, ties: Literal["rank", "score"] = "rank") -> dict[str, dict[str, float]]:
    """Read a run file: TREC, MS MARCO, or four columns under a header (forms: `maw.retrieval.ranking.run_lines`).

    Published files disagree with themselves: scores are rounded until many are equal, or even run against the ranks.
    `ties` says what to believe:

    - "rank": the rank column gives the order. A score that would break that order (see `ranked`) is lowered to
      the largest number that keeps it; a file from `write_run` comes back unchanged.
    - "score": the scores count as trec_eval reads them, rounded to single precision (float32). Those that are equal
      then are ordered by descending document id, and ranks are not read.

    A file in MS MARCO's form has ranks only; the score of rank r is then -r.

    Args:
        path: the file to read, in UTF-8; packed with gzip or not.
        ties: "rank" or "score".

    Returns:
        Query id -> document id -> score; queries in the file's order, documents best first.

    Raises:
        MAWError: no such file, a malformed line (named by file and line), a document twice in a query, or, where
            ranks are read, a rank twice in a query; `ties` is "score" and the file has none.
    """
    if ties not in ("rank", "score"):
        raise MAWError(f"ties must be 'rank' or 'score', got {ties!r}: choose which column gives the order")
    found: dict[str, dict[str, tuple[int, float]]] = {}
    ranks: dict[str, set[int]] = {}
    lines = tracked(run_lines(path, ranks=ties == "rank"), f"reading {Path(path).name}: lines")
    for number, query, document, rank, score in lines:
        documents, where = found.setdefault(query, {}), f"{path}, line {number}"
        if document in documents:
            raise MAWError(
                f"{where}: a document must come once a query, got {document!r} again for query "
                f"{query!r}: remove one of the lines"
            )
        if score is None and rank is None:
            raise MAWError(f"{where}: the file has ranks but no scores: its order can only be that of --ties rank")
        if rank is not None:
            taken = ranks.setdefault(query, set())
            if rank in taken:
                raise MAWError(
                    f"{where}: a rank must come once a query, got {rank} again for query {query!r}: "
                    "where the ranks of a file mean nothing, give --ties score"
                )
            taken.add(rank)
        known = -float(rank or 0) if score is None else score if ties == "rank" else _single(score)
        documents[document] = (rank or 0, known)
    if ties == "rank":
        rankings = tracked(found.items(), f"ordering {Path(path).name}: queries", len(found))
        return {query: _in_rank_order(documents) for query, documents in rankings}
    run = {query: {document: score for document, (_, score) in documents.items()} for query, documents in found.items()}
    return {query: {document: run[query][document] for document in order} for query, order in ranked(run).items()}


def _single(score: float) -> float:
    """The nearest number of single precision, as trec_eval keeps a score; beyond its range one that is larger than all.

    >>> _single(28.12345678) == _single(28.12345670), _single(1e39) == _single(1e40)
    (True, True)
    """
    single = ctypes.c_float(score).value
    return single if math.isfinite(single) else math.copysign(sys.float_info.max, score)


def _in_rank_order(documents: Mapping[str, tuple[int, float]]) -> dict[str, float]:
    """Scores in rank order, each lowered as little as the rule (score descending, id descending) needs."""
    result: dict[str, float] = {}
    previous, before = math.inf, ""
    for document in sorted(documents, key=lambda document: documents[document][0]):
        highest = previous if document < before else math.nextafter(previous, -math.inf)
        previous, before = min(documents[document][1], highest), document
        result[document] = previous
    return result


def _check_word(what: str, word: str) -> None:
    if problem := check_id(word):
        raise MAWError(f"{what} cannot be in a run file: {problem}")
    if word.split() != [word]:
        raise MAWError(f"{what} must be one word in a run file, got {word!r}: the columns are separated by white space")


def _check_query(query: str) -> None:
    _check_word("a query id", query)
    if query.startswith("#"):
        raise MAWError(
            f"a query id must not begin with #, which begins a comment in a run file, got {query!r}: rename it"
        )


def _host(array: np.ndarray | Tensor) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()
