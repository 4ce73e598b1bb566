"""How long a training is said to take, where rollouts encode every text again."""

from __future__ import annotations

import pytest
from toys import SETTINGS, encoder, toy

import maw
from maw.benchmark.plan import rollout_forwards, training_seconds
from maw.benchmark.variants import VARIANTS


@pytest.mark.parametrize(
    ("settings", "forwards"),
    [
        ({}, 0.0),
        ({"reward": "retrieval"}, 8.0),
        ({"reward": "retrieval", "selection": "uniform"}, 0.0),
        ({"reward": "retrieval", "mechanism": "linear-gate"}, 0.0),
        ({"reward": "sum", "layers": [-1]}, 4.0),
        ({"reward": "retrieval", "layers": "all", "group_size": 3}, 3.0),
    ],
)
def test_rollouts_run_from_the_first_layer_with_maw_up(settings, forwards):
    """Of an encoder of two layers."""
    assert rollout_forwards(maw.MAWConfig(**settings), encoder()) == forwards


def test_rollouts_are_part_of_the_time_of_a_training():
    data, variant = toy(), VARIANTS["maw-full"]
    texts = 2 * len(data.training_pairs(1, 0)) * SETTINGS.epochs
    plain, more = (training_seconds(data, SETTINGS, variant, 10.0, rollouts) for rollouts in (0.0, 8.0))
    assert more - plain == pytest.approx(texts * 8.0 / 10.0)
    assert rollout_forwards(None, encoder()) == 0.0
