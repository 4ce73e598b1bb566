"""Intervals of many means over the same queries at once, as the report's table needs them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from maw.benchmark.power import check_share
from maw.benchmark.statistics import scaled_interval
from maw.errors import MAWError

__all__ = ["mean_intervals"]

_BLOCK = 4_000_000  # numbers at a time: bounds the memory to some 100 MB


def mean_intervals(
    matrices: Sequence[NDArray[np.float64]], *, level: float = 0.95, samples: int = 2_000, seed: int = 0
) -> list[tuple[float, float]]:
    """Bootstrap intervals of the means of several matrices (seeds, queries), over queries and seeds.

    For each matrix alone it is `maw.benchmark.statistics.bootstrap_interval`, with other random numbers. All matrices
    share the draws of queries, so that many columns of a table cost little more than one.

    Args:
        matrices: each (S, Q), all with the same Q; S may differ.
        level: the share of the samples inside an interval.
        samples: how many samples to draw; 2,000 place the ends to about a tenth of the standard error.
        seed: of the random draws.

    Returns:
        The lower and the upper end for each matrix.

    Raises:
        MAWError: fewer than two queries, matrices that differ in Q, or a `level` that is not between 0 and 1.

    >>> (low, high), (same, _) = mean_intervals([np.array([[0.1, 0.2, 0.3, 0.2]]), np.full((3, 4), 0.5)])
    >>> 0.1 <= low < 0.2 < high <= 0.3, same
    (True, 0.5)
    """
    check_share("level", level)
    widths = sorted({matrix.shape[1] for matrix in matrices})
    if not widths:
        return []
    if len(widths) > 1 or widths[0] < 2:
        raise MAWError(f"matrices must have the same two or more queries, got {', '.join(map(str, widths))} queries")
    queries = widths[0]
    stacked = np.concatenate(matrices).T  # (Q, all rows)
    ends = np.cumsum([0, *(len(matrix) for matrix in matrices)])
    means = np.empty((len(matrices), samples))
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // queries)
    for begin in range(0, samples, block):
        size = min(block, samples - begin)
        drawn = rng.integers(queries, size=(size, queries)) + np.arange(size)[:, None] * queries
        counts = np.bincount(drawn.ravel(), minlength=size * queries).reshape(size, queries)
        of_rows = counts @ stacked / queries  # (size, all rows)
        for place, matrix in enumerate(matrices):
            seeds = len(matrix)
            weight = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=size) / seeds
            means[place, begin : begin + size] = (weight * of_rows[:, ends[place] : ends[place + 1]]).sum(axis=1)
    return [scaled_interval(own, matrix, level) for own, matrix in zip(means, matrices, strict=True)]
