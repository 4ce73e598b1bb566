"""Mean normalised entropy of chosen slices, in O(Q + K) a slice: `maw.interpolation` in two launches.

The first computes the scalars u and t of the chosen depths, one matrix product a block of tokens. The second has one
program a text, head and slice: range of t, range of z, η and dη/dz on the nodes, Hermite interpolation at the queries
and their mean. Exponentials: N K a slice, where streaming over all pairs takes Q K.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maw.interpolation import NODES
from maw.kernels.launching import PLANS, Plan, rows_together
from maw.kernels.mixture import precision

__all__ = ["slice_entropy", "write_entropy"]


@triton.jit
def _project(
    query,
    key,
    query_views,
    key_views,
    index,
    scalars,
    query_b,
    query_h,
    query_s,
    key_b,
    key_h,
    key_s,
    index_stride,
    index_column,
    length,
    query_factor,
    key_factor,
    HEADS: tl.constexpr,
    REPEAT: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):  # scalars[side,b,h,m,s] = factor * tokens[b,h,s] . views[h, index[b,m]]; side 0 are queries, side 1 keys
    text, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    blocks: tl.constexpr = (GROUP + BLOCK_G - 1) // BLOCK_G
    of_query = tl.program_id(2) < blocks
    if of_query:
        tokens = query + text.to(tl.int64) * query_b + head * query_h
        views = query_views
    else:
        tokens = key + text.to(tl.int64) * key_b + (head // REPEAT) * key_h
        views = key_views
    stride = tl.where(of_query, query_s, key_s)
    factor = tl.where(of_query, query_factor, key_factor)
    channel = tl.arange(0, BLOCK_C)
    member = tl.program_id(2) % blocks * BLOCK_G + tl.arange(0, BLOCK_G)
    depth = tl.load(index + text * index_stride + index_column + member, mask=member < GROUP, other=0).to(tl.int32)
    inside = (member[:, None] < GROUP) & (channel[None, :] < CHANNELS)
    view = tl.load(views + (head * DEPTH + depth[:, None]) * CHANNELS + channel[None, :], mask=inside, other=0.0)
    view = view.to(tl.float32)
    token = tl.program_id(1) * BLOCK_S + tl.arange(0, BLOCK_S)
    here = (token[:, None] < length) & (channel[None, :] < CHANNELS)
    x = tl.load(tokens + token[:, None] * stride + channel[None, :], mask=here, other=0.0).to(tl.float32)
    product = tl.dot(view, tl.trans(x), input_precision=PRECISION) * factor
    side = (tl.program_id(2) // blocks) * tl.num_programs(0)
    place = ((side + tl.program_id(0)).to(tl.int64) * GROUP + member[:, None]) * length + token[None, :]
    tl.store(scalars + place, product, mask=(member[:, None] < GROUP) & (token[None, :] < length))


@triton.jit
def _asinh(x):
    size = tl.abs(x)
    grown = tl.log(size + tl.sqrt(size * size + 1.0))
    return tl.where(x < 0, -grown, grown)


@triton.jit
def _real_tokens(mask, start, length, BLOCK: tl.constexpr):
    token = start + tl.arange(0, BLOCK)
    real = token < length
    if mask is not None:
        real = real & (tl.load(mask + token, mask=real, other=0) != 0)
    return token, real


@triton.jit
def _ranges(slope, key_scalar, mask, length, BLOCK: tl.constexpr):
    """Range of t and of s over real tokens, and how many there are."""
    infinity = float("inf")
    largest, smallest, highest, lowest, count = -infinity, infinity, -infinity, infinity, 0
    for start in range(0, length, BLOCK):
        token, real = _real_tokens(mask, start, length, BLOCK)
        t = tl.load(key_scalar + token, mask=real, other=0.0)
        s = tl.load(slope + token, mask=real, other=0.0)
        largest = tl.maximum(largest, tl.max(tl.where(real, t, -infinity), axis=0))
        smallest = tl.minimum(smallest, tl.min(tl.where(real, t, infinity), axis=0))
        highest = tl.maximum(highest, tl.max(tl.where(real, s, -infinity), axis=0))
        lowest = tl.minimum(lowest, tl.min(tl.where(real, s, infinity), axis=0))
        count += tl.sum(real.to(tl.int32), axis=0)
    return largest, smallest, highest, lowest, count


@triton.jit
def _on_nodes(
    node,
    half,
    largest,
    smallest,
    key_scalar,
    mask,
    length,
    NODES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """η and dη/dz on the nodes; sums are kept apart by lane and joined once."""
    grown = tl.exp(tl.abs(node))
    sinh = tl.where(node < 0, -1.0, 1.0) * (grown - 1 / grown) / 2
    tangent = sinh / ((grown + 1 / grown) / 2)
    s = sinh / half
    top = tl.maximum(s * largest, s * smallest)
    total = tl.zeros((NODES, BLOCK), dtype=tl.float32)
    first = tl.zeros((NODES, BLOCK), dtype=tl.float32)
    second = tl.zeros((NODES, BLOCK), dtype=tl.float32)
    for start in range(0, length, BLOCK):
        token, real = _real_tokens(mask, start, length, BLOCK)
        t = tl.where(real, tl.load(key_scalar + token, mask=real, other=0.0), largest)
        below = s[:, None] * t[None, :] - top[:, None]
        weight = tl.where(real[None, :], tl.exp(below), 0.0)
        total += weight
        first += weight * below
        second += weight * below * below
    sums = tl.sum(total, axis=1)
    mean = tl.sum(first, axis=1) / sums
    variance = tl.sum(second, axis=1) / sums - mean * mean
    derivative = tl.where(tangent == 0, 0.0, -variance / tl.where(tangent == 0, 1.0, tangent))
    return tl.log(sums) - mean, derivative


@triton.jit
def _mean_entropy(
    scalars,
    mask,
    length,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    NODES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    slope = scalars + program * length
    key_scalar = slope + programs.to(tl.int64) * length
    entropy = scalars + 2 * programs.to(tl.int64) * length
    if mask is not None:
        mask += program // (HEADS * GROUP) * length
    largest, smallest, highest, lowest, count = _ranges(slope, key_scalar, mask, length, BLOCK_Q)
    half = (largest - smallest) / 2
    half = tl.where(half > 0, half, 1.0)
    first, last = _asinh(lowest * half), _asinh(highest * half)
    step = (last - first) / (NODES - 1)
    node = first + step * tl.arange(0, NODES)
    value, derivative = _on_nodes(node, half, largest, smallest, key_scalar, mask, length, NODES, BLOCK_K)
    derivative *= step

    found = tl.zeros((BLOCK_Q,), dtype=tl.float32)
    per_step = tl.where(step > 0, 1.0 / tl.where(step > 0, step, 1.0), 0.0)
    for start in range(0, length, BLOCK_Q):
        token, real = _real_tokens(mask, start, length, BLOCK_Q)
        z = _asinh(tl.load(slope + token, mask=real, other=0.0) * half)
        place = tl.where(real, (z - first) * per_step, 0.0)
        left = tl.minimum(tl.maximum(tl.floor(place), 0.0), NODES - 2.0)
        x = tl.minimum(tl.maximum(place - left, 0.0), 1.0)
        rest = 1 - x
        at = left.to(tl.int32)
        row = tl.gather(value, at, 0) * rest * rest * (1 + 2 * x)
        row += tl.gather(value, at + 1, 0) * x * x * (3 - 2 * x)
        row += x * rest * (rest * tl.gather(derivative, at, 0) - x * tl.gather(derivative, at + 1, 0))
        found += tl.where(real, row, 0.0)
    # one real key has entropy 0, and log 1 = 0 would divide it
    longest = tl.log(tl.maximum(count, 2).to(tl.float32))
    tl.store(entropy + program, tl.where(count > 1, tl.sum(found, axis=0) / (count * longest), 0.0))


@lru_cache(PLANS)
def _plans(
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    key_heads: int,
    key_stride: tuple[int, ...],
    depth: int,
    group: int,
    index_stride: int,
    column: int,
    scale: float,
    precision: str,
) -> tuple[Plan, Plan]:
    batch, heads, length, channels = shape
    block_g = max(16, min(64, triton.next_power_of_2(group)))
    project = Plan(
        _project,
        (batch * heads, triton.cdiv(length, 64), 2 * triton.cdiv(group, block_g)),
        (*stride[:3], *key_stride[:3], index_stride, column, length, scale / channels, 1 / channels),
        HEADS=heads,
        REPEAT=heads // key_heads,
        DEPTH=depth,
        GROUP=group,
        CHANNELS=channels,
        BLOCK_S=64,
        BLOCK_G=block_g,
        BLOCK_C=max(16, triton.next_power_of_2(channels)),
        PRECISION=precision,
    )
    block = min(256, max(16, triton.next_power_of_2(length)))
    warps = 1 if length <= 512 else 4  # one warp needs no barriers, and short texts give one no work to share
    mean_entropy = Plan(
        _mean_entropy,
        (batch * heads * group, 1, 1),
        (length,),
        num_warps=warps,
        HEADS=heads,
        GROUP=group,
        NODES=NODES,
        BLOCK_K=min(32 * warps, block),
        BLOCK_Q=block,
    )
    return project, mean_entropy


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

    Args:
        query: q, (B, H, S, C).
        key: k, (B, H, S, C), or with fewer heads that H is a multiple of.
        query_views: f, (H, D, C).
        key_views: g, (H, D, C).
        depth_index: the chosen depths, (B, G).
        scale: factor on the scores.
        mask: (B, S), True where there is a token.

    Returns:
        the means, (B, H, G) in float32; no gradient flows.

    Source: method.md section 4; `maw.interpolation.interpolated_mean_entropy`.
    """
    batch, heads, length, _ = query.shape
    group = depth_index.shape[1]
    given = (rows_together(query), rows_together(key), query_views.contiguous(), key_views.contiguous())
    mask = None if mask is None else mask.contiguous()
    scalars = write_entropy(*given, depth_index.contiguous(), group, scale=scale, mask=mask)
    return scalars[2 * batch * heads * group * length :].view(batch, heads, group)


def write_entropy(
    query: Float[Tensor, "B H S C"],
    key: Float[Tensor, "B Hkv S C"],
    query_views: Float[Tensor, "H D C"],
    key_views: Float[Tensor, "H D C"],
    index: Float[Tensor, "B W"] | Int[Tensor, "B W"],
    group: int,
    *,
    column: int = 0,
    scale: float,
    mask: Bool[Tensor, "B S"] | None,
) -> Float[Tensor, " N"]:
    """As `slice_entropy`, of the G depths that stand in `index` from `column` on; all as the kernels read them.

    Returns:
        u and t of all tokens in all B * H * G slices, and behind these numbers the entropies of the slices.
    """
    batch, heads, length, _ = query.shape
    scalars = query.new_empty(batch * heads * group * (2 * length + 1), dtype=torch.float32)
    project, mean_entropy = _plans(
        *(query.shape, query.stride(), key.shape[1], key.stride(), query_views.shape[1], group),
        *(index.stride(0), column, scale, precision(query.dtype)),
    )
    project(query, key, query_views, key_views, index, scalars)
    mean_entropy(scalars, mask)
    return scalars
