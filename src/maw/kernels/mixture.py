"""W of (7) inside a kernel: what it is formed from, and how.

    W[b,h] = scale/C^2 sum_d w[b,d] f[h,d]^T g[h,d] + constant[h]

One program holds W of one text and head in registers and passes over a stretch of its tokens. W is formed in float32
and rounded once, to the type of q.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

__all__ = ["ROWS", "Mixture", "form", "load_views", "precision"]

ROWS = 1024
"""Queries a program passes over; longer texts are split."""


class Mixture(NamedTuple):
    """What W of (7) is formed from; contiguous, and computed with in float32 whatever the type."""

    query_views: Float[Tensor, "H D C"]
    key_views: Float[Tensor, "H D C"]
    depth_weight: Float[Tensor, "B W"]
    """Depth weights in the first D columns."""
    constant: Float[Tensor, "H C C"] | None
    scale: float
    constant_scale: float

    @property
    def numbers(self) -> tuple[int, float, float]:
        """The stride of w, scale / C^2 and the factor on the constant."""
        return self.depth_weight.stride(0), self.scale / self.query_views.shape[-1] ** 2, self.constant_scale


@triton.jit
def load_views(views, head, depths, DEPTH: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr):
    """(depths, BLOCK_C) in float32, zero outside."""
    channel = tl.arange(0, BLOCK_C)
    place = (head * DEPTH + depths[:, None]) * CHANNELS + channel[None, :]
    inside = (depths[:, None] < DEPTH) & (channel[None, :] < CHANNELS)
    return tl.load(views + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def form(
    f,
    g,
    weight,
    constant,
    text,
    head,
    weight_stride,
    factor,
    constant_scale,
    DEPTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """W of one text and head, (BLOCK_C, BLOCK_C) in float32."""
    channel = tl.arange(0, BLOCK_C)
    transform = tl.zeros((BLOCK_C, BLOCK_C), dtype=tl.float32)
    if constant is not None:
        inside = (channel[:, None] < CHANNELS) & (channel[None, :] < CHANNELS)
        place = (head * CHANNELS + channel[:, None]) * CHANNELS + channel[None, :]
        transform += tl.load(constant + place, mask=inside, other=0.0).to(tl.float32) * constant_scale
    for start in tl.static_range(0, DEPTH, BLOCK_D):
        depths = start + tl.arange(0, BLOCK_D)
        w = tl.load(weight + text * weight_stride + depths, mask=depths < DEPTH, other=0.0) * factor
        left = load_views(f, head, depths, DEPTH, CHANNELS, BLOCK_C) * w[:, None]
        right = load_views(g, head, depths, DEPTH, CHANNELS, BLOCK_C)
        transform += tl.dot(tl.trans(left), right, input_precision=PRECISION)
    return transform


def precision(dtype: torch.dtype) -> str:
    """How products of numbers in float32 are made beside tokens of this type."""
    return "ieee" if dtype == torch.float32 else "tf32x3"
