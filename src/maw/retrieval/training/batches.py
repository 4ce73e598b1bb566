"""Which pairs are trained on together, in an order known beforehand: as few false negatives as costs nothing.

Two pairs go together if a pair's query and relevant document are no text of the other pair (neither its query, nor its
relevant document, nor one of its negatives), and no text of the other pair is judged relevant to its query. Two pairs
may have a negative in common. Where pairs that go together are not at hand, others are taken, so that every batch is
full and every pair comes once an epoch; the loss leaves out what is relevant (`relevance`, `contrastive`).

A batch is made for all processes together and cut into equal shares, so that several processes see what one process
with the whole batch would see. The order of an epoch depends on the seed, the epoch and the ids alone; a training that
goes on after a stop finds its place by counting.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, Dataset

from maw.errors import MAWError
from maw.retrieval.training.relevance import Relevance, text_hashes

__all__ = ["Batches", "Collator", "TrainingTexts", "chained"]


WAITING = 8
"""When so many batches of rows wait for one with which they go, a batch takes those that wait longest."""
EXCHANGED, ATTEMPTS = 1000, 64
"""So many rows at most are exchanged in an epoch for others that go better, each after so many attempts at most."""


@dataclass(frozen=True)
class TrainingTexts(Dataset):
    """Query, relevant document and negatives of every training pair, as ids; their texts are read when used.

    Args:
        queries: query id -> text.
        documents: document id -> text.
        rows: (query id, document id, negative ids...) of every pair, all of one length.
    """

    queries: Mapping[str, str]
    documents: Mapping[str, str]
    rows: Sequence[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[str, ...]:
        return self.rows[index]

    @property
    def columns(self) -> list[str]:
        """What the texts of a row are called in a batch."""
        return ["anchor", "positive", *(f"negative_{place}" for place in range(1, len(self.rows[0]) - 1))]

    def texts(self, row: tuple[str, ...]) -> list[str]:
        """The texts of a row."""
        return [self.queries[row[0]], *(self.documents[document] for document in row[1:])]


class Batches(BatchSampler):
    """Rows of the training texts, batch by batch, for one of several processes.

    Every epoch takes the rows in an order of its own and puts each into the first batch it goes with; when more
    than `WAITING` batches of rows wait for one, the batch is filled with those that wait longest; at the end some
    of these are exchanged for rows of other batches, where both then go with theirs. Every batch is full but the
    last, which holds the rest, cut to a multiple of the processes.

    Without `relevance`, nothing is known but the rows' own texts, and no row may join a batch with which it does not
    go: where the rows left cannot fill a batch, rows that were used before come again, and where these cannot either,
    the batch is short.

    Args:
        texts: what is batched.
        relevance: what is relevant to which query, for a loss that leaves it out.
        batch_size: rows of a batch, those of all processes together.
        seed: another seed is another order.
        process: which share is wanted.
        processes: how many shares there are; divides `batch_size`.
        hashes: those of the texts (`text_hashes`), where they are known already.

    Attributes:
        hashes: as above.

    >>> rows = [(f"q{i}", f"d{i}") for i in range(5)]
    >>> texts = TrainingTexts({q: q for q, _ in rows}, {d: d for _, d in rows}, rows)
    >>> [len(batch) for batch in Batches(texts, 2, seed=0)]
    [2, 2, 1]
    """

    def __init__(
        self,
        texts: TrainingTexts,
        batch_size: int,
        *,
        seed: int,
        process: int = 0,
        processes: int = 1,
        relevance: Relevance | None = None,
        hashes: np.ndarray | None = None,
    ) -> None:
        self.texts = texts
        self.relevance = relevance
        self.batch_size = batch_size
        self.seed = seed
        self.process, self.processes = process, processes
        self.epoch = 0
        rest = len(texts) % batch_size
        self.sizes = [batch_size] * (len(texts) // batch_size)
        if rest >= processes:
            self.sizes.append(rest - rest % processes)
        self.hashes = text_hashes(texts) if hashes is None else hashes

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self.sizes)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch's order is wanted next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        """This process's share of every batch of the epoch."""
        for batch in self.whole():
            share = len(batch) // self.processes
            yield batch[share * self.process : share * (self.process + 1)]

    def whole(self) -> Iterator[list[int]]:
        """Every batch of the epoch, uncut.

        Raises:
            MAWError: without `relevance`, not even one pair for each process goes together.
        """
        if self.relevance is None:
            yield from self._going_together()
        else:
            yield from self._full(self.relevance)

    def _full(self, relevance: Relevance) -> list[list[int]]:
        """Every row once; rows that do not go together are taken where no others are at hand, then exchanged."""
        fresh, waiting, batches, taken = iter(self._order()), [], [], []
        relevant_to = cache(lambda query: frozenset(relevance.of(query).tolist()))
        for size in self.sizes:
            batch = _Batch(size, relevance.ids, relevant_to)
            waiting = batch.fill(waiting)
            while batch.wants and len(waiting) < WAITING * self.batch_size and (row := next(fresh, None)) is not None:
                waiting += batch.fill([row])
            missing = size - len(batch.rows)
            taken += [(len(batches), len(batch.rows) + number) for number in range(missing)]
            batches.append(batch.rows + waiting[:missing])
            waiting = waiting[missing:]
        _exchange(batches, taken, relevance)
        return batches

    def _going_together(self) -> Iterator[list[int]]:
        """Batches of rows that go together alone, short or with rows that come again where there are no more."""
        order = self._order()
        fresh, waiting = iter(order), []
        for size in self.sizes:
            batch = _Batch(size, self.hashes)
            waiting = batch.fill(waiting)
            while batch.wants and (row := next(fresh, None)) is not None:
                waiting += batch.fill([row])
            if batch.wants:  # else the whole order would be copied for nothing
                batch.fill(order)
            found = len(batch.rows)
            if found < self.processes:
                raise MAWError(
                    f"wanted a batch in which each of {self.processes} processes has a pair and no query or relevant "
                    f"document is another pair's text, but at most {found} of the {len(self.texts)} training pairs go "
                    "together: use fewer processes"
                )
            yield batch.rows[: found - found % self.processes]

    def _order(self) -> list[int]:
        def key(index: int) -> bytes:
            pair = "\0".join(self.texts.rows[index][:2])
            return hashlib.sha256(f"{self.seed}\0epoch {self.epoch}\0{pair}".encode()).digest()

        return sorted(range(len(self.texts)), key=key)


def _exchange(batches: Sequence[list[int]], taken: Sequence[tuple[int, int]], relevance: Relevance) -> None:
    """Exchange rows that do not go with their batch for rows of other batches, where both then go with theirs.

    Args:
        batches: the rows of every batch; changed.
        taken: (batch, position in it) of rows that were taken because no others were at hand. Where they are more than
            `EXCHANGED`, so much is relevant to so many queries that most batches cannot be mended, and none is.
    """

    def goes(row: int, batch: int, position: int) -> bool:
        rows = [other for number, other in enumerate(batches[batch]) if number != position]
        return not rows or not relevance.conflict(row, rows)

    if len(batches) < 2 or len(taken) > EXCHANGED:
        return
    for batch, position in taken:
        row = batches[batch][position]
        if goes(row, batch, position):
            continue
        for attempt in range(min(ATTEMPTS, len(batches) * len(batches[0]))):
            other, partner = divmod(attempt, len(batches[0]))
            other = (batch - 1 - other) % len(batches)
            if other == batch or partner >= len(batches[other]):
                continue
            there = batches[other][partner]
            if goes(there, batch, position) and goes(row, other, partner):
                batches[batch][position], batches[other][partner] = there, row
                break


class _Batch:
    """Rows that go together, up to a size.

    Args:
        size: so many rows.
        texts: numbers or hashes of every text of every row, (rows, columns).
        relevant_to: the numbers of the texts that are relevant to a query, by its number; None where only the rows'
            own texts are known.
    """

    def __init__(
        self, size: int, texts: np.ndarray, relevant_to: Callable[[int], frozenset[int]] | None = None
    ) -> None:
        self.size, self.numbers, self.relevant_to = size, texts, relevant_to
        self.rows: list[int] = []
        self.pairs: set[int] = set()
        self.texts: set[int] = set()
        self.relevant: set[int] = set()

    @property
    def wants(self) -> bool:
        """Whether there is room."""
        return len(self.rows) < self.size

    def fill(self, rows: Sequence[int]) -> list[int]:
        """Add what goes with the rows that are in; returns the rows that were not added."""
        left = []
        for place, row in enumerate(rows):
            if not self.wants:
                return [*left, *rows[place:]]
            texts = self.numbers[row].tolist()
            relevant = frozenset(texts[:2]) if self.relevant_to is None else self.relevant_to(texts[0])
            if (
                self.texts.isdisjoint(texts[:2])
                and self.pairs.isdisjoint(texts)
                and self.texts.isdisjoint(relevant)
                and self.relevant.isdisjoint(texts)
            ):
                self.rows.append(row)
                self.pairs.update(texts[:2])
                self.texts.update(texts)
                self.relevant.update(relevant)
            else:
                left.append(row)
        return left


class Collator:
    """Ids to what the encoder reads; the ids stay beside it, under `rows`, so that the trainer can say what it saw.

    Args:
        texts: where ids become texts.
        collate: Sentence Transformers' collator of rows {column: text}.
        relevance: where rows become the numbers of their texts, the `label` of the batch; None gives none.
    """

    def __init__(
        self,
        texts: TrainingTexts,
        collate: Callable[[list[dict[str, str]]], dict[str, Any]],
        relevance: Relevance | None = None,
    ) -> None:
        self.texts = texts
        self.collate = collate
        self.relevance = relevance
        self.numbers = {} if relevance is None else {row: number for number, row in enumerate(texts.rows)}

    def __call__(self, rows: Sequence[tuple[str, ...]]) -> dict[str, Any]:
        """One batch."""
        batch = self.collate([dict(zip(self.texts.columns, self.texts.texts(row), strict=True)) for row in rows])
        if self.relevance is not None:
            batch["label"] = torch.from_numpy(self.relevance.ids[[self.numbers[row] for row in rows]])
        return {**batch, "rows": ["\0".join(row) for row in rows]}


def chained(before: str, rows: Sequence[str]) -> str:
    """A checksum of all rows so far, from the checksum before these rows and the rows.

    >>> chained(chained("", ["a", "b"]), ["c"]) == chained(chained("", ["b", "a"]), ["c"])
    False
    """
    return hashlib.sha256("\n".join([before, *rows]).encode()).hexdigest()[:16]
