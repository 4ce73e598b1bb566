"""A smaller data set out of a larger one, for the preset `quick`: chosen by a seed, and saying what it is."""

from __future__ import annotations

from maw.errors import MAWError
from maw.retrieval.data.checks import TRAIN
from maw.retrieval.data.dataset import RetrievalDataset, relevant, seeded

__all__ = ["subset"]


def subset(
    whole: RetrievalDataset, *, train_pairs: int, documents: int, test_queries: int, dev_queries: int, seed: int = 0
) -> RetrievalDataset:
    """Return a smaller data set: seeded queries, every relevant document of theirs, and other documents.

    Queries of test and dev are chosen first: so many as asked for, or all where there are fewer. Then training
    queries are taken whole, with all their relevant documents, in seeded order, until the next would lead away from
    `train_pairs` or would not fit into `documents`: then there are fewer pairs, and the counts say so. The rest of
    `documents` is filled with seeded others. Other splits are left out, as are judgements of grade 0 or less for
    documents that are not in the subset. A query without a relevant document is not chosen.

    Args:
        whole: what to choose from.
        train_pairs: about how many training pairs; 0 for none.
        documents: at most so many documents.
        test_queries, dev_queries: queries of the splits test and dev; 0 leaves the split out.
        seed: decides every choice.

    Returns:
        The subset; its name, `subset_of` and `counts["subset"]` (asked and kept) say what it is.

    Raises:
        MAWError: a split that is asked for is not there or has no query with a relevant document, or the relevant
            documents of the evaluation queries, or of the first training query, do not fit into `documents`.
    """
    asked = {
        "train_pairs": train_pairs,
        "documents": documents,
        "test_queries": test_queries,
        "dev_queries": dev_queries,
    }
    for key, value in asked.items():
        if value < 0:
            raise MAWError(f"{key} must be 0 or more, got {value}")
    chosen: dict[str, list[str]] = {}
    needed: set[str] = set()
    for split, wanted in (("test", test_queries), ("dev", dev_queries)):
        if wanted:
            chosen[split] = _queries(whole, split, seed)[:wanted]
            needed.update(*(relevant(whole.qrels[split][query]) for query in chosen[split]))
    if len(needed) > documents:
        queries = " and ".join(f"{len(ids)} {split} queries" for split, ids in chosen.items())
        raise MAWError(
            f"{whole.name}: the {queries} of the subset have {len(needed)} relevant documents, more than the "
            f"documents={documents} asked for: raise documents, or lower test_queries and dev_queries"
        )
    if train_pairs:
        chosen[TRAIN] = _training_queries(whole, train_pairs, documents, needed, seed)
        needed.update(*(relevant(whole.qrels[TRAIN][query]) for query in chosen[TRAIN]))
    others = (document for document in whole.documents if document not in needed)
    needed.update(seeded(others, seed, "documents")[: documents - len(needed)])
    return _build(whole, chosen, needed, asked, seed)


def _queries(whole: RetrievalDataset, split: str, seed: int) -> list[str]:
    """Return the queries that have a relevant document, in seeded order."""
    ids = seeded((query for query, grades in whole.judgements(split).items() if relevant(grades)), seed, split)
    if not ids:
        raise MAWError(
            f"{whole.name}: wanted queries from the split {split}, but none has a document of grade 1 or more"
        )
    return ids


def _training_queries(
    whole: RetrievalDataset, train_pairs: int, documents: int, needed: set[str], seed: int
) -> list[str]:
    """Return whole queries in seeded order until there are enough pairs, or the next one's documents do not fit."""
    taken, pairs, fixed = [], 0, set(needed)
    for query in _queries(whole, TRAIN, seed):
        positives = relevant(whole.qrels[TRAIN][query])
        new = [document for document in positives if document not in fixed]
        if taken and pairs + len(positives) - train_pairs > train_pairs - pairs:
            break  # without it we are nearer to what was asked
        if len(fixed) + len(new) > documents:
            if taken:
                break
            raise MAWError(
                f"{whole.name}: the evaluation queries of the subset need {len(fixed)} documents and the first "
                f"training query {len(new)} more, which do not fit into documents={documents}: raise documents, or ask "
                "for fewer evaluation queries"
            )
        taken.append(query)
        fixed.update(new)
        pairs += len(positives)
    return taken


def _build(
    whole: RetrievalDataset, chosen: dict[str, list[str]], documents: set[str], asked: dict[str, int], seed: int
) -> RetrievalDataset:
    qrels: dict[str, dict[str, dict[str, int]]] = {}
    left_out = 0
    for split, ids in chosen.items():
        wanted = set(ids)
        rows = {query: grades for query, grades in whole.qrels[split].items() if query in wanted}
        qrels[split] = {q: {d: grade for d, grade in row.items() if d in documents} for q, row in rows.items()}
        left_out += sum(len(row) - len(qrels[split][query]) for query, row in rows.items())
    kept = {
        "train_pairs": sum(len(relevant(row)) for row in qrels.get(TRAIN, {}).values()),
        "documents": len(documents),
        "test_queries": len(chosen.get("test", ())),
        "dev_queries": len(chosen.get("dev", ())),
    }
    queries = {query for ids in chosen.values() for query in ids}
    sizes = ",".join(f"{key}={number}" for key, number in kept.items())
    return RetrievalDataset.from_parts(
        f"{whole.name}:subset({sizes},seed={seed})",
        {document: text for document, text in whole.documents.items() if document in documents},
        {query: text for query, text in whole.queries.items() if query in queries},
        qrels,
        checksums=whole.checksums,
        licence=whole.licence,
        subset_of=whole.name,
        drop_own=whole.drop_own,
        relevant_grade=whole.relevant_grade,
        lacking_documents=True,
        subset={
            "of": whole.name,
            "seed": seed,
            "asked": asked,
            "kept": kept,
            "splits_left_out": [split for split in whole.splits if split not in chosen],
            "judgements_left_out": left_out,
        },
        whole=dict(whole.counts),
    )
