"""Which texts of a training are relevant to which of its queries, as integers that a batch can carry.

A text is relevant to a query if a document with that text is judged relevant to the query, or to another train query
with the same text; texts are the same if they are after `maw.retrieval.data.dataset.normalise` (Unicode NFKC, case,
white space). The query's own text counts as relevant to it, too. What is relevant to a query
is never a negative of it: `Relevance.mask` says which candidates the loss leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from maw.retrieval.data.dataset import normalise, relevant
from maw.retrieval.data.texts import hash64

if TYPE_CHECKING:
    from maw.retrieval.data.checks import Judgements
    from maw.retrieval.training.batches import TrainingTexts

__all__ = ["Relevance", "text_hashes"]

TEXTS_REMEMBERED = 200_000
"""Documents of which the hash of the text is kept at hand."""


def text_hashes(texts: TrainingTexts) -> np.ndarray:
    """A hash of every text of every row, (rows, columns); texts that are the same after `normalise` have the same."""
    query = lru_cache(TEXTS_REMEMBERED)(lambda name: hash64(normalise(texts.queries[name])))
    document = lru_cache(TEXTS_REMEMBERED)(lambda name: hash64(normalise(texts.documents[name])))
    hashes = np.empty((len(texts), len(texts.rows[0])), dtype=np.uint64)
    for index, row in enumerate(texts.rows):
        hashes[index] = [query(row[0]), *map(document, row[1:])]
    return hashes


class Relevance:
    """The relevant texts of every query of a training.

    Args:
        texts: what is trained on.
        judged: query id -> document id -> grade, of the split train; a grade above 0 is relevant.
        hashes: those of the texts (`text_hashes`), where they are known already.

    Attributes:
        ids: the number of every text of every row, (rows, columns): what a batch carries.
        pairs: number of query * `size` + number of text of all that is relevant, in ascending order.
        size: how many numbers there are.

    >>> from maw.retrieval.training.batches import TrainingTexts
    >>> documents = {"d1": "Lentils.", "d2": "Spinach."}
    >>> texts = TrainingTexts({"q1": "iron", "q2": "leaf"}, documents, [("q1", "d1"), ("q2", "d2")])
    >>> relevance = Relevance(texts, {"q1": {"d1": 1, "d2": 2}, "q2": {"d2": 1}})
    >>> ids = torch.from_numpy(relevance.ids)
    >>> relevance.mask(ids, ids).tolist()
    [[False, True], [False, False]]
    """

    def __init__(self, texts: TrainingTexts, judged: Judgements, hashes: np.ndarray | None = None) -> None:
        hashes = text_hashes(texts) if hashes is None else hashes
        numbers, inverse = np.unique(hashes, return_inverse=True)
        self.ids: np.ndarray = inverse.reshape(hashes.shape).astype(np.int64)
        self.size = len(numbers)
        own = np.unique(self.ids[:, 0])
        judged_pairs = _numbers(_judged_hashes(texts, judged), numbers, self.size)
        trained_pairs = self.ids[:, 0] * self.size + self.ids[:, 1]
        self.pairs: np.ndarray = np.unique(np.concatenate([judged_pairs, trained_pairs, own * self.size + own]))
        self._on_device: dict[torch.device, Tensor] = {}

    def of(self, query: int) -> np.ndarray:
        """The numbers of the texts relevant to a query, by its number."""
        begin, end = np.searchsorted(self.pairs, [query * self.size, (query + 1) * self.size])
        return self.pairs[begin:end] - query * self.size

    def mask(
        self, own: Int[Tensor, "B columns"], everybody: Int[Tensor, "batch columns"], offset: int = 0
    ) -> Bool[Tensor, "B candidates"]:
        """Which candidates are no negatives of which query; a row's own relevant document is not masked.

        Args:
            own: the numbers of the texts of this process's rows.
            everybody: those of the rows of all processes; their documents are the candidates, column by column.
            offset: where this process's rows begin among them.
        """
        pairs = self._pairs_on(own.device)
        keys = own[:, :1] * self.size + everybody[:, 1:].T.flatten()
        nearest = torch.searchsorted(pairs, keys).clamp_(max=len(pairs) - 1)
        mask = pairs[nearest] == keys
        rows = torch.arange(len(own), device=own.device)
        mask[rows, rows + offset] = False
        return mask

    def conflict(self, row: int, rows: Sequence[int]) -> bool:
        """Whether a text of other rows is relevant to a row's query, or one of the row to a query of theirs."""
        own, others = self.ids[row], self.ids[list(rows)]
        theirs = (others[:, :1] * self.size + own[1:]).ravel()
        keys = np.concatenate([own[0] * self.size + others[:, 1:].ravel(), theirs])
        nearest = np.searchsorted(self.pairs, keys).clip(max=len(self.pairs) - 1)
        return bool((self.pairs[nearest] == keys).any())

    def _pairs_on(self, device: torch.device) -> Tensor:
        if device not in self._on_device:
            self._on_device[device] = torch.from_numpy(self.pairs).to(device)
        return self._on_device[device]


def _judged_hashes(texts: TrainingTexts, judged: Judgements) -> np.ndarray:
    """(hash of a query's text, hash of the text of a document judged relevant to it), (pairs, 2)."""
    wanted = {hash64(normalise(texts.queries[query])) for query in dict.fromkeys(row[0] for row in texts.rows)}
    documents: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    for query, grades in judged.items():
        if query not in texts.queries or (own := hash64(normalise(texts.queries[query]))) not in wanted:
            continue
        pairs.extend(
            (own, _remembered(documents, texts.documents, document))
            for document in relevant(grades)
            if document in texts.documents
        )
    return np.array(pairs, dtype=np.uint64).reshape(-1, 2)


def _remembered(hashes: dict[str, int], documents: Mapping[str, str], document: str) -> int:
    if document not in hashes:
        hashes[document] = hash64(normalise(documents[document]))
    return hashes[document]


def _numbers(hashes: np.ndarray, numbers: np.ndarray, size: int) -> np.ndarray:
    """The pairs of hashes as numbers of pairs, without those of which a text is no text of the training."""
    nearest = np.searchsorted(numbers, hashes).clip(max=size - 1)
    known = (numbers[nearest] == hashes).all(axis=1)
    return nearest[known, 0] * size + nearest[known, 1]
