"""The selector's state in one launch: the mean of q over real tokens, read once and summed in float32."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["token_mean"]


@triton.jit
def _sum_rows(
    query,
    mask,
    state,
    stride_b,
    stride_h,
    stride_q,
    queries,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HAS_MASK: tl.constexpr,
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
        if HAS_MASK:
            real = real & (tl.load(mask + text.to(tl.int64) * queries + row, mask=real, other=0) != 0)
        inside = real[:, None] & (channel[None, :] < CHANNELS)
        total += tl.load(query + row[:, None] * stride_q + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        count += real.to(tl.int32)
    mean = tl.sum(total, axis=0) / tl.sum(count, axis=0).to(tl.float32)
    tl.store(state + program * CHANNELS + channel, mean, mask=channel < CHANNELS)


class _TokenMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, queries, channels = query.shape
        ctx.save_for_backward(mask)
        ctx.shape, ctx.dtype = query.shape, query.dtype
        state = query.new_empty(batch, heads * channels, dtype=torch.float32)
        query = query if query.stride(-1) == 1 else query.contiguous()
        _sum_rows[(batch * heads,)](
            query,
            state if mask is None else mask.contiguous(),
            state,
            *query.stride()[:3],
            queries,
            HEADS=heads,
            CHANNELS=channels,
            BLOCK_Q=64,
            BLOCK_C=max(16, triton.next_power_of_2(channels)),
            HAS_MASK=mask is not None,
        )
        return state

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        _, heads, queries, channels = ctx.shape
        gradient = grads[0].unflatten(1, (heads, 1, channels))
        if mask is None:
            return (gradient / queries).to(ctx.dtype).expand(ctx.shape), None
        gradient = (gradient / mask.sum(dim=1)[:, None, None, None]).to(ctx.dtype)
        return gradient * mask[:, None, :, None], None


def token_mean(query: Float[Tensor, "B H Q C"], mask: Bool[Tensor, "B Q"] | None = None) -> Float[Tensor, "B H*C"]:
    """The same as `maw.selector.token_mean`, in float32.

    Args:
        query: q, (B, H, Q, C).
        mask: (B, Q), True where there is a token; every text has one.
    """
    return _TokenMean.apply(query, mask)
