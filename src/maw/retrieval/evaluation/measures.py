"""A run and its relevance judgements -> measures, by the programs that ir-measures brings together.

The order of a ranking: score descending, then document id descending (as strings). This is trec_eval's rule, behind
most published figures; duplicate documents make it matter (NFCorpus has 40: all-MiniLM-L6-v2 gets nDCG@10 .3159 with
it and .3167 with ascending ids). Programs differ, and trec_eval keeps scores in float32, so that 1.00000001 and 1.0
are equal to it. So a run is ranked here and reaches every program with the scores n, n - 1, ..., 1, which all of them
read alike; where a run file is to be read as trec_eval does, `maw.retrieval.ranking.runs.read_run` rounds its scores.

Which queries count: every judged query, as in `trec_eval -c` and in ir-measures. One for which nothing was retrieved
has the value 0; plain trec_eval leaves it out, which flatters a run that answers only the queries it can. One without
a relevant document has 0 too in all measures of relevant documents, because no ranking could do better. Retrieved
queries without judgements are ignored, as everywhere. `Evaluation` says how many queries of each kind there were.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maw.errors import MAWError
from maw.progress import tracked
from maw.retrieval.evaluation.providers import check_computable, check_judgements, counts_in_all, values_per_query
from maw.retrieval.ranking.runs import Run, ranked

__all__ = [
    "DEFAULT_MEASURES",
    "Evaluation",
    "check_measures",
    "default_measures",
    "evaluate",
    "grade_counted",
    "split_measures",
    "with_grade",
]

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
        means: measure -> mean over the queries that count; for NumQ, NumRel and NumRet the sum.
        per_query: measure -> query id -> value, for the queries that count, in the order of the judgements. Accuracy
            alone has no value for some: those for which no relevant document, or nothing else, was found.
        queries: how many queries count: those that are judged.
        not_retrieved: how many of these have no retrieved document and count with 0.
        without_relevant: how many of these have no relevant document.
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
        measures: names as ir-measures reads them, such as "nDCG@10", "R@100", "AP" or, with another threshold for
            what is relevant, "R(rel=2)@100". "MRR" and "RR" are the same, and the result says "MRR".

    Returns:
        Means and values per query under ir-measures' spelling of each name, with "MRR" for "RR".

    Raises:
        MAWError: no measure or one that cannot be computed, no relevant document at all, an empty run, no query in
            both, a score that is not finite, or a measure that has a value for no query.

    Source: Järvelin and Kekäläinen (2002), doi 10.1145/582415.582418, for nDCG; trec_eval for the others.

    Example:
        >>> qrels = {"q1": {"a": 2, "b": 1}, "q2": {"c": 1}}
        >>> result = evaluate(qrels, {"q1": {"a": 0.5, "x": 0.7}}, measures=["MRR@10", "R@100"])
        >>> result.means, result.not_retrieved
        ({'MRR@10': 0.25, 'R@100': 0.25}, 1)
    """
    parsed = _parse(measures)
    judged = {query: row for query, row in qrels.items() if row}
    relevant = sum(any(grade >= 1 for grade in row.values()) for row in judged.values())
    if not relevant:
        raise MAWError(
            f"judgements must name at least one relevant document (grade 1 or more), got none in {len(qrels)} queries: "
            "check that these are the judgements of the split you want"
        )
    if not any(run.values()):
        raise MAWError("the run must hold at least one retrieved document, got none: search first, then evaluate")
    common = [query for query in judged if run.get(query)]
    if not common:
        raise MAWError(
            f"the run and the judgements must share queries, got none in common (run: {_first(run)}; judgements: "
            f"{_first(judged)}): check that both use the same query ids"
        )
    asked = tracked(common, "evaluating: queries", len(common))
    order = {query: ranked({query: run[query]})[query] for query in asked}
    values: dict[str, dict[str, float]] = {name: {} for name in parsed}
    computing = values_per_query(parsed, judged, order)
    for name, query, value in tracked(computing, "evaluating: values", len(parsed) * len(judged)):
        values[name][query] = value
    per_query = {name: {query: found[query] for query in judged if query in found} for name, found in values.items()}
    for name, found in per_query.items():
        if not found:
            raise MAWError(f"the measure {name} has a value for none of the {len(judged)} judged queries: leave it out")
    return Evaluation(
        means={
            name: math.fsum(found.values()) / (1 if counts_in_all(parsed[name]) else len(found))
            for name, found in per_query.items()
        },
        per_query=per_query,
        queries=len(judged),
        not_retrieved=len(judged) - len(common),
        without_relevant=len(judged) - relevant,
        not_judged=sum(query not in judged for query in run),
    )


def check_measures(measures: Sequence[str], qrels: Mapping[str, Mapping[str, int]] | None = None) -> None:
    """Refuse before any ranking what `evaluate` would refuse after it.

    Args:
        measures: as in `evaluate`.
        qrels: the judgements, where they are known already: every measure is tried on them.

    Raises:
        MAWError: no measure, one that is not known, or one that no installed program computes (for these judgements).

    >>> check_measures(["nDCG@10", "Foo@3"])
    Traceback (most recent call last):
    ...
    maw.errors.MAWError: there is no measure 'Foo@3': write one as ir-measures does, for instance nDCG@10, MRR@10, \
R@100, R@1000, AP
    """
    parsed = _parse(measures)
    if qrels is not None:
        check_judgements(parsed, qrels)


def with_grade(measures: Sequence[str], relevant_grade: int) -> tuple[str, ...]:
    """Let measures count a document as relevant from a grade on, where they know relevance and not grades.

    Args:
        measures: as in `evaluate`; one that names its own `rel` must name this grade.
        relevant_grade: 1 or more.

    Raises:
        MAWError: the grade is below 1, no measure depends on it, or one names another.

    >>> with_grade(["nDCG@10", "AP@100", "MRR@10"], 2)
    ('nDCG@10', 'AP(rel=2)@100', 'MRR(rel=2)@10')
    """
    default_measures(relevant_grade)
    parsed = _parse(measures)
    for name, measure in parsed.items():
        if (own := measure.params.get("rel", relevant_grade)) != relevant_grade:
            raise MAWError(
                f"{name} counts grade {own} or more as relevant, but the grade asked for is {relevant_grade}: leave "
                "out one of the two"
            )
    if not any(map(_takes_grade, parsed.values())):
        raise MAWError(
            f"a grade from which on documents are relevant changes nothing for {', '.join(parsed)}, which "
            f"{'takes' if len(parsed) == 1 else 'take'} the grades as they are: leave it out, or ask for other measures"
        )
    new = [measure(rel=relevant_grade) if _takes_grade(measure) else measure for measure in parsed.values()]
    return tuple(map(_spelling, new))


def grade_counted(measures: Sequence[str]) -> dict[str, int]:
    """Measure -> the grade from which on it counts documents as relevant, for those that do.

    >>> grade_counted(["nDCG@10", "AP", "R(rel=2)@100"])
    {'AP': 1, 'R(rel=2)@100': 2}
    """
    return {name: measure["rel"] for name, measure in _parse(measures).items() if _takes_grade(measure)}


def split_measures(names: str) -> list[str]:
    """The names in a list with commas; a comma inside brackets belongs to its name.

    >>> split_measures("nDCG@10, R(rel=2,judged_only=True)@100")
    ['nDCG@10', 'R(rel=2,judged_only=True)@100']
    """
    return [name.strip() for name in re.split(r",(?![^(]*\))", names) if name.strip()]


def _parse(measures: Sequence[str]) -> dict[str, Any]:
    """Output name -> ir-measures' measure, which can be computed."""
    import ir_measures

    if isinstance(measures, str) or not measures:
        raise MAWError(f"name one or more measures, got {', '.join(measures) or 'none'}: for instance nDCG@10")
    parsed = {}
    for name in measures:
        try:
            measure = ir_measures.parse_measure(name)
        except (NameError, ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
            raise MAWError(
                f"there is no measure {name!r}: write one as ir-measures does, for instance "
                f"{', '.join(DEFAULT_MEASURES)}"
            ) from error
        check_computable(name, measure)
        parsed[_spelling(measure)] = measure
    return parsed


def _takes_grade(measure: Any) -> bool:
    """Whether a grade decides what is relevant; NumRet without one counts all that was retrieved."""
    return "rel" in measure.SUPPORTED_PARAMS and isinstance(measure["rel"], int)


def _spelling(measure: Any) -> str:
    spelling = str(measure)
    return "M" + spelling if spelling.startswith("RR") else spelling


def _first(ids: Mapping[str, object]) -> str:
    return ", ".join(repr(name) for name in list(ids)[:3])
