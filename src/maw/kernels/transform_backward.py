"""The backward of `maw.kernels.transform`, in one launch.

    dq = dq' W^T,   P[b,h] = q^T dq',
    dw[b,d] = scale/C^2 sum_h f[h,d] P[b,h] g[h,d]^T
    df[h,d] = scale/C^2 sum_b w[b,d] g[h,d] P[b,h]^T,   dg[h,d] = scale/C^2 sum_b w[b,d] f[h,d] P[b,h]

Everything but dq is linear in P, so each program writes its share, and the shares are summed in a fixed order: the
result is the same every time. `constant` gets no gradient.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from maw.kernels.launching import PLANS, Plan
from maw.kernels.mixture import ROWS, Mixture, form, load_views, precision

__all__ = ["Shares", "transform_gradients"]

PROGRAMS = 1024
"""About how many programs keep a GPU busy; beyond it, a backward program serves several texts."""


class Shares(NamedTuple):
    """Shares of gradients, yet to be summed over the axis P; `views` holds df and dg where they were asked for."""

    depth_weight: Float[Tensor, "B P D"]
    views: Float[Tensor, "P 2 H D C"] | None


@triton.jit
def _backward(
    query,
    gradient,
    f,
    g,
    weight,
    constant,
    query_gradient,
    weight_share,
    views_share,
    stride_b,
    stride_h,
    stride_q,
    grad_b,
    grad_h,
    grad_q,
    out_b,
    out_h,
    out_q,
    texts,
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
    TEXTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    bundle, head, part = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS, tl.program_id(1)
    channel, depths = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D)
    f_views = load_views(f, head, depths, DEPTH, CHANNELS, BLOCK_C)
    g_views = load_views(g, head, depths, DEPTH, CHANNELS, BLOCK_C)
    f_share = tl.zeros((BLOCK_D, BLOCK_C), dtype=tl.float32)
    g_share = tl.zeros((BLOCK_D, BLOCK_C), dtype=tl.float32)
    first = part * ROWS
    last = tl.minimum(first + ROWS, queries)
    for member in range(TEXTS):
        text = bundle * TEXTS + member
        if text < texts:
            from_query = query + text.to(tl.int64) * stride_b + head * stride_h
            from_gradient = gradient + text.to(tl.int64) * grad_b + head * grad_h
            if query_gradient is not None:
                transform = form(
                    f, g, weight, constant, text, head, weight_stride, factor, constant_scale,
                    DEPTH, CHANNELS, BLOCK_C, BLOCK_D, PRECISION,
                ).to(query.dtype.element_ty)  # fmt: skip
                to_query = query_gradient + text.to(tl.int64) * out_b + head * out_h
            product = tl.zeros((BLOCK_C, BLOCK_C), dtype=tl.float32)
            for start in range(first, last, BLOCK_Q):
                row = start + tl.arange(0, BLOCK_Q)
                inside = (row[:, None] < queries) & (channel[None, :] < CHANNELS)
                q = tl.load(from_query + row[:, None] * stride_q + channel[None, :], mask=inside, other=0.0)
                dq = tl.load(from_gradient + row[:, None] * grad_q + channel[None, :], mask=inside, other=0.0)
                if query_gradient is not None:
                    through = tl.dot(dq, tl.trans(transform), input_precision=PRECISION)
                    tl.store(to_query + row[:, None] * out_q + channel[None, :], through.to(q.dtype), mask=inside)
                product += tl.dot(tl.trans(q), dq, input_precision=PRECISION)
            f_product = tl.dot(f_views, product, input_precision=PRECISION)
            place = ((text * tl.num_programs(1) + part) * HEADS + head) * DEPTH + depths
            tl.store(weight_share + place, factor * tl.sum(f_product * g_views, axis=1), mask=depths < DEPTH)
            if views_share is not None:
                w = tl.load(weight + text * weight_stride + depths, mask=depths < DEPTH, other=0.0) * factor
                f_share += w[:, None] * tl.dot(g_views, tl.trans(product), input_precision=PRECISION)
                g_share += w[:, None] * f_product
    if views_share is not None:
        inside = (depths[:, None] < DEPTH) & (channel[None, :] < CHANNELS)
        base = views_share + (bundle * tl.num_programs(1) + part).to(tl.int64) * 2 * HEADS * DEPTH * CHANNELS
        place = (head * DEPTH + depths[:, None]) * CHANNELS + channel[None, :]
        tl.store(base + place, f_share, mask=inside)
        tl.store(base + HEADS * DEPTH * CHANNELS + place, g_share, mask=inside)


@lru_cache(PLANS)
def _backward_plan(
    shape: tuple[int, ...],
    strides: tuple[tuple[int, ...], ...],
    depth: int,
    mixture: tuple[int, float, float],
    precision: str,
    texts: int,
) -> Plan:
    batch, heads, queries, channels = shape
    return Plan(
        _backward,
        (triton.cdiv(batch, texts) * heads, triton.cdiv(queries, ROWS), 1),
        (*(step for stride in strides for step in stride[:3]), batch, queries, *mixture),
        HEADS=heads,
        DEPTH=depth,
        CHANNELS=channels,
        BLOCK_Q=64,
        BLOCK_C=max(16, triton.next_power_of_2(channels)),
        BLOCK_D=max(16, triton.next_power_of_2(depth)),
        ROWS=ROWS,
        TEXTS=texts,
        PRECISION=precision,
    )


def transform_gradients(
    query: Float[Tensor, "B H Q C"],
    gradient: Float[Tensor, "B H Q C"],
    mixture: Mixture,
    *,
    with_query: bool,
    with_views: bool,
) -> tuple[Tensor | None, Shares]:
    """dq where asked for, and the shares of dw and, where asked for, of df and dg."""
    batch, heads, queries, channels = query.shape
    f, g, weight, constant, *_ = mixture
    depth, parts = f.shape[1], triton.cdiv(queries, ROWS)
    texts = max(1, batch * heads * parts // PROGRAMS)
    query_gradient = torch.empty_like(query) if with_query else None
    weight_share = query.new_empty(batch, parts * heads, depth, dtype=torch.float32)
    views_share = None
    if with_views:
        views_share = weight_share.new_empty(triton.cdiv(batch, texts) * parts, 2, heads, depth, channels)
    strides = query.stride(), gradient.stride(), (0, 0, 0) if query_gradient is None else query_gradient.stride()
    plan = _backward_plan(query.shape, strides, depth, mixture.numbers, precision(query.dtype), texts)
    plan(query, gradient, f, g, weight, constant, query_gradient, weight_share, views_share)
    return query_gradient, Shares(weight_share, views_share)
