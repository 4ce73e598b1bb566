from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from maw.benchmark.comparison import compare, correct
from maw.benchmark.power import smallest_detectable_difference, standard_error
from maw.errors import MAWError


def test_smallest_detectable_difference_worked_by_hand() -> None:
    # sd = 1 with 4 values: SE = .5; 1.959964 + .841621 = 2.801585
    row = np.array([-1.0, -1.0, 1.0, 1.0]) * math.sqrt(3) / 2
    assert standard_error(row) == pytest.approx(0.5)
    assert standard_error(np.tile(row, (3, 1))) == pytest.approx(0.5)
    assert smallest_detectable_difference(0.5) == pytest.approx(2.8015852 / 2, abs=1e-6)
    assert smallest_detectable_difference(0.5, alpha=0.32, power=0.5) == pytest.approx(stats.norm.ppf(0.84) / 2)


def test_its_standard_error_is_right_for_crossed_seeds_and_queries() -> None:
    rng = np.random.default_rng(6)
    seeds, queries, means, squared = 4, 50, [], []
    for _ in range(3_000):
        draw = rng.normal(0, 0.3, (seeds, 1)) + rng.normal(0, 0.2, (1, queries)) + rng.normal(0, 1, (seeds, queries))
        means.append(draw.mean())
        squared.append(standard_error(draw) ** 2)
    assert np.mean(squared) == pytest.approx(np.var(means), rel=0.1)  # V_s / S alone: 18 % more


def test_a_table_finds_what_it_says_it_would_find() -> None:
    rng = np.random.default_rng(10)
    others = [compare("other", "dense", *np.zeros((2, 1, 80)), "nDCG@10", samples=99)] * 9
    error = 0.1 / math.sqrt(80)
    found = []
    for seed in range(200):
        a = smallest_detectable_difference(error, alpha=0.05 / 10) + rng.normal(0, 0.1, (1, 80))
        own = compare("maw", "dense", a, np.zeros_like(a), "nDCG@10", samples=2_000, bootstrap_samples=200, seed=seed)
        found.append(correct([own, *others])[0].verdict == "better")
    assert np.mean(found) == pytest.approx(0.8, abs=0.08)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: standard_error([1.0]), "at least two queries"),
        (lambda: smallest_detectable_difference(0.1, power=1.0), "power must lie between 0 and 1"),
        (lambda: smallest_detectable_difference(0.1, alpha=0.0), "alpha must lie between 0 and 1"),
    ],
)
def test_bad_input_is_refused(call, message: str) -> None:
    with pytest.raises(MAWError, match=message):
        call()
