"""How much a mean of paired differences varies over queries and seeds, and how large a difference a test would find.

Values are one a query, or a matrix (seeds, queries). The test and the interval of `maw.benchmark.statistics` use the
same parts of the variance and the same standard error.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maw.errors import MAWError

__all__ = [
    "as_matrix",
    "check_queries",
    "check_share",
    "own_share",
    "smallest_detectable_difference",
    "standard_error",
]


def standard_error(differences: ArrayLike) -> float:
    """Return the standard error SE of the mean of paired differences, over queries and seeds.

    SE^2 = V / Q for Q queries, V their sample variance. For a matrix of S >= 2 seeds, with V_q the variance of the
    queries' means over seeds, V_s that of the seeds' means over queries and V_e that of what both leave over,
    SE^2 = V_q / Q + V_s / S - V_e / (S Q), and at least V_q / Q.

    Args:
        differences: one a query, or a matrix (seeds, queries).

    Returns:
        SE, in the metric's own unit.

    Raises:
        MAWError: fewer than two queries, or a value that is not finite.

    Source: the two-way random-effects analysis of variance, for instance Searle, Casella and McCulloch (1992), Variance
    Components, chapter 4.

    Example:
        >>> round(standard_error([0.1, -0.1, 0.2, 0.0]), 4)  # 0.1291 / sqrt(4)
        0.0645
    """
    matrix = as_matrix("differences", differences)
    seeds, queries = matrix.shape
    check_queries(queries)
    squared = matrix.mean(axis=0).var(ddof=1) / queries
    if seeds > 1:
        squared += matrix.mean(axis=1).var(ddof=1) / seeds * own_share(matrix)
    return math.sqrt(squared)


def smallest_detectable_difference(error: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the true mean difference that a two-sided test at `alpha` would find with probability `power`.

        delta = (z(1 - alpha / 2) + z(power)) SE

    with z the quantile of the normal distribution. Of m tests that Holm corrects together the first has to pass
    alpha / m: give that as `alpha` for what a table would find. With two to five seeds `paired_randomisation_test`
    finds less, since it lets every seed be lucky. A result that shows no difference means only that the difference is
    probably smaller than this.

    Args:
        error: SE, the standard error of the mean difference.
        alpha: the level of the test.
        power: the probability of finding the difference.

    Returns:
        The difference, in the metric's own unit.

    Raises:
        MAWError: `alpha` or `power` not between 0 and 1.

    Source: the normal approximation, for instance Cohen (1988), Statistical Power Analysis, chapter 2.

    Example:
        >>> round(smallest_detectable_difference(0.0645), 4)  # 2.8016 * 0.0645
        0.1807
    """
    from scipy.special import ndtri

    check_share("alpha", alpha)
    check_share("power", power)
    return float((ndtri(1 - alpha / 2) + ndtri(power)) * error)


def own_share(matrix: NDArray[np.float64]) -> float:
    """1 - V_e / (Q V_s), at least 0: how much of the variance of the seeds' means is not left over from queries."""
    seeds, queries = matrix.shape
    of_query, of_seed = matrix.mean(axis=0), matrix.mean(axis=1)
    spread = of_seed.var(ddof=1)
    if spread == 0 or queries < 2:
        return float(queries < 2)
    residual = matrix - of_query - of_seed[:, None] + matrix.mean()
    return max(0.0, 1 - (residual**2).sum() / ((seeds - 1) * (queries - 1)) / (queries * spread))


def as_matrix(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Finite values as (seeds, queries)."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise MAWError(f"{name} must be numbers with rows of equal length, got {error}: check every seed") from error
    if array.ndim not in (1, 2) or array.size == 0:
        raise MAWError(
            f"{name} must be one or more numbers, one a query or a matrix (seeds, queries), got shape {array.shape}: "
            "evaluate on at least one query"
        )
    if not np.isfinite(array).all():
        raise MAWError(
            f"{name} must be finite, got {int((~np.isfinite(array)).sum())} values that are NaN or infinite: a query "
            "without an answer has the value 0"
        )
    return np.atleast_2d(array)


def check_queries(queries: int) -> None:
    """Raise unless there are at least two queries, which a spread needs."""
    if queries < 2:
        raise MAWError(f"a spread needs at least two queries, got {queries}: evaluate on more queries")


def check_share(name: str, value: float) -> None:
    """Raise unless `value` lies between 0 and 1."""
    if not 0 < value < 1:
        raise MAWError(f"{name} must lie between 0 and 1, got {value}: for instance 0.05 for alpha, 0.95 for a level")
