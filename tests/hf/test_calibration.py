"""Calibrating: what the selectors of a real encoder see afterwards, and what stays as it was."""

from __future__ import annotations

import pytest
import torch

import maw
from maw.hf.attach import maw_layers
from maw.hf.calibration import calibrating
from maw.retrieval.models import choose_device, load_encoder
from maw.selector import Selector, token_mean

TEXTS = [
    "Glaciers carve valleys.",
    "An enzyme lowers the energy that a reaction needs; most of them are proteins, some are RNA.",
    "who invented the steam engine",
    "Parliament",
    "To list files by size, type ls -S.",
    "How do violins make their sound?",
]
OTHERS = ["A theorem has a proof.", "how deep is the harbour of Sydney", "Satellites fall around the earth."]


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("packaged", device=choose_device("cpu"), max_length=64)


@pytest.fixture
def attach(encoder):
    """The packaged encoder with MAW, and without it again afterwards."""

    def attached(**settings):
        torch.manual_seed(0)
        maw.attach(encoder, maw.MAWConfig(**settings))
        return encoder

    yield attached
    maw.detach(encoder)


def hidden(model, texts, layer):
    """What the first layers of the policy and the value network give, one text at a time."""
    found = []

    def listen(module, arguments, _):
        state = token_mean(arguments[0], arguments[3])
        found.append([network[0](state) for network in (module.selector.policy_network, module.selector.value_network)])

    handle = layer.register_forward_pre_hook(listen, with_kwargs=True)
    with torch.no_grad():
        for text in texts:
            model.encode([text], show_progress_bar=False)
    handle.remove()
    return [torch.cat(columns) for columns in zip(*found, strict=True)]


def vectors(model, texts):
    return model.encode(texts, show_progress_bar=False, convert_to_tensor=True)


def test_a_selector_sees_what_differs_between_texts(attach):
    model = attach()
    (layer,) = maw_layers(model)
    before = hidden(model, TEXTS, layer)
    with calibrating(model):
        vectors(model, TEXTS)
    for raw, seen in zip(before, hidden(model, TEXTS, layer), strict=True):
        common = raw.mean(dim=0).square().mean() / raw.var(dim=0).mean()
        assert common > 3, "otherwise there is nothing to calibrate"
        assert seen.mean(dim=0).square().mean() < 0.1 * seen.var(dim=0).mean()
        assert 0.3 < seen.std() < 1


def test_the_first_layers_equal_those_on_standardised_states():
    torch.manual_seed(3)
    selector = Selector(6, 4).double()
    first = [selector.policy_network[0], selector.value_network[0]]
    states = 5 + torch.randn(50, 6, dtype=torch.float64) * torch.tensor([1, 2, 3, 4, 5, 0.0], dtype=torch.float64)
    mean, variance = states.mean(dim=0), states.var(dim=0, correction=0)
    deviation = (variance + variance.mean() / 100 + mean.square().mean() / 10_000).sqrt()
    expected = [layer((states - mean) / deviation) for layer in first]
    selector.standardise(mean, variance)
    for layer, truth in zip(first, expected, strict=True):
        torch.testing.assert_close(layer(states), truth, rtol=0, atol=1e-12)


def test_however_the_texts_are_split_into_batches(attach):
    found = []
    for size in (1, 6):
        model = attach(layers="all", depth=5)
        with calibrating(model):
            model.encode(TEXTS, batch_size=size, show_progress_bar=False)
        found.append([layer.selector.policy_network[0].weight.detach().clone() for layer in maw_layers(model)])
        maw.detach(model)
    attach()
    assert len(found[0]) == 6
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_no_embedding_changes(attach):
    model = attach(layers="all", depth=48)
    before = vectors(model, OTHERS)
    with calibrating(model):
        vectors(model, TEXTS)
    assert torch.equal(vectors(model, OTHERS), before)


@pytest.mark.parametrize("level", [0.0, 1e-30, 3.0, 1e15])
def test_texts_that_are_all_alike_blow_nothing_up(level):
    selector = Selector(6, 4)
    torch.nn.init.ones_(selector.policy_network[-1].weight)
    selector.standardise(torch.full((6,), level), torch.zeros(6))
    state = torch.tensor([[0.9, 1.0, 1.1, 1.2, 0.7, 1.0]]) * max(level, 1e-3)
    assert all(parameter.isfinite().all() for parameter in selector.parameters())
    assert selector.policy(state).abs().max() < 1000


def test_a_trained_policy_is_left_alone_and_so_is_one_that_nobody_asks(attach):
    model = attach(layers=[0, -1], depth=5)
    trained, fresh = maw_layers(model)
    trained.selector.policy_network[-1].bias.data[0] = 0.1
    kept = [{name: p.clone() for name, p in layer.named_parameters()} for layer in (trained, fresh)]
    with calibrating(model):
        vectors(model, TEXTS)
    assert all(torch.equal(p, kept[0][name]) for name, p in trained.named_parameters())
    changed = {name for name, p in fresh.named_parameters() if not torch.equal(p, kept[1][name])}
    assert changed == {
        f"selector.{name}_network.0.{kind}" for name in ("policy", "value") for kind in ("weight", "bias")
    }
    maw.detach(model)
    attach(selection="uniform")
    with calibrating(model):
        pass


@pytest.mark.parametrize("texts", [[], TEXTS[:1]])
def test_too_few_texts_are_an_error(attach, texts):
    model = attach()

    def calibrate():
        with calibrating(model):
            for text in texts:
                vectors(model, [text])

    with pytest.raises(maw.MAWError, match=f"at least two texts, got {len(texts)}"):
        calibrate()
    assert not maw_layers(model)[0]._forward_pre_hooks


def test_a_model_without_maw_is_left_alone(encoder):
    before = vectors(encoder, OTHERS)
    with calibrating(encoder):
        vectors(encoder, TEXTS)
    assert torch.equal(vectors(encoder, OTHERS), before)
