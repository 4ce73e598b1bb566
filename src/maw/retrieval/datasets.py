"""Documents, queries and judgements of one retrieval task, the checks made on them, and seeded subsets.

Where the data come from is in `beir` (a folder of files) and `pydocs` (the running Python's standard library); both
hand their parts to `RetrievalDataset.from_parts`, so every data set goes through the same checks.

Relevant means a grade above 0. A text is compared with another after `normalise`. Seeded choices order ids by a
SHA-256 of (seed, purpose, id), so they depend neither on the order in files nor on the Python version, and a larger
choice contains the smaller one made with the same seed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations, islice
from pathlib import Path
from typing import Any

from maw.errors import MAWError

__all__ = ["RetrievalDataset", "load_dataset", "normalise", "render_report"]

Judgements = Mapping[str, Mapping[str, int]]
"""Query id -> document id -> grade."""

TRAIN = "train"


def normalise(text: str) -> str:
    """Return the form in which two texts count as the same: case folded, white space collapsed and stripped.

    >>> normalise("  What IS\\ta  depth? ")
    'what is a depth?'
    """
    return " ".join(text.casefold().split())


def relevant(grades: Mapping[str, int]) -> list[str]:
    """Return the ids of the documents with a grade above 0, in their order."""
    return [document for document, grade in grades.items() if grade > 0]


def seeded(ids: Iterable[str], seed: int, purpose: str) -> list[str]:
    """Return the ids in an order that depends on the seed, the purpose and the ids alone."""
    return sorted(ids, key=lambda name: hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest())


@dataclass(frozen=True)
class RetrievalDataset:
    """One retrieval task: what is searched, what is asked, and which answers were judged.

    Args:
        name: what the user typed to get it, for example "pydocs"; a subset says so here.
        documents: document id -> text (title and text joined by one space).
        queries: query id -> text.
        qrels: split -> query id -> document id -> grade.
        checksums: what was read -> its SHA-256.
        counts: what the checks found; serialisable as JSON.
        licence: the licence of the data, None where it is not stated.
        subset_of: the name of the data set this is a subset of, None where it is whole.

    Make one with `load_dataset` or `from_parts`: the plain constructor checks nothing.
    """

    name: str
    documents: Mapping[str, str] = field(repr=False)
    queries: Mapping[str, str] = field(repr=False)
    qrels: Mapping[str, Judgements] = field(repr=False)
    checksums: Mapping[str, str]
    counts: Mapping[str, Any] = field(repr=False)
    licence: str | None = None
    subset_of: str | None = None

    @classmethod
    def from_parts(
        cls,
        name: str,
        documents: Mapping[str, str],
        queries: Mapping[str, str],
        qrels: Mapping[str, Judgements],
        *,
        checksums: Mapping[str, str] | None = None,
        licence: str | None = None,
        subset_of: str | None = None,
        **more_counts: Any,
    ) -> RetrievalDataset:
        """Check the parts, drop from train every query whose text an evaluation split has too, and count.

        Args:
            name, documents, queries, qrels, checksums, licence, subset_of: as in the class.
            more_counts: added to `counts` under their own names.

        Returns:
            The data set. `counts["dropped_train_queries"]` lists the ids dropped from train.

        Raises:
            MAWError: no documents, no judgements, a judged id that does not exist, or a query id that is both in
                train and in an evaluation split.

        >>> data = RetrievalDataset.from_parts(
        ...     "toy", {"d": "text"}, {"a": "One", "b": "one "}, {"train": {"a": {"d": 1}}, "test": {"b": {"d": 1}}}
        ... )
        >>> data.counts["dropped_train_queries"], len(data.qrels["train"])
        (['a'], 0)
        """
        _check_ids(name, documents, queries, qrels)
        normal = {query: normalise(queries[query]) for judged in qrels.values() for query in judged}
        splits = sorted(qrels, key=lambda split: (split != TRAIN, split))
        evaluation_texts = {normal[query] for split in splits if split != TRAIN for query in qrels[split]}
        dropped = [query for query in qrels.get(TRAIN, ()) if normal[query] in evaluation_texts]
        used = {split: dict(qrels[split]) for split in splits}
        for query in dropped:
            del used[TRAIN][query]
        counts: dict[str, Any] = {
            "documents": _count_texts(documents.values()),
            "queries": _count_texts(normalise(text) for text in queries.values())
            | {"not_judged": len(queries.keys() - normal.keys())},
            "splits": {split: _count_split(judged) for split, judged in used.items()},
            "shared_query_ids": {},
            "shared_query_texts": {},
            "dropped_train_queries": dropped,
        }
        for one, two in combinations(splits, 2):
            both = qrels[one].keys() & qrels[two].keys()
            texts = [{normal[query] for query in qrels[split] if query not in both} for split in (one, two)]
            for key, number in (("shared_query_ids", len(both)), ("shared_query_texts", len(texts[0] & texts[1]))):
                if number:
                    counts[key][f"{one}/{two}"] = number
        return cls(name, documents, queries, used, checksums or {}, counts | more_counts, licence, subset_of)

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of all splits: train first where there is one, the others in alphabetical order."""
        return tuple(self.qrels)

    @property
    def evaluation_splits(self) -> tuple[str, ...]:
        """The names of all splits but train."""
        return tuple(split for split in self.qrels if split != TRAIN)

    def judgements(self, split: str) -> Judgements:
        """Return query id -> document id -> grade of one split; MAWError where there is no such split."""
        if split not in self.qrels:
            there = ", ".join(self.splits)
            raise MAWError(f"{self.name}: wanted the split {split!r}, but the splits are {there}: choose one of them")
        return self.qrels[split]

    def training_pairs(self, per_query: int | None = None, seed: int = 0) -> list[tuple[str, str]]:
        """Return (query id, document id) of every relevant document in the split train, in the order of the qrels.

        Args:
            per_query: at most so many documents a query, chosen by `seed`; None takes all.
            seed: decides which documents a cap keeps; another seed gives another choice.

        Raises:
            MAWError: there is no split train, it has no relevant document, or `per_query` is below 1.

        >>> data = RetrievalDataset.from_parts(
        ...     "toy", {"d": "text", "e": "other"}, {"a": "one"}, {"train": {"a": {"d": 1, "e": 0}}}
        ... )
        >>> data.training_pairs()
        [('a', 'd')]
        """
        if per_query is not None and per_query < 1:
            raise MAWError(f"per_query must be at least 1, got {per_query}: leave it out to take all of them")
        pairs = []
        for query, grades in self.judgements(TRAIN).items():
            kept = relevant(grades)
            if per_query is not None and len(kept) > per_query:
                chosen = set(seeded(kept, seed, f"positives of {query}")[:per_query])
                kept = [document for document in kept if document in chosen]
            pairs.extend((query, document) for document in kept)
        if not pairs:
            raise MAWError(f"{self.name}: wanted training pairs, but train has no document of grade 1 or more")
        return pairs

    def evaluation_split(self, split: str) -> tuple[dict[str, str], Judgements]:
        """Return the queries (id -> text) and the judgements of one split; MAWError where it is train or not there."""
        if split == TRAIN:
            others = ", ".join(self.evaluation_splits) or "another data set"
            raise MAWError(f"{self.name}: train is what a model is trained on: evaluate on {others}")
        judged = self.judgements(split)
        return {query: self.queries[query] for query in judged}, judged

    def subset(
        self, *, train_pairs: int, documents: int, test_queries: int, dev_queries: int, seed: int = 0
    ) -> RetrievalDataset:
        """Return a smaller data set: seeded queries, every relevant document of theirs, and other documents.

        It is `maw.retrieval.subsets.subset`: see there for the arguments, the rules and what it raises.
        """
        from maw.retrieval.subsets import subset

        sizes = {"train_pairs": train_pairs, "documents": documents}
        return subset(self, **sizes, test_queries=test_queries, dev_queries=dev_queries, seed=seed)

    def report(self) -> dict[str, Any]:
        """Return what `results.json` says about the data: name, licence, checksums and counts, as plain JSON."""
        named = {"name": self.name, "subset_of": self.subset_of, "licence": self.licence}
        return named | {"checksums": dict(self.checksums), "counts": dict(self.counts)}


def load_dataset(spec: str) -> RetrievalDataset:
    """Return the data set that a user names.

    Args:
        spec: "pydocs" (docstring -> function, read from the running Python's standard library) or "beir:FOLDER" (a
            folder with `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv`).

    Raises:
        MAWError: another name, or data that cannot be used as they are.

    >>> load_dataset("nfcorpus")
    Traceback (most recent call last):
    ...
    maw.errors.MAWError: wanted a data set, got 'nfcorpus': write pydocs (built in) or beir:FOLDER (a folder with \
corpus.jsonl, queries.jsonl and qrels/*.tsv)
    """
    if spec == "pydocs":
        from maw.retrieval import pydocs

        return pydocs.build()
    kind, _, folder = spec.partition(":")
    if kind == "beir" and folder:
        from maw.retrieval import beir

        return beir.read_beir(Path(folder).expanduser(), name=spec)
    raise MAWError(
        f"wanted a data set, got {spec!r}: write pydocs (built in) or beir:FOLDER (a folder with corpus.jsonl, "
        "queries.jsonl and qrels/*.tsv)"
    )


def render_report(dataset: RetrievalDataset) -> str:
    """Return the counts of a data set as a few lines for people."""
    counts, shown = dataset.counts, []
    shown.append(f"{dataset.name}, licence: {dataset.licence or 'not stated by the source'}")
    if "subset" in counts:
        subset = counts["subset"]
        kept = ", ".join(f"{subset['kept'][key]:,} {key} (asked {n:,})" for key, n in subset["asked"].items())
        shown.append(f"  SUBSET of {subset['of']}, seed {subset['seed']}: {kept}")
    for part in ("documents", "queries"):
        found = counts[part]
        notes = [f"{found[key]:,} {words}" for key, words in _NOTES if found.get(key)]
        shown.append(f"  {found['total']:,} {part}" + (f" ({', '.join(notes)})" if notes else ""))
    for split, found in counts["splits"].items():
        line = f"  {split}: {found['queries']:,} queries, {found['relevant']:,} relevant pairs"
        no_answer = found["queries_without_relevant"]
        shown.append(line + (f", {no_answer:,} queries without a relevant document" if no_answer else ""))
    for key, what in (("shared_query_ids", "queries"), ("shared_query_texts", "query texts under other ids")):
        if counts[key]:
            shown.append(f"  {what} in two splits: " + ", ".join(f"{pair} {n:,}" for pair, n in counts[key].items()))
    if counts["dropped_train_queries"]:
        number = len(counts["dropped_train_queries"])
        shown.append(f"  {number:,} queries dropped from train: an evaluation split has the same text")
    shown.extend(f"  {key}: {value}" for key, value in counts.get("source", {}).items() if value)
    return "\n".join(shown)


_NOTES = (("empty", "empty"), ("repeated", "with a text met before"), ("not_judged", "in no split"))


def _count_texts(texts: Iterable[str]) -> dict[str, int]:
    seen = Counter(texts)
    return {"total": seen.total(), "empty": seen[""], "repeated": seen.total() - len(seen)}


def _count_split(judged: Judgements) -> dict[str, Any]:
    grades = Counter(grade for row in judged.values() for grade in row.values())
    return {
        "queries": len(judged),
        "judgements": grades.total(),
        "relevant": sum(number for grade, number in grades.items() if grade > 0),
        "grades": {str(grade): grades[grade] for grade in sorted(grades)},
        "queries_without_relevant": sum(not relevant(row) for row in judged.values()),
    }


def _check_ids(
    name: str, documents: Mapping[str, str], queries: Mapping[str, str], qrels: Mapping[str, Judgements]
) -> None:
    if not documents:
        raise MAWError(f"{name}: wanted documents to search, got none")
    if not any(qrels.values()):
        raise MAWError(f"{name}: wanted at least one split with a judged query, got none")
    for split, judged in qrels.items():
        if unknown := [query for query in judged if query not in queries]:
            raise MAWError(f"{name}: split {split} judges {_first(unknown)}, not among the queries")
        if unknown := [document for row in judged.values() for document in row if document not in documents]:
            raise MAWError(f"{name}: split {split} judges {_first(unknown)}, not among the documents")
        if split != TRAIN and (both := [query for query in judged if query in qrels.get(TRAIN, {})]):
            raise MAWError(f"{name}: {_first(both)} in both train and {split}: remove each from one of the two")


def _first(ids: list[str]) -> str:
    more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    return ", ".join(map(repr, islice(ids, 3))) + more
