from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import maw.benchmark.statistics as module
from maw.benchmark.statistics import bootstrap_interval, holm, paired_randomisation_test
from maw.errors import MAWError

# Randomisation test


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_exact_p_value_is_the_share_of_sign_patterns(differences: list[int]) -> None:
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    expected = sum(value >= abs(sum(differences)) for value in sums) / len(sums)
    assert paired_randomisation_test(differences, [0] * len(differences)) == expected


@pytest.mark.parametrize("seed", range(5))
def test_exact_p_value_agrees_with_scipy(seed: int) -> None:
    a, b = np.random.default_rng(seed).random((2, 11))
    theirs = stats.permutation_test((a, b), lambda x, y: np.mean(x - y), permutation_type="samples", vectorized=False)
    assert paired_randomisation_test(a, b) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_sampled_p_value_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    a = rng.random(40)
    b = a + rng.normal(0.005, 0.1, 40)
    theirs = stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=50_000, rng=rng,
    )  # fmt: skip
    assert 0.02 < theirs.pvalue < 0.5
    assert paired_randomisation_test(a, b) == pytest.approx(theirs.pvalue, abs=0.01)


def test_sampled_p_value_agrees_with_the_exact_one() -> None:
    a, b = np.random.default_rng(3).random((2, 12))
    exact = paired_randomisation_test(a, b, samples=2**12)
    sampled = [paired_randomisation_test(a, b, samples=2**12 - 1, seed=seed) for seed in range(100)]
    assert len(set(sampled)) > 1
    assert np.mean(sampled) == pytest.approx(exact, abs=0.005)


def test_sampled_p_value_is_never_zero() -> None:
    a = np.linspace(1, 2, 100)
    assert paired_randomisation_test(a, np.zeros(100), samples=999) == 1 / 1000


def test_p_values_are_uniform_under_the_null_hypothesis() -> None:
    rng = np.random.default_rng(0)
    p_values = []
    for seed in range(400):
        query = rng.normal(0, 1, 30)  # hard and easy queries: what pairing removes
        a, b = query + rng.normal(0, 0.3, (2, 30))
        p_values.append(paired_randomisation_test(a, b, samples=999, seed=seed))
    assert stats.kstest(p_values, "uniform").pvalue > 0.05
    assert 0.02 < np.mean(np.array(p_values) <= 0.05) < 0.08


def test_a_planted_difference_is_found_as_often_as_it_should_be() -> None:
    rng = np.random.default_rng(1)
    spread, queries, found = 0.3, 100, []
    planted = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * spread / math.sqrt(queries)  # power 0.8
    for seed in range(300):
        query = rng.normal(0, 1, queries)
        a = query + rng.normal(planted, spread, queries)
        found.append(paired_randomisation_test(a, query, samples=999, seed=seed) <= 0.05)
    assert np.mean(found) == pytest.approx(0.8, abs=0.07)


def test_identical_values_give_one() -> None:
    assert paired_randomisation_test([0.3, 0.4], [0.3, 0.4]) == 1.0


def test_queries_without_a_difference_change_nothing() -> None:
    a = [0.5, 0.2, 0.9, 0.7]
    assert paired_randomisation_test(a, [0.1] * 4) == paired_randomisation_test(
        a + [0.3] * 500, [0.1] * 4 + [0.3] * 500
    )


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), pairs=st.integers(1, 40))
def test_symmetric_bounded_and_repeatable(seed: int, pairs: int) -> None:
    a, b = np.random.default_rng(seed).random((2, pairs))
    p_value = paired_randomisation_test(a, b, samples=500)
    assert 0 < p_value <= 1
    assert p_value == paired_randomisation_test(b, a, samples=500) == paired_randomisation_test(a, b, samples=500)


def test_sums_equal_up_to_rounding_count_as_equal() -> None:
    # 0.1 + 0.2 - 0.3 is not 0 in floating point; exactly, both patterns with sum 0 and all others are at least 0
    assert paired_randomisation_test([0.1, 0.2, 0.0], [0.0, 0.0, 0.3]) == 1.0
    assert paired_randomisation_test([0.1] * 10, [0.0] * 10) == 2 / 1024


def test_seeds_are_part_of_the_test() -> None:
    """The share of wrong alarms under the null hypothesis, with seeds that spread twice as much as the mean does."""
    rng = np.random.default_rng(9)
    for seeds, limit in ((2, 0.14), (3, 0.10), (5, 0.09)):
        alarms = np.zeros(2)
        for seed in range(300):
            spread = rng.normal(0, 0.02, (seeds, 1))
            d = rng.normal(0, 0.1, (1, 100)) + spread + rng.normal(0, 0.1, (seeds, 100))
            zero = np.zeros_like(d)
            both = paired_randomisation_test(d, zero, samples=999, seed=seed)
            queries = paired_randomisation_test(d.mean(axis=0), zero.mean(axis=0), samples=999, seed=seed)
            alarms += np.array([both, queries]) <= 0.05
        assert alarms[0] / 300 <= limit
        assert alarms[1] / 300 >= 0.10  # the test over queries alone


def test_seeds_that_agree_change_little_and_one_seed_nothing() -> None:
    rng = np.random.default_rng(7)
    b = rng.random((3, 120))
    a = b + 0.01 + rng.normal(0, 0.05, b.shape)
    alone = paired_randomisation_test(a.mean(axis=0), b.mean(axis=0), samples=9_999)
    assert 0.0001 < alone < 0.05
    assert alone - 0.01 <= paired_randomisation_test(a, b, samples=9_999) < 10 * alone
    assert paired_randomisation_test(a[:1], b[:1]) == paired_randomisation_test(a[0], b[0])
    rows = np.tile(a[0] - b[0], (3, 1))
    assert paired_randomisation_test(rows, np.zeros_like(rows)) == pytest.approx(
        paired_randomisation_test(a[0], b[0]), abs=0.005
    )


def test_signs_of_queries_and_seeds_worked_by_hand() -> None:
    # means over seeds 2, 1; seeds' means 2.75, .25 deviate by +-1.25 from 1.5; times Q / S = 1
    # what both leave over is +-.25: V_e = .25, V_s = 3.125, so sqrt(2 (1 - .25 / 6.25)) = sqrt(1.92)
    d = np.array([[3.5, 2.0], [0.5, 0.0]])
    c = 1.25 * math.sqrt(1.92)
    sums = [abs(2 * s + u + c * t - c * v) for s, u, t, v in itertools.product((1, -1), repeat=4)]
    assert paired_randomisation_test(d, np.zeros((2, 2))) == sum(value >= 3 - 1e-9 for value in sums) / 16


# Bootstrap


def test_interval_agrees_with_scipy() -> None:
    differences = np.random.default_rng(0).normal(0.1, 1, 60)
    theirs = stats.bootstrap((differences,), np.mean, method="percentile", rng=np.random.default_rng(1))
    assert bootstrap_interval(differences) == pytest.approx(tuple(theirs.confidence_interval), abs=0.02)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    inside = []
    for seed in range(300):
        low, high = bootstrap_interval(rng.normal(0.2, 1, 80), samples=500, level=0.9, seed=seed)
        inside.append(low <= 0.2 <= high)
    assert np.mean(inside) == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize("of_seeds", [0.0, 0.02])
def test_it_covers_the_truth_for_crossed_seeds_and_queries(of_seeds: float) -> None:
    rng = np.random.default_rng(9)
    inside, shape = [], (10, 150)
    for seed in range(300):
        own = rng.normal(0, of_seeds, (shape[0], 1)) + rng.normal(0, 0.03, (1, shape[1]))
        low, high = bootstrap_interval(0.2 + own + rng.normal(0, 0.1, shape), samples=500, level=0.9, seed=seed)
        inside.append(low <= 0.2 <= high)
    assert np.mean(inside) == pytest.approx(0.9, abs=0.06)


def test_seeds_that_disagree_widen_the_interval() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.1, (5, 200))
    alike = bootstrap_interval(noise)
    apart = bootstrap_interval(noise + np.array([[-0.2], [-0.1], [0.0], [0.1], [0.2]]))
    assert apart[1] - apart[0] > 5 * (alike[1] - alike[0])
    seeds = np.array([-0.2, -0.1, 0.0, 0.1, 0.2])
    assert np.subtract(*apart[::-1]) == pytest.approx(2 * 1.96 * seeds.std() / math.sqrt(5), rel=0.1)


def test_the_same_row_for_every_seed_is_like_one_seed() -> None:
    row = np.random.default_rng(4).normal(0, 1, 50)
    one, three = bootstrap_interval(row), bootstrap_interval(np.tile(row, (3, 1)))
    assert one == bootstrap_interval(row[None])
    assert three == pytest.approx(one, abs=0.02)


def test_blocks_do_not_change_the_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    row = np.random.default_rng(5).normal(0, 1, 50)
    p_value = paired_randomisation_test(row, np.zeros(50), samples=5_000)
    whole = bootstrap_interval(row)
    monkeypatch.setattr(module, "_BLOCK", 700)
    assert bootstrap_interval(row) == pytest.approx(whole, abs=0.02)
    assert paired_randomisation_test(row, np.zeros(50), samples=5_000) == pytest.approx(p_value, abs=0.03)
    assert paired_randomisation_test(row[:9], np.zeros(9)) == pytest.approx(
        stats.permutation_test((row[:9],), np.mean, permutation_type="samples", vectorized=False).pvalue
    )


# Holm


def test_textbook_values() -> None:
    # Holm's procedure on four tests: 0.005 * 4, 0.01 * 3, then 0.03 * 2 = 0.06 carries over 0.04 * 1
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_holm_is_monotone_and_does_not_mind_the_order(p_values: list[float], order) -> None:
    adjusted = holm(p_values)
    pairs = sorted(zip(p_values, adjusted, strict=True))
    assert all(left[1] <= right[1] for left, right in itertools.pairwise(pairs))
    assert all(raw <= new <= min(1.0, raw * len(p_values)) for raw, new in pairs)
    places = list(range(len(p_values)))
    order.shuffle(places)
    assert holm([p_values[place] for place in places]) == [adjusted[place] for place in places]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_randomisation_test([1.0], [1.0, 2.0]), "same length, got 1 and 2"),
        (lambda: paired_randomisation_test([], []), "a must be one or more numbers"),
        (lambda: paired_randomisation_test([1.0], [math.nan]), "b must be finite, got 1 values"),
        (lambda: paired_randomisation_test([[1.0, 2.0]] * 2, [1.0, 2.0]), "got 2 for 2 seeds and 2: give both"),
        (lambda: paired_randomisation_test([1.0], [2.0], samples=0), "samples must be at least 1"),
        (lambda: bootstrap_interval([]), "one or more numbers"),
        (lambda: bootstrap_interval([1.0]), "at least two queries, got 1"),
        (lambda: bootstrap_interval([1.0, math.inf]), "must be finite"),
        (lambda: bootstrap_interval([1.0, 2.0], level=95), "level must lie between 0 and 1, got 95"),
        (lambda: bootstrap_interval([1.0, 2.0], samples=0), "samples must be at least 1"),
        (lambda: bootstrap_interval([[1.0, 2.0], [1.0]]), "rows of equal length"),
        (lambda: holm([]), "one or more numbers"),
        (lambda: holm([0.1, math.nan]), "must be finite"),
        (lambda: holm([0.1, 1.1]), "between 0 and 1, got 0.1 to 1.1"),
    ],
)
def test_bad_input_is_refused(call, message: str) -> None:
    with pytest.raises(MAWError, match=message):
        call()
