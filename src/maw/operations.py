"""The operations that a training step repeats in every MAW layer, in PyTorch and in Triton, and the choice.

    token_mean         the selector's state                        maw.selector       | maw.kernels.token_mean
    transform_query    q W, (7)                                    maw.functional     | maw.kernels.transform
    slice_entropy      mean normalised entropy of chosen slices    below              | maw.kernels.entropy
    gumbel_and_group   depth weights and sampled depths            below              | maw.kernels.selection
    group_loss         the auxiliary loss of sampled depths        maw.grpo           | maw.kernels.group_loss

The first three read every token; the last two are a few numbers a text, and in PyTorch many small launches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maw import grpo
from maw.config import Kernels
from maw.entropy import normalised_slice_entropy
from maw.functional import transform_query
from maw.grpo import GroupLoss
from maw.interpolation import NODES, interpolated_mean_entropy
from maw.kernels import use_triton
from maw.selector import depth_weights, token_mean
from maw.shapes import repeat_heads

__all__ = ["TORCH", "Operations", "choose_operations", "gumbel_and_group", "slice_entropy"]


class Operations(NamedTuple):
    """One implementation of each operation; the signatures are those of the PyTorch functions."""

    token_mean: Callable[..., Tensor]
    transform_query: Callable[..., Tensor]
    slice_entropy: Callable[..., Tensor]
    gumbel_and_group: Callable[..., tuple[Tensor, Tensor, Tensor]]
    group_loss: Callable[..., GroupLoss]


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


def gumbel_and_group(
    logits: Float[Tensor, "B D"], *, tau: float, group_size: int
) -> tuple[Float[Tensor, "B D"], Int[Tensor, "B G"], Float[Tensor, "B G"]]:
    """Gumbel-Softmax depth weights, and G depths drawn from the same policy with their log-probabilities.

    Args:
        logits: policy logits, (B, D).
        tau: temperature of the weights.
        group_size: G.

    Returns:
        w, (B, D), with the gradient of the logits; depth_index, (B, G), and log pi(d), (B, G), without.

    >>> w, depth_index, _ = gumbel_and_group(torch.tensor([[0.0, 100.0]]), tau=1.0, group_size=2)
    >>> w.sum().item(), depth_index.tolist()
    (1.0, [[1, 1]])
    """
    depth_index = grpo.sample_group(logits, group_size)
    weights = depth_weights(logits, selection="gumbel", tau=tau, training=True)
    return weights, depth_index, grpo.log_probability(logits.detach(), depth_index)


TORCH = Operations(token_mean, transform_query, slice_entropy, gumbel_and_group, grpo.group_loss)


def choose_operations(kernels: Kernels, query: Tensor) -> Operations:
    """The Triton operations where `maw.kernels.use_triton` says so, else PyTorch's.

    Raises:
        MAWError: "triton" was asked for and cannot run.

    >>> choose_operations("auto", torch.zeros(2, 3, 5, 4)) is TORCH
    True
    """
    if not use_triton(kernels, query):
        return TORCH
    from maw.kernels import entropy, group_loss, selection, token_mean, transform

    return Operations(
        token_mean.token_mean,
        transform.transform_query,
        entropy.mean_slice_entropy,
        selection.gumbel_and_group,
        group_loss.group_loss,
    )
