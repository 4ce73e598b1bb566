"""What is checked and counted in every data set: texts, ids, overlaps of splits; in memory that does not grow with it.

Texts are compared by their 64-bit hashes (`maw.retrieval.data.texts.hash64`), not kept.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations, islice
from typing import Any

from maw.errors import MAWError
from maw.retrieval.data.text_writer import count_distinct
from maw.retrieval.data.texts import TextStore, hash64

__all__ = [
    "TRAIN",
    "Judgements",
    "check_ids",
    "choosing_split",
    "count_split",
    "count_texts",
    "lacking",
    "only_known",
    "overlaps",
    "unions",
]

Judgements = Mapping[str, Mapping[str, int]]
"""Query id -> document id -> grade."""

TRAIN = "train"
_DEVELOPMENT = ("dev", "valid", "val", "validation")


def count_texts(texts: Mapping[str, str], form: Callable[[str], str] = str) -> dict[str, int]:
    """How many texts there are, how many are empty, and how many were met before, compared after `form`.

    >>> count_texts({"a": "x", "b": "", "c": "x"})
    {'total': 3, 'empty': 1, 'repeated': 1}
    """
    if isinstance(texts, TextStore) and form is str:
        return texts.counts
    hashes, empty = array("Q"), 0
    for text in texts.values():
        shaped = form(text)
        hashes.append(hash64(shaped))
        empty += not shaped
    return {"total": len(hashes), "empty": empty, "repeated": len(hashes) - count_distinct(hashes)}


def count_split(judged: Judgements) -> dict[str, Any]:
    """How many queries and judgements of which grade a split has."""
    grades = Counter(grade for row in judged.values() for grade in row.values())
    return {
        "queries": len(judged),
        "judgements": grades.total(),
        "relevant": sum(number for grade, number in grades.items() if grade > 0),
        "grades": {str(grade): grades[grade] for grade in sorted(grades)},
        "queries_without_relevant": sum(not any(grade > 0 for grade in row.values()) for row in judged.values()),
    }


def choosing_split(splits: Iterable[str]) -> tuple[str, bool] | None:
    """The split that chooses the best checkpoint of a training, and whether it is reported as well; None without one.

    It is the split dev (or valid, val, validation), which is then not reported. Where there is none, it is the first
    whose name begins with dev and goes on otherwise, such as MS MARCO's dev/small: reported too, because its figures
    are what others publish.

    >>> choosing_split(["train", "dev", "test"]), choosing_split(["train", "dev/small", "dl19"])
    (('dev', False), ('dev/small', True))
    >>> choosing_split(["train", "development of cities", "test"])
    """
    names = list(splits)
    for name in _DEVELOPMENT:
        if name in names:
            return name, False
    return next(((name, True) for name in names if re.match(r"dev[^a-zA-Z]", name)), None)


def lacking(texts: Mapping[str, str], identifiers: Iterable[str]) -> list[str]:
    """The ids, in their order, that have no text."""
    names = list(identifiers)
    if isinstance(texts, TextStore):
        return [name for name, known in zip(names, texts.known(names), strict=True) if not known]
    return [name for name in names if name not in texts]


def check_ids(
    name: str,
    documents: Mapping[str, str],
    queries: Mapping[str, str],
    qrels: Mapping[str, Judgements],
    *,
    lacking_documents: bool,
) -> dict[str, int]:
    """Refuse data without documents or judgements, with unknown ids, empty queries, or train queries to evaluate on.

    Args:
        name, documents, queries, qrels: as in `maw.retrieval.data.dataset.RetrievalDataset`.
        lacking_documents: whether judged documents may be missing from the collection. They are counted then, but
            not all the relevant ones of a split may be missing: that is another collection.

    Returns:
        Split -> how many judged documents are not there, where there are any.
    """
    if not documents:
        raise MAWError(f"{name}: wanted documents to search, got none")
    if not any(qrels.values()):
        raise MAWError(f"{name}: wanted at least one split with a judged query, got none")
    found: dict[str, int] = {}
    for split, judged in qrels.items():
        if unknown := lacking(queries, judged):
            raise MAWError(f"{name}: split {split} judges {_first(unknown)}, not among the queries")
        if empty := [query for query in judged if not queries[query].strip()]:
            raise MAWError(
                f"{name}: {_first(empty)} of the split {split} have no text to search for: give each one, or "
                "remove its judgements"
            )
        missing = lacking(documents, (document for row in judged.values() for document in row))
        if missing and not lacking_documents:
            raise MAWError(f"{name}: split {split} judges {_first(missing)}, not among the documents")
        if missing:
            gone = set(missing)
            found[split] = len(gone)
            kept = (grade for row in judged.values() for document, grade in row.items() if document not in gone)
            if not any(grade > 0 for grade in kept):
                raise MAWError(
                    f"{name}: none of the relevant documents of the split {split} is in the collection "
                    f"({_first(missing)} and others are not): these are the judgements of another collection"
                )
        if split != TRAIN and (both := [query for query in judged if query in qrels.get(TRAIN, {})]):
            raise MAWError(f"{name}: {_first(both)} in both train and {split}: remove each from one of the two")
    return found


def only_known(judged: Judgements, documents: Mapping[str, str]) -> dict[str, Mapping[str, int]]:
    """The judgements of documents that are there, without queries that then have none."""
    gone = set(lacking(documents, (document for row in judged.values() for document in row)))
    rows: dict[str, Mapping[str, int]] = {
        query: {document: grade for document, grade in row.items() if document not in gone}
        for query, row in judged.items()
    }
    return {query: row for query, row in rows.items() if row}


def overlaps(qrels: Mapping[str, Judgements], normal: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """How many query ids, and how many texts under different ids, each two splits share, where they share any.

    Args:
        qrels: the splits in the order in which they are named.
        normal: query id -> the form of its text that is compared.
    """
    counts: dict[str, dict[str, int]] = {"shared_query_ids": {}, "shared_query_texts": {}}
    for one, two in combinations(qrels, 2):
        both = qrels[one].keys() & qrels[two].keys()
        texts = [{normal[query] for query in qrels[split] if query not in both} for split in (one, two)]
        for key, number in (("shared_query_ids", len(both)), ("shared_query_texts", len(texts[0] & texts[1]))):
            if number:
                counts[key][f"{one}/{two}"] = number
    return counts


def unions(qrels: Mapping[str, Judgements]) -> dict[str, list[str]]:
    """The evaluation splits that hold nothing but other ones, whole and with the same judgements -> these others.

    >>> unions({"a": {"1": {"d": 1}}, "b": {"2": {"d": 1}}, "test": {"1": {"d": 1}, "2": {"d": 1}}})
    {'test': ['a', 'b']}
    """
    found = {}
    splits = [split for split in qrels if split != TRAIN]
    for whole in splits:
        parts = [
            split
            for split in splits
            if len(qrels[split]) < len(qrels[whole])
            and all(query in qrels[whole] and qrels[whole][query] == row for query, row in qrels[split].items())
        ]
        if len({query for split in parts for query in qrels[split]}) == len(qrels[whole]):
            found[whole] = parts
    return found


def _first(ids: list[str]) -> str:
    more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    return ", ".join(map(repr, islice(ids, 3))) + more
