"""The query transform of (7), formed and applied in one launch, and its backward.

    forward    W[b,h] = scale/C^2 sum_d w[b,d] f[h,d]^T g[h,d] + constant[h]      q' = q W
    backward   dq = dq' W^T,   P[b,h] = q^T dq',
               dw[b,d] = scale/C^2 sum_h f[h,d] P[b,h] g[h,d]^T
               df[h,d] = scale/C^2 sum_b w[b,d] g[h,d] P[b,h]^T,   dg[h,d] = scale/C^2 sum_b w[b,d] f[h,d] P[b,h]

One program holds W of one text and head in registers and passes over a stretch of its queries. W is formed in float32
and rounded once, to the type of q. Everything in backward but dq is linear in P, so each program writes its share and
the shares are summed in a fixed order: the result is the same every time. `constant` gets no gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from maw.kernels.launching import Launch

__all__ = ["Mixture", "Shares", "apply", "backward", "rows_together", "transform_query"]

ROWS = 1024
"""Queries a program passes over; longer texts are split."""

PROGRAMS = 1024
"""About how many programs keep a GPU busy; beyond it, a backward program serves several texts."""


class Mixture(NamedTuple):
    """What W of (7) is formed from; contiguous, and computed with in float32 whatever the type."""

    query_views: Float[Tensor, "H D C"]
    key_views: Float[Tensor, "H D C"]
    depth_weight: Float[Tensor, "B D"]
    constant: Float[Tensor, "H C C"] | None
    scale: float
    constant_scale: float

    @property
    def factor(self) -> float:
        """scale / C^2."""
        return self.scale / self.query_views.shape[-1] ** 2


class Shares(NamedTuple):
    """Shares of gradients, yet to be summed over the axis P."""

    depth_weight: Float[Tensor, "B P D"]
    views: Float[Tensor, "P 2 H D C"] | None

    def views_gradient(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """df and dg; None and None where they were not asked for."""
        if self.views is None:
            return None, None
        summed = self.views.sum(dim=0).to(dtype)
        return summed[0], summed[1]


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
    constant_scale,
    DEPTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # W of one text and head, (BLOCK_C, BLOCK_C) in float32
    channel = tl.arange(0, BLOCK_C)
    transform = tl.zeros((BLOCK_C, BLOCK_C), dtype=tl.float32)
    if constant is not None:
        inside = (channel[:, None] < CHANNELS) & (channel[None, :] < CHANNELS)
        place = (head * CHANNELS + channel[:, None]) * CHANNELS + channel[None, :]
        transform += tl.load(constant + place, mask=inside, other=0.0).to(tl.float32) * constant_scale
    for start in tl.static_range(0, DEPTH, BLOCK_D):
        depths = start + tl.arange(0, BLOCK_D)
        w = tl.load(weight + text * DEPTH + depths, mask=depths < DEPTH, other=0.0) * factor
        left = _load_views(f, head, depths, DEPTH, CHANNELS, BLOCK_C) * w[:, None]
        right = _load_views(g, head, depths, DEPTH, CHANNELS, BLOCK_C)
        transform += tl.dot(tl.trans(left), right, input_precision=PRECISION)
    return transform


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
    transform = _form(
        f, g, weight, constant, text, head, factor, constant_scale, DEPTH, CHANNELS, BLOCK_C, BLOCK_D, PRECISION
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
    f_views = _load_views(f, head, depths, DEPTH, CHANNELS, BLOCK_C)
    g_views = _load_views(g, head, depths, DEPTH, CHANNELS, BLOCK_C)
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
                transform = _form(
                    f,
                    g,
                    weight,
                    constant,
                    text,
                    head,
                    factor,
                    constant_scale,
                    DEPTH,
                    CHANNELS,
                    BLOCK_C,
                    BLOCK_D,
                    PRECISION,
                ).to(query.dtype.element_ty)
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
                w = tl.load(weight + text * DEPTH + depths, mask=depths < DEPTH, other=0.0) * factor
                f_share += w[:, None] * tl.dot(g_views, tl.trans(product), input_precision=PRECISION)
                g_share += w[:, None] * f_product
    if views_share is not None:
        inside = (depths[:, None] < DEPTH) & (channel[None, :] < CHANNELS)
        base = views_share + (bundle * tl.num_programs(1) + part).to(tl.int64) * 2 * HEADS * DEPTH * CHANNELS
        place = (head * DEPTH + depths[:, None]) * CHANNELS + channel[None, :]
        tl.store(base + place, f_share, mask=inside)
        tl.store(base + HEADS * DEPTH * CHANNELS + place, g_share, mask=inside)


_apply_launch, _backward_launch = Launch(_apply), Launch(_backward)


def _precision(dtype: torch.dtype) -> str:
    return "ieee" if dtype == torch.float32 else "tf32x3"


def apply(
    rows: Float[Tensor, "B H Q C"],
    mixture: Mixture,
    *,
    transposed: bool = False,
    shift: Float[Tensor, "B H*C"] | None = None,
    mask: Tensor | None = None,
) -> Float[Tensor, "B H Q C"]:
    """rows W, or rows W^T if `transposed`, plus `shift` in the rows that `mask` (B, Q) calls real; no gradient."""
    batch, heads, queries, channels = rows.shape
    depth = mixture.query_views.shape[1]
    output = torch.empty_like(rows)
    _apply_launch(
        (batch * heads, triton.cdiv(queries, ROWS), 1),
        *(rows, *mixture[:4], shift, mask, output),
        *(*rows.stride()[:3], *output.stride()[:3]),
        *(queries, mixture.factor, mixture.constant_scale),
        HEADS=heads,
        DEPTH=depth,
        CHANNELS=channels,
        BLOCK_Q=64,
        BLOCK_C=max(16, triton.next_power_of_2(channels)),
        BLOCK_D=max(16, min(64, triton.next_power_of_2(depth))),
        ROWS=ROWS,
        TRANSPOSED=transposed,
        PRECISION=_precision(rows.dtype),
    )
    return output


def backward(
    query: Float[Tensor, "B H Q C"],
    gradient: Float[Tensor, "B H Q C"],
    mixture: Mixture,
    *,
    with_query: bool,
    with_views: bool,
) -> tuple[Tensor | None, Shares]:
    """dq where asked for, and the shares of dw and, where asked for, of df and dg."""
    batch, heads, queries, channels = query.shape
    depth, parts = mixture.query_views.shape[1], triton.cdiv(queries, ROWS)
    texts = max(1, batch * heads * parts // PROGRAMS)
    bundles = triton.cdiv(batch, texts)
    query_gradient = torch.empty_like(query) if with_query else None
    weight_share = query.new_empty(batch, parts * heads, depth, dtype=torch.float32)
    views_share = None
    if with_views:
        views_share = weight_share.new_empty(bundles * parts, 2, heads, depth, channels)
    _backward_launch(
        (bundles * heads, parts, 1),
        *(query, gradient, *mixture[:4], query_gradient, weight_share, views_share),
        *(*query.stride()[:3], *gradient.stride()[:3]),
        *((0, 0, 0) if query_gradient is None else query_gradient.stride()[:3]),
        *(batch, queries, mixture.factor, mixture.constant_scale),
        HEADS=heads,
        DEPTH=depth,
        CHANNELS=channels,
        BLOCK_Q=64,
        BLOCK_C=max(16, triton.next_power_of_2(channels)),
        BLOCK_D=max(16, triton.next_power_of_2(depth)),
        ROWS=ROWS,
        TEXTS=texts,
        PRECISION=_precision(query.dtype),
    )
    return query_gradient, Shares(weight_share, views_share)


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
        query_gradient, shares = backward(
            query,
            rows_together(gradient),
            Mixture(*mixed, ctx.scale, 1.0),
            with_query=needs_query,
            with_views=needs_f or needs_g,
        )
        f_gradient, g_gradient = shares.views_gradient(mixed[0].dtype)
        return query_gradient, f_gradient, g_gradient, shares.depth_weight.sum(dim=1), None, None


def rows_together(tensor: Tensor) -> Tensor:
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
    return _TransformQuery.apply(rows_together(query), *views, constant, scale)
