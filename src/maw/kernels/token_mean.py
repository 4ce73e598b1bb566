"""The selector's state in one launch: the mean of q over real tokens, read once and summed in float32."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from maw.kernels.launching import PLANS, Plan

__all__ = ["token_mean", "write_mean_and_share"]


@triton.jit
def _sum_rows(
    query,
    mask,
    state,
    stride_b,
    stride_h,
    stride_q,
    queries,
    state_stride,
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
    state += text.to(tl.int64) * state_stride
    tl.store(state + head * CHANNELS + channel, tl.sum(total, axis=0) * own, mask=channel < CHANNELS)
    if head == 0:
        tl.store(state + HEADS * CHANNELS, own)


@lru_cache(PLANS)
def _sum_rows_plan(shape: tuple[int, ...], stride: tuple[int, ...], state_stride: int) -> Plan:
    batch, heads, queries, channels = shape
    return Plan(
        _sum_rows,
        (batch * heads, 1, 1),
        (*stride[:3], queries, state_stride),
        HEADS=heads,
        CHANNELS=channels,
        BLOCK_Q=64,
        BLOCK_C=max(16, triton.next_power_of_2(channels)),
    )


def write_mean_and_share(
    query: Float[Tensor, "B H Q C"], mask: Bool[Tensor, "B Q"] | None, into: Float[Tensor, "B W"]
) -> None:
    """Write the state, and behind it each real token's share in it, 1 / their number; `mask` is contiguous."""
    _sum_rows_plan(query.shape, query.stride(), into.stride(0))(query, mask, into)


class _TokenMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, _, channels = query.shape
        written = query.new_empty(batch, heads * channels + 1, dtype=torch.float32)
        write_mean_and_share(query, mask, written)
        state, share = written.split([heads * channels, 1], dim=1)
        ctx.shape, ctx.dtype = query.shape, query.dtype
        ctx.save_for_backward(mask, share)
        return state.contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        mask, share = ctx.saved_tensors
        _, heads, _, channels = ctx.shape
        of_token = (gradient * share).to(ctx.dtype).unflatten(1, (heads, 1, channels))
        return (of_token.expand(ctx.shape) if mask is None else of_token * mask[:, None, :, None]), None


def token_mean(query: Float[Tensor, "B H Q C"], mask: Bool[Tensor, "B Q"] | None = None) -> Float[Tensor, "B H*C"]:
    """The same as `maw.selector.token_mean`, in float32.

    Args:
        query: q, (B, H, Q, C).
        mask: (B, Q), True where there is a token; every text has one.
    """
    query = query if query.stride(-1) == 1 else query.contiguous()
    return _TokenMean.apply(query, None if mask is None else mask.contiguous())
