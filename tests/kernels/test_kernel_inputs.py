"""A layer on the Triton kernels refuses what a layer on PyTorch refuses, and is right where the sizes are strange."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from maw import MAWConfig, MAWError
from maw.module import DepthAttention
from maw.views import frame_views

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, HEADS, TOKENS, CHANNELS = 2, 2, 5, 16


def make_layer(kernels="triton", depth=3, **settings):
    torch.manual_seed(0)
    views = frame_views(HEADS, CHANNELS, depth, scaling=0.25)
    config = MAWConfig(depth=depth, kernels=kernels, auxiliary_weight=1.0, **settings)
    layer = DepthAttention(config, views).to(DEVICE)
    if config.selection != "uniform":
        torch.nn.init.normal_(layer.selector.policy_network[-1].weight)
    return layer


def draw(batch=BATCH, tokens=TOKENS):
    return [torch.randn(batch, HEADS, tokens, CHANNELS, device=DEVICE) for _ in range(3)]


BAD = {
    "integers": lambda q, k, v: ((q.long(), k, v), "query must be a tensor of a floating type, got torch.int64"),
    "types": lambda q, k, v: ((q.half(), k, v), "key must have the type of query, torch.float16, got torch.float32"),
    "devices": lambda q, k, v: ((q, k.to("meta"), v), "key must be on the device of query, .* got meta"),
    "all elsewhere": lambda q, k, v: (
        [x.to("meta") for x in (q, k, v)],
        "query must be on the device of the layer, .* got meta",
    ),
    "heads": lambda q, k, v: ((q[:, :1], k, v), r"query must have shape \(B, H=2, Q, C=16\), got \(2, 1, 5, 16\)"),
    "keys": lambda q, k, v: ((q[:, :, 1:], k, v), "as many keys as queries"),
    "mask's shape": lambda q, k, v: ((q, k, v, torch.ones(BATCH, 1, TOKENS).bool().to(DEVICE)), "mask must be boolean"),
    "mask's type": lambda q, k, v: ((q, k, v, torch.ones(BATCH, TOKENS, device=DEVICE)), "mask must be boolean"),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_what_does_not_fit_is_refused_before_a_launch(change, training):
    arguments, words = change(*draw())
    with pytest.raises(MAWError, match=words):
        make_layer().train(training)(*arguments)


@pytest.mark.skipif(DEVICE == "cuda", reason="on a GPU the encoder's hook looks for it, once for all layers")
@pytest.mark.parametrize("training", [False, True])
def test_a_text_without_a_token_is_refused(training):
    mask = torch.tensor([[True] * TOKENS, [False] * TOKENS])
    with pytest.raises(MAWError, match="mask: row 1 has no real key"):
        make_layer().train(training)(*draw(), mask)


@pytest.mark.parametrize("selection", ["gumbel", "uniform"])
@pytest.mark.parametrize(("batch", "tokens", "depth"), [(0, 5, 3), (2, 1, 3), (2, 5, 1)], ids=str)
def test_strange_sizes_are_right(selection, batch, tokens, depth):
    given = draw(batch, tokens)
    mask = torch.ones(batch, tokens, dtype=torch.bool, device=DEVICE)
    outputs = []
    for kernels in ("triton", "torch"):
        layer = make_layer(kernels, depth, selection=selection).eval()
        with torch.no_grad():
            outputs.append(layer(*given, mask))
        layer.train()(*(tensor.requires_grad_() for tensor in given), mask).square().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())
        collected = layer.collect()
        assert (collected == {}) is (batch == 0 or selection == "uniform")
        assert all(statistic.isfinite().all() for statistic in collected.values())
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
