"""The query transform of (7), formed and applied in one launch, and its backward in another.

    forward    W[b,h] = scale/C^2 sum_d w[b,d] f[h,d]^T g[h,d] + constant[h]      q' = q W
    backward   dq = dq' W^T,   P[b,h] = q^T dq',
               dw[b,d] = scale/C^2 sum_h f[h,d] P[b,h] g[h,d]^T
               df[h,d] = scale/C^2 sum_b w[b,d] g[h,d] P[b,h]^T,   dg[h,d] = scale/C^2 sum_b w[b,d] f[h,d] P[b,h]

One program holds W of one text and head in registers and passes over a stretch of its queries. W is formed in float32
and rounded once, to the type of q. Everything in backward but dq is linear in P, so each program writes its share and
the shares are summed in a fixed order: the result is the same every time. `constant` gets no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

__all__ = ["transform_query"]

ROWS = 1024
"""Queries a program passes over; longer texts are split."""

PROGRAMS = 1024
"""About how many programs keep a GPU busy; beyond it, a backward program serves several texts."""


@triton.jit
def _load_views(
    views, head, depths, DEPTH: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr
):  # (depths, BLOCK_C) in float32, zero outside
    channel = tl.arange(0, BLOCK_C)
    place = (head * DEPTH + depths[:, None]) * CHANNELS + channel[None, :]
    inside = (depths[:, None] < DEPTH) & (channel[None, :] < CHANNELS)
    return tl.load(views + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _form(
    f,
    g,
    weight,
    constant,
    text,
    head,
    factor,
    DEPTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_CONSTANT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # W of one text and head, (BLOCK_C, BLOCK_C) in float32
    channel = tl.arange(0, BLOCK_C)
    transform = tl.zeros((BLOCK_C, BLOCK_C), dtype=tl.float32)
    if HAS_CONSTANT:
        inside = (channel[:, None] < CHANNELS) & (channel[None, :] < CHANNELS)
        place = (head * CHANNELS + channel[:, None]) * CHANNELS + channel[None, :]
        transform += tl.load(constant + place, mask=inside, other=0.0).to(tl.float32)
    for start in tl.static_range(0, DEPTH, BLOCK_D):
        depths = start + tl.arange(0, BLOCK_D)
        w = tl.load(weight + text * DEPTH + depths, mask=depths < DEPTH, other=0.0) * factor
        left = _load_views(f, head, depths, DEPTH, CHANNELS, BLOCK_C) * w[:, None]
        right = _load_views(g, head, depths, DEPTH, CHANNELS, BLOCK_C)
        transform += tl.dot(tl.trans(left), right, input_precision=PRECISION)
    return transform


@triton.jit
def _forward(
    query,
    f,
    g,
    weight,
    constant,
    output,
    stride_b,
    stride_h,
    stride_q,
    out_b,
    out_h,
    out_q,
    queries,
    factor,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_CONSTANT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    text, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    transform = _form(
        f, g, weight, constant, text, head, factor, DEPTH, CHANNELS, BLOCK_C, BLOCK_D, HAS_CONSTANT, PRECISION
    ).to(query.dtype.element_ty)
    channel = tl.arange(0, BLOCK_C)
    query += text.to(tl.int64) * stride_b + head * stride_h
    output += text.to(tl.int64) * out_b + head * out_h
    first = tl.program_id(1) * ROWS
    for start in range(first, tl.minimum(first + ROWS, queries), BLOCK_Q):
        row = start + tl.arange(0, BLOCK_Q)
        inside = (row[:, None] < queries) & (channel[None, :] < CHANNELS)
        q = tl.load(query + row[:, None] * stride_q + channel[None, :], mask=inside, other=0.0)
        transformed = tl.dot(q, transform, input_precision=PRECISION)
        tl.store(output + row[:, None] * out_q + channel[None, :], transformed.to(q.dtype), mask=inside)


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
    factor,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    TEXTS: tl.constexpr,
    HAS_CONSTANT: tl.constexpr,
    WITH_VIEWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    bundle, head, part = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS, tl.program_id(1)
    channel, depths = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D)
    f_views = _load_views(f, head, depths, DEPTH, CHANNELS, BLOCK_C)
    g_views = _load_views(g, head, depths, DEPTH, CHANNELS, BLOCK_C)
    f_share = tl.zeros((BLOCK_D, BLOCK_C), dtype=tl.float32)
    g_share = tl.zeros((BLOCK_D, BLOCK_C), dtype=tl.float32)
    first = part * ROWS
    last = tl.minimum(first + ROWS, queries)
    for member in range(TEXTS):
        text = bundle * TEXTS + member
        if text < texts:
            transform = _form(
                f, g, weight, constant, text, head, factor, DEPTH, CHANNELS, BLOCK_C, BLOCK_D, HAS_CONSTANT, PRECISION
            ).to(query.dtype.element_ty)
            from_query = query + text.to(tl.int64) * stride_b + head * stride_h
            from_gradient = gradient + text.to(tl.int64) * grad_b + head * grad_h
            to_query = query_gradient + text.to(tl.int64) * out_b + head * out_h
            product = tl.zeros((BLOCK_C, BLOCK_C), dtype=tl.float32)
            for start in range(first, last, BLOCK_Q):
                row = start + tl.arange(0, BLOCK_Q)
                inside = (row[:, None] < queries) & (channel[None, :] < CHANNELS)
                q = tl.load(from_query + row[:, None] * stride_q + channel[None, :], mask=inside, other=0.0)
                dq = tl.load(from_gradient + row[:, None] * grad_q + channel[None, :], mask=inside, other=0.0)
                through = tl.dot(dq, tl.trans(transform), input_precision=PRECISION)
                tl.store(to_query + row[:, None] * out_q + channel[None, :], through.to(q.dtype), mask=inside)
                product += tl.dot(tl.trans(q), dq, input_precision=PRECISION)
            f_product = tl.dot(f_views, product, input_precision=PRECISION)
            place = ((text * tl.num_programs(1) + part) * HEADS + head) * DEPTH + depths
            tl.store(weight_share + place, factor * tl.sum(f_product * g_views, axis=1), mask=depths < DEPTH)
            if WITH_VIEWS:
                w = tl.load(weight + text * DEPTH + depths, mask=depths < DEPTH, other=0.0) * factor
                f_share += w[:, None] * tl.dot(g_views, tl.trans(product), input_precision=PRECISION)
                g_share += w[:, None] * f_product
    if WITH_VIEWS:
        inside = (depths[:, None] < DEPTH) & (channel[None, :] < CHANNELS)
        base = views_share + (bundle * tl.num_programs(1) + part).to(tl.int64) * 2 * HEADS * DEPTH * CHANNELS
        place = (head * DEPTH + depths[:, None]) * CHANNELS + channel[None, :]
        tl.store(base + place, f_share, mask=inside)
        tl.store(base + HEADS * DEPTH * CHANNELS + place, g_share, mask=inside)


def _blocks(channels: int, depth: int, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "BLOCK_Q": 64,
        "BLOCK_C": max(16, triton.next_power_of_2(channels)),
        "PRECISION": "ieee" if dtype == torch.float32 else "tf32x3",
        "CHANNELS": channels,
        "DEPTH": depth,
        "ROWS": ROWS,
    }


class _TransformQuery(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, f: Tensor, g: Tensor, weight: Tensor, constant: Tensor | None, scale: float
    ) -> Tensor:
        batch, heads, queries, channels = query.shape
        depth = f.shape[1]
        ctx.factor = scale / channels**2
        ctx.save_for_backward(query, f, g, weight, constant)
        output = torch.empty_like(query)
        blocks = _blocks(channels, depth, query.dtype)
        _forward[(batch * heads, triton.cdiv(queries, ROWS))](
            query,
            f,
            g,
            weight,
            constant,
            output,
            *query.stride()[:3],
            *output.stride()[:3],
            queries,
            ctx.factor,
            HEADS=heads,
            BLOCK_D=max(16, min(64, triton.next_power_of_2(depth))),
            HAS_CONSTANT=constant is not None,
            **blocks,
        )
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, f, g, weight, constant = ctx.saved_tensors
        gradient = _rows_together(grads[0])
        batch, heads, queries, channels = query.shape
        depth, parts = f.shape[1], triton.cdiv(queries, ROWS)
        texts = max(1, batch * heads * parts // PROGRAMS)
        bundles = triton.cdiv(batch, texts)
        with_views = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        query_gradient = torch.empty_like(query)
        weight_share = weight.new_empty(batch, parts * heads, depth)
        views_share = weight.new_empty(bundles * parts if with_views else 1, 2, *f.shape)
        _backward[(bundles * heads, parts)](
            query,
            gradient,
            f,
            g,
            weight,
            constant,
            query_gradient,
            weight_share,
            views_share,
            *query.stride()[:3],
            *gradient.stride()[:3],
            *query_gradient.stride()[:3],
            batch,
            queries,
            ctx.factor,
            HEADS=heads,
            BLOCK_D=max(16, triton.next_power_of_2(depth)),
            TEXTS=texts,
            HAS_CONSTANT=constant is not None,
            WITH_VIEWS=with_views,
            **_blocks(channels, depth, query.dtype),
        )
        f_gradient, g_gradient = views_share.sum(dim=0).to(f.dtype) if with_views else (None, None)
        return query_gradient, f_gradient, g_gradient, weight_share.sum(dim=1), None, None


def _rows_together(tensor: Tensor) -> Tensor:
    """The tensor with the channels of a row side by side, as the kernels read them."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


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
    return _TransformQuery.apply(_rows_together(query), *views, constant, scale)
