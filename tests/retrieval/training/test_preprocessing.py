"""Texts become the same tensors as Sentence Transformers makes of them."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from toys import SETTINGS, encoder, toy

import maw
from maw.retrieval.training.fine_tuning import train
from maw.retrieval.training.preprocessing import preprocessing

TEXTS = ["a river", "an engine " * 40, "", "what is a violin?"]


@pytest.mark.parametrize("options", [{}, {"prompt": "query: ", "task": "query"}, {"max_length": 5, "prompt": None}])
@pytest.mark.parametrize("side", ["right", "left"])
def test_preprocessing_is_the_models_own(options, side):
    model = encoder(maw.MAWConfig(depth=8))
    model.max_seq_length, model.tokenizer.padding_side = 32, side
    found, expected = preprocessing(model)(TEXTS, **options), model.preprocess(TEXTS, **options)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert type(found[name]) is type(value)
        if isinstance(value, torch.Tensor):
            assert found[name].dtype == value.dtype
            assert torch.equal(found[name], value)
        else:
            assert found[name] == value


def test_a_training_preprocesses_so(tmp_path, monkeypatch):
    made = []

    def watched(model):
        def preprocessed(texts, **options):
            made.append(len(texts))
            return preprocessing(model)(texts, **options)

        return preprocessed

    monkeypatch.setattr("maw.retrieval.training.trainer.preprocessing", watched)
    outcome = train(encoder(), toy(), tmp_path, SETTINGS)
    assert made == [SETTINGS.batch_size] * 2 * outcome["steps"], "queries and documents of every step"


def test_a_model_without_a_transformer_preprocesses_as_it_does(tmp_path):
    model = encoder(None)
    model[0] = StaticEmbedding(model.tokenizer.backend_tokenizer, embedding_dim=4)
    found, expected = preprocessing(model)(TEXTS), model.preprocess(TEXTS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items() if isinstance(value, torch.Tensor))
