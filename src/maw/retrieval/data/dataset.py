"""Documents, queries and judgements of one retrieval task, the checks made on them, and seeded subsets.

Where the data come from is in `beir` and `msmarco` (folders of files), `irdatasets` (ids of ir_datasets) and `pydocs`
(the running Python's standard library); all hand their parts to `RetrievalDataset.from_parts`, so every data set goes
through the same checks (`checks`). Large corpora stay on disk (`corpora`).

Relevant means a grade above 0. A text is compared with another after `normalise`. Seeded choices order ids by a
SHA-256 of (seed, purpose, id), so they depend neither on the order in files nor on the Python version, and a larger
choice contains the smaller one made with the same seed.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maw.errors import MAWError
from maw.retrieval.data import checks
from maw.retrieval.data.checks import TRAIN, Judgements

__all__ = ["RetrievalDataset", "normalise", "relevant", "seeded"]


def normalise(text: str) -> str:
    """Return the form in which two texts count as the same.

    Characters that Unicode holds compatible are one (NFKC: full width and ligatures, composed accents or not), case is
    folded, white space collapsed and stripped.

    >>> normalise("  What IS\\ta  depth? ")
    'what is a depth?'
    >>> normalise("\\ufb01rst") == normalise("FIRST")
    True
    """
    compatible = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", compatible).split())  # folding can take characters apart again


def relevant(grades: Mapping[str, int]) -> list[str]:
    """Return the ids of the documents with a grade above 0, in their order."""
    return [document for document, grade in grades.items() if grade > 0]


def seeded(ids: Iterable[str], seed: int, purpose: str) -> list[str]:
    """Return the ids in an order that depends on the seed, the purpose and the ids alone."""
    return sorted(ids, key=lambda name: hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest())


_DL_PASSAGES = re.compile(r"(dl|trec-dl-20)(19|20|21|22|23)\b")  # splits of TREC Deep Learning's passage task


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
        drop_own: whether a document with the query's own id is left out of every ranking (ArguAna, whose queries are
            documents).
        relevant_grade: split -> the grade from which on measures without grades count a document as relevant, where it
            is not 1; it is 2 for the passages of TREC Deep Learning.
        negative_files: files of triples or rankings that came with the data (`maw.retrieval.training.negatives`).

    Make one with `maw.retrieval.data.loading.load_dataset` or `from_parts`; the plain constructor checks nothing.
    """

    name: str
    documents: Mapping[str, str] = field(repr=False)
    queries: Mapping[str, str] = field(repr=False)
    qrels: Mapping[str, Judgements] = field(repr=False)
    checksums: Mapping[str, str]
    counts: Mapping[str, Any] = field(repr=False)
    licence: str | None = None
    subset_of: str | None = None
    drop_own: bool = False
    relevant_grade: Mapping[str, int] = field(default_factory=dict)
    negative_files: tuple[Path, ...] = ()

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
        drop_own: bool = False,
        relevant_grade: Mapping[str, int] | None = None,
        negative_files: Iterable[Path] = (),
        lacking_documents: bool = False,
        **more_counts: Any,
    ) -> RetrievalDataset:
        """Check the parts, drop from train every query whose text an evaluation split has too, and count.

        Args:
            name, documents, queries, qrels, checksums, licence, subset_of, drop_own, negative_files: as in the class.
            relevant_grade: as in the class; splits named dl19 or trec-dl-2019 have 2 where it is not given.
            lacking_documents: whether judgements may name documents that the collection lacks, as published ones do.
                They are counted and kept, so that the measures are the published ones; in train they are dropped.
            more_counts: added to `counts` under their own names.

        Returns:
            The data set. `counts["dropped_train_queries"]` has the ids dropped from train, `counts["unions"]` unions.

        Raises:
            MAWError: no documents, no judgements, a judged id that does not exist, or a query id that is both in
                train and in an evaluation split.

        >>> data = RetrievalDataset.from_parts(
        ...     "toy", {"d": "text"}, {"a": "One", "b": "one "}, {"train": {"a": {"d": 1}}, "test": {"b": {"d": 1}}}
        ... )
        >>> data.counts["dropped_train_queries"], len(data.qrels["train"])
        (['a'], 0)
        """
        gone = checks.check_ids(name, documents, queries, qrels, lacking_documents=lacking_documents)
        normal = {query: normalise(queries[query]) for judged in qrels.values() for query in judged}
        splits = sorted(qrels, key=lambda split: (split != TRAIN, split))
        evaluation_texts = {normal[query] for split in splits if split != TRAIN for query in qrels[split]}
        dropped = [query for query in qrels.get(TRAIN, ()) if normal[query] in evaluation_texts]
        used = {split: dict(qrels[split]) for split in splits}
        for query in dropped:
            del used[TRAIN][query]
        if TRAIN in gone:
            used[TRAIN] = checks.only_known(used[TRAIN], documents)
        asked = {query for split in splits if split != TRAIN for query in qrels[split]}
        counts: dict[str, Any] = {
            "documents": checks.count_texts(documents),
            "queries": checks.count_texts(queries, normalise) | {"not_judged": len(queries.keys() - normal.keys())},
            "splits": {split: checks.count_split(judged) for split, judged in used.items()},
            **checks.overlaps({split: qrels[split] for split in splits}, normal),
            "dropped_train_queries": dropped,
            "unions": checks.unions(used),
            "judged_but_not_in_collection": gone,
            "queries_that_are_documents": sum(
                normalise(documents[query]) == normal[query]
                for query in asked.difference(checks.lacking(documents, asked))
            ),
        }
        grades = {split: 2 for split in splits if _DL_PASSAGES.match(split)}
        grades |= {whole: 2 for whole, parts in counts["unions"].items() if all(part in grades for part in parts)}
        return cls(
            name,
            documents,
            queries,
            used,
            checksums or {},
            counts | more_counts,
            licence,
            subset_of,
            drop_own=drop_own,
            relevant_grade=grades | dict(relevant_grade or {}),
            negative_files=tuple(negative_files),
        )

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of all splits: train first where there is one, the others in alphabetical order."""
        return tuple(self.qrels)

    @property
    def evaluation_splits(self) -> tuple[str, ...]:
        """The names of all splits but train."""
        return tuple(split for split in self.qrels if split != TRAIN)

    @property
    def dev_split(self) -> str | None:
        """The split that chooses checkpoints (`maw.retrieval.data.checks.choosing_split`), None where there is none."""
        found = checks.choosing_split(self.evaluation_splits)
        return None if found is None else found[0]

    @property
    def reported_splits(self) -> tuple[str, ...]:
        """What a benchmark reports: the evaluation splits but one that only chooses checkpoints, and unions."""
        found = checks.choosing_split(self.evaluation_splits)
        silent = set(self.counts.get("unions", ())) | ({found[0]} if found is not None and not found[1] else set())
        return tuple(split for split in self.evaluation_splits if split not in silent)

    @property
    def default_split(self) -> str:
        """The split to evaluate on when none is named: test, or the only one; MAWError where there are others."""
        splits = self.evaluation_splits
        if "test" in splits or len(splits) == 1:
            return "test" if "test" in splits else splits[0]
        raise MAWError(f"{self.name} has no split test: name one with --split: {', '.join(splits) or 'it has none'}")

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
            raise MAWError(
                f"at least 1 relevant document a query must be taken, got {per_query}: leave the limit out to take all"
            )
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

        It is `maw.retrieval.data.subsets.subset`: see there for the arguments, the rules and what it raises.
        """
        from maw.retrieval.data.subsets import subset

        sizes = {"train_pairs": train_pairs, "documents": documents}
        return subset(self, **sizes, test_queries=test_queries, dev_queries=dev_queries, seed=seed)

    def report(self) -> dict[str, Any]:
        """Return what `results.json` says about the data: all but texts and judgements, as plain JSON."""
        named = {"name": self.name, "subset_of": self.subset_of, "licence": self.licence}
        conventions = {"drop_own": self.drop_own, "relevant_grade": dict(self.relevant_grade)}
        choosing = checks.choosing_split(self.evaluation_splits)
        dev = {"dev": None if choosing is None else dict(zip(("split", "reported"), choosing, strict=True))}
        return named | conventions | dev | {"checksums": dict(self.checksums), "counts": dict(self.counts)}
