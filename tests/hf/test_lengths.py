"""The limit of length of every family: a text of so many tokens is encoded, one more token is too many."""

import pytest
import torch
from families import HOSTS, attach, build

from maw.hf.lengths import longest_input

LEARNT = {
    "bert": 64,
    "electra": 64,
    "distilbert": 64,
    # padding id 1: the first two rows of the table are nobody's
    "roberta": 62,
    "xlm-roberta": 62,
    "camembert": 62,
    "mpnet": 62,
}
"""Families with a table of 64 positions, and the tokens that they take."""


def encode(model, length):
    tokens = torch.full((1, length), 7)
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state


@pytest.mark.parametrize("with_maw", [False, True])
@pytest.mark.parametrize("name", HOSTS)
def test_a_text_of_the_longest_length_is_encoded(name, with_maw):
    model = build(name)
    model = attach(model) if with_maw else model
    assert longest_input(model) == LEARNT.get(name, 64)
    assert encode(model, LEARNT.get(name, 64)).isfinite().all()


@pytest.mark.parametrize("name", HOSTS)
def test_one_token_more_is_too_many_where_positions_are_learnt(name):
    model = build(name)
    longer = longest_input(model) + 1
    if name in LEARNT:
        with pytest.raises((IndexError, RuntimeError)):
            encode(model, longer)
    else:  # rotary positions go on: the limit is the length it was trained for
        assert encode(model, longer).isfinite().all()


def test_another_padding_id_is_another_limit():
    assert longest_input(build("roberta", pad_token_id=5)) == 58


def test_a_model_without_a_limit_has_none():
    assert longest_input(torch.nn.Linear(2, 2)) is None
