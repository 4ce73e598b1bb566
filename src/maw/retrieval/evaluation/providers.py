"""Values of measures per query, by the programs that ir-measures brings together; what they cannot do is said here.

Each program computes its own measures, and only those: where several are asked together, ir-measures gives queries
that one of them leaves out the value 0 (the mean of Accuracy depends on whether AP is asked for beside it). Queries are
numbered for them, and documents for gdeval, which reads numbers only and takes `2020-1` and `2021-1` for one query.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from maw.errors import MAWError

__all__ = ["check_computable", "check_judgements", "counts_in_all", "values_per_query"]

Judgements = Mapping[str, Mapping[str, int]]

LARGEST_CUTOFF = 10**9
GDEVAL_GRADE = 4
"""The highest grade that gdeval takes; its ERR divides by 2 to the power of it."""


class _Group(NamedTuple):
    """Measures that one program computes at once."""

    program: Any
    measures: list[Any]


def check_computable(name: str, measure: Any) -> None:
    """Refuse a measure that no installed program computes, or whose parameters make no sense.

    Args:
        name: as it was typed.
        measure: what ir-measures makes of it.

    Raises:
        MAWError: the message names the measure and what it lacks.
    """
    _check_parameters(name, measure)
    _groups({name: measure})


def check_judgements(measures: Mapping[str, Any], judged: Judgements) -> None:
    """Refuse before any ranking measures that cannot be computed for these judgements.

    All programs are tried on a ranking of the judged documents.

    Raises:
        MAWError: a program fails, or a grade is too high for it.
    """
    tried = {query: list(row) for query, row in judged.items() if row}
    for group in _groups(measures):
        _values(group, {query: judged[query] for query in tried}, tried)


def values_per_query(
    measures: Mapping[str, Any], judged: Judgements, rankings: Mapping[str, Sequence[str]]
) -> Iterable[tuple[str, str, float]]:
    """Yield (name, query, value) for all measures and judged queries; a query without a value is left out.

    Args:
        measures: name -> ir-measures' measure.
        judged: query id -> document id -> grade, no row empty.
        rankings: query id -> document ids, best first, for queries that are judged.

    Raises:
        MAWError: a program fails.
    """
    names = {measure: name for name, measure in measures.items()}
    for group in _groups(measures):
        for measure, query, value in _values(group, judged, rankings):
            yield names[measure], query, value


def counts_in_all(measure: Any) -> bool:
    """Whether a measure counts something in all queries together, as NumRet does, so that it has a sum and no mean."""
    import ir_measures

    return isinstance(measure.aggregator(), ir_measures.SumAgg)


def _check_parameters(name: str, measure: Any) -> None:
    known = measure.SUPPORTED_PARAMS
    for given, value in measure.params.items():
        if given not in known:
            has = ", ".join(known) or "none"
            raise MAWError(f"the measure {name} has no parameter {given}: those of {measure.NAME} are: {has}")
        least, most = {"cutoff": (1, LARGEST_CUTOFF), "rel": (1, LARGEST_CUTOFF), "recall": (0, 1)}.get(
            given, (-LARGEST_CUTOFF, LARGEST_CUTOFF)
        )
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not known[given].validate(value) or (number and not least <= value <= most):
            what = "rank after @" if given == measure.AT_PARAM and given == "cutoff" else f"parameter {given}"
            kind = {int: "a whole number", float: "a number such as 0.5"}.get(known[given].dtype, "another value")
            bounds = (
                f", {least} or more" if given in ("cutoff", "rel") else ", from 0 to 1" if given == "recall" else ""
            )
            raise MAWError(
                f"the measure {name} cannot have the {what} {value}, wanted {kind}{bounds} ({known[given].desc})"
            )
    for needed, about in known.items():
        if about.required and needed not in measure.params:
            example = (
                f"{measure.NAME}@10" if needed == measure.AT_PARAM == "cutoff" else f"{measure.NAME}({needed}=...)"
            )
            raise MAWError(f"the measure {name} needs {needed} ({about.desc}): write {example}")


def _groups(measures: Mapping[str, Any]) -> list[_Group]:
    """Which program computes what; the first that can, in ir-measures' order."""
    import ir_measures

    found: dict[Any, _Group] = {}
    for name, measure in measures.items():
        able = [program for program in ir_measures.DefaultPipeline.providers if program.supports(measure)]
        program = next((one for one in able if one.is_available()), None)
        if program is None:
            more = [hint.splitlines()[-1].strip() for one in able if (hint := one.install_instructions())]
            advice = f"to have one: {' or: '.join(more)}" if more else "check its spelling and parameters"
            raise MAWError(f"no installed program computes the measure {name}: {advice}")
        # ir-measures computes counts with whatever other settings it meets first, and Accuracy is computed by itself
        key = (program.NAME, name if counts_in_all(measure) or program.NAME == "accuracy" else "")
        found.setdefault(key, _Group(program, [])).measures.append(measure)
    return list(found.values())


def _values(
    group: _Group, judged: Judgements, rankings: Mapping[str, Sequence[str]]
) -> Iterable[tuple[Any, str, float]]:
    names = ", ".join(map(str, group.measures))
    if group.program.NAME == "gdeval":
        _check_grades(names, judged)
        judged, rankings = _numbered(judged, rankings)
    if group.program.NAME == "accuracy":
        rankings = _with_pairs(group.measures[0], judged, rankings)
    queries = list(judged)
    numbers = {query: str(number) for number, query in enumerate(queries, start=1)}
    qrels = {numbers[query]: dict(row) for query, row in judged.items()}
    run = {
        numbers[query]: {document: float(len(found) - place) for place, document in enumerate(found)}
        for query, found in rankings.items()
    }
    try:
        computed = list(group.program.evaluator(group.measures, qrels).iter_calc(run))
    except Exception as error:  # programs of others: whatever they raise, the user learns which measure it was
        raise MAWError(
            f"{names} cannot be computed for these judgements: {group.program.NAME}, which computes it, stopped with: "
            f"{error}"
        ) from error
    of_number = dict(zip(numbers.values(), queries, strict=True))
    return [
        (metric.measure, of_number[metric.query_id], float(metric.value))
        for metric in computed
        if metric.query_id in of_number
    ]


def _check_grades(names: str, judged: Judgements) -> None:
    for query, row in judged.items():
        for document, grade in row.items():
            if grade > GDEVAL_GRADE:
                raise MAWError(
                    f"{names} is computed by gdeval, which takes grades up to {GDEVAL_GRADE}, got {grade} for query "
                    f"{query!r} and document {document!r}: map the grades first, or leave this measure out"
                )


def _numbered(
    judged: Judgements, rankings: Mapping[str, Sequence[str]]
) -> tuple[Judgements, Mapping[str, Sequence[str]]]:
    """The same with numbers for document ids, which go through files with columns."""
    renamed, ranked = {}, {}
    for query, row in judged.items():
        names = dict.fromkeys([*row, *rankings.get(query, ())])
        numbers = {document: str(number) for number, document in enumerate(names)}
        renamed[query] = {numbers[document]: grade for document, grade in row.items()}
        if query in rankings:
            ranked[query] = [numbers[document] for document in rankings[query]]
    return renamed, ranked


def _with_pairs(measure: Any, judged: Judgements, rankings: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
    """The rankings in which a document that is not relevant was found: without one there is no pair to be in order."""
    cutoff, least = measure.params.get("cutoff"), measure["rel"]
    return {
        query: found
        for query, found in rankings.items()
        if any(judged[query].get(document, 0) < least for document in found[:cutoff])
    }
