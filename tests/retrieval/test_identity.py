"""What an encoder is known by: everything that decides its vectors, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer
from toys import encoder

import maw
from maw.hf.attach import maw_layers
from maw.retrieval.identity import encoder_fingerprint, fingerprint

CONFIG = maw.MAWConfig(depth=4, tau=10.0)  # weights that are no single depth's, so that tau shows


def trained():
    """With MAW away from its exact start, where its settings would not show in the vectors."""
    model, random = encoder(CONFIG), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in maw_layers(model)[0].parameters():
            weight.add_(torch.randn(weight.shape, generator=random))
    return model


def other_weights(model):
    with torch.no_grad():
        next(model.parameters())[:, 0] += 1


def other_pooling(model):
    model[1].pooling_mode = "cls"


def other_maw(model):
    layer = maw_layers(model)[0]
    layer.config = replace(layer.config, tau=2 * layer.config.tau)


def other_tokenizer(model):
    """Two words change their numbers."""
    written = json.loads(model.tokenizer.backend_tokenizer.to_str())
    numbers = written["model"]["vocab"]
    numbers["river"], numbers["engine"] = numbers["engine"], numbers["river"]
    model.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(written))


def other_prompt(model):
    model.prompts["query"] = "query: "


@pytest.mark.parametrize("change", [other_weights, other_pooling, other_maw, other_tokenizer, other_prompt])
def test_whatever_decides_the_vectors_is_in_it(change):
    model, text = trained(), "a river, an engine"
    known, vector = encoder_fingerprint(model), model.encode(text, prompt_name="query")
    assert known == encoder_fingerprint(trained())
    change(model)
    assert not (model.encode(text, prompt_name="query") == vector).all(), "the change changes nothing"
    assert encoder_fingerprint(model) != known
    assert (fingerprint(model) == fingerprint(trained())) == (change is not other_weights)


def test_what_training_sets_before_it_starts_is_not_in_it():
    model = encoder(CONFIG)
    known = encoder_fingerprint(model)
    model.max_seq_length = 8
    model.encode(["some text"] * 2)
    model.train()
    assert encoder_fingerprint(model) == known
    assert encoder_fingerprint(maw.detach(model)) == encoder_fingerprint(encoder())
