"""What a depth choice is worth (method.md sections 1 and 4)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maw.entropy import normalised_slice_entropy

__all__ = ["entropy_reward"]


def entropy_reward(
    query: Float[Tensor, "B H Q C"],
    key: Float[Tensor, "B H K C"],
    query_views: Float[Tensor, "H D C"],
    key_views: Float[Tensor, "H D C"],
    depth_index: Int[Tensor, "B G"],
    *,
    scale: float,
    mask: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, "B G"]:
    """The specification's reward: minus the normalised attention entropy of the chosen slice.

    A slice is the logits at one-hot depth weight without the constant, `scale * score[..,d]`. The reward is the mean
    over heads and real queries, from -1 (uniform attention) to 0 (every query attends to one key).

    Args:
        query: q, (B, H, Q, C).
        key: k, (B, H, K, C).
        query_views: f, (H, D, C).
        key_views: g, (H, D, C).
        depth_index: the chosen depths, (B, G); `torch.arange(D).expand(B, D)` gives all arms.
        scale: factor on the scores, as in (4).
        mask: (B, K), True where there is a token; queries and keys are the same tokens.

    Returns:
        (B, G), in float32 at least.

    Source: method.md sections 1 (readings) and 4.

    >>> q = k = torch.randn(1, 2, 5, 4)
    >>> ones = torch.ones(2, 3, 4)
    >>> entropy_reward(q * 0, k, ones, ones, torch.tensor([[0, 2]]), scale=1.0).tolist()
    [[-1.0, -1.0]]
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        chosen_query, chosen_key = (views.to(dtype)[:, depth_index] for views in (query_views, key_views))
        channels = query.shape[-1]
        query_score = torch.einsum("hbgc,bhic->bhgi", chosen_query, query.to(dtype)) / channels
        key_score = torch.einsum("hbgc,bhjc->bhgj", chosen_key, key.to(dtype)) / channels
        entropy = normalised_slice_entropy(query_score, key_score, mask, scale=scale)
        if mask is None:
            return -entropy.mean(dim=(1, 3))
        token = mask[:, None, None, :]
        per_head = entropy.masked_fill(~token, 0.0).sum(dim=-1) / token.sum(dim=-1)
        return -per_head.mean(dim=1)
