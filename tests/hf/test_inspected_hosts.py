"""What is shown of every kind of host is what that host itself returns as its attention."""

from __future__ import annotations

import pytest
import torch
from families import CAUSAL, build, stir

import maw
from maw.hf.attach import maw_layers
from maw.hf.hosts import FAMILIES
from maw.inspection import inspect
from maw.retrieval.models import choose_device, load_encoder

ROUNDED = 1e-6
"""Plain attention of rotary hosts has its softmax in float32, whatever the model's type."""
TEXTS = ("The ferry left the pier at dawn, and nobody waved.", "Salt.")


@pytest.fixture(scope="module")
def packaged():
    return load_encoder("packaged", device=choose_device("cpu"))


def with_host(packaged, name, layers="all"):
    """The packaged encoder's tokenizer before a tiny random host with MAW."""
    host = build(name, vocab_size=30522, pad_token_id=0)
    packaged[0].model = host
    maw.attach(packaged, maw.MAWConfig(layers=layers, depth=5))
    stir(packaged)
    return packaged.double()  # random hosts have large logits: in float32 rounding alone is above 1e-6


def own_attentions(model, text):
    """The encoder's output_attentions for one text, (H, Q, K) a layer."""
    encoder = model[0].model
    tokens = model.tokenizer(text, return_tensors="pt")
    tokens = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    if encoder.config._attn_implementation != "eager":
        encoder.set_attn_implementation("eager")
    with torch.no_grad():
        return [layer[0] for layer in encoder(**tokens, output_attentions=True).attentions]


# masks, windows, position biases, rotary positions, shared key heads: one host of each
@pytest.mark.parametrize("name", ["bert", "distilbert", "mpnet", "modernbert", "eurobert", "llama", "qwen3"])
@pytest.mark.parametrize("layer", [0, 1])
def test_the_mixed_attention_is_what_the_encoder_returns(packaged, name, layer):
    model = with_host(packaged, name)
    near = {"atol": ROUNDED if FAMILIES[name].rotary else 1e-12, "rtol": 0}
    found = inspect(model, TEXTS, layer=layer)
    one = inspect(model, TEXTS, layer=layer, head=1)
    for text, of_head in zip(found.texts, one.texts, strict=True):
        attentions = own_attentions(model, text.text)[layer]
        torch.testing.assert_close(text.mixed, attentions.mean(dim=0), **near)
        torch.testing.assert_close(of_head.mixed, attentions[1], **near)
        assert (text.mixed - text.host).abs().max() > 0.01, "MAW does nothing here: the test would show nothing"
        assert max(text.difference, of_head.difference) < near["atol"]
        if name != "modernbert":  # its window is wider than the short text
            assert text.has_own_term == (name in (*CAUSAL, "mpnet"))


@pytest.mark.parametrize("name", ["bert", "mpnet", "llama"])
def test_the_hosts_own_attention_is_that_of_the_detached_host(packaged, name):
    model = with_host(packaged, name, layers=[-1])
    found = inspect(model, TEXTS)
    maw.detach(model)
    for text in found.texts:
        torch.testing.assert_close(text.host, own_attentions(model, text.text)[-1].mean(dim=0), atol=ROUNDED, rtol=0)


def test_an_adapters_copy_of_maw_is_the_one_looked_at(packaged):
    model = with_host(packaged, "bert", layers=[1])
    model.add_adapter(maw.lora_config(model))
    for layer in maw_layers(model):
        layer.selector.policy_network[-1].bias.data.zero_()[3] = 40.0
    found = inspect(model, TEXTS[:1])
    assert found.texts[0].slices[0].depth == 3
    assert found.texts[0].slices[0].weight > 0.9
    assert found.texts[0].difference < 1e-12
