"""What a host with MAW refuses to be given, or mends; and which hosts are refused."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import CAUSAL, HOSTS, MASK, TOKENS, attach, build, hidden, stir

import maw
from maw.hf.attach import maw_layers
from maw.hf.hosts import family_of
from maw.hf.inputs import positions_from_first_token
from maw.hf.masks import key_mask

EVERY = list(HOSTS)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_cache_may_be_filled_but_not_used(name):
    model = stir(attach(build(name)))
    assert model.backbone.config.use_cache
    first = model(input_ids=TOKENS)
    torch.testing.assert_close(first.last_hidden_state, model(input_ids=TOKENS, use_cache=False).last_hidden_state)
    with pytest.raises(maw.MAWError, match=r"1 query tokens for .* keys .* use_cache=False"):
        model(input_ids=TOKENS[:, :1], past_key_values=first.past_key_values)


@pytest.mark.parametrize("name", EVERY)
def test_flattened_batches_are_refused(name):
    model = attach(build(name))
    limits = torch.tensor([0, 4, 7], dtype=torch.int32)
    packed = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    for called in (model, model.backbone):
        with pytest.raises(maw.MAWError, match=r"one text a row.*flattened batch \(cu_seq_lens_q, cu_seq_lens_k\)"):
            called(input_ids=TOKENS[:1], cu_seq_lens_q=limits, cu_seq_lens_k=limits)
        with pytest.raises(maw.MAWError, match="position_ids that do not count up by one"):
            called(input_ids=TOKENS[:1], position_ids=packed)
    # what generation passes for left padding is no packing
    positions = (MASK.flip(1).cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        given = model(input_ids=TOKENS.flip(1), attention_mask=MASK.flip(1), position_ids=positions)
    assert given.last_hidden_state.isfinite().all()


def test_positions_given_by_the_caller_are_kept():
    model = stir(attach(build("llama")))
    moved = hidden(model, position_ids=torch.arange(3, 10)[None])
    assert not torch.allclose(moved[0], hidden(model)[0], atol=1e-3), "MAW sees positions, not only their differences"


def test_positions_begin_at_the_first_real_token():
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 1], [0, 1, 0]])
    assert positions_from_first_token(mask).tolist() == [[0, 1, 2], [0, 0, 1], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("albert", "shares one attention module"),
        ("deberta", "change the position terms"),
        ("deberta-v2", "change the position terms"),
        ("t5", "relative position bias"),
        ("mt5", "relative position bias"),
        ("umt5", "relative position bias"),
        ("gemma3", r"multimodal.*\.language_model"),
        ("gpt2", "'gpt2'.*is not supported"),
    ],
)
def test_other_families_are_refused_by_name(kind, words):
    config = SimpleNamespace(model_type=kind)
    with pytest.raises(maw.MAWError, match=rf"(?s){words}.*Supported: bert, .*mpnet, .*gemma3_text"):
        family_of(SimpleNamespace(config=config))


@pytest.mark.parametrize("name", ["nomic_bert", "llama"])
def test_arguments_may_be_given_by_place(name):
    model = stir(attach(build(name)))
    expected = hidden(model)
    names = list(inspect.signature(model.backbone.forward).parameters)
    given = {"input_ids": TOKENS, "attention_mask": MASK}
    last = max(names.index(argument) for argument in ("attention_mask", "position_ids"))
    with torch.no_grad():
        actual = model(*[given.get(argument) for argument in names[: last + 1]]).last_hidden_state
    assert torch.equal(actual, expected)


# Masks and texts


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("name", "attention"), [("bert", "sdpa"), ("bert", "eager"), ("mpnet", "eager"), ("llama", "sdpa")]
)
def test_a_text_without_a_token_is_refused(name, attention, training):
    model = attach(build(name, attention)).train(training)
    mask = MASK.clone()
    mask[1] = 0
    for given in (mask, mask.bool(), mask.float()):
        with pytest.raises(maw.MAWError, match=r"attention_mask: row 1 has no real key.*drop the empty text"):
            model(input_ids=TOKENS, attention_mask=given)
    for some in (np.s_[:, :0], np.s_[:0]):
        with pytest.raises(maw.MAWError, match=r"a token in every text, got .* \(.*0.*\): drop empty texts"):
            model(input_ids=TOKENS[some], attention_mask=MASK[some])


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (
            torch.zeros(2, 3, 7, 7),
            r"must have shape \(B=2 or 1, 1, Q=7 or 1, K=7\), got \(2, 3, 7, 7\): give .* \(B, K\)",
        ),
        (torch.zeros(2, 1, 7, 9), r"got \(2, 1, 7, 9\)"),
        (torch.zeros(3, 1, 7, 7), r"got \(3, 1, 7, 7\)"),
        (torch.zeros(2, 7), r"got \(2, 7\)"),
        (torch.zeros(2, 1, 7, 7, dtype=torch.long), "must be boolean or of a floating type, got torch.int64: give"),
        ([[1] * 7] * 2, "must be a tensor or a BlockMask, got list: give"),
    ],
)
def test_unknown_forms_of_the_attentions_mask_are_refused(mask, words):
    with pytest.raises(maw.MAWError, match=words):
        key_mask(mask, 2, 7)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_hosts_own_form_of_mask_may_be_given(attention):
    """Transformers hands a mask of four axes on as it is: boolean to sdpa, additive to eager."""
    model = stir(attach(build("bert", attention)))
    four = MASK.bool()[:, None, None].expand(-1, 1, 7, -1)
    if attention == "eager":
        four = torch.where(four, 0.0, torch.finfo(torch.float32).min)
    torch.testing.assert_close(hidden(model, mask=four)[MASK.bool()], hidden(model)[MASK.bool()], rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_one_depth_and_one_token_are_the_hosts(name, training):
    host = build(name)
    tokens, mask = TOKENS[:, :1], MASK[:, :1]
    expected = hidden(host), hidden(host, tokens, mask)
    model = attach(host, depth=1).train(training)
    real = MASK.bool()
    torch.testing.assert_close(hidden(model)[real], expected[0][real], rtol=0, atol=1e-4)
    torch.testing.assert_close(hidden(model, tokens, mask), expected[1], rtol=0, atol=1e-4)


def test_a_layer_that_was_left_on_another_device_is_named():
    model = attach(build("bert"))
    maw_layers(model)[1].to("meta")
    with pytest.raises(maw.MAWError, match="query must be on the device of the layer, meta, got cpu: move one of them"):
        hidden(model)


def test_a_damaged_projection_is_refused_where_views_come_from_it():
    host = build("bert")
    with torch.no_grad():
        host.encoder.layer[1].attention.self.key.weight[3, 3] = torch.nan
    with pytest.raises(maw.MAWError, match="query or key projection is not finite"):
        attach(host)
    assert not maw_layers(host)
