"""A run and its relevance judgements -> measures, by ir_measures; run files in the TREC format.

The order of a ranking: score descending, then document id ascending (as strings). Programs differ here: trec_eval sorts
equal scores by document id *descending* and reads scores as float32, so that 1.00000001 and 1.0 are equal to it; other
providers sort otherwise. So a run is ranked here and reaches every provider with the scores n, n - 1, ..., 1, which all
of them read alike.

Which queries count: every query with at least one document judged 1 or higher. A query for which nothing was retrieved
counts with the value 0, as it does in `trec_eval -c`; plain trec_eval leaves it out, which flatters a run that answers
only the queries it can. A query whose judgements are all 0 or lower is left out of the mean, because no ranking could
score above 0 on it; trec_eval counts it with 0. Retrieved queries without judgements are ignored, as everywhere.
`Evaluation` says how many queries of each kind there were.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from maw.errors import MAWError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DEFAULT_MEASURES", "Evaluation", "Run", "evaluate", "rank_documents", "ranked", "read_run", "write_run"]

Run: TypeAlias = Mapping[str, Mapping[str, float]]
"""Query id -> document id -> score; higher is better."""

DEFAULT_MEASURES = ("nDCG@10", "MRR@10", "R@100", "R@1000", "AP")
"""nDCG takes the grades as gains; the others count a grade of 1 or more as relevant."""


@dataclass(frozen=True)
class Evaluation:
    """The measures of one run: per query, their means, and how many queries there were of each kind.

    Attributes:
        means: measure -> mean over the queries that count.
        per_query: measure -> query id -> value, for the queries that count, in the order of the judgements.
        queries: how many queries count: those with at least one relevant document.
        not_retrieved: how many of these have no retrieved document and count with 0.
        without_relevant: how many judged queries have no relevant document and are left out.
        not_judged: how many queries of the run have no judgement and are ignored.
    """

    means: dict[str, float]
    per_query: dict[str, dict[str, float]]
    queries: int
    not_retrieved: int
    without_relevant: int
    not_judged: int


def evaluate(
    qrels: Mapping[str, Mapping[str, int]], run: Run, measures: Sequence[str] = DEFAULT_MEASURES
) -> Evaluation:
    """Evaluate a run against relevance judgements.

    nDCG@k = DCG@k / ideal DCG@k with DCG@k = sum_{r <= k} grade_r / log2(r + 1) (linear gain, as in trec_eval);
    MRR@k = mean of 1 / rank of the first relevant document, 0 where it is beyond rank k; R@k = relevant documents in
    the first k / all relevant ones; AP = mean over the relevant documents of the precision at their ranks, 0 for those
    not retrieved. The module's first lines state the order of equal scores and which queries count.

    Args:
        qrels: query id -> document id -> grade; a document not named is not relevant.
        run: query id -> document id -> score.
        measures: names as ir_measures reads them, such as "nDCG@10", "R@100", "AP" or, with another threshold for
            what is relevant, "R(rel=2)@100". "MRR" and "RR" are the same, and the result says "MRR".

    Returns:
        Means and values per query under ir_measures' spelling of each name, with "MRR" for "RR".

    Raises:
        MAWError: no measure or one that ir_measures does not know, no relevant document at all, an empty run, no query
            in both, or a score that is not finite.

    Source: Järvelin and Kekäläinen (2002), doi 10.1145/582415.582418, for nDCG; trec_eval for the others.

    Example:
        >>> qrels = {"q1": {"a": 2, "b": 1}, "q2": {"c": 1}}
        >>> result = evaluate(qrels, {"q1": {"a": 0.5, "x": 0.7}}, measures=["MRR@10", "R@100"])
        >>> result.means, result.not_retrieved
        ({'MRR@10': 0.25, 'R@100': 0.25}, 1)
    """
    import ir_measures

    parsed = _parse(measures)
    relevant = {query: dict(grades) for query, grades in qrels.items() if any(grade >= 1 for grade in grades.values())}
    if not relevant:
        raise MAWError(
            f"judgements must name at least one relevant document (grade 1 or more), got none in {len(qrels)} queries: "
            "check that these are the judgements of the split you want"
        )
    if not any(run.values()):
        raise MAWError("the run must hold at least one retrieved document, got none: search first, then evaluate")
    common = [query for query in relevant if run.get(query)]
    if not common:
        raise MAWError(
            f"the run and the judgements must share queries, got none in common (run: {_first(run)}; judgements: "
            f"{_first(relevant)}): check that both use the same query ids"
        )
    order = ranked({query: run[query] for query in common})
    ranks = {
        query: {document: float(len(documents) - place) for place, document in enumerate(documents)}
        for query, documents in order.items()
    }
    try:
        calculated = list(ir_measures.iter_calc(list(parsed.values()), relevant, ranks))
    except ValueError as error:  # a measure that no installed provider computes
        raise MAWError(f"the measures {', '.join(parsed)} must be computable, got: {error}") from error
    names = {measure: name for name, measure in parsed.items()}
    per_query = {name: dict.fromkeys(relevant, 0.0) for name in parsed}
    for metric in calculated:
        per_query[names[metric.measure]][metric.query_id] = float(metric.value)
    return Evaluation(
        means={name: math.fsum(values.values()) / len(values) for name, values in per_query.items()},
        per_query=per_query,
        queries=len(relevant),
        not_retrieved=len(relevant) - len(common),
        without_relevant=len(qrels) - len(relevant),
        not_judged=sum(query not in qrels for query in run),
    )


def ranked(run: Run) -> dict[str, list[str]]:
    """Order the documents of every query: score descending, then document id ascending.

    Args:
        run: query id -> document id -> score.

    Returns:
        Query id -> document ids, best first, with the queries in the run's order.

    Raises:
        MAWError: a score is NaN or infinite.

    Example:
        >>> ranked({"q": {"b": 1.0, "a": 1.0, "c": 2.0}})
        {'q': ['c', 'a', 'b']}
    """
    for query, documents in run.items():
        for document, score in documents.items():
            if not math.isfinite(score):
                raise MAWError(
                    f"scores must be finite, got {score} for query {query!r} and document {document!r}: a document "
                    "that was not retrieved is left out of the run"
                )
    return {
        query: sorted(documents, key=lambda document: (-documents[document], document))
        for query, documents in run.items()
    }


def rank_documents(
    query_ids: Sequence[str],
    document_ids: Sequence[str],
    scores: np.ndarray | Tensor,
    indices: np.ndarray | Tensor,
) -> dict[str, dict[str, float]]:
    """Turn the positions that `maw.retrieval.search.search` returns into a run.

    `search` breaks ties by position and a run is ranked by id, so `document_ids` should be sorted: then both rules
    agree on which of several equal documents is the last one in.

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


def write_run(path: str | os.PathLike[str], run: Run, tag: str) -> None:
    """Write a run in the TREC format: `query Q0 document rank score tag`, one line a retrieved document.

    Lines are in rank order (see `ranked`), ranks count from 1, and a score is written so that reading it gives the same
    number. The file is written aside and then renamed, so that a reader never sees half of it. A query
    without retrieved documents has no line.

    Args:
        path: the file to write; one that exists is replaced.
        run: query id -> document id -> score.
        tag: the name of the system, without spaces.

    Raises:
        MAWError: an id or the tag is empty or holds white space (which the format cannot express), a score is not
            finite, or the folder does not exist.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise MAWError(f"the run file needs a folder that exists, got {str(target)!r}: create the folder first")
    lines = []
    _check_word("the tag", tag)
    for query, documents in ranked(run).items():
        _check_word("a query id", query)
        for rank, document in enumerate(documents, start=1):
            _check_word("a document id", document)
            lines.append(f"{query} Q0 {document} {rank} {float(run[query][document])!r} {tag}\n")
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with aside.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def read_run(path: str | os.PathLike[str], *, ties: Literal["rank", "score"] = "rank") -> dict[str, dict[str, float]]:
    """Read a run in the TREC format: `query Q0 document rank score tag`, separated by white space.

    Published files disagree with themselves: scores are rounded until many are equal, or even run against the ranks.
    `ties` says what to believe:

    - "rank": the rank column gives the order. A score that would break that order (see `ranked`) is lowered to
      the largest number that keeps it; a file from `write_run` comes back unchanged.
    - "score": the scores count as they are, equal ones are ordered by document id, and ranks are not read.

    Args:
        path: the file to read, in UTF-8; empty lines are skipped.
        ties: "rank" or "score".

    Returns:
        Query id -> document id -> score; queries in the file's order, documents best first.

    Raises:
        MAWError: no such file, a malformed line (named by file and line), a document twice in a query, or, where
            ranks are read, a rank twice in a query.
    """
    if ties not in ("rank", "score"):
        raise MAWError(f"ties must be 'rank' or 'score', got {ties!r}: choose which column gives the order")
    if not Path(path).is_file():
        raise MAWError(f"a run file must exist, got {str(path)!r}: check the path")
    found: dict[str, dict[str, tuple[int, float]]] = {}
    ranks: dict[str, set[int]] = {}
    with Path(path).open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}, line {number}"
            columns = _columns(raw, where)
            if not columns:
                continue
            query, _, document, rank_text, score_text, _ = columns
            score = _number(float, score_text, "score", where)
            rank = _number(int, rank_text, "rank", where) if ties == "rank" else 0
            documents = found.setdefault(query, {})
            if document in documents:
                raise MAWError(
                    f"{where}: a document must come once a query, got {document!r} again for query "
                    f"{query!r}: remove one of the lines"
                )
            if ties == "rank":
                taken = ranks.setdefault(query, set())
                if rank in taken:
                    raise MAWError(
                        f"{where}: a rank must come once a query, got {rank} again for query {query!r}: "
                        "read the file with ties='score' where its ranks mean nothing"
                    )
                taken.add(rank)
            documents[document] = (rank, score)
    if ties == "rank":
        return {query: _in_rank_order(documents) for query, documents in found.items()}
    run = {query: {document: score for document, (_, score) in documents.items()} for query, documents in found.items()}
    return {query: {document: run[query][document] for document in order} for query, order in ranked(run).items()}


def _columns(raw: bytes, where: str) -> list[str]:
    """The six columns of a line; none for an empty line."""
    try:
        columns = raw.decode("utf-8").split()
    except UnicodeDecodeError as error:
        raise MAWError(f"{where}: a run file must be UTF-8 text, got {error}: convert it first") from error
    if columns and len(columns) != 6:
        raise MAWError(
            f"{where}: wanted six columns (query Q0 document rank score tag), got {len(columns)}: check that this is a "
            "run file in the TREC format"
        )
    return columns


def _number(kind: type[int] | type[float], text: str, name: str, where: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if isinstance(value, float) and not math.isfinite(value):
        wanted = "a whole number" if kind is int else "a finite number"
        raise MAWError(f"{where}: the {name} must be {wanted}, got {text!r}: check that no column is missing")
    return value


def _in_rank_order(documents: Mapping[str, tuple[int, float]]) -> dict[str, float]:
    """Scores in rank order, each lowered as little as the rule (score descending, id ascending) needs."""
    result: dict[str, float] = {}
    previous, before = math.inf, ""
    for document in sorted(documents, key=lambda document: documents[document][0]):
        highest = previous if document > before else math.nextafter(previous, -math.inf)
        previous, before = min(documents[document][1], highest), document
        result[document] = previous
    return result


def _parse(measures: Sequence[str]) -> dict[str, Any]:
    """Output name -> ir_measures' measure."""
    import ir_measures

    if isinstance(measures, str) or not measures:
        raise MAWError(f"measures must be a list of one or more names, got {measures!r}: for instance ['nDCG@10']")
    parsed = {}
    for name in measures:
        try:
            measure = ir_measures.parse_measure(name)
        except (NameError, ValueError, SyntaxError, TypeError, KeyError) as error:
            raise MAWError(
                f"a measure must be one that ir_measures knows, got {name!r} ({error}): for instance "
                f"{', '.join(DEFAULT_MEASURES)}"
            ) from error
        spelling = str(measure)
        parsed["M" + spelling if spelling.startswith("RR") else spelling] = measure
    return parsed


def _check_word(what: str, word: str) -> None:
    if word.split() != [word]:
        raise MAWError(f"{what} must be one word in a run file, got {word!r}: the columns are separated by white space")


def _host(array: np.ndarray | Tensor) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()


def _first(ids: Mapping[str, object]) -> str:
    return ", ".join(repr(name) for name in list(ids)[:3])
