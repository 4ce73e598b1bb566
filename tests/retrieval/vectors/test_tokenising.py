"""Tokenising away from the model gives the model's own inputs, whatever the batches."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from toys import encoder

from maw.errors import MAWError
from maw.retrieval.data.corpus_file import Block
from maw.retrieval.vectors.token_batches import Limits, make_batches
from maw.retrieval.vectors.tokenising import Tokeniser, Tokens, workers

TEXTS = ["A river.", "", "Rivers flow into the sea, most of them.", "word " * 40, "Glacier!", "a b c d e f g"]


def batches(tokeniser, documents, **limits):
    return list(make_batches(tokeniser(documents), tokeniser, Limits(**limits)))


@pytest.mark.parametrize("prompt", [None, "passage: "])
@pytest.mark.parametrize("side", ["right", "left"])
def test_inputs_are_those_of_sentence_transformers(prompt, side):
    model = encoder()
    model.tokenizer.padding_side = side
    model.prompts = {} if prompt is None else {"query": "q: ", "passage": prompt}
    tokeniser = Tokeniser(model)
    made = batches(tokeniser, TEXTS, texts=2, tokens=1000)
    assert [len(batch.rows) for batch in made] == [2, 2, 2]
    for batch in made:
        expected = model.preprocess([TEXTS[row] for row in batch.rows], prompt=prompt, task="document")
        assert set(batch.features) == set(expected)
        for name, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(batch.features[name], value), name
            else:
                assert batch.features[name] == value
        assert batch.tokens == int(expected["attention_mask"].sum())


def test_batches_hold_each_text_once_within_their_limits():
    model = encoder()
    tokeniser = Tokeniser(model)
    lengths = tokeniser(TEXTS).lengths
    assert lengths.max() == 16, "the model's limit"
    made = batches(tokeniser, TEXTS, texts=3, tokens=24, multiple=8)
    assert sorted(int(row) for batch in made for row in batch.rows) == list(range(len(TEXTS)))
    for batch in made:
        count, length = batch.features["input_ids"].shape
        assert count <= 3
        assert length in (8, 16)
        assert count == 1 or count * length <= 24
        assert batch.features["attention_mask"].sum(dim=1).tolist() == lengths[batch.rows.numpy()].tolist()
    assert [batch.features["input_ids"].shape[1] for batch in made] == sorted(
        (batch.features["input_ids"].shape[1] for batch in made), reverse=True
    )


def test_a_length_is_not_rounded_above_the_models_limit():
    model = encoder()
    model.max_seq_length = 13
    (batch,) = batches(Tokeniser(model), TEXTS, texts=9, tokens=1000, multiple=8)
    assert batch.features["input_ids"].shape == (6, 13)


def test_tokens_in_another_order():
    tokens = Tokens(np.array([2, 0, 3]), {"input_ids": np.array([1, 2, 3, 4, 5])}, {})
    taken = tokens.taken(np.array([2, 1, 0]))
    assert taken.lengths.tolist() == [3, 0, 2]
    assert taken.values["input_ids"].tolist() == [3, 4, 5, 1, 2]
    both = Tokens.joined([tokens, taken])
    assert both.lengths.tolist() == [2, 0, 3, 3, 0, 2]
    assert both.values["input_ids"].tolist() == [1, 2, 3, 4, 5, 3, 4, 5, 1, 2]


def test_a_tokeniser_travels_without_the_weights():
    model = encoder()
    raw = pickle.dumps(Tokeniser(model))
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert len(raw) < weights / 3
    there = pickle.loads(raw)
    assert there(TEXTS).values["input_ids"].tolist() == Tokeniser(model)(TEXTS).values["input_ids"].tolist()
    assert model[0].model is not None


def test_other_models_are_refused():
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    model = encoder()
    static = SentenceTransformer(modules=[StaticEmbedding(model.tokenizer, embedding_dim=8)], device="cpu")
    with pytest.raises(MAWError, match="begins with a transformer for texts, got StaticEmbedding"):
        Tokeniser(static)


@pytest.mark.slow
def test_processes_give_the_same_tokens_and_a_dead_one_is_an_error():
    tokeniser = Tokeniser(encoder())
    raw = "".join(f"{i}\t{text}\n" for i, text in enumerate(TEXTS)).encode()
    with workers(tokeniser, 2) as (executor, tokenise):
        found = executor.submit(tokenise, Block("c.tsv", 0, raw)).result()
        assert found.values["input_ids"].tolist() == tokeniser(TEXTS).values["input_ids"].tolist()
        with pytest.raises(MAWError, match=r"c\.tsv, line 1: wanted 2 columns, an id, a tab and a text"):
            executor.submit(tokenise, Block("c.tsv", 0, b"x\n")).result()
    with pytest.raises(MAWError, match="a tokenising process died"), workers(tokeniser, 1) as (executor, _):
        executor.submit(_die).result()


def _die() -> None:
    import os

    os._exit(1)
