"""An adapter of the user's own freezes MAW: refused where we add it, and said wherever a training can be seen."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertModel

import maw
from maw.hf.training_state import check_maw_is_trained

TOKENS = torch.tensor([[5, 6, 7, 8, 9], [11, 12, 13, 14, 15]])
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 31, "vocab_size": 61}
OWN = {"two": {"target_modules": ["query", "value"]}, "all": {"target_modules": "all-linear"}}


def with_maw(**settings):
    return maw.attach(BertModel(BertConfig(**SIZES)), maw.MAWConfig(depth=5, **settings)).model


@pytest.mark.parametrize("own", OWN)
def test_an_adapter_that_freezes_maw_is_refused_and_nothing_is_changed(own):
    model = with_maw()
    before = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with pytest.raises(maw.MAWError, match="this adapter would freeze MAW"):
        model.add_adapter(LoraConfig(**OWN[own]))
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == before
    model.add_adapter(LoraConfig(**OWN[own], modules_to_save=["maw"]))
    check_maw_is_trained(model)
    assert not [name for name, _ in model.named_parameters() if ".maw." in name and "lora_" in name]


@pytest.mark.parametrize("own", OWN)
def test_the_first_forward_of_a_training_warns(own):
    model = get_peft_model(with_maw(), LoraConfig(**OWN[own]))
    words = {"two": "parameters of MAW is trainable", "all": "an adapter sits inside MAW"}[own]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.eval()(input_ids=TOKENS)
        with torch.no_grad():
            model.train()(input_ids=TOKENS)
    with pytest.warns(UserWarning, match=words):
        model.train()(input_ids=TOKENS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.train()(input_ids=TOKENS)  # once is enough
    with pytest.raises(maw.MAWError, match=words):
        check_maw_is_trained(model)


def test_trainings_of_all_of_the_host_or_of_nothing_are_silent():
    model = with_maw()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.train()(input_ids=TOKENS)
        frozen = with_maw().requires_grad_(False)
        frozen.train()(input_ids=TOKENS)
        adapted = with_maw()
        get_peft_model(adapted, maw.lora_config(adapted)).train()(input_ids=TOKENS)
    check_maw_is_trained(model)
    check_maw_is_trained(frozen)


@pytest.mark.parametrize("mechanism", ["linear-gate", "ia3-key"])
def test_a_control_in_maws_place_is_looked_at_too(mechanism):
    model = with_maw(mechanism=mechanism)
    check_maw_is_trained(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".maw." not in name)
    with pytest.raises(maw.MAWError, match="parameters of MAW is trainable"):
        check_maw_is_trained(model)


def test_our_loss_refuses_a_frozen_maw():
    from maw.retrieval.training.losses import AuxiliaryLoss

    model = with_maw()
    for layer in maw.hf.attach.carried(model):
        layer.requires_grad_(False)

    class Loss(torch.nn.Module):
        def forward(self, features, labels):
            return model(**features).last_hidden_state.square().sum()

    model.train()
    with pytest.raises(maw.MAWError, match=r"none of the [0-9,]+ parameters of MAW is trainable"):
        AuxiliaryLoss(Loss(), model)({"input_ids": TOKENS}, None)
