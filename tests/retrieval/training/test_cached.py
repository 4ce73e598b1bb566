"""Losses with a gradient cache: every text runs twice, first without gradient, then again inside a backward hook."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from toys import columns, encoder, note_depth_weights

import maw
from maw.hf.attach import maw_layers
from maw.retrieval.training.losses import AuxiliaryLoss

MINI_BATCH = 3  # of 4 texts a column: mini-batches of 3 and 1


class Uncached(CachedMultipleNegativesRankingLoss):
    """The same mini-batches and the same loss, as one ordinary graph."""

    def forward(self, sentence_features, labels=None):
        embeddings = [
            [vectors for vectors, _ in self.embed_minibatch_iter(feature, with_grad=True, copy_random_state=False)]
            for feature in sentence_features
        ]
        return self.calculate_loss(embeddings, labels)


def checkpoint_layers(model, reentrant: bool) -> None:
    model[0].model._set_gradient_checkpointing(
        True, lambda f, *a, **k: torch.utils.checkpoint.checkpoint(f, *a, use_reentrant=reentrant, **k)
    )


def run(kind, *, scale=1.0, losses=1, checkpointing=None, **settings):
    """Gradients of every parameter, divided by `scale`, and what the MAW layer counted."""
    model = encoder(maw.MAWConfig(**{"depth": 8, "auxiliary_weight": 10.0, "layers": "all", **settings})).train()
    if checkpointing is not None:
        checkpoint_layers(model, checkpointing)
    loss = AuxiliaryLoss(kind(model, mini_batch_size=MINI_BATCH), model).train()
    torch.manual_seed(3)
    for _ in range(losses):
        (loss(columns(model), None) * scale / losses).backward()
    gradients = {name: p.grad / scale for name, p in model.named_parameters() if p.grad is not None}
    layer = maw_layers(model)[0]
    return gradients, (len(layer.records), layer.gradient_scale.texts, layer.gradient_scale.per_text), layer.collect()


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    assert any("policy_network" in name and gradient.abs().max() > 1e-3 for name, gradient in expected.items())
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("selection", ["gumbel", "hard"])
@pytest.mark.parametrize("scale", [1.0, 1024.0, 0.25])
def test_gradients_are_those_without_a_cache_whatever_the_loss_is_scaled_with(selection, scale):
    """Dropout, depth noise and sampled groups are all on: they must be drawn again exactly."""
    expected, _, _ = run(Uncached, selection=selection)
    actual, _, _ = run(CachedMultipleNegativesRankingLoss, selection=selection, scale=scale)
    assert_same(actual, expected)


def test_accumulated_losses_give_the_gradients_without_a_cache():
    assert_same(run(CachedMultipleNegativesRankingLoss, losses=2)[0], run(Uncached, losses=2)[0])


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")  # true of the first pass
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_under_a_cache_give_the_same_gradients(reentrant):
    expected, counted, record = run(Uncached)
    actual, counted_too, record_too = run(CachedMultipleNegativesRankingLoss, checkpointing=reentrant)
    assert_same(actual, expected)
    assert counted_too == counted
    assert record_too.keys() == record.keys()


def test_texts_and_statistics_are_counted_once():
    _, counted, record = run(Uncached)
    _, counted_too, record_too = run(CachedMultipleNegativesRankingLoss)
    assert counted == counted_too == (4, 8, None)
    for name, value in record.items():
        torch.testing.assert_close(record_too[name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_the_second_pass_draws_the_first_ones_depth_noise():
    model = encoder(maw.MAWConfig(depth=8)).train()
    (layer,) = maw_layers(model)
    drawn = note_depth_weights(layer)
    loss = AuxiliaryLoss(CachedMultipleNegativesRankingLoss(model, mini_batch_size=MINI_BATCH), model).train()
    loss(columns(model), None).backward()
    first, second = ([weight for enabled, weight in drawn if enabled is replay] for replay in (False, True))
    assert [len(weight) for weight in first] == [3, 1, 3, 1]
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert not torch.allclose(first[0], first[2], atol=1e-3), "there is noise"


def test_samples_serve_several_updates_under_a_cache():
    model = encoder(maw.MAWConfig(depth=8, updates=2)).train()
    loss = AuxiliaryLoss(CachedMultipleNegativesRankingLoss(model, mini_batch_size=2), model).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    for number in range(2):
        loss(columns(model), None).backward()
        assert len(loss.fresh) == 4, "one for each mini-batch"
        assert len(loss.due) == 4 * number, "those of the step before"
        optimiser.step()
