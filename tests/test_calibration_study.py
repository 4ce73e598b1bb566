"""The study of calibrated selectors (`benchmarks/calibration.py`) on planted states, where the answer is known."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("calibration_study", FOLDER / "calibration.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def test_a_calibrated_policy_tells_texts_apart_sooner(study):
    own = torch.randn(600, 24)
    state = 0.6 + 0.2 * own  # most of a state is common, as in MiniLM
    reward = -0.5 + 0.06 * torch.randn(8) + 0.02 * own @ torch.randn(24, 8) / 24**0.5
    found = study.Recorded(state, reward, torch.arange(600) < 300)
    settings = {"steps": 60, "learning_rate": 1e-3, "seed": 0}
    raw, calibrated, above = (
        study.measure(study.train(found, calibrate=calibrate, baseline=baseline, **settings), found)
        for calibrate, baseline in study.KINDS
    )
    assert calibrated["information"] > 3 * raw["information"]
    assert calibrated["information"] > 0.003
    assert above["information"] > calibrated["information"]
    assert above["common"] < 0.1 * calibrated["common"]


def test_what_is_measured_is_that_of_known_policies(study):
    class Known:
        def __init__(self, logits):
            self.logits = logits

        def policy(self, state):
            return self.logits

    reward = torch.eye(2).repeat(5, 1)
    found = study.Recorded(torch.zeros(10, 3), reward, reward[:, 0] > 0)
    sure = study.measure(Known(1e3 * reward), found)
    assert sure["information"] == pytest.approx(math.log(2), abs=1e-6)
    assert (sure["among queries"], sure["among documents"]) == (0.0, 0.0)  # it tells them apart and nothing else
    assert sure["reward gained"] == pytest.approx(0.5)
    assert (sure["policy entropy"], sure["depths alive"]) == (0.0, 1.0)
    blind = study.measure(Known(torch.tensor([[1e3, 0.0]]).expand(10, -1)), found)
    assert (blind["information"], blind["depths alive"], blind["reward gained"]) == (0.0, 0.5, 0.0)
