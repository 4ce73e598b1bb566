from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from maw.benchmark.comparison import Comparison, compare, correct
from maw.benchmark.power import smallest_detectable_difference, standard_error
from maw.benchmark.statistics import holm, paired_randomisation_test
from maw.errors import MAWError


def planted(effect: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    b = rng.random((3, 120))
    return b + effect + rng.normal(0, 0.05, b.shape), b


def test_a_comparison_before_and_after_its_table() -> None:
    a, b = planted(0.1)
    alone = compare("maw", "dense", a, b, "nDCG@10", split="dev", samples=999)
    assert isinstance(alone, Comparison)
    assert (alone.variant, alone.baseline, alone.metric, alone.split) == ("maw", "dense", "nDCG@10", "dev")
    assert (alone.queries, alone.seeds, alone.p_value) == (120, 3, 1 / 1000)
    assert alone.mean_difference == pytest.approx((a - b).mean())
    assert alone.interval[0] < alone.mean_difference < alone.interval[1]
    assert alone.standard_error == standard_error(a - b)
    assert alone.smallest_detectable == smallest_detectable_difference(alone.standard_error)
    assert alone.p_value_corrected is None
    assert alone.verdict is None
    assert correct([alone])[0] == dataclasses.replace(alone, p_value_corrected=1 / 1000, verdict="better")
    json.dumps(dataclasses.asdict(alone))


def test_verdicts_in_words_and_corrected_over_the_whole_table() -> None:
    table = [
        compare(name, "dense", *planted(effect), "nDCG@10", samples=999)
        for name, effect in (("up", 0.1), ("down", -0.1), ("same", 0.0))
    ]
    corrected = correct(table)
    assert [row.verdict for row in corrected] == ["better", "worse", "no difference shown"]
    assert [row.p_value_corrected for row in corrected] == holm([row.p_value for row in table])
    wanted = [smallest_detectable_difference(row.standard_error, alpha=0.05 / 3) for row in table]
    assert (
        [row.smallest_detectable for row in corrected]
        == [row.smallest_detectable for row in correct(corrected)]
        == wanted
    )
    assert [row.verdict for row in correct(table[:1] * 60)] == ["no difference shown"] * 60  # 60 * .001 > .05
    assert [row.verdict for row in correct(table, alpha=0.0005)] == ["no difference shown"] * 3


def test_a_difference_that_hangs_on_one_seed_is_not_shown() -> None:
    rng = np.random.default_rng(8)
    b = rng.random((3, 200))
    a = b + np.array([[0.3], [-0.05], [-0.05]]) + rng.normal(0, 0.01, b.shape)
    row = correct([compare("maw", "dense", a, b, "nDCG@10", samples=999)])[0]
    assert row.p_value_corrected > 0.2
    assert paired_randomisation_test(a.mean(axis=0), b.mean(axis=0), samples=999) == 1 / 1000  # for these seeds
    assert row.interval[0] < 0 < row.interval[1]
    assert row.verdict == "no difference shown"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare("a", "b", [[1.0, 2.0]] * 3, [1.0, 2.0], "AP"), r"got .* \(3, 2\) for a and \(1, 2\) for b"),
        (lambda: compare("a", "b", [1.0, math.nan], [1.0, 2.0], "AP"), "values of a must be finite"),
        (lambda: correct([]), "at least one comparison"),
    ],
)
def test_bad_input_is_refused(call, message: str) -> None:
    with pytest.raises(MAWError, match=message):
        call()
