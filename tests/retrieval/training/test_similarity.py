"""A model is trained by the similarity that it ranks with."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Normalize
from toys import SETTINGS, columns, encoder, toy

import maw
from maw.retrieval.ranking.dense import encode
from maw.retrieval.similarity import is_normalised, similarity_of, similarity_scale
from maw.retrieval.training.fine_tuning import train
from maw.retrieval.training.losses import AuxiliaryLoss, contrastive_loss
from maw.retrieval.training.rollouts import retrieval_reward
from maw.retrieval.training.settings import TrainingSettings


def model_by(similarity, config=None, *, unit=False):
    """A random encoder that ranks by this similarity; its vectors have unit length on request."""
    model = encoder(config)
    while isinstance(list(model)[-1], Normalize):
        del model[len(model) - 1]
    if unit:
        model.append(Normalize())
    model.similarity_fn_name = similarity
    return model


def by_hand(model, scale):
    """The mean cross entropy of dot products times a scale."""
    queries, documents = (model(dict(column))["sentence_embedding"] for column in columns(model))
    return torch.nn.functional.cross_entropy(scale * queries @ documents.T, torch.arange(len(queries)))


@pytest.mark.parametrize(
    ("similarity", "unit", "scale"), [(None, False, 20), ("cosine", True, 20), ("dot", False, 1), ("dot", True, 20)]
)
def test_the_scale_fits_the_similarity(similarity, unit, scale):
    model = model_by(similarity, unit=unit)
    assert (similarity_scale(model), similarity_scale(model, 3)) == (scale, 3)
    assert similarity_of(model) == (similarity or "cosine")
    assert is_normalised(model) == (similarity != "dot")


@pytest.mark.parametrize("mini_batch_size", [None, 3])
@pytest.mark.parametrize("scale", [None, 0.25])
def test_dot_products_are_trained_as_dot_products(mini_batch_size, scale):
    model = model_by("dot").eval()
    loss = contrastive_loss(model, scale=scale, mini_batch_size=mini_batch_size)
    found = loss(columns(model), None)
    found.backward()
    gradient = model[0].model.embeddings.word_embeddings.weight.grad.clone()
    model.zero_grad()
    expected = by_hand(model, 1.0 if scale is None else scale)
    expected.backward()
    torch.testing.assert_close(found.detach(), expected.detach(), atol=1e-4, rtol=1e-4)
    own = model[0].model.embeddings.word_embeddings.weight.grad
    torch.testing.assert_close(gradient, own, atol=1e-4, rtol=1e-3)
    cosine = contrastive_loss(model_by("cosine").eval())(columns(model), None)
    assert not torch.allclose(cosine, expected, rtol=0.01), "as it was trained before"


def test_the_reward_compares_as_the_loss_does(monkeypatch):
    from maw.retrieval.training import rollouts

    seen = []
    monkeypatch.setattr(
        rollouts,
        "retrieval_reward",
        lambda *given, **options: seen.append((given, options)) or retrieval_reward(*given, **options),
    )
    model = model_by("dot", maw.MAWConfig(depth=4, group_size=2, reward="retrieval")).train()
    AuxiliaryLoss(contrastive_loss(model), model).train()(columns(model), None).backward()
    (rolled_out, candidates), options = seen[0]
    actual = retrieval_reward(rolled_out, candidates, **options)
    score = torch.einsum("bgm,cm->bgc", rolled_out, candidates)
    own = torch.arange(len(score))
    torch.testing.assert_close(actual, score.log_softmax(-1)[own, :, own], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("similarity", "scale", "expected"), [("dot", None, 1.0), ("dot", 0.5, 0.5), (None, None, 20.0)]
)
def test_a_training_says_how_it_compared(tmp_path, similarity, scale, expected):
    settings = dataclasses.replace(SETTINGS, epochs=1, similarity_scale=scale)
    outcome = train(model_by(similarity), toy(), tmp_path / "training", settings)
    said = {"similarity": similarity or "cosine", "similarity_scale": expected}
    assert {name: outcome[name] for name in said} == said
    first = json.loads((tmp_path / "training" / "log.jsonl").read_text().splitlines()[0])
    assert first == {"step": 0, **said}


@pytest.mark.parametrize("similarity", ["euclidean", "manhattan"])
def test_models_that_compare_by_a_distance_are_refused(tmp_path, similarity):
    model = model_by(similarity)
    refused = (
        rf"wanted a model that compares vectors by cosine or dot product, got one that compares by {similarity}: .*"
    )
    with pytest.raises(maw.MAWError, match=refused):
        train(model, toy(), tmp_path / "training", SETTINGS)
    with pytest.raises(maw.MAWError, match=refused):
        encode(model, ["a river"], "query")  # by dot product it would be ranked in another order


def test_a_scale_that_is_none_is_refused():
    with pytest.raises(maw.MAWError, match=r"similarity_scale must be above 0, got -1"):
        TrainingSettings(similarity_scale=-1.0)
    with pytest.raises(maw.MAWError, match=r"similarity_scale must be above 0, got nan"):
        similarity_scale(model_by("dot"), float("nan"))
