"""The selector's state in one launch: the mean of q over real tokens, read once and summed in float32."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from maw.kernels.launching import Launch

__all__ = ["mean_and_share", "token_mean"]


@triton.jit
def _sum_rows(
    query,
    mask,
    state,
    share,
    stride_b,
    stride_h,
    stride_q,
    queries,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    program = tl.program_id(0)
    text, head = program // HEADS, program % HEADS
    channel = tl.arange(0, BLOCK_C)
    query += text.to(tl.int64) * stride_b + head * stride_h
    total = tl.zeros((BLOCK_Q, BLOCK_C), dtype=tl.float32)
    count = tl.zeros((BLOCK_Q,), dtype=tl.int32)
    for start in range(0, queries, BLOCK_Q):
        row = start + tl.arange(0, BLOCK_Q)
        real = row < queries
        if mask is not None:
            real = real & (tl.load(mask + text.to(tl.int64) * queries + row, mask=real, other=0) != 0)
        inside = real[:, None] & (channel[None, :] < CHANNELS)
        total += tl.load(query + row[:, None] * stride_q + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        count += real.to(tl.int32)
    own = 1.0 / tl.sum(count, axis=0).to(tl.float32)
    tl.store(state + program * CHANNELS + channel, tl.sum(total, axis=0) * own, mask=channel < CHANNELS)
    if head == 0:
        tl.store(share + text, own)


_sum_rows_launch = Launch(_sum_rows)


def mean_and_share(
    query: Float[Tensor, "B H Q C"], mask: Bool[Tensor, "B Q"] | None
) -> tuple[Float[Tensor, "B H*C"], Float[Tensor, " B"]]:
    """The state, and the share of one real token in it: 1 / their number. No gradient; `mask` is contiguous."""
    batch, heads, queries, channels = query.shape
    state = query.new_empty(batch, heads * channels, dtype=torch.float32)
    share = state.new_empty(batch)
    _sum_rows_launch(
        (batch * heads, 1, 1),
        *(query, mask, state, share, *query.stride()[:3], queries),
        HEADS=heads,
        CHANNELS=channels,
        BLOCK_Q=64,
        BLOCK_C=max(16, triton.next_power_of_2(channels)),
    )
    return state, share


class _TokenMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, mask: Tensor | None) -> Tensor:
        state, share = mean_and_share(query, mask)
        ctx.shape, ctx.dtype = query.shape, query.dtype
        ctx.save_for_backward(mask, share)
        return state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        mask, share = ctx.saved_tensors
        _, heads, _, channels = ctx.shape
        of_token = (gradient * share[:, None]).to(ctx.dtype).unflatten(1, (heads, 1, channels))
        return (of_token.expand(ctx.shape) if mask is None else of_token * mask[:, None, :, None]), None


def token_mean(query: Float[Tensor, "B H Q C"], mask: Bool[Tensor, "B Q"] | None = None) -> Float[Tensor, "B H*C"]:
    """The same as `maw.selector.token_mean`, in float32.

    Args:
        query: q, (B, H, Q, C).
        mask: (B, Q), True where there is a token; every text has one.
    """
    query = query if query.stride(-1) == 1 else query.contiguous()
    return _TokenMean.apply(query, None if mask is None else mask.contiguous())
