"""The query transform of (7), q' = q W, formed and applied in one launch."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from maw.kernels.launching import PLANS, Plan, rows_together
from maw.kernels.mixture import ROWS, Mixture, form, precision
from maw.kernels.transform_backward import transform_gradients

__all__ = ["apply", "transform_query"]


@triton.jit
def _apply(
    rows,
    f,
    g,
    weight,
    constant,
    shift,
    mask,
    output,
    in_b,
    in_h,
    in_q,
    out_b,
    out_h,
    out_q,
    queries,
    weight_stride,
    factor,
    constant_scale,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # output = rows W, or rows W^T; plus a row of shift[text, head] at real tokens
    text, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    transform = form(
        f,
        g,
        weight,
        constant,
        text,
        head,
        weight_stride,
        factor,
        constant_scale,
        DEPTH,
        CHANNELS,
        BLOCK_C,
        BLOCK_D,
        PRECISION,
    ).to(rows.dtype.element_ty)
    if TRANSPOSED:
        transform = tl.trans(transform)
    channel = tl.arange(0, BLOCK_C)
    rows += text.to(tl.int64) * in_b + head * in_h
    output += text.to(tl.int64) * out_b + head * out_h
    if shift is not None:
        added = tl.load(shift + tl.program_id(0) * CHANNELS + channel, mask=channel < CHANNELS, other=0.0)
    first = tl.program_id(1) * ROWS
    for start in range(first, tl.minimum(first + ROWS, queries), BLOCK_Q):
        row = start + tl.arange(0, BLOCK_Q)
        inside = (row[:, None] < queries) & (channel[None, :] < CHANNELS)
        x = tl.load(rows + row[:, None] * in_q + channel[None, :], mask=inside, other=0.0)
        transformed = tl.dot(x, transform, input_precision=PRECISION)
        if shift is not None:
            if mask is None:
                transformed += added[None, :]
            else:
                real = tl.load(mask + text.to(tl.int64) * queries + row, mask=row < queries, other=0) != 0
                transformed += tl.where(real[:, None], added[None, :], 0.0)
        tl.store(output + row[:, None] * out_q + channel[None, :], transformed.to(x.dtype), mask=inside)


@lru_cache(PLANS)
def _apply_plan(
    shape: tuple[int, ...],
    strides: tuple[tuple[int, ...], ...],
    depth: int,
    mixture: tuple[int, float, float],
    precision: str,
    transposed: bool,
) -> Plan:
    batch, heads, queries, channels = shape
    return Plan(
        _apply,
        (batch * heads, triton.cdiv(queries, ROWS), 1),
        (*(step for stride in strides for step in stride[:3]), queries, *mixture),
        HEADS=heads,
        DEPTH=depth,
        CHANNELS=channels,
        BLOCK_Q=64,
        BLOCK_C=max(16, triton.next_power_of_2(channels)),
        BLOCK_D=max(16, min(64, triton.next_power_of_2(depth))),
        ROWS=ROWS,
        TRANSPOSED=transposed,
        PRECISION=precision,
    )


def apply(
    rows: Float[Tensor, "B H Q C"],
    mixture: Mixture,
    *,
    transposed: bool = False,
    shift: Float[Tensor, "B H*C"] | None = None,
    mask: Tensor | None = None,
) -> Float[Tensor, "B H Q C"]:
    """rows W, or rows W^T if `transposed`, plus `shift` in the rows that `mask` (B, Q) calls real; no gradient."""
    output = torch.empty_like(rows)
    f, g, weight, constant, *_ = mixture
    strides = rows.stride(), output.stride()
    plan = _apply_plan(rows.shape, strides, f.shape[1], mixture.numbers, precision(rows.dtype), transposed)
    plan(rows, f, g, weight, constant, shift, mask, output)
    return output


class _TransformQuery(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, f: Tensor, g: Tensor, weight: Tensor, constant: Tensor | None, scale: float
    ) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(query, f, g, weight, constant)
        return apply(query, Mixture(f, g, weight, constant, scale, 1.0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, *mixed = ctx.saved_tensors
        needs_query, needs_f, needs_g, *_ = ctx.needs_input_grad
        query_gradient, shares = transform_gradients(
            query,
            rows_together(gradient),
            Mixture(*mixed, ctx.scale, 1.0),
            with_query=needs_query,
            with_views=needs_f or needs_g,
        )
        f_gradient, g_gradient = (None, None) if shares.views is None else shares.views.sum(dim=0).to(mixed[0].dtype)
        return query_gradient, f_gradient, g_gradient, shares.depth_weight.sum(dim=1), None, None


def transform_query(
    query: Float[Tensor, "B H Q C"],
    query_views: Float[Tensor, "H D C"],
    key_views: Float[Tensor, "H D C"],
    depth_weight: Float[Tensor, "B D"],
    *,
    constant: Float[Tensor, "H C C"] | None = None,
    scale: float = 1.0,
) -> Float[Tensor, "B H Q C"]:
    """q W, the same as `query @ maw.functional.query_transform(...)`, for float32, float16 and bfloat16 queries.

    Args:
        query: q, (B, H, Q, C).
        query_views: f, (H, D, C); computed with in float32 whatever its type.
        key_views: g, (H, D, C).
        depth_weight: w, (B, D).
        constant: (H, C, C); no gradient flows to it.
        scale: factor on the mixed scores.

    Source: method.md (7).
    """
    views = (query_views.contiguous(), key_views.contiguous(), depth_weight.float().contiguous())
    return _TransformQuery.apply(rows_together(query), *views, constant, scale)
