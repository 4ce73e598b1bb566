"""What a host with MAW refuses to be given, or mends; and which hosts are refused."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch
from families import CAUSAL, HOSTS, MASK, TOKENS, attach, build, hidden, stir

import maw
from maw.hf.hosts import family_of
from maw.hf.inputs import positions_from_first_token

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
