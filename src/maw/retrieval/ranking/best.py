"""The best k documents of every query while chunk after chunk is scored: only what can still get in is looked at.

A document's place in a query's ranking is one whole number, its key: the bits of the score, made to ascend with it, in
the upper half, and the complement of the tie rank in the lower. No two documents of a query have the same key, so the
k largest keys are the k best documents by the whole rule, ties included, in whatever order they are found.

Every query keeps a threshold, the score of its k-th best document so far. Scores below it are dropped by one
comparison; the few others are collected beside the best k, and the k best of both are chosen when there is no more
room. Documents in random order fill the room once for every doubling of how many were seen; where a chunk has more
good documents than there is room for, its own k best are chosen first.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Best"]

EMPTY = torch.iinfo(torch.int64).min
"""The key of a place without a document, below all others."""

LOWER = 2**32 - 1
PIECE = 2**24
"""Keys made at a time."""


class Best:
    """The best k of every query.

    Args:
        queries: how many queries.
        k: how many documents each of them keeps.
        device: where the scores are.
        by_position: whether the tie rank is the position and chunks come in its order: a later document with the
            score of the k-th is then not looked at.
    """

    def __init__(self, queries: int, k: int, device: torch.device, *, by_position: bool) -> None:
        self.k, self.room = k, max(k, 256)
        self.by_position = by_position
        self.key = torch.full((queries, k + self.room), EMPTY, dtype=torch.int64, device=device)
        self.position = torch.zeros_like(self.key)
        self.filled = torch.zeros(queries, dtype=torch.int64, device=device)
        self.threshold = torch.full((queries, 1), -torch.inf, device=device)

    def add(self, score: Float[Tensor, "queries chunk"], begin: int, tie: Int[Tensor, " chunk"]) -> bool:
        """Take in the documents at positions begin, begin + 1, ...; False where a score was not a finite number.

        A document whose vector is not finite is noticed, a product that overflows where it would be among the best.
        """
        if not score[0].isfinite().all():  # a vector that is not finite shows in the scores of any query: one tells
            return False
        row, column, count, crowded = _candidates(_passed(score, self.threshold, self.by_position), self.room)
        for rows in crowded.split(max(1, PIECE // score.shape[1])) if len(crowded) else ():
            if not self._add_all(rows, score[rows], begin, tie):
                return False
        if int((self.filled + count).max()) > self.key.shape[1]:
            self._choose()
        value = score[row, column]
        place = self.filled[row] + torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        self.key[row, place] = _keys(value, tie[column])
        self.position[row, place] = begin + column
        self.filled += count
        return bool(value.isfinite().all())

    def result(self) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]] | None:
        """Scores and positions, best first; None where a query has fewer than k finite scores."""
        self._choose()
        if len(self.filled) and int(self.filled.min()) < self.k:
            return None
        return _scores(self.key[:, : self.k]), self.position[:, : self.k].clone()

    def _choose(self) -> None:
        """Keep the best k of every query, in order."""
        key, place = self.key.topk(self.k, dim=1)
        self.position[:, : self.k] = self.position.gather(1, place)
        self.key[:, : self.k] = key
        self.key[:, self.k :] = EMPTY
        self.filled.clamp_(max=self.k)
        self._raise_threshold(slice(None))

    def _add_all(self, rows: Tensor, score: Tensor, begin: int, tie: Tensor) -> bool:
        """Choose the best k of some queries among what they have and a whole chunk."""
        if not score.isfinite().all():
            return False
        key, column = _keys(score, tie).topk(min(self.k, score.shape[1]), dim=1)
        key = torch.cat([self.key[rows], key], dim=1)
        position = torch.cat([self.position[rows], begin + column], dim=1)
        chosen, place = key.topk(self.k, dim=1)
        self.key[rows] = EMPTY
        self.key[rows, : self.k] = chosen
        self.position[rows, : self.k] = position.gather(1, place)
        self.filled[rows] = (chosen != EMPTY).sum(dim=1)
        self._raise_threshold(rows)
        return True

    def _raise_threshold(self, rows: Tensor | slice) -> None:
        last = self.key[rows, self.k - 1]
        self.threshold[rows, 0] = _scores(last).where(last != EMPTY, -torch.inf)


def _passed(score: Tensor, threshold: Tensor, by_position: bool) -> Tensor:
    """Which scores are not below the threshold, or not above where an equal one comes too late; NaN is among them."""
    if score.is_cuda:
        return (score <= threshold if by_position else score < threshold).logical_not_()
    compare = np.less_equal if by_position else np.less  # on one core as fast as torch on two, which then wait less
    with np.errstate(invalid="ignore"):
        outside = compare(score.numpy(), threshold.numpy())
    return torch.from_numpy(np.logical_not(outside, out=outside))


def _candidates(passed: Tensor, room: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row and column of what passed, row by row, how many a row has, and the rows that have too many, left out."""
    if passed.is_cuda:
        count = passed.sum(dim=1)
        crowded = count > room
        row, column = passed.masked_fill_(crowded[:, None], False).nonzero(as_tuple=True)
    else:
        flat = torch.from_numpy(np.flatnonzero(passed.numpy()))
        row = flat // passed.shape[1]
        count = row.bincount(minlength=len(passed))
        crowded = count > room
        if crowded.any():
            kept = crowded.logical_not()[row]
            flat, row = flat[kept], row[kept]
        column = flat - row * passed.shape[1]
    return row, column, count.masked_fill(crowded, 0), crowded.nonzero()[:, 0]


def _keys(score: Float[Tensor, "*shape"], tie: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    bits = (score + 0.0).view(torch.int32)  # + 0.0: -0.0 and 0.0 are one score
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (bits.to(torch.int64) << 32) | (LOWER - tie)


def _scores(key: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    bits = (key >> 32).to(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)
