"""An encoder that Sentence Transformers' losses train compiled: the gradients and the counts of eager."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch._dynamo.testing import CompileCounterWithBackend
from toys import columns, encoder

import maw
from maw.hf.attach import maw_layers
from maw.retrieval.training.losses import AuxiliaryLoss


def run(kind, compiling, scale, **options):
    torch._dynamo.reset()
    model = encoder(maw.MAWConfig(depth=8, auxiliary_weight=10.0)).eval()  # without dropout, whose masks differ
    (layer,) = maw_layers(model)
    layer.train()
    counter = CompileCounterWithBackend("aot_eager")
    if compiling:  # Sentence Transformers calls `forward` by its name, which `Module.compile` leaves alone
        model[0].model = torch.compile(model[0].model, backend=counter, fullgraph=True)
    loss = AuxiliaryLoss(kind(model, **options), model)
    torch.manual_seed(3)
    (loss(columns(model), None) * scale).backward()
    assert (counter.frame_count > 0) == compiling
    gradients = {
        name.replace("_orig_mod.", ""): p.grad / scale for name, p in model.named_parameters() if p.grad is not None
    }
    return gradients, (len(layer.records), layer.gradient_scale.texts), layer.collect()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [(MultipleNegativesRankingLoss, {}), (CachedMultipleNegativesRankingLoss, {"mini_batch_size": 3})],
)
def test_gradients_and_counts_are_eagers_whatever_the_loss_is_scaled_with(kind, options):
    expected, counted, statistics = run(kind, False, 1.0, **options)
    actual, counted_too, statistics_too = run(kind, True, 1024.0, **options)
    assert counted_too == counted
    assert any("policy_network" in name and gradient.abs().max() > 1e-3 for name, gradient in expected.items())
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=1e-5, rtol=1e-3, msg=name)
    for name, statistic in statistics.items():
        torch.testing.assert_close(statistics_too[name], statistic, atol=1e-5, rtol=1e-4, msg=name)
