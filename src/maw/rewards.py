"""What a depth choice is worth (method.md sections 1 and 4)."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from maw.operations import TORCH, Operations

__all__ = ["entropy_reward"]


def entropy_reward(
    query: Float[Tensor, "B H Q C"],
    key: Float[Tensor, "B Hkv K C"],
    query_views: Float[Tensor, "H D C"],
    key_views: Float[Tensor, "H D C"],
    depth_index: Int[Tensor, "B G"],
    *,
    scale: float,
    mask: Bool[Tensor, "B K"] | None = None,
    operations: Operations = TORCH,
) -> Float[Tensor, "B G"]:
    """The specification's reward: minus the normalised attention entropy of the chosen slice.

    A slice is the logits at one-hot depth weight without the constant, `scale * score[..,d]`. The reward is the mean
    over heads and real queries, from -1 (uniform attention) to 0 (every query attends to one key).

    Args:
        query: q, (B, H, Q, C).
        key: k, (B, Hkv, K, C).
        query_views: f, (H, D, C).
        key_views: g, (H, D, C).
        depth_index: the chosen depths, (B, G); `torch.arange(D).expand(B, D)` gives all arms.
        scale: factor on the scores, as in (4).
        mask: (B, K), True where there is a token; queries and keys are the same tokens.
        operations: who computes the entropies.

    Returns:
        (B, G), in float32 at least.

    Source: method.md sections 1 (readings) and 4.

    >>> import torch
    >>> q = k = torch.randn(1, 2, 5, 4)
    >>> ones = torch.ones(2, 3, 4)
    >>> entropy_reward(q * 0, k, ones, ones, torch.tensor([[0, 2]]), scale=1.0).tolist()
    [[-1.0, -1.0]]
    """
    return -operations.slice_entropy(query, key, query_views, key_views, depth_index, scale=scale, mask=mask).mean(
        dim=1
    )
