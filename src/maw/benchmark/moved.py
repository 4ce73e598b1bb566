"""The queries that a variant answers most differently from its twin: their texts and top passages, before and after.

The run files have ids only, so the few texts that the report shows are kept beside the results, in `moved.json`, when a
benchmark is finished. The file has texts of the data set: it is as free to pass on as those are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maw.benchmark.per_query import Pair, PerQuery, pair, read_per_query
from maw.io.atomic import write_json

if TYPE_CHECKING:
    from maw.retrieval.data.dataset import RetrievalDataset

__all__ = ["FILE", "SCHEMA", "check_entry", "cut", "write_moved"]

FILE, SCHEMA = "moved.json", 1
LETTERS = 320
"""Longer texts are cut."""
PASSAGES = 3
"""Passages shown of each ranking."""
RELEVANT = 2
"""Relevant documents whose ranks are shown, those with the highest grade first."""


def write_moved(folder: Path, comparisons: Sequence[Mapping[str, Any]], dataset: RetrievalDataset) -> None:
    """Write `moved.json` into a finished benchmark's folder.

    Args:
        folder: with `per_query.parquet` and `runs/`.
        comparisons: as in `results.json`.
        dataset: the texts and judgements.
    """
    values = read_per_query(folder / "per_query.parquet")
    entries = [_entry(folder, values, one, dataset) for one in comparisons]
    entries = [entry for entry in entries if entry is not None]
    shown = {
        document
        for entry in entries
        for query in entry["queries"]
        for document in (*(one["id"] for one in query["relevant"]), *query["before"]["top"], *query["after"]["top"])
    }
    texts = {document: cut(dataset.documents[document]) for document in sorted(shown) if document in dataset.documents}
    whole = {"schema": SCHEMA, "comparisons": entries, "documents": texts}
    write_json(folder / FILE, whole)


def cut(text: str) -> str:
    """The beginning of a text, with an ellipsis where there was more.

    >>> cut("short"), len(cut("long " * 100))
    ('short', 321)
    """
    return text if len(text) <= LETTERS else f"{text[:LETTERS]}…"


def check_entry(query: Mapping[str, Any]) -> None:
    """Raise KeyError or TypeError unless a query's entry, read from a file, has all that the report shows of it."""
    for side in (query["before"], query["after"]):
        float(side["value"]), float(side["mean"]), dict(side["top"])
    for document in query["relevant"]:
        before, after = document["ranks"]
        texts = document["id"], query["query_id"], query["text"]
        ranks = before, after, document["grade"], query["relevant_in_all"], query["seed"]
        if not all(isinstance(one, str) for one in texts) or not all(isinstance(one, int | None) for one in ranks):
            raise TypeError(f"query {query['query_id']!r} has a rank that is no number, or a text that is none")


def _entry(
    folder: Path, values: PerQuery, comparison: Mapping[str, Any], dataset: RetrievalDataset
) -> dict[str, Any] | None:
    names = {name: comparison[name] for name in ("variant", "baseline", "split", "metric")}
    compared = pair(values, **names)
    places = [] if compared is None else [place for those in compared.moved() for place in those]
    if compared is None or not places:
        return None
    rows = compared.typical_rows(places)
    queries = []
    for row in sorted(set(rows)):
        those = [place for place, own in zip(places, rows, strict=True) if own == row]
        wanted = {str(compared.queries[place]) for place in those}
        files = [_run_file(folder, names[one], compared.seeds[row], names["split"]) for one in ("baseline", "variant")]
        rankings = [_rankings(file, wanted) for file in files]
        queries += [_query(compared, place, row, rankings, names["split"], dataset) for place in those]
    return {**names, "queries": queries}


def _query(
    compared: Pair,
    place: int,
    row: int,
    rankings: Sequence[Mapping[str, Sequence[str]]],
    split: str,
    dataset: RetrievalDataset,
) -> dict[str, Any]:
    """What is kept of one query, with the rankings that the twin and the variant gave it in one seed."""
    name = str(compared.queries[place])
    judged = dataset.judgements(split)[name]
    ranks = [{document: rank for rank, document in enumerate(one.get(name, ()), start=1)} for one in rankings]
    grades = {document: grade for document, grade in judged.items() if grade > 0}
    lowest = 1 + max(map(len, ranks))
    best = sorted(grades, key=lambda one: (-grades[one], min(found.get(one, lowest) for found in ranks), one))
    relevant = [{"id": one, "grade": grades[one], "ranks": [found.get(one) for found in ranks]} for one in best]
    sides = {}
    for side, ranking, values in zip(("before", "after"), rankings, (compared.baseline, compared.variant), strict=True):
        top = list(ranking.get(name, ()))[:PASSAGES]
        sides[side] = {
            "value": float(values[row, place]),
            "mean": float(values[:, place].mean()),
            "top": {document: judged.get(document) for document in top},
        }
    return {
        "query_id": name,
        "text": cut(dataset.queries[name]),
        "seed": compared.seeds[row],
        **sides,
        "relevant": relevant[:RELEVANT],
        "relevant_in_all": len(relevant),
    }


def _run_file(folder: Path, variant: str, seed: int | None, split: str) -> Path:
    name = variant if seed is None else f"{variant}-seed{seed}"
    return folder / "runs" / f"{name}-{split.replace('/', '-')}.trec"


def _rankings(path: Path, wanted: Collection[str]) -> dict[str, list[str]]:
    """Query id -> document ids in rank order, of these queries alone; nothing where the run file was removed."""
    found: dict[str, list[str]] = {}
    if not path.is_file():
        return found
    start = {query.encode() for query in wanted}
    with path.open("rb") as file:
        for line in file:  # millions: only those that are wanted are taken apart
            if line.partition(b" ")[0] in start:
                query, _, document, *_ = line.decode().split()
                found.setdefault(query, []).append(document)
    return found
