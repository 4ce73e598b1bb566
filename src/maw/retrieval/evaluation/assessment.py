"""From a model or a run file to measures, with what was counted on the way: the work behind `maw evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from maw.errors import MAWError
from maw.hf.weights import HALF, weights_type
from maw.io.atomic import write_whole
from maw.retrieval.data.checks import lacking
from maw.retrieval.data.judgements import read_judgements
from maw.retrieval.evaluation.measures import (
    Evaluation,
    check_measures,
    default_measures,
    evaluate,
    grade_counted,
    with_grade,
)
from maw.retrieval.ranking.run_lines import find_line
from maw.retrieval.ranking.runs import Run, read_run, without_own
from maw.retrieval.ranking.truncation import dataset_truncation

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from maw.retrieval.data.dataset import RetrievalDataset

__all__ = ["Assessment", "assess_model", "assess_run", "check_per_query_file", "dense_rankings", "write_per_query"]


@dataclass(frozen=True)
class Assessment:
    """Measures, the run they belong to, and what was counted, a line each."""

    evaluation: Evaluation
    run: Run
    notes: list[str]


def dense_rankings(
    model: SentenceTransformer,
    dataset: RetrievalDataset,
    splits: Sequence[str],
    *,
    k: int = 1000,
    show_progress: bool = False,
) -> dict[str, Run]:
    """The k best documents of every query of the splits; without the query's own where the collection asks for it.

    Args:
        model: the encoder.
        dataset: what is searched; its `drop_own` says whether a query's own document is left out.
        splits: evaluation splits.
        k: how many documents a query.
        show_progress: whether to draw progress bars.

    Returns:
        Split -> run.
    """
    from maw.retrieval.ranking.dense import dense_runs

    queries = {split: dataset.evaluation_split(split)[0] for split in splits}
    more = int(dataset.drop_own)
    runs = dense_runs(model, dataset.documents, queries, k=k + more, show_progress=show_progress)
    return {split: without_own(run, k) for split, run in runs.items()} if more else runs


def assess_model(
    model: SentenceTransformer,
    dataset: RetrievalDataset,
    split: str,
    *,
    measures: Sequence[str] | None = None,
    relevant_grade: int | None = None,
    show_progress: bool = False,
) -> Assessment:
    """Rank the documents for every query of a split and evaluate the ranking.

    Args:
        model: the encoder.
        dataset: documents, queries and judgements.
        split: an evaluation split.
        measures: names as `maw.retrieval.evaluation.measures.evaluate` reads them; None takes the usual ones.
        relevant_grade: the grade from which on a document is relevant to measures without grades; None is what the
            data set says for the usual measures, and leaves measures that are named as they are.
        show_progress: whether to draw progress bars.

    Raises:
        MAWError: no such split, or a measure that cannot be computed; nothing has then been ranked.
    """
    judged = dataset.judgements(split)
    names = _chosen(measures, relevant_grade, dataset.relevant_grade.get(split, 1))
    check_measures(names, judged)
    run = dense_rankings(model, dataset, [split], show_progress=show_progress)[split]
    evaluation = evaluate(judged, run, names)
    notes = [f"{evaluation.queries} queries of {split}, {len(dataset.documents)} documents"]
    if (computed := weights_type(model)) in HALF:
        notes.append(f"the model was computed in {computed}, the type of its weights; vectors were compared in float32")
    notes += map(str, dataset_truncation(model, dataset.evaluation_split(split)[0], dataset.documents))
    return Assessment(evaluation, run, notes + _notes(evaluation, judged))


def assess_run(
    path: Path,
    *,
    qrels: Path | None = None,
    dataset: RetrievalDataset | None = None,
    split: str | None = None,
    ties: Literal["rank", "score"] = "rank",
    measures: Sequence[str] | None = None,
    relevant_grade: int | None = None,
    drop_own: bool = False,
) -> Assessment:
    """Evaluate a run file.

    Args:
        path: the run, in a form that `maw.retrieval.ranking.runs.read_run` reads.
        qrels: a file of judgements (`maw.retrieval.data.judgements`); None takes those of `split`.
        dataset: the collection that was searched. Where it is given, every id of the run must be in it, and judged
            documents that it lacks are counted.
        split: whose judgements to take where there is no file.
        ties: which column gives the order, "rank" or "score".
        measures, relevant_grade: as in `assess_model`.
        drop_own: leave out a document with the query's own id.

    Raises:
        MAWError: neither judgements nor a data set, a file that cannot be read (by file and line), an id of the run
            that the collection does not have, or no query in both.
    """
    run: Run = read_run(path, ties=ties)
    if qrels is not None:
        judged: Mapping[str, Mapping[str, int]] = read_judgements(qrels, {}, "").grades
        source = str(qrels)
    elif dataset is not None:
        split = split or dataset.default_split
        judged, source = dataset.judgements(split), f"the split {split} of {dataset.name}"
    else:
        raise MAWError("a run needs judgements: give --qrels FILE, or --dataset with the collection it is of")
    names = _chosen(measures, relevant_grade, 1 if dataset is None else dataset.relevant_grade.get(split or "", 1))
    if run and not any(query in judged for query in run):
        first = next(iter(run))
        raise MAWError(
            f"{path}, line {find_line(path, first)}: no query of the run is judged in {source} (the run has {first!r}, "
            f"the judgements {next(iter(judged))!r}): check that both are of the same queries"
        )
    notes = []
    if dataset is not None:
        _check_known(path, run, dataset)
        gone = lacking(dataset.documents, (document for row in judged.values() for document in row))
        notes = [f"{len(gone)} judgements name documents that {dataset.name} lacks"] if gone else []
    if drop_own or (dataset is not None and dataset.drop_own):
        run = without_own(run)
    try:
        evaluation = evaluate(judged, run, names)
    except MAWError as error:
        raise MAWError(f"{path} by {source}: {error}") from error
    return Assessment(
        evaluation, run, [f"{evaluation.queries} queries judged in {source}", *_notes(evaluation, judged), *notes]
    )


def _chosen(measures: Sequence[str] | None, relevant_grade: int | None, usual_grade: int) -> tuple[str, ...]:
    """The measures asked for, or the usual ones, with the grade from which on documents are relevant to them."""
    if measures is None:
        return default_measures(usual_grade if relevant_grade is None else relevant_grade)
    return tuple(measures) if relevant_grade is None else with_grade(measures, relevant_grade)


def write_per_query(path: Path, evaluation: Evaluation) -> None:
    """Write a table with a line a query and a column a measure, separated by tabs; aside, then renamed.

    Where a measure has no value for a query, its column is empty.

    Raises:
        MAWError: the folder does not exist, or the file cannot be written.
    """
    check_per_query_file(path)
    names = list(evaluation.per_query)
    rows = (
        [query, *(repr(row[query]) if query in row else "" for row in evaluation.per_query.values())]
        for query in dict.fromkeys(query for row in evaluation.per_query.values() for query in row)
    )
    lines = ["\t".join(row) for row in (["query-id", *names], *rows)]
    write_whole(path, [("\n".join(lines) + "\n").encode()])


def check_per_query_file(path: Path) -> None:
    """Refuse before any ranking a place in which `write_per_query` cannot write.

    Raises:
        MAWError: the folder does not exist, or the path is itself a folder.
    """
    if not path.parent.is_dir():
        raise MAWError(f"the file of values per query needs a folder that exists, got {str(path)!r}: create it first")
    if path.is_dir():
        raise MAWError(f"the values per query must go into a file, got the folder {str(path)!r}: give a name in it")


def _check_known(path: Path, run: Run, dataset: RetrievalDataset) -> None:
    if unknown := lacking(dataset.queries, run):
        line = find_line(path, unknown[0])
        raise MAWError(f"{path}, line {line}: query {unknown[0]!r} is not among the queries of {dataset.name}")
    unknown_documents = set(lacking(dataset.documents, (document for row in run.values() for document in row)))
    if unknown_documents:
        pair = next((query, name) for query, row in run.items() for name in row if name in unknown_documents)
        raise MAWError(
            f"{path}, line {find_line(path, *pair)}: document {pair[1]!r} is not in the collection {dataset.name}: the "
            "run is of another one"
        )


def _notes(evaluation: Evaluation, judged: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What was counted, and where there are several grades, which of them were relevant to which measures."""
    found = (
        (evaluation.not_retrieved, "of them have no retrieved document and count with 0"),
        (evaluation.without_relevant, "of them have no relevant document and count, as in trec_eval -c"),
        (evaluation.not_judged, "queries of the run have no judgements and are ignored"),
    )
    notes = [f"{number} {words}" for number, words in found if number]
    for name, values in evaluation.per_query.items():
        if len(values) < evaluation.queries:
            notes.append(f"{name} is over {len(values)} queries: it has no value for the others")
    highest = max(grade for row in judged.values() for grade in row.values())
    counted = grade_counted(list(evaluation.means))
    for grade in sorted(set(counted.values()) if highest > 1 else {*counted.values()} - {1}):
        names = ", ".join(name for name, least in counted.items() if least == grade)
        advice = "" if grade > 1 else " (TREC DL passages count 2 or more: --relevant-grade 2)"
        notes.append(f"grades go up to {highest}; {names}: grade {grade} or more counts as relevant{advice}")
    return notes
