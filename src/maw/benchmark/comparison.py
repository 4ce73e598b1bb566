"""One variant against its twin: the difference, its interval, its p-value corrected for the whole table, a verdict.

`compare` makes one comparison; `correct` takes all comparisons of a table, corrects their p-values for their number,
and only then gives verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from numpy.typing import ArrayLike

from maw.benchmark.power import as_matrix, check_share, smallest_detectable_difference, standard_error
from maw.benchmark.statistics import bootstrap_interval, holm, paired_randomisation_test
from maw.errors import MAWError

__all__ = ["Comparison", "Verdict", "compare", "correct"]

Verdict: TypeAlias = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True)
class Comparison:
    """One variant against its twin on one metric of one split.

    Attributes:
        variant: name of the system in question.
        baseline: name of the twin it is compared with.
        metric: name of the metric, such as "nDCG@10".
        split: the queries compared on, such as "test".
        mean_difference: mean over seeds and queries of variant minus baseline.
        interval: bootstrap interval of that mean, over queries and seeds.
        p_value: two-sided paired randomisation test over queries and seeds.
        p_value_corrected: the same after Holm's correction over the table; None until `correct` has seen the table.
        queries: how many queries were compared.
        seeds: how many seeds each system was trained with.
        standard_error: of that mean, over queries and seeds.
        smallest_detectable: the true difference that this comparison alone, or after `correct` the first step of its
            table's correction, would find with power 0.8.
        verdict: in words; None until `correct` has seen the table.
    """

    variant: str
    baseline: str
    metric: str
    split: str
    mean_difference: float
    interval: tuple[float, float]
    p_value: float
    p_value_corrected: float | None
    queries: int
    seeds: int
    standard_error: float
    smallest_detectable: float
    verdict: Verdict | None


def compare(
    variant: str,
    twin: str,
    values_a: ArrayLike,
    values_b: ArrayLike,
    metric: str,
    *,
    split: str = "test",
    level: float = 0.95,
    samples: int = 100_000,
    bootstrap_samples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare a variant with its twin; `correct` then gives the verdict.

    The randomisation test and the interval are both over queries and seeds.

    Args:
        variant: name of the system that `values_a` belong to.
        twin: name of the system that `values_b` belong to.
        values_a: one value a query, or a matrix (seeds, queries).
        values_b: the same shape: the same seeds and queries in the same order.
        metric: name of the metric.
        split: name of the split.
        level: of the interval.
        samples: of the randomisation test.
        bootstrap_samples: of the interval.
        seed: of the random draws.

    Returns:
        The comparison, as if it were alone in its table, without corrected p-value and verdict.

    Raises:
        MAWError: shapes differ, fewer than two queries, a value that is not finite, or a setting out of its range.

    Example:
        >>> found = compare("maw-lora", "dense-lora", [0.5, 0.7, 0.6, 0.4], [0.4, 0.6, 0.6, 0.3], "nDCG@10")
        >>> round(found.mean_difference, 3), found.p_value, correct([found])[0].verdict
        (0.075, 0.25, 'no difference shown')
    """
    first, second = as_matrix(f"values of {variant}", values_a), as_matrix(f"values of {twin}", values_b)
    if first.shape != second.shape:
        raise MAWError(
            f"both systems must have the same seeds and queries, got (seeds, queries) {first.shape} for {variant} and "
            f"{second.shape} for {twin}: repeat the row of a system without seeds; evaluate both on the same queries"
        )
    differences = first - second
    error = standard_error(differences)
    return Comparison(
        variant=variant,
        baseline=twin,
        metric=metric,
        split=split,
        mean_difference=float(differences.mean()),
        interval=bootstrap_interval(differences, level=level, samples=bootstrap_samples, seed=seed),
        p_value=paired_randomisation_test(first, second, samples=samples, seed=seed),
        p_value_corrected=None,
        queries=differences.shape[1],
        seeds=differences.shape[0],
        standard_error=error,
        smallest_detectable=smallest_detectable_difference(error),
        verdict=None,
    )


def correct(comparisons: Sequence[Comparison], *, alpha: float = 0.05) -> list[Comparison]:
    """Correct the p-values of all comparisons of a table by Holm's method, and say what it shows and would have shown.

    "better" or "worse" where the corrected p-value is at most `alpha` and the interval lies wholly on that side of
    zero; "no difference shown" otherwise. The interval alone is not corrected for the number of comparisons, the test
    is.

    Args:
        comparisons: every comparison of the table: leaving some out makes the correction too small.
        alpha: the family-wise error allowed.

    Returns:
        The comparisons in the same order, with `p_value_corrected`, `smallest_detectable` and `verdict`.

    Raises:
        MAWError: there is none, or `alpha` is not between 0 and 1.
    """
    check_share("alpha", alpha)
    if not comparisons:
        raise MAWError("a table must hold at least one comparison, got none: compare two systems first")
    hardest = alpha / len(comparisons)  # the level of Holm's first step
    return [
        replace(
            comparison,
            p_value_corrected=p_value,
            smallest_detectable=smallest_detectable_difference(comparison.standard_error, alpha=hardest),
            verdict=_verdict(comparison, p_value, alpha),
        )
        for comparison, p_value in zip(
            comparisons, holm([comparison.p_value for comparison in comparisons]), strict=True
        )
    ]


def _verdict(comparison: Comparison, p_value: float, alpha: float) -> Verdict:
    low, high = comparison.interval
    if p_value <= alpha and low > 0:
        return "better"
    if p_value <= alpha and high < 0:
        return "worse"
    return "no difference shown"
