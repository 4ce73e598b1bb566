"""Calibrating: what the selectors of a real encoder see afterwards, and what stays as it was."""

from __future__ import annotations

import pytest
import torch
from toys import encoder as toy_encoder

import maw
from maw.hf.attach import maw_layers
from maw.hf.calibration import calibrating
from maw.hf.listening import listening
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


def hidden(model, texts):
    """What each layer's hidden units get, one text at a time."""
    found = {layer: [] for layer in maw_layers(model)}

    def hear(layer, query, key, mask):
        found[layer].append(layer.selector.hidden(token_mean(query, mask)))

    with listening(list(found), hear):
        for text in texts:
            model.encode([text], show_progress_bar=False)
    return [torch.cat(those) for those in found.values()]


def vectors(model, texts):
    return model.encode(texts, show_progress_bar=False, convert_to_tensor=True)


def test_hidden_units_begin_with_mean_zero_and_the_deviation_of_their_initialisation(attach):
    model = attach(layers="all", depth=5)
    before = hidden(model, TEXTS)
    with calibrating(model):
        vectors(model, TEXTS)
    for raw, now in zip(before, hidden(model, TEXTS), strict=True):
        common = raw.mean(dim=0).square().mean() / raw.var(dim=0).mean()
        assert common > 1, "otherwise there is nothing to calibrate"
        torch.testing.assert_close(now.mean(dim=0), torch.zeros_like(now[0]), rtol=0, atol=1e-4)
        deviation = now.std(dim=0, correction=0)
        assert deviation.max() < 0.5775
        assert deviation.median() > 0.57


def test_a_second_time_changes_nothing(attach):
    model = attach()
    (layer,) = maw_layers(model)
    weights = []
    for _ in range(3):
        with calibrating(model):
            vectors(model, TEXTS)
        weights.append([parameter.clone() for parameter in layer.selector.parameters()])
    for later in weights[1:]:
        for first, now in zip(weights[0], later, strict=True):
            torch.testing.assert_close(now, first, rtol=1e-2, atol=1e-3)  # the least deviation is none the second time


def test_units_are_standardised_by_the_mean_and_variance_that_are_given():
    torch.manual_seed(3)
    selector = Selector(6, 4).double()
    states = 5 + torch.randn(50, 6, dtype=torch.float64) * torch.tensor([1, 2, 3, 4, 5, 0.0], dtype=torch.float64)
    before = selector.hidden(states)
    assert before.shape == (50, 18)
    mean, variance = before.mean(dim=0), before.var(dim=0, correction=0)
    selector.standardise(mean, variance)
    expected = (before - mean) / (3 * (variance + mean.square().mean() / 10_000)).sqrt()
    torch.testing.assert_close(selector.hidden(states), expected, rtol=0, atol=1e-12)


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


@pytest.mark.parametrize("level", [0.0, 1e-15, 3.0, 1e9])
def test_texts_that_are_all_alike_blow_nothing_up(level):
    selector = Selector(6, 4)
    torch.nn.init.ones_(selector.policy_network[-1].weight)
    state = torch.full((1, 6), level)
    selector.standardise(selector.hidden(state)[0], torch.zeros(18))
    assert all(parameter.isfinite().all() for parameter in selector.parameters())
    other = state * torch.tensor([[0.9, 1.0, 1.1, 1.2, 0.7, 1.0]])
    assert selector.policy(other).abs().max() < 1000


def test_a_compiled_encoder_hears_too():
    weights = []
    for compiling in (False, True):
        torch.manual_seed(0)
        small = toy_encoder(maw.MAWConfig(depth=5)).eval()
        if compiling:
            small[0].model = torch.compile(small[0].model, backend="aot_eager", fullgraph=True)
            vectors(small, TEXTS[:2])
        with calibrating(small):
            for text in TEXTS:
                vectors(small, [text])
        weights.append(list(maw_layers(small)[0].selector.parameters()))
    torch._dynamo.reset()
    for eager, compiled in zip(*weights, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_the_active_adapters_copy_is_calibrated_and_no_other():
    model = toy_encoder(maw.MAWConfig(depth=5, layers="all"))
    for name in ("first", "second"):
        model.add_adapter(maw.lora_config(model), adapter_name=name)
    kept = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with calibrating(model):
        vectors(model, TEXTS)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, kept[name])}
    assert changed
    assert all("modules_to_save" in name and ".network." not in name for name in changed)
    active = {name.partition("modules_to_save.")[2].partition(".")[0] for name in changed}
    assert len(active) == 1
    assert len(changed) == 4 * 2


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
