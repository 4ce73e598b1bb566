"""A run and its relevance judgements -> measures, by ir_measures.

The order of a ranking: score descending, then document id descending (as strings). This is trec_eval's rule, behind
most published figures; duplicate documents make it matter (NFCorpus has 40: all-MiniLM-L6-v2 gets nDCG@10 .3159 with
it and .3167 with ascending ids). Programs differ, and trec_eval reads scores as float32, so that 1.00000001 and 1.0 are
equal to it. So a run is ranked here and reaches every provider with the scores n, n - 1, ..., 1, which all of them
read alike.

Which queries count: every query with at least one document judged 1 or higher. A query for which nothing was retrieved
counts with the value 0, as it does in `trec_eval -c`; plain trec_eval leaves it out, which flatters a run that answers
only the queries it can. A query whose judgements are all 0 or lower is left out of the mean, because no ranking could
score above 0 on it; trec_eval counts it with 0. Retrieved queries without judgements are ignored, as everywhere.
`Evaluation` says how many queries of each kind there were.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maw.errors import MAWError
from maw.progress import tracked
from maw.retrieval.ranking.runs import Run, ranked

__all__ = ["DEFAULT_MEASURES", "Evaluation", "check_measures", "default_measures", "evaluate", "split_measures"]


DEFAULT_MEASURES = ("nDCG@10", "MRR@10", "R@100", "R@1000", "AP")
"""nDCG takes the grades as gains; the others count a grade of 1 or more as relevant."""


def default_measures(relevant_grade: int = 1) -> tuple[str, ...]:
    """The default measures, with those that know no grades counting a document as relevant from a grade on.

    TREC Deep Learning's passage task counts grade 2 and above.

    >>> default_measures(2)
    ('nDCG@10', 'MRR(rel=2)@10', 'R(rel=2)@100', 'R(rel=2)@1000', 'AP(rel=2)')
    """
    if relevant_grade < 1:
        raise MAWError(f"the grade from which on a document is relevant must be at least 1, got {relevant_grade}")
    if relevant_grade == 1:
        return DEFAULT_MEASURES
    parts = [name.partition("@") for name in DEFAULT_MEASURES]
    return tuple(
        name + at + cut if name == "nDCG" else f"{name}(rel={relevant_grade}){at}{cut}" for name, at, cut in parts
    )


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
    asked = tracked(common, "evaluating: queries", len(common))
    order = {query: ranked({query: run[query]})[query] for query in asked}
    ranks = {
        query: {document: float(len(documents) - place) for place, document in enumerate(documents)}
        for query, documents in order.items()
    }
    try:
        computing = ir_measures.iter_calc(list(parsed.values()), relevant, ranks)
        calculated = list(tracked(computing, "evaluating: values", len(parsed) * len(common)))
    except ValueError as error:  # a measure that no installed provider computes
        raise _not_computable(parsed, error) from error
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


def check_measures(measures: Sequence[str]) -> None:
    """Refuse before any work what `evaluate` would refuse after it.

    Raises:
        MAWError: no measure, one that ir_measures does not know, or one that no installed provider computes.

    >>> check_measures(["nDCG@10", "Foo@3"])
    Traceback (most recent call last):
    ...
    maw.errors.MAWError: a measure must be one that ir_measures knows, got 'Foo@3' (measure not found: Foo): for \
instance nDCG@10, MRR@10, R@100, R@1000, AP
    """
    import ir_measures

    parsed = _parse(measures)
    try:
        ir_measures.evaluator(list(parsed.values()), {"1": {"1": 1}})
    except ValueError as error:
        raise _not_computable(parsed, error) from error


def split_measures(names: str) -> list[str]:
    """The names in a list with commas; a comma inside brackets belongs to its name.

    >>> split_measures("nDCG@10, R(rel=2,judged_only=True)@100")
    ['nDCG@10', 'R(rel=2,judged_only=True)@100']
    """
    return [name.strip() for name in re.split(r",(?![^(]*\))", names) if name.strip()]


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


def _not_computable(parsed: Mapping[str, Any], error: ValueError) -> MAWError:
    return MAWError(f"the measures {', '.join(parsed)} must be computable, got: {error}")


def _first(ids: Mapping[str, object]) -> str:
    return ", ".join(repr(name) for name in list(ids)[:3])
