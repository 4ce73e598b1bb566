"""Query heads that share key heads: the same as with the keys repeated, forward, reward and gradients."""

from __future__ import annotations

import torch

import maw
from maw.module import DepthAttention
from maw.shapes import repeat_heads
from maw.views import frame_views


def run(query, key, value, mask):
    torch.manual_seed(2)
    config = maw.MAWConfig(depth=7, auxiliary_weight=1.0, estimator="exact")
    layer = DepthAttention(config, frame_views(6, 5, 7, scaling=0.3), scaling=0.3).double().train()
    query = query.clone().requires_grad_()
    out = layer(query, key, value, mask)
    out.square().sum().backward()
    return {
        "output": out,
        "query": query.grad,
        "reward": layer.collect()["reward"],
        **{name: parameter.grad for name, parameter in layer.named_parameters()},
    }


def test_shared_keys_are_the_keys_repeated():
    query = torch.randn(2, 6, 11, 5, dtype=torch.float64)
    key, value = torch.randn(2, 2, 2, 11, 5, dtype=torch.float64)
    mask = torch.arange(11) < torch.tensor([[11], [4]])
    shared = run(query, key, value, mask)
    repeated = run(query, repeat_heads(key, 6), repeat_heads(value, 6), mask)
    for name, expected in repeated.items():
        torch.testing.assert_close(shared[name], expected, atol=1e-12, rtol=1e-10, msg=name)
    by_hand = torch.stack([key[:, head // 3] for head in range(6)], dim=1)
    torch.testing.assert_close(repeat_heads(key, 6), by_hand, atol=0, rtol=0)
