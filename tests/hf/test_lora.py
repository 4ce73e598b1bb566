"""LoRA beside MAW: the adapter stays outside, MAW is trained and kept in full, and what is fixed stays fixed."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertModel

import maw
from maw.hf.attach import maw_layers

TOKENS = torch.tensor([[5, 6, 7, 8, 9], [11, 12, 13, 14, 15]])
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 31, "vocab_size": 61}


def adapted(changes=None, **settings):
    torch.manual_seed(0)
    model = maw.attach(BertModel(BertConfig(**SIZES)), maw.MAWConfig(depth=5, **settings)).model
    model.add_adapter(maw.lora_config(model, **(changes or {})))
    return model


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def step(model):
    """One optimiser step on everything that is trainable."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=0.5)
    model.train()
    model(input_ids=TOKENS).last_hidden_state[:, :, :5].square().sum().backward()
    optimiser.step()


def hidden(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).last_hidden_state


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"target_modules": "all-linear"},
        {"target_modules": r".*(query|dense|network\.\d)"},
        {"target_modules": "all-linear", "modules_to_save": ["pooler"]},
    ],
    ids=["default", "all-linear", "pattern", "modules_to_save"],
)
def test_lora_stays_out_of_maw_and_maw_is_trained_in_full(changes):
    model = adapted(changes)
    names = trainable(model)
    assert not [name for name in names if ".maw." in name and "lora_" in name]
    own = {name for name in names if ".maw.modules_to_save." in name}
    (layer,) = maw_layers(model)
    assert len(own) == len(list(layer.parameters()))
    assert [name for name in names if "lora_" in name]
    before = copy.deepcopy(dict(model.named_parameters()))
    step(model)  # moves the policy's last layer off its zeros, without which its first gets no gradient
    step(model)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved <= names
    assert own <= moved


def test_what_the_configuration_fixes_an_adapter_does_not_train():
    model = adapted(train_views=False)
    views = maw_layers(model)[0].query_views.clone()
    step(model)
    maw.merge_lora(model)
    step(model)
    assert torch.equal(maw_layers(model)[0].query_views, views)
    assert not [name for name in trainable(model) if name.endswith("_views")]


@pytest.mark.parametrize("settings", [{}, {"selection": "uniform"}])
def test_a_merge_after_a_step_keeps_what_was_trained(settings):
    model = adapted(**settings)
    step(model)
    expected = hidden(model)
    maw.merge_lora(model)
    torch.testing.assert_close(hidden(model), expected, atol=1e-5, rtol=0)
    assert not [name for name, _ in model.named_parameters() if "lora_" in name or "modules_to_save" in name]


def test_a_copy_after_a_step_is_independent():
    model = adapted()
    step(model)
    twin = copy.deepcopy(model)
    expected = hidden(twin)
    assert torch.equal(hidden(model), expected)
    model.zero_grad()
    step(model)
    assert not torch.equal(hidden(model), expected)
    assert torch.equal(hidden(twin), expected)


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_from_tokens_on_every_trained_part_gets_the_same_gradient(reentrant, layer):
    """Nothing below the first layer is trained, so that what it is given has no gradient of its own."""

    def gradients(checkpointing):
        model = adapted(layers=[layer], auxiliary_weight=1.0).train()
        if checkpointing:
            model.enable_input_require_grads()
            model._set_gradient_checkpointing(True, functools.partial(checkpoint, use_reentrant=reentrant))
        torch.manual_seed(3)
        model(input_ids=TOKENS).last_hidden_state.square().sum().backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}

    plain, checkpointed = gradients(False), gradients(True)
    assert any("policy_network" in name for name in plain)
    assert any("lora_" in name for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-6, rtol=1e-5, msg=name)
