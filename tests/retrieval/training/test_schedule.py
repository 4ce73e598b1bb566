"""`tau_start`: the temperature of each training step, and that nobody but a training step sees it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from toys import SETTINGS, columns, encoder, toy

import maw
from maw.errors import MAWError
from maw.hf.attach import maw_layers
from maw.module import DepthAttention
from maw.retrieval.training.fine_tuning import train
from maw.retrieval.training.losses import AuxiliaryLoss
from maw.retrieval.training.trainer import Trainer
from maw.views import frame_views

STEPS = 4  # 8 pairs, 4 a batch, 2 epochs
CONFIG = maw.MAWConfig(depth=8, tau_start=20.0, tau=4.0, noise=1.0)
TAUS = [20.0, 16.0, 12.0, 8.0]


def layer(**settings):
    torch.manual_seed(1)
    made = DepthAttention(maw.MAWConfig(depth=5, noise=1.0, **settings), frame_views(2, 4, 5, scaling=0.5))
    made.selector.policy_network[-1].bias.data.normal_()
    return made


def note_taus(model):
    """For every forward from now on: whether it trains, and the temperature."""
    (own,) = maw_layers(model)
    noted = []
    own.register_forward_pre_hook(lambda module, _: noted.append((torch.is_grad_enabled(), module.tau)))
    return noted


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("selection", ["gumbel", "softmax", "hard"])
def test_on_the_way_a_layer_is_one_with_the_temperature_of_that_moment(selection, training):
    moving, still = layer(selection=selection, tau_start=9.0, tau=1.0), layer(selection=selection, tau=3.0)
    moving.progress = 0.75
    q, k, v = torch.randn(3, 6, 2, 7, 4)
    found = []
    for one in (moving, still):
        torch.manual_seed(2)
        found.append(one.train(training)(q, k, v))
    assert torch.equal(*found)
    moving.progress = 1.0
    torch.manual_seed(2)
    assert not torch.allclose(moving(q, k, v), found[1], atol=1e-6) or (selection == "hard")


positive = st.floats(min_value=1e-3, max_value=1e3)


@given(positive, positive, st.floats(0, 1))
def test_it_goes_from_the_one_to_the_other_and_arrives_exactly(start, end, progress):
    moving = layer(tau_start=start, tau=end)
    assert moving.tau == end, "a layer that nobody trains"
    moving.progress = progress
    assert min(start, end) * (1 - 1e-9) <= moving.tau <= max(start, end) * (1 + 1e-9)
    moving.progress = 0.0
    assert moving.tau == start


def test_kernels_that_know_one_temperature_serve_a_layer_that_has_arrived():
    moving, query = layer(tau_start=9.0, tau=0.1, kernels="triton").train(), torch.randn(6, 2, 7, 4)
    assert moving._is_one_step(query)
    moving.progress = 0.5
    assert not moving._is_one_step(query)


def test_every_training_step_has_its_own_and_all_else_has_the_last(tmp_path):
    model = encoder(CONFIG)
    noted = note_taus(model)
    train(model, toy(), tmp_path / "training", SETTINGS)
    trained = [tau for grad, tau in noted if grad]
    assert trained == [tau for tau in TAUS for _ in ("queries", "documents")]
    others = [tau for grad, tau in noted if not grad]
    assert len(others) > 2, "dev, twice, and the probe"
    assert set(others) == {4.0}
    assert maw_layers(model)[0].progress == 1.0


def test_a_saved_model_has_the_last_and_makes_the_vectors_of_the_trained_one(tmp_path):
    model = encoder(CONFIG)
    train(model, toy(), tmp_path / "training", SETTINGS)
    model.save_pretrained(str(tmp_path / "model"))
    again = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert maw_layers(again)[0].tau == 4.0
    assert (again.encode(["a river"]) == model.encode(["a river"])).all()


@pytest.mark.parametrize("where", ["step", "evaluation"])
def test_a_training_that_fails_leaves_the_last(tmp_path, monkeypatch, where):
    def stumble(*_, **__):
        raise FloatingPointError("on purpose")

    model = encoder(CONFIG)
    monkeypatch.setattr(Trainer, *{"step": ("compute_loss", stumble), "evaluation": ("evaluate", stumble)}[where])
    with pytest.raises(FloatingPointError):
        train(model, toy(), tmp_path, SETTINGS)
    assert maw_layers(model)[0].progress == 1.0


def test_a_training_that_goes_on_is_as_far_as_it_was(tmp_path, monkeypatch):
    settings = dataclasses.replace(SETTINGS, save_steps=1)
    whole = encoder(CONFIG)
    train(whole, toy(), tmp_path / "whole", settings)

    plain = Trainer.training_step

    def training_step(self, *arguments, **options):
        if self.state.global_step == 3:
            raise FloatingPointError("on purpose")
        return plain(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "training_step", training_step)
        with pytest.raises(FloatingPointError):
            train(encoder(CONFIG), toy(), tmp_path / "stopped", settings)
    model = encoder(CONFIG)
    noted = note_taus(model)
    assert train(model, toy(), tmp_path / "stopped", settings)["resumed"]
    assert [tau for grad, tau in noted if grad] == [TAUS[3]] * 2
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name)), name


def test_without_the_trainer_the_temperature_is_the_last():
    model = encoder(CONFIG)
    noted = note_taus(model)
    model.train()
    model(columns(model)[0])
    assert [tau for _, tau in noted] == [4.0]


def test_a_trainer_that_does_not_say_how_far_it_is_is_refused():
    model = encoder(CONFIG).train()
    loss = AuxiliaryLoss(MultipleNegativesRankingLoss(model), model)
    with pytest.raises(MAWError, match="tau_start needs to know how far training is"):
        loss(columns(model), None)
    for own in maw_layers(model):
        own.progress = 0.5
    loss(columns(model), None).backward()
    for own in maw_layers(model):
        own.progress = 1.0
    with torch.no_grad():
        loss(columns(model), None)
