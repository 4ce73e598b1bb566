"""Every supported family: exact start, padding, gradients, checkpointing, 16 bits, saving, detaching."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from families import CAUSAL, HOSTS, LENGTH, MASK, TOKENS, WINDOWED, attach, build, hidden, stir
from transformers import AutoModel

import maw
from maw.hf.attach import maw_layers
from maw.hf.hosts import AttentionLayer, Family
from maw.selector import token_mean
from maw.shapes import repeat_heads

EVERY = list(HOSTS)
WITH_IMPLEMENTATION = [(name, attention) for name, host in HOSTS.items() for attention in host.implementations]
REAL = MASK.bool()


@pytest.mark.parametrize(("name", "attention"), WITH_IMPLEMENTATION)
def test_exact_start_then_not(name, attention):
    model = build(name, attention, initializer_range=0.1)
    inputs = [(TOKENS, MASK)]
    if HOSTS[name].left_padding:  # positions from the first token change nothing for the host itself
        inputs.append((TOKENS.flip(1), MASK.flip(1)))
    before = [hidden(model, *given) for given in inputs]
    for depth in (3, 17):
        wrapped = attach(model, depth=depth)
        for (tokens, mask), expected in zip(inputs, before, strict=True):
            difference = (hidden(wrapped, tokens, mask) - expected)[mask.bool()].abs().max()
            assert difference <= 1e-6 * expected.abs().max().clamp(min=1)
        maw.detach(wrapped)
    wrapped = stir(attach(model))
    assert (hidden(wrapped) - before[0])[REAL].abs().max() > 1e-2


@pytest.mark.parametrize("name", EVERY)
def test_the_report_names_views_and_sizes(name):
    model = build(name)
    attachment = maw.attach(model, maw.MAWConfig(depth=5))
    [layer] = attachment.layers
    config = model.config
    channels = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert (layer.views, layer.heads, layer.channels) == (HOSTS[name].views, config.num_attention_heads, channels)
    assert maw_layers(model)[0].query_views.shape == (config.num_attention_heads, 5, channels)
    maw.detach(model)
    if HOSTS[name].views == "frame":
        with pytest.raises(maw.MAWError, match=r"rotary positions .*views='frame'"):
            maw.attach(model, maw.MAWConfig(depth=5, views="spectral"))
        assert not maw_layers(model)


@pytest.mark.parametrize(("name", "attention"), WITH_IMPLEMENTATION)
def test_padding_and_company_change_nothing(name, attention):
    model = stir(attach(build(name, attention)))
    close = {"atol": 1e-10, "rtol": 1e-10}
    if attention == "sdpa":
        model = model.double()
    else:  # Transformers' eager softmax is in float32 whatever the model's type
        close = {"atol": 2e-5, "rtol": 1e-5}
    alone = hidden(model, TOKENS[1:, :LENGTH], MASK[1:, :LENGTH])[0]
    torch.testing.assert_close(hidden(model)[1, :LENGTH], alone, **close)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS[1:, :LENGTH]).last_hidden_state[0], alone, **close)
        torch.testing.assert_close(model(TOKENS, MASK).last_hidden_state[1, :LENGTH], alone, **close)
    if HOSTS[name].left_padding:
        left = hidden(model, TOKENS.roll(-LENGTH, dims=1), MASK.roll(-LENGTH, dims=1))[1, -LENGTH:]
        torch.testing.assert_close(left, alone, **close)
    padding_seen = hidden(model, mask=torch.ones_like(MASK))[1, :LENGTH]
    assert not torch.allclose(padding_seen, alone, atol=1e-3), "the padding would matter if it were tokens"


@pytest.mark.parametrize("name", EVERY)
def test_detach_restores_the_host_bit_for_bit(name):
    model = build(name)
    before, weights, held = hidden(model), copy.deepcopy(model.state_dict()), _held(model)
    host = maw.detach(stir(attach(model)))
    assert host is model
    assert torch.equal(hidden(host), before)
    assert list(host.state_dict()) == list(weights)
    assert all(torch.equal(host.state_dict()[key], weights[key]) for key in weights)
    assert _held(host) == held


def _held(model):
    """Everything every module holds besides tensors: names and identities, hooks included."""
    return {
        name: (type(module), sorted(vars(module)), len(module._forward_pre_hooks), id(getattr(module, "config", None)))
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("name", EVERY)
def test_gradients_reach_everything_and_checkpointing_changes_none(name):
    host = build(name)
    model = stir(attach(host, auxiliary_weight=1.0)).train()
    plain = _gradients(model)
    for part in ("query_views", "key_views", "policy_network.2.weight", "value_network.0.weight"):
        found = [gradient for key, gradient in plain.items() if part in key]
        assert len(found) == 2, part
        assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in found), part
    for reentrant in (True, False):
        twin = copy.deepcopy(model)
        _checkpoint(twin, reentrant)
        checkpointed = _gradients(twin)
        assert plain.keys() == checkpointed.keys()
        for key, gradient in plain.items():
            torch.testing.assert_close(checkpointed[key], gradient, atol=1e-5, rtol=1e-4, msg=f"{key} {reentrant}")


def _checkpoint(model, reentrant):
    def run(function, *args, **kwargs):
        return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=reentrant, **kwargs)

    if model.backbone.supports_gradient_checkpointing:
        model._set_gradient_checkpointing(True, run)
        return
    for layer in model.backbone.encoder.layer:  # Transformers has no checkpointing for MPNet: by hand
        inner = layer.forward
        layer.forward = lambda *args, inner=inner, output_attentions=False: run(inner, *args)


def _gradients(model):
    model.zero_grad()
    torch.manual_seed(3)
    embeddings = model.get_input_embeddings()(TOKENS).detach().requires_grad_()
    out = model(inputs_embeds=embeddings, attention_mask=MASK).last_hidden_state
    out[REAL].square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("name", "attention"), WITH_IMPLEMENTATION)
def test_sixteen_bits_stay_finite(name, attention):
    model = stir(attach(build(name, attention))).train()
    for side in (0, 1):  # padding on the right, then on the left: rows without any key, in a causal host
        tokens, mask = (part.roll(-LENGTH * side, dims=1) for part in (TOKENS, MASK))
        with torch.autocast("cpu", torch.bfloat16):
            out = model(input_ids=tokens, attention_mask=mask).last_hidden_state
        out[mask.bool()].float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    exact = hidden(model.eval())
    with torch.autocast("cpu", torch.bfloat16):
        half = hidden(model).float()
    assert (half - exact)[REAL].norm() <= 0.1 * exact[REAL].norm()


@pytest.mark.parametrize("name", EVERY)
def test_save_and_load_are_bit_equal(name, tmp_path):
    model = stir(attach(build(name), layers=[-1]))
    expected = hidden(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, maw.MAWModel)
    assert torch.equal(hidden(loaded), expected)
    assert loaded.config.hidden_size == 24


@pytest.mark.parametrize("name", EVERY)
def test_copies_are_whole_and_independent(name):
    model = stir(attach(build(name), layers=[-1]))
    expected = hidden(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(hidden(twin), expected)
        stir(twin)
        assert not torch.allclose(hidden(twin), expected, atol=1e-3)
        plain = maw.detach(twin)
        assert not plain._forward_pre_hooks
        assert not maw_layers(plain)
    assert torch.equal(hidden(model), expected)
    with pytest.raises(maw.MAWError, match="flattened"):
        model(input_ids=TOKENS, cu_seq_lens_q=TOKENS[0])


@pytest.mark.parametrize("name", EVERY)
def test_lora_is_on_query_key_and_value_and_never_inside_maw(name):
    from peft import get_peft_model

    model = attach(build(name), layers=[-1])
    tuned = get_peft_model(model, maw.lora_config(model))
    adapted = {key.split(".lora_")[0] for key, _ in tuned.named_parameters() if "lora_" in key}
    per_layer = 1 if name == "modernbert" else 3
    assert len(adapted) == 2 * per_layer
    assert not any(".maw." in key for key in adapted)
    hidden(tuned)


def test_lora_config_wants_target_modules_where_it_knows_none():
    with pytest.raises(maw.MAWError, match="give target_modules"):
        maw.lora_config(torch.nn.Linear(2, 2))
    assert maw.lora_config(torch.nn.Linear(2, 2), target_modules=["0"]).target_modules == {"0"}


@pytest.mark.parametrize("name", EVERY)
def test_output_attentions_gives_as_many_maps_as_before(name):
    model = build(name, "eager")
    plain = model(input_ids=TOKENS, attention_mask=MASK, output_attentions=True).attentions
    wrapped = stir(attach(model, layers=[-1]))
    changed = wrapped(input_ids=TOKENS, attention_mask=MASK, output_attentions=True).attentions
    assert len(changed) == len(plain) == 2
    assert torch.equal(changed[0], plain[0])
    assert changed[1].shape == plain[1].shape
    assert not torch.allclose(changed[1], plain[1], atol=1e-3)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in CAUSAL and name != "mpnet"])
def test_one_layer_equals_the_reference_computed_from_its_own_tensors(name):
    model = stir(attach(build(name), layers=[-1])).double()
    layer, (query, key, value, mask), (output, _) = _watched(model)
    assert torch.equal(mask, REAL)
    expected = maw.reference.depth_attention(
        query,
        repeat_heads(key, query.shape[1]),
        repeat_heads(value, query.shape[1]),
        layer.query_views,
        layer.key_views,
        layer.weights(token_mean(query, mask)),
        constant=layer.constant,
        mask=mask,
        scale=layer.scale,
    )
    torch.testing.assert_close(output.transpose(1, 2), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", [*CAUSAL, "mpnet"])
def test_one_layer_equals_the_steps_with_the_hosts_own_mask_and_bias(name, place):
    """The reference's mask is (B,K): here its logits get the host's mask, or MPNet's bias, before the softmax."""
    model = stir(attach(build(name, "eager"), layers=[place]))
    bias, hosts_mask = 0.0, torch.ones(7, 7, dtype=torch.bool)
    if name == "mpnet":
        bias = model.backbone.encoder.compute_position_bias(torch.zeros(2, 7, 24)).detach()
    else:
        hosts_mask = hosts_mask.tril()
        if getattr(model.backbone.config, "layer_types", ["full_attention"] * 2)[place] == "sliding_attention":
            hosts_mask = hosts_mask.triu(1 - WINDOWED["sliding_window"])
    layer, (query, key, value, mask), (output, attention) = _watched(model)
    key, value = (repeat_heads(part, query.shape[1]) for part in (key, value))
    weight = layer.weights(token_mean(query, mask))
    steps = maw.reference.seven_steps(
        query, key, value, layer.query_views, layer.key_views, weight, constant=layer.constant, scale=layer.scale
    )
    allowed = mask[:, None, None, :] & hosts_mask
    token = mask[:, None, :, None]
    expected = (steps.logit + bias).masked_fill(~(allowed & token), -torch.inf).softmax(dim=-1).nan_to_num()
    torch.testing.assert_close(attention * token, expected * token, atol=2e-5, rtol=1e-5)
    output = output if name == "mpnet" else output.transpose(1, 2)
    torch.testing.assert_close(output * token, expected @ value * token, atol=2e-4, rtol=1e-4)


def _watched(model):
    """The one MAW layer of a model, what it was given and what it gave, in a forward."""
    [layer] = maw_layers(model)
    seen = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs, output)))
    hidden(model)
    return seen[0]


@pytest.mark.parametrize("layer", [0, 1])  # some hosts' first layer has a window
@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_host_has_one_state_a_text_and_still_hides_the_future(name, layer):
    model = stir(attach(build(name), layers=[layer]))
    layer, (query, key, _, mask), _ = _watched(model)
    assert torch.equal(mask, REAL), "state and reward see all tokens, whatever the layer's window"
    assert key.shape[1] == 2
    assert query.shape[1] == 6
    # with the depth weights held, a later token changes nothing before it
    layer.config = maw.MAWConfig(**{**layer.config.to_dict(), "selection": "uniform"})
    changed = TOKENS.clone()
    changed[0, 5] = 33
    before, after = hidden(model)[0], hidden(model, changed)[0]
    torch.testing.assert_close(after[:5], before[:5])
    assert not torch.allclose(after[5:], before[5:], atol=1e-3)


@pytest.mark.parametrize("name", ["gemma3_text"])
def test_gemmas_bidirectional_embedder(name):
    model = build(name, use_bidirectional_attention=True)
    before = hidden(model)
    wrapped = attach(model)
    torch.testing.assert_close(hidden(wrapped)[REAL], before[REAL], atol=1e-5, rtol=1e-5)
    stir(wrapped).double()
    alone = hidden(wrapped, TOKENS[1:, :LENGTH], MASK[1:, :LENGTH])[0]
    torch.testing.assert_close(hidden(wrapped)[1, :LENGTH], alone, atol=1e-10, rtol=1e-10)


# Projections


@pytest.mark.parametrize("fused", [False, True])
def test_a_query_head_is_paired_with_the_key_head_that_it_uses(fused):
    heads, key_heads, channels, width = 6, 2, 5, 23
    sizes = [heads * channels, key_heads * channels, key_heads * channels]
    whole = torch.nn.Linear(width, sum(sizes))
    parts = [torch.nn.Linear(width, size) for size in sizes]
    for part, weight in zip(parts, whole.weight.split(sizes), strict=True):
        part.weight.data = weight.detach()
    layer = AttentionLayer(0, "", object(), Family("", "", ()), heads, key_heads, (whole,) if fused else tuple(parts))
    assert layer.channels == channels
    assert layer.scaling == channels**-0.5
    query, key = layer.head_weights()
    for head in range(heads):
        assert torch.equal(query[head], parts[0].weight[head * channels :][:channels])
        assert torch.equal(key[head], parts[1].weight[head // 3 * channels :][:channels])


# FlexAttention


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler to itself
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])  # compiling takes a minute
@pytest.mark.parametrize("name", ["bert", "modernbert", "qwen3", "gemma3_text"])
def test_flex_attention_gives_what_sdpa_gives(name, compiled):
    model = stir(attach(build(name)))
    inputs = [(TOKENS, MASK), (TOKENS, None)]
    if HOSTS[name].left_padding:
        inputs.append((TOKENS.flip(1), MASK.flip(1)))
    expected = [hidden(model, *given) for given in inputs]
    model.set_attn_implementation("flex_attention")
    assert model.backbone.config._attn_implementation == "flex_attention"
    for given, wanted in zip(inputs, expected, strict=True):
        with torch.compiler.set_stance("default" if compiled else "force_eager"):
            actual = hidden(model, *given)
        real = torch.ones_like(REAL) if given[1] is None else given[1].bool()
        torch.testing.assert_close(actual[real], wanted[real], atol=1e-5, rtol=1e-5)
