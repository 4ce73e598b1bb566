"""Attention entropy of depth slices, streamed: memory is linear in the sequence, never Q x K.

A slice's logits are `scale * u_i * t_j` (rank 1), so with A(s) = log sum_j exp(s t_j) its row entropy is

    η_i = A(s_i) - s_i A'(s_i) = LSE_j(s_i t_j) - sum_j p_ij s_i t_j,        s_i = scale * u_i,

one softmax average per query. Both terms are taken relative to the row's largest logit, which is closed form,
max(s t_max, s t_min): each is then non-negative and nothing cancels.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from maw.shapes import check_real_keys

__all__ = ["normalised_slice_entropy", "slice_entropy"]

CHUNK_ELEMENTS = 2**22
"""How many logits are held at once while streaming over queries (16 MiB in float32)."""


def slice_entropy(
    query_score: Float[Tensor, "B H G Q"],
    key_score: Float[Tensor, "B H G K"],
    mask: Bool[Tensor, "B K"] | None = None,
    *,
    scale: float = 1.0,
) -> Float[Tensor, "B H G Q"]:
    """Row entropies in nats of the slices with logits `scale * u_i * t_j`, over real keys only.

    Streams over chunks of queries; where gradients are wanted each chunk is recomputed in backward, so that memory
    stays linear in the sequence. Compiled, memory is what the compiler makes of it.

    Args:
        query_score: u, the queries' scalars in each of G slices, (B, H, G, Q).
        key_score: t, the keys' scalars, (B, H, G, K).
        mask: (B, K), True where there is a token.
        scale: factor on the slice's logits.

    Returns:
        η, (B, H, G, Q).

    Raises:
        MAWError: a text without a real key.

    Source: method.md section 4.

    >>> η = slice_entropy(torch.zeros(1, 1, 1, 2), torch.randn(1, 1, 1, 4))
    >>> torch.allclose(η, torch.tensor(4.0).log())
    True
    """
    batch, heads, group, queries = query_score.shape
    keys = key_score.shape[-1]
    if mask is None:
        mask = torch.ones(batch, keys, dtype=torch.bool, device=key_score.device)
    check_real_keys(mask)
    mask = mask[:, None, None, :]
    infinity = float("inf")
    largest = key_score.detach().masked_fill(~mask, -infinity).amax(dim=-1, keepdim=True)
    smallest = key_score.detach().masked_fill(~mask, infinity).amin(dim=-1, keepdim=True)
    # A masked scalar takes a real key's value, so that no exponential overflows; the mask removes it from every sum.
    key_score = torch.where(mask, key_score, largest)
    slope = scale * query_score
    if torch.compiler.is_compiling():  # a loop would bind the graph to these sizes, and the compiler fuses the sums
        return _rows(slope, key_score, largest, smallest, mask)
    chunk = max(1, CHUNK_ELEMENTS // max(batch * heads * group * keys, 1))
    track = torch.is_grad_enabled() and (query_score.requires_grad or key_score.requires_grad)
    parts = []
    for start in range(0, queries, chunk):
        arguments = (slope[..., start : start + chunk], key_score, largest, smallest, mask)
        parts.append(checkpoint(_rows, *arguments, use_reentrant=False) if track else _rows(*arguments))
    return torch.cat(parts, dim=-1)


def normalised_slice_entropy(
    query_score: Float[Tensor, "B H G Q"],
    key_score: Float[Tensor, "B H G K"],
    mask: Bool[Tensor, "B K"] | None = None,
    *,
    scale: float = 1.0,
) -> Float[Tensor, "B H G Q"]:
    """`slice_entropy` over log(number of real keys): 1 is uniform attention, 0 a single key.

    With one real key the entropy is 0 and carries no gradient. Source: method.md section 1, readings.

    >>> normalised_slice_entropy(torch.zeros(1, 1, 1, 2), torch.randn(1, 1, 1, 4)).tolist()
    [[[[1.0, 1.0]]]]
    """
    entropy = slice_entropy(query_score, key_score, mask, scale=scale)
    keys = key_score.shape[-1]
    count = torch.full(entropy.shape[:1], keys, device=entropy.device) if mask is None else mask.sum(dim=-1)
    count = count[:, None, None, None]
    longest = count.clamp(min=2).to(entropy.dtype).log()
    return torch.where(count > 1, entropy / longest, torch.zeros_like(entropy))


def _rows(slope: Tensor, key_score: Tensor, largest: Tensor, smallest: Tensor, mask: Tensor) -> Tensor:
    """η for one chunk of queries; the (.., Q, K) block lives only here."""
    top = torch.maximum(slope * largest, slope * smallest)
    below = slope[..., None] * key_score[..., None, :] - top[..., None]
    exponential = below.exp() * mask[..., None, :]
    total = exponential.sum(dim=-1)
    return total.log() - (exponential * below).sum(dim=-1) / total
