"""Controls in every supported host: exact at the start, honest with masks, saved and taken out like MAW."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from families import CAUSAL, HOSTS, MASK, TOKENS, attach, build, hidden
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

import maw
from maw.cli import main
from maw.controls import CONTROLS
from maw.hf.attach import carried, has_maw, maw_layers
from maw.inspection import inspect
from maw.retrieval.models import packaged_encoder

TEXTS = ["a depth slice", "which depths does a text choose, and what does each of them attend to?", "x"]
BOTH = [(host, attention) for host, one in HOSTS.items() for attention in one.implementations]


def stir(model, size=0.3):
    generator = torch.Generator().manual_seed(1)
    for layer in carried(model):
        for parameter in layer.parameters():
            parameter.data += size * torch.randn(parameter.shape, generator=generator)
    return model


def trained(model, tokens=TOKENS, mask=MASK):
    """The output in training mode; all dropout but the control's is 0."""
    torch.manual_seed(5)
    return hidden(model.train(), tokens, mask)


def encoder(mechanism):
    model = SentenceTransformer(str(packaged_encoder()), device="cpu")
    maw.attach(model, maw.MAWConfig(layers=[1, -1], depth=8, mechanism=mechanism))
    return model


@pytest.mark.parametrize("mechanism", CONTROLS)
@pytest.mark.parametrize(("host", "attention"), BOTH)
def test_attached_it_is_the_host_bit_for_bit_and_so_it_is_taken_out(host, attention, mechanism):
    model = build(host, attention)
    expected, keys = hidden(model), list(model.state_dict())
    attached = attach(model, mechanism=mechanism)
    assert len(carried(attached)) == len(carried(model)) == 2
    assert has_maw(attached)
    assert not maw_layers(attached)
    tolerance = 1e-5 if host == "mpnet" else 0.0  # its own attention divides by sqrt(C)
    assert (hidden(attached) - expected).abs().max() <= tolerance
    if mechanism == "logit-dropout":
        assert (trained(attached) - expected)[MASK.bool()].abs().max() > 1e-3
    else:
        assert (trained(attached) - expected).abs().max() <= tolerance
        assert (hidden(stir(attached).eval()) - expected)[MASK.bool()].abs().max() > 1e-3
    back = maw.detach(attached).eval()
    assert not has_maw(back)
    assert list(back.state_dict()) == keys
    assert torch.equal(hidden(back), expected)
    assert torch.equal(trained(back), expected)


def test_ia3_is_a_host_with_scaled_keys():
    model = build("bert")
    twin = copy.deepcopy(model)
    attached = stir(attach(model, mechanism="ia3-key"))
    for block, layer in zip(twin.encoder.layer, carried(attached), strict=True):
        key, factor = block.attention.self.key, layer.factor.detach().flatten()
        key.weight.data *= factor[:, None]
        key.bias.data *= factor
    torch.testing.assert_close(hidden(attached), hidden(twin), atol=1e-5, rtol=1e-5)


# Masks under logit dropout


@pytest.mark.parametrize(("host", "attention"), BOTH)
def test_padding_is_not_attended_to_in_training(host, attention):
    model = attach(build(host, attention), mechanism="logit-dropout", logit_dropout=0.3)
    other = torch.where(MASK.bool(), TOKENS, 40)
    torch.testing.assert_close(trained(model, other)[MASK.bool()], trained(model)[MASK.bool()], atol=1e-6, rtol=0)


@pytest.mark.parametrize("mask", [None, torch.ones_like(TOKENS)], ids=["none", "ones"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("host", CAUSAL)
def test_a_causal_host_stays_causal_in_training(host, attention, mask):
    """Without padding SDPA gets no mask but a flag, which it drops once there is something to add."""
    model = attach(build(host, attention), mechanism="logit-dropout", logit_dropout=0.3)
    changed = TOKENS.clone()
    changed[:, -1] = 50
    one, other = trained(model, TOKENS, mask), trained(model, changed, mask)
    assert (one - other)[:, -1].abs().max() > 1e-3
    torch.testing.assert_close(other[:, :-1], one[:, :-1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("host", ["bert", "mpnet", "modernbert"])
def test_a_host_that_looks_both_ways_still_does(host):
    model = attach(build(host), mechanism="logit-dropout", logit_dropout=0.3)
    changed = TOKENS.clone()
    changed[:, -1] = 50
    difference = trained(model, TOKENS, None) - trained(model, changed, None)
    assert difference[:, 0].abs().max() > 1e-4


@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning")  # Transformers asks
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_flex_attention_is_refused_in_training_alone():
    model = attach(build("bert"), mechanism="logit-dropout")
    expected = hidden(model)
    model.set_attn_implementation("flex_attention")
    torch.testing.assert_close(hidden(model)[MASK.bool()], expected[MASK.bool()], atol=1e-5, rtol=0)
    with pytest.raises(maw.MAWError, match="use attn_implementation='sdpa'"):
        trained(model)


# Training


@pytest.mark.parametrize("mechanism", CONTROLS)
@pytest.mark.parametrize("host", ["bert", "mpnet", "modernbert", "qwen3"])
def test_gradients_reach_host_and_control_under_autocast_too(host, mechanism):
    model = attach(build(host), mechanism=mechanism).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(input_ids=TOKENS, attention_mask=MASK).last_hidden_state
    out.float()[..., :5].square().sum().backward()
    parameters = [parameter for layer in carried(model) for parameter in layer.parameters()]
    assert bool(parameters) == (mechanism != "logit-dropout")
    moving = [parameter for parameter in parameters if parameter.grad is not None and parameter.grad.abs().max() > 0]
    assert len(moving) >= len(parameters) / 2, "of the gate, B and b: A and a start to move when B has"
    embedding = model.get_input_embeddings().weight
    assert embedding.grad.abs().max() > 0
    assert torch.isfinite(embedding.grad).all()


# Saving


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("mechanism", CONTROLS)
def test_a_saved_control_loads_with_its_vectors(tmp_path, mechanism, lora):
    model = encoder(mechanism)
    untouched = model.encode(TEXTS)
    if lora:
        model.add_adapter(maw.lora_config(model))
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        assert all("lora_" in name or ".maw.modules_to_save." in name for name in names)
        assert any(".maw." in name for name in names) == (mechanism != "logit-dropout")
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.05)
    stir(model)
    expected = model.encode(TEXTS)
    if lora or mechanism != "logit-dropout":
        assert np.abs(expected - untouched).max() > 1e-4
    model.save_pretrained(str(tmp_path))
    again = SentenceTransformer(str(tmp_path), device="cpu")
    assert [layer.config.mechanism for layer in carried(again)] == [mechanism] * 2
    assert [type(layer) for layer in carried(again)] == [CONTROLS[mechanism]] * 2
    assert np.array_equal(again.encode(TEXTS), expected)
    if lora:
        with pytest.raises(maw.MAWError, match="merge"):
            maw.detach(again)
        maw.merge_lora(again)
        assert np.abs(again.encode(TEXTS) - expected).max() < 1e-5
        assert not [name for name, _ in again.named_parameters() if "lora" in name or "modules_to_save" in name]
    maw.detach(again)
    assert not has_maw(again)


@pytest.mark.parametrize("what", ["missing", "NaN"])
def test_weights_of_a_control_that_do_not_load_are_an_error(tmp_path, what):
    encoder("ia3-key").save_pretrained(str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if name.endswith("maw.factor"))
    if what == "missing":
        del weights[name]
    else:
        weights[name][0, 0, 0] = torch.nan
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    words = {"missing": "lacks 1 tensor.*factor", "NaN": "factor of .* holds NaN"}[what]
    with pytest.raises(maw.MAWError, match=words):
        SentenceTransformer(str(tmp_path), device="cpu")


@pytest.mark.parametrize("mechanism", CONTROLS)
def test_loaded_in_16_bits_a_control_keeps_32(tmp_path, mechanism):
    encoder(mechanism).save_pretrained(str(tmp_path))
    model = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert all(parameter.dtype == torch.float32 for layer in carried(model) for parameter in layer.parameters())
    assert torch.isfinite(trained(model, TOKENS, MASK)).all()


# What a control is not


@pytest.mark.parametrize("mechanism", CONTROLS)
def test_what_asks_for_depths_says_that_there_are_none(tmp_path, capsys, mechanism):
    model = encoder(mechanism)
    words = f"this model has the control '{mechanism}', so it has no depths to look at"
    for layer in (None, -1):
        with pytest.raises(maw.MAWError, match=words):
            inspect(model, TEXTS, layer=layer)
    with pytest.raises(maw.MAWError, match=f"layer.1.attention.self carries the control '{mechanism}', not MAW"):
        maw.fold(model)
    assert len(carried(model)) == 2, "a refused fold changes nothing"
    model.save_pretrained(str(tmp_path))
    assert main(["inspect", str(tmp_path), "a text"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("mechanism", CONTROLS)
def test_a_second_attachment_is_refused_and_the_report_names_the_control(mechanism):
    model = build("bert")
    attachment = maw.attach(model, maw.MAWConfig(layers=[0], depth=5, mechanism=mechanism))
    counted = sum(parameter.numel() for layer in carried(model) for parameter in layer.parameters())
    assert attachment.parameters == counted
    assert str(attachment) == f"{mechanism} in encoder.layer.0.attention.self: {counted:,} parameters"
    with pytest.raises(maw.MAWError, match=r"carries .* already: call maw.detach"):
        maw.attach(attachment.model, maw.MAWConfig())


def test_two_attachments_of_a_control_are_the_same():
    one, other = (dict(attach(build("bert"), mechanism="linear-gate").named_parameters()) for _ in range(2))
    assert all(torch.equal(parameter, other[name]) for name, parameter in one.items())
    seeded = dict(attach(build("bert"), mechanism="linear-gate", seed=1).named_parameters())
    name = next(name for name in one if name.endswith("maw.down.weight"))
    assert not torch.equal(one[name], seeded[name])
