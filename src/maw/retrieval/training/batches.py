"""Which pairs are trained on together: batches without false negatives that are known, in an order known beforehand.

A pair's query and relevant document are no text of another pair of the batch: neither its query, nor its relevant
document, nor one of its negatives. Two pairs may have a negative in common.

A batch is made for all processes together and cut into equal shares, so that several processes see what one process
with the whole batch would see. The order of an epoch depends on the seed, the epoch and the ids alone; a training that
goes on after a stop finds its place by counting.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import BatchSampler, Dataset

from maw.errors import MAWError
from maw.retrieval.data.dataset import normalise
from maw.retrieval.data.texts import hash64

__all__ = ["Batches", "Collator", "TrainingTexts", "chained"]


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

    def texts(self, row: tuple[str, ...]) -> list[str]:
        """The texts of a row."""
        return [self.queries[row[0]], *(self.documents[document] for document in row[1:])]


class Batches(BatchSampler):
    """Rows of the training texts, batch by batch, for one of several processes.

    Every epoch takes the rows in an order of its own and puts each into the first batch it goes with. Every batch is
    full but the last, which holds the rest. Where the rows left cannot fill a batch, rows that were used before come
    again, and where these cannot either, the batch is short. A batch is always cut to a multiple of the processes.

    Args:
        texts: what is batched.
        batch_size: rows of a batch, those of all processes together.
        seed: another seed is another order.
        process: which share is wanted.
        processes: how many shares there are; divides `batch_size`.

    Attributes:
        hashes: of every text of every row, (rows, columns); texts that are the same after `normalise` have the same.

    >>> rows = [(f"q{i}", f"d{i}") for i in range(5)]
    >>> texts = TrainingTexts({q: q for q, _ in rows}, {d: d for _, d in rows}, rows)
    >>> [len(batch) for batch in Batches(texts, 2, seed=0)]
    [2, 2, 1]
    """

    def __init__(
        self, texts: TrainingTexts, batch_size: int, *, seed: int, process: int = 0, processes: int = 1
    ) -> None:
        self.texts = texts
        self.batch_size = batch_size
        self.seed = seed
        self.process, self.processes = process, processes
        self.epoch = 0
        rest = len(texts) % batch_size
        self.sizes = [batch_size] * (len(texts) // batch_size)
        if rest >= processes:
            self.sizes.append(rest - rest % processes)
        self.hashes = np.empty((len(texts), len(texts.rows[0])), dtype=np.uint64)
        for index, row in enumerate(texts.rows):
            self.hashes[index] = [hash64(normalise(text)) for text in texts.texts(row)]

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
            MAWError: not even one pair for each process goes together.
        """
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


class _Batch:
    """Rows that go together, up to a size."""

    def __init__(self, size: int, hashes: np.ndarray) -> None:
        self.size, self.hashes = size, hashes
        self.rows: list[int] = []
        self.pairs: set[int] = set()
        self.texts: set[int] = set()

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
            texts = self.hashes[row].tolist()
            if self.texts.isdisjoint(texts[:2]) and self.pairs.isdisjoint(texts):
                self.rows.append(row)
                self.pairs.update(texts[:2])
                self.texts.update(texts)
            else:
                left.append(row)
        return left


class Collator:
    """Ids to what the encoder reads; the ids stay beside it, under `rows`, so that the trainer can say what it saw.

    Args:
        texts: where ids become texts.
        collate: Sentence Transformers' collator of rows {column: text}.
    """

    def __init__(self, texts: TrainingTexts, collate: Callable[[list[dict[str, str]]], dict[str, Any]]) -> None:
        self.texts = texts
        self.collate = collate

    def __call__(self, rows: Sequence[tuple[str, ...]]) -> dict[str, Any]:
        """One batch."""
        names = ["anchor", "positive", *(f"negative_{place}" for place in range(1, len(rows[0]) - 1))]
        batch = self.collate([dict(zip(names, self.texts.texts(row), strict=True)) for row in rows])
        return {**batch, "rows": ["\0".join(row) for row in rows]}


def chained(before: str, rows: Sequence[str]) -> str:
    """A checksum of all rows so far, from the checksum before these rows and the rows.

    >>> chained(chained("", ["a", "b"]), ["c"]) == chained(chained("", ["b", "a"]), ["c"])
    False
    """
    return hashlib.sha256("\n".join([before, *rows]).encode()).hexdigest()[:16]
