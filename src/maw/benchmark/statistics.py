"""Is a variant better than its twin, or was it luck? A test, an interval and a correction on paired values.

The unit is the query: both systems answer the same queries, so their values are compared query by query. Where a system
was trained with several seeds, values form a matrix (seeds, queries); row s of both systems used seed s, and column j
of both is query j. Higher values are better.

How much a mean of such values varies, and what a test could find, is in `maw.benchmark.power`; one whole comparison in
`maw.benchmark.comparison`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maw.benchmark.power import as_matrix, check_queries, check_share, own_share, standard_error
from maw.errors import MAWError

__all__ = ["bootstrap_interval", "holm", "paired_randomisation_test", "scaled_interval"]

_BLOCK = 4_000_000  # numbers drawn at a time: bounds the memory of the resampling loops to some 100 MB


def paired_randomisation_test(a: ArrayLike, b: ArrayLike, *, samples: int = 100_000, seed: int = 0) -> float:
    """Return the two-sided p-value of Fisher's randomisation test for paired values, over queries and seeds.

    Under the null hypothesis the two systems are interchangeable for every query, so the sign of each difference
    d_j = a_j - b_j could as well be the other one. The p-value is the share of sign patterns s with
    |sum_j s_j d_j| >= |sum_j d_j|. Where there are at most `samples` patterns all are counted and the p-value is exact;
    otherwise `samples` patterns are drawn and p = (count + 1) / (samples + 1), which is never 0 and keeps the test
    valid. Differences of zero have no sign and are left out, which changes nothing in the distribution.

    With S >= 2 seeds, d_j is the mean over seeds, and other seeds could have given other means: the mean of seed i
    deviates by e_i from the mean of all. These deviations get signs t_i too, made as large as the seeds' own part in
    them is (V_s, V_e as in `standard_error`): with c_i = sqrt(S / (S - 1) (1 - V_e / (Q V_s))) e_i,
    |sum_j s_j d_j + Q / S sum_i t_i c_i| >= |sum_j d_j| for Q queries. Without them a difference between lucky and
    unlucky trainings passes for one between the systems: where the seeds spread twice as much as a mean over 100
    queries does, the test over queries alone errs in 20, 17 and 14 % of the cases at a level of 5 % (S = 2, 3, 5), this
    one in 11, 8 and 7 %: so few seeds show little of their spread.

    Args:
        a: values of one system, one a query, or a matrix (seeds, queries).
        b: values of the other, for the same seeds and queries in the same order.
        samples: how many sign patterns to draw; the smallest p-value to be had is 1 / (samples + 1).
        seed: of the random signs.

    Returns:
        The p-value, 1.0 for identical values.

    Raises:
        MAWError: shapes differ, there is no value, a value is not finite, or `samples` is below 1.

    Source: Fisher (1935), The Design of Experiments; Smucker, Allan and Carterette (2007), doi
    10.1145/1321440.1321528; (count + 1) / (samples + 1): Phipson and Smyth (2010), doi 10.2202/1544-6115.1585; signs
    for two crossed factors, as in the wild bootstrap: MacKinnon, Nielsen and Webb (2021), Journal of Business and
    Economic Statistics 39, 505-519. The error rates are measured (`test_seeds_are_part_of_the_test`).

    Example:
        >>> paired_randomisation_test([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])  # 2 of 8 patterns: all plus, all minus
        0.25
    """
    first, second = as_matrix("a", a), as_matrix("b", b)
    if first.shape != second.shape:
        raise MAWError(
            f"paired values must have the same length, got {_shape(first)} and {_shape(second)}: give both systems' "
            "values for the same queries in the same order, and for the same seeds"
        )
    _at_least_one("samples", samples)
    matrix = first - second
    difference, seeds = matrix.mean(axis=0), len(matrix)
    total_difference = difference.sum()
    if seeds > 1:
        deviation = (matrix.mean(axis=1) - matrix.mean()) * math.sqrt(seeds / (seeds - 1) * own_share(matrix))
        difference = np.concatenate([difference, deviation * matrix.shape[1] / seeds])
    difference = difference[difference != 0]
    pairs = len(difference)
    if pairs == 0:
        return 1.0
    total = np.abs(difference).sum()
    threshold = abs(total_difference) - 1e-12 * total  # sums that differ by rounding only are equal
    exact = pairs <= 62 and 2**pairs <= samples
    patterns = 2**pairs if exact else samples
    rng = np.random.default_rng(seed)
    count = 0
    block = max(1, _BLOCK // pairs)
    for begin in range(0, patterns, block):
        size = min(block, patterns - begin)
        if exact:
            negative = (np.arange(begin, begin + size)[:, None] >> np.arange(pairs)) & 1
        else:
            draws = np.frombuffer(rng.bytes(size * -(-pairs // 8)), dtype=np.uint8).reshape(size, -1)
            negative = np.unpackbits(draws, axis=1, count=pairs)
        flipped = difference.sum() - 2.0 * (negative.astype(np.float64) @ difference)
        count += int((np.abs(flipped) >= threshold).sum())
    return count / patterns if exact else (count + 1) / (patterns + 1)


def bootstrap_interval(
    differences: ArrayLike, *, level: float = 0.95, samples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return a bootstrap interval for the mean of paired differences, over queries and seeds.

    Each sample draws queries with replacement and, independently, seeds with replacement, and takes the mean of the
    differences at the drawn rows and columns. Drawing both counts what neither explains up to three times, so the
    samples' distances from their mean are scaled to the standard error that `standard_error` estimates; the interval
    runs between the (1 - level) / 2 and (1 + level) / 2 quantiles of what results. So it speaks about other queries
    *and* other seeds. With one seed it speaks about other queries only, and with two or three it is too narrow, because
    so few seeds show little of their spread.

    Args:
        differences: one a query, or a matrix (seeds, queries).
        level: the share of the samples inside the interval.
        samples: how many samples to draw.
        seed: of the random draws.

    Returns:
        The lower and the upper end.

    Raises:
        MAWError: fewer than two queries, a value that is not finite, `level` not between 0 and 1, or `samples` below 1.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13; two factors at once: Owen (2007),
    doi 10.1214/07-AOAS122.

    Example:
        >>> low, high = bootstrap_interval([0.1, 0.2, 0.3, 0.2])
        >>> 0.1 <= low < 0.2 < high <= 0.3
        True
    """
    matrix = as_matrix("differences", differences)
    seeds, queries = matrix.shape
    check_queries(queries)
    check_share("level", level)
    _at_least_one("samples", samples)
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    block = max(1, _BLOCK // (queries + seeds))
    for begin in range(0, samples, block):
        size = min(block, samples - begin)
        weight = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=size) / seeds
        averaged = weight @ matrix  # (samples, queries): over the drawn seeds
        drawn = rng.integers(queries, size=(size, queries))
        means[begin : begin + size] = np.take_along_axis(averaged, drawn, axis=1).mean(axis=1)
    return scaled_interval(means, matrix, level)


def scaled_interval(means: NDArray[np.float64], matrix: NDArray[np.float64], level: float) -> tuple[float, float]:
    """The interval between quantiles of bootstrap means, scaled to the standard error as `bootstrap_interval` says.

    Args:
        means: samples of the mean of `matrix`.
        matrix: (seeds, queries).
        level: the share of the samples inside the interval.
    """
    spread = means.std()
    factor = standard_error(matrix) / spread if spread > 0 else 1.0
    low, high = matrix.mean() + (np.quantile(means, [(1 - level) / 2, (1 + level) / 2]) - means.mean()) * factor
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values: rejecting where they are at most alpha keeps the family-wise error at alpha.

    With the p-values sorted, p_(1) <= ... <= p_(m), the adjusted ones are
    max_{i <= j} min(1, (m - i + 1) p_(i)): monotone, in the order given, and valid however the tests depend on each
    other.

    Args:
        p_values: the raw p-values of all tests of a table.

    Returns:
        Adjusted p-values in the same order.

    Raises:
        MAWError: there is none, or one is not between 0 and 1.

    Source: Holm (1979), Scandinavian Journal of Statistics 6, 65-70.

    Example:
        >>> holm([0.5, 0.25, 0.0625])
        [0.5, 0.5, 0.1875]
    """
    raw = _vector("p-values", p_values)
    if ((raw < 0) | (raw > 1)).any():
        raise MAWError(f"p-values must lie between 0 and 1, got {raw.min()} to {raw.max()}: pass raw p-values")
    order = np.argsort(raw, kind="stable")
    adjusted = np.empty_like(raw)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, raw[order] * np.arange(len(raw), 0, -1)))
    return adjusted.tolist()


def _vector(name: str, values: ArrayLike) -> NDArray[np.float64]:
    matrix = as_matrix(name, values)
    if np.ndim(values) != 1:
        raise MAWError(f"{name} must be a list of numbers, got shape {np.shape(values)}: average over seeds first")
    return matrix[0]


def _shape(matrix: NDArray[np.float64]) -> str:
    seeds, queries = matrix.shape
    return str(queries) if seeds == 1 else f"{queries} for {seeds} seeds"


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise MAWError(f"{name} must be at least 1, got {value}: 10,000 or more give a steady result")
