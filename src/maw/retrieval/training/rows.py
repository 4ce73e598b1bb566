"""Every training pair with its hard negatives, as many for each pair.

A query with fewer negatives than wanted gets documents of the collection in their place, drawn by the seed, that are
neither relevant to it nor among its negatives: no harder than what other queries bring to the batch, and the batch
keeps its shape.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from maw.errors import MAWError
from maw.retrieval.identity import set_prompts
from maw.retrieval.models import limit_length
from maw.retrieval.processes import first_process_first
from maw.retrieval.training.negatives import NegativeSettings, mine

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from maw.retrieval.data.dataset import RetrievalDataset
    from maw.retrieval.training.settings import TrainingSettings

__all__ = ["find_negatives", "with_negatives"]

DRAWN_FROM = 10_000
"""Missing negatives are drawn from so many documents of the collection, chosen by the seed."""


def find_negatives(
    dataset: RetrievalDataset, settings: TrainingSettings, model: SentenceTransformer, cache: Path
) -> Mapping[str, Sequence[str]] | None:
    """The hard negatives that the settings ask for, found once and kept; None where they ask for none.

    Args:
        dataset: needs a train split.
        settings: where negatives come from, and how many.
        model: finds those of "model", and scores given ones where there is a margin, as it is now.
        cache: the folder they are kept in; of several processes the first finds them.
    """
    if not settings.hard_negatives:
        return None
    source = "dense" if settings.negatives == "model" else settings.negatives
    wanted = NegativeSettings(
        source=source,
        per_query=settings.hard_negatives,
        depth=max(200, settings.hard_negatives),
        relative_margin=settings.negative_margin,
        files=settings.negative_files,
    )
    by_model = source == "dense" or (source == "given" and wanted.has_margin)
    limit_length(model, settings.max_length)
    set_prompts(model, settings.query_prompt, settings.document_prompt)
    with first_process_first(model.device):
        return mine(dataset, wanted, model=model if by_model else None, cache=cache)


def with_negatives(
    dataset: RetrievalDataset,
    pairs: Sequence[tuple[str, str]],
    negatives: Mapping[str, Sequence[str]],
    count: int,
    seed: int,
) -> tuple[list[tuple[str, ...]], int]:
    """(query id, document id, negative ids...) of every pair, and how many negatives had to be drawn.

    Args:
        dataset: where the pairs are from.
        pairs: query id and id of a relevant document.
        negatives: query id -> ids of its negatives, the best first; the first `count` are taken.
        count: negatives a pair.
        seed: draws what is missing.

    Raises:
        MAWError: the collection has too few documents that are not relevant to a query.
    """
    judged, pool, filled = dataset.judgements("train"), [], 0
    chosen: dict[str, tuple[str, ...]] = {}
    for query in dict.fromkeys(query for query, _ in pairs):
        own = list(dict.fromkeys(negatives.get(query, ())))[:count]
        if len(own) < count:
            pool = pool or heapq.nsmallest(DRAWN_FROM, dataset.documents, key=lambda name: _hash(seed, name))
            taken = {*own, *(document for document, grade in judged[query].items() if grade > 0)}
            drawn = _draw(pool, count - len(own), taken, start=_hash(seed, query))
            if len(own) + len(drawn) < count:
                raise MAWError(
                    f"{dataset.name}: wanted {count} negatives for query {query!r}, but the collection has only "
                    f"{len(own) + len(drawn)} documents that are not relevant to it: lower --hard-negatives"
                )
            filled += len(drawn)
            own += drawn
        chosen[query] = tuple(own)
    return [(query, document, *chosen[query]) for query, document in pairs], filled


def _draw(pool: Sequence[str], count: int, taken: set[str], start: int) -> list[str]:
    """The next documents of the pool from a place on, without those that are taken."""
    drawn: list[str] = []
    for place in range(len(pool)):
        if len(drawn) == count:
            break
        document = pool[(start + place) % len(pool)]
        if document not in taken:
            drawn.append(document)
    return drawn


def _hash(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\0negatives\0{name}".encode()).digest())
