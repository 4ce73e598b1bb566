"""Batches of texts of like length: a shard's texts sorted by their tokens, and cut where a batch is full.

Nearly every token of a batch is then a real one, and a batch of short texts has more of them. Which batch a text is
in, and with which others, depends on its shard and the limits only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maw.retrieval.vectors.tokenising import Tokeniser, Tokens

__all__ = ["Batch", "Limits", "make_batches"]


@dataclass(frozen=True)
class Limits:
    """How large a batch may be.

    Args:
        texts: at most so many texts.
        tokens: at most so many tokens, those that fill up counted; a longer text is alone.
        multiple: the length of a batch is a multiple of this.
    """

    texts: int
    tokens: int
    multiple: int = 1


@dataclass(frozen=True)
class Batch:
    """Some texts of a shard.

    Args:
        rows: (texts,), where in the shard their vectors belong.
        features: the model's inputs.
        tokens: how many tokens are real ones.
    """

    rows: Tensor
    features: dict[str, Any]
    tokens: int


def make_batches(tokens: Tokens, tokeniser: Tokeniser, limits: Limits, *, pinned: bool = False) -> Iterator[Batch]:
    """Yield the batches of a shard, long texts first, so that what does not fit into memory fails at once.

    Args:
        tokens: all texts of the shard, in its order.
        tokeniser: knows how to fill up.
        limits: how large a batch may be.
        pinned: whether the features lie in page-locked memory, from where a GPU copies by itself.
    """
    order = np.argsort(-tokens.lengths, kind="stable")
    ordered = tokens.taken(order)
    ends = np.concatenate([[0], np.cumsum(ordered.lengths)])
    begin = 0
    while begin < len(order):
        longest = int(ordered.lengths[begin])
        length = max(1, -(-longest // limits.multiple) * limits.multiple)
        if tokeniser.longest is not None:
            length = max(longest, min(length, tokeniser.longest))
        end = min(len(order), begin + max(1, min(limits.texts, limits.tokens // length)))
        features = _features(ordered, slice(begin, end), slice(int(ends[begin]), int(ends[end])), length, tokeniser)
        arrays = {name: torch.from_numpy(array) for name, array in features.items()}
        rows = torch.from_numpy(order[begin:end])
        if pinned:
            arrays, rows = {name: array.pin_memory() for name, array in arrays.items()}, rows.pin_memory()
        yield Batch(rows, {**arrays, **tokens.extras}, int(ends[end] - ends[begin]))
        begin = end


def _features(tokens: Tokens, texts: slice, places: slice, length: int, tokeniser: Tokeniser) -> dict[str, np.ndarray]:
    lengths, place = tokens.lengths[texts, None], np.arange(length)
    real = place >= length - lengths if tokeniser.fill_left else place < lengths
    features = {"attention_mask": real.astype(np.int64)}
    for name, value in tokens.values.items():
        features[name] = np.full(real.shape, tokeniser.filling[name], dtype=np.int64)
        features[name][real] = value[places]
    return features
