"""The study of the estimators (`benchmarks/grpo.py`) on small counts, and its headline at full size."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("grpo_study", FOLDER / "grpo.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def test_variance_falls_with_the_group_and_a_baseline_lowers_it(study):
    def variance(kind, group_size):
        return study.compare(0, kind, group_size, 20_000).variance

    assert variance("leave-one-out", 8) / variance("leave-one-out", 16) == pytest.approx(2, rel=0.15)
    assert variance("zero", 8) > 1.5 * variance("leave-one-out", 8) > 1.5 * variance("value", 8)
    # relative to its mean, `none` is leave-one-out
    assert variance("none", 8) == pytest.approx(variance("leave-one-out", 8), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_million_groups_against_the_exact_gradient(study, seed):
    for kind in ("none", "leave-one-out"):
        assert study.compare(seed, kind, 8, 1_000_000).error < 0.01
    found = study.compare(seed, "std", 8, 1_000_000)
    assert found.cosine > 0.99
    assert found.factor > 0


@pytest.mark.parametrize(
    "advantage", ["std", *(pytest.param(other, marks=pytest.mark.slow) for other in ("none", "leave-one-out"))]
)
def test_a_planted_best_arm_is_found(study, advantage):
    probability = study.found_arms(advantage, 100, arms=32, steps=150, batch=8)
    assert int((probability > 0.5).sum()) >= 99


def test_without_a_gap_no_arm_is_found(study, monkeypatch):
    monkeypatch.setattr(study, "GAP", -0.05)
    assert int((study.found_arms("std", 20, arms=32, steps=150, batch=8) > 0.5).sum()) == 0


@pytest.mark.slow
def test_the_value_network_explains_rewards_of_new_texts(study):
    found = study.explained_variance(0)
    assert found["0"] < 0
    assert found["2000"] > 0.8 * found["possible"]


def test_the_value_network_learns_the_rewards_mean_first(study):
    found = study.explained_variance(0, checks=(0, 150))
    assert found["0"] < -10
    assert found["0"] / 10 < found["150"] < found["possible"]
