"""The operations of a MAW layer that read every token, in PyTorch and in Triton, and the choice between them.

    token_mean         the selector's state                        maw.selector       | maw.kernels.token_mean
    transform_query    q W, (7)                                    maw.functional     | maw.kernels.transform
    slice_entropy      mean normalised entropy of chosen slices    below              | maw.kernels.entropy

All else is a few numbers a text. With the default settings `maw.kernels.layer` does that on the GPU too, in one go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maw.config import Kernels
from maw.entropy import normalised_slice_entropy
from maw.functional import transform_query
from maw.interpolation import NODES, interpolated_mean_entropy
from maw.kernels import use_triton
from maw.selector import token_mean
from maw.shapes import repeat_heads

__all__ = ["TORCH", "Operations", "choose_operations", "slice_entropy"]


class Operations(NamedTuple):
    """One implementation of each operation; the signatures are those of the PyTorch functions."""

    token_mean: Callable[..., Tensor]
    transform_query: Callable[..., Tensor]
    slice_entropy: Callable[..., Tensor]


def slice_entropy(
    query: Float[Tensor, "B H S C"],
    key: Float[Tensor, "B Hkv S C"],
    query_views: Float[Tensor, "H D C"],
    key_views: Float[Tensor, "H D C"],
    depth_index: Int[Tensor, "B G"],
    *,
    scale: float,
    mask: Bool[Tensor, "B S"] | None = None,
) -> Float[Tensor, "B H G"]:
    """Mean over real queries of the normalised row entropies of the slices with logits `scale u_i t_j`.

    Exact, one exponential a pair of tokens, in texts of up to 2 N tokens; by interpolation on N nodes in longer ones,
    where that is cheaper and no gradient flows. The Triton form interpolates at every length.

    Args:
        query: q, (B, H, S, C).
        key: k, (B, Hkv, S, C).
        query_views: f, (H, D, C).
        key_views: g, (H, D, C).
        depth_index: the chosen depths, (B, G); `torch.arange(D).expand(B, D)` gives all arms.
        scale: factor on the scores, as in (4).
        mask: (B, S), True where there is a token; queries and keys are the same tokens.

    Returns:
        the means, (B, H, G), in float32 at least.

    Source: method.md section 4.

    >>> q = k = torch.randn(1, 2, 5, 4)
    >>> ones = torch.ones(2, 3, 4)
    >>> slice_entropy(q * 0, k, ones, ones, torch.tensor([[2]]), scale=1.0).tolist()
    [[[1.0], [1.0]]]
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        chosen_query, chosen_key = (views.to(dtype)[:, depth_index] for views in (query_views, key_views))
        channels = query.shape[-1]
        key = repeat_heads(key, query.shape[1])
        query_score = torch.einsum("hbgc,bhic->bhgi", chosen_query, query.to(dtype)) / channels
        key_score = torch.einsum("hbgc,bhjc->bhgj", chosen_key, key.to(dtype)) / channels
        if query.shape[2] > 2 * NODES:
            return interpolated_mean_entropy(query_score, key_score, mask, scale=scale)
        entropy = normalised_slice_entropy(query_score, key_score, mask, scale=scale)
        if mask is None:
            return entropy.mean(dim=-1)
        token = mask[:, None, None, :]
        return entropy.masked_fill(~token, 0.0).sum(dim=-1) / token.sum(dim=-1)


TORCH = Operations(token_mean, transform_query, slice_entropy)


def choose_operations(kernels: Kernels, query: Tensor, depth: int = 1) -> Operations:
    """The Triton operations where `maw.kernels.use_triton` says so, else PyTorch's.

    Raises:
        MAWError: "triton" was asked for and cannot run.

    >>> choose_operations("auto", torch.zeros(2, 3, 5, 4)) is TORCH
    True
    """
    if not use_triton(kernels, query, depth):
        return TORCH
    from maw.kernels import entropy, transform
    from maw.kernels import token_mean as state

    return Operations(state.token_mean, transform.transform_query, entropy.slice_entropy)
