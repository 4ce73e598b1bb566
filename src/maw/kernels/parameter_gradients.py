"""Everything that is left of a layer's backward when the gradients of hidden units are known, in one launch.

Five sums, tile after tile of one grid, each in a fixed order: the result is the same every time.

    gradient of the hidden layers    sum_b  total(h)[b, u] state[b, s]         and of their biases
                of the policy        sum_b  total(logits)[b, d] gelu(h)[b, u]  and of its bias
                of the value         sum_b  total(value)[b] gelu(h)[b, u]      and of its bias
                of one token's q     sum_u  through(h)[b, u] W1[u, s]
                of the views         sum_p  share p
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from maw.kernels.launching import PLANS, Plan
from maw.kernels.selector import PRECISION, TILE, Weights

__all__ = ["parameter_gradients"]

ELEMENTS = 1024
"""Numbers of the views' gradients that one program sums."""


@triton.jit
def _sum_of_products(
    left,
    right,
    product,
    row_sum,
    tile,
    rows,
    columns,
    terms,
    left_row,
    left_term,
    right_term,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # product[r, c] = sum_t left[r, t] right[t, c] of one tile; in the first column of tiles also sum_t left[r, t]
    across = (columns + BLOCK - 1) // BLOCK
    row, column = tile // across * BLOCK + tl.arange(0, BLOCK), tile % across * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    summed = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, terms, BLOCK):
        term = start + tl.arange(0, BLOCK)
        x = tl.load(
            left + row[:, None] * left_row + term[None, :] * left_term,
            mask=(row[:, None] < rows) & (term[None, :] < terms),
            other=0.0,
        )
        y = tl.load(
            right + term[:, None] * right_term + column[None, :],
            mask=(term[:, None] < terms) & (column[None, :] < columns),
            other=0.0,
        ).to(tl.float32)
        total += tl.dot(x, y, input_precision=PRECISION)
        summed += tl.sum(x, axis=1)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    tl.store(product + row[:, None] * columns + column[None, :], total.to(product.dtype.element_ty), mask=inside)
    if row_sum is not None:  # noqa: SIM102 - the first of these questions is answered at compile time
        if tile % across == 0:
            tl.store(row_sum + row, summed.to(row_sum.dtype.element_ty), mask=row < rows)


@triton.jit
def _sum_of_shares(shares, f_gradient, g_gradient, tile, count, SIZE: tl.constexpr, ELEMENTS: tl.constexpr):
    place = tile * ELEMENTS + tl.arange(0, ELEMENTS)
    total = tl.zeros((ELEMENTS,), dtype=tl.float32)
    for _ in range(count):
        total += tl.load(shares + place, mask=place < 2 * SIZE, other=0.0)
        shares += 2 * SIZE
    total = total.to(f_gradient.dtype.element_ty)
    tl.store(f_gradient + place, total, mask=place < SIZE)
    tl.store(g_gradient + place - SIZE, total, mask=(place >= SIZE) & (place < 2 * SIZE))


@triton.jit
def _parameter_gradients(
    state,
    written,
    hidden_weight,
    views_share,
    policy_hidden,
    policy_hidden_bias,
    policy,
    policy_bias,
    value_hidden,
    value_hidden_bias,
    value,
    value_bias,
    token,
    f_gradient,
    g_gradient,
    texts,
    stride,
    shares,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    VIEWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ELEMENTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile = tl.program_id(0)
    across: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    wide: tl.constexpr = (2 * SIZE + BLOCK - 1) // BLOCK
    # the longest sum first, so that nothing waits for it alone
    of_token = (texts + BLOCK - 1) // BLOCK * across
    of_policy_hidden = of_token + wide * across
    of_value_hidden = of_policy_hidden + across * across
    of_policy = of_value_hidden + (DEPTH + BLOCK - 1) // BLOCK * wide
    of_value = of_policy + across
    if tile < of_token:
        _sum_of_products(
            written + 6 * SIZE, hidden_weight, token, None, tile,
            texts, SIZE, 2 * SIZE, COLUMNS, 1, SIZE, BLOCK, PRECISION,
        )  # fmt: skip
    elif tile < of_policy_hidden:
        _sum_of_products(
            written + 3 * SIZE, state, policy_hidden, policy_hidden_bias, tile - of_token,
            2 * SIZE, SIZE, texts, 1, COLUMNS, stride, BLOCK, PRECISION,
        )  # fmt: skip
    elif tile < of_value_hidden:
        _sum_of_products(
            written + 5 * SIZE, state, value_hidden, value_hidden_bias, tile - of_policy_hidden,
            SIZE, SIZE, texts, 1, COLUMNS, stride, BLOCK, PRECISION,
        )  # fmt: skip
    elif tile < of_policy:
        _sum_of_products(
            written + 8 * SIZE, written, policy, policy_bias, tile - of_value_hidden,
            DEPTH, 2 * SIZE, texts, 1, COLUMNS, COLUMNS, BLOCK, PRECISION,
        )  # fmt: skip
    elif tile < of_value:
        _sum_of_products(
            written + 8 * SIZE + DEPTH, written + 2 * SIZE, value, value_bias, tile - of_policy,
            1, SIZE, texts, 1, COLUMNS, COLUMNS, BLOCK, PRECISION,
        )  # fmt: skip
    elif views_share is not None:
        _sum_of_shares(views_share, f_gradient, g_gradient, tile - of_value, shares, VIEWS, ELEMENTS)


@lru_cache(PLANS)
def _plan(texts: int, stride: int, columns: int, size: int, depth: int, views: int, shares: int) -> Plan:
    across, wide = triton.cdiv(size, TILE), triton.cdiv(2 * size, TILE)
    tiles = (triton.cdiv(texts, TILE) + wide + across + 1) * across + triton.cdiv(depth, TILE) * wide
    return Plan(
        _parameter_gradients,
        (tiles + (triton.cdiv(2 * views, ELEMENTS) if shares else 0), 1, 1),
        (texts, stride, shares),
        SIZE=size,
        COLUMNS=columns,
        DEPTH=depth,
        VIEWS=views,
        BLOCK=TILE,
        ELEMENTS=ELEMENTS,
        PRECISION=PRECISION,
    )


def parameter_gradients(
    state: Float[Tensor, "B W"],
    written: Float[Tensor, "B V"],
    weights: Weights,
    query_views: Float[Tensor, "H D C"],
    views_share: Float[Tensor, "P 2 H D C"] | None,
) -> tuple[Float[Tensor, "B S"], tuple[Tensor | None, Tensor | None], Weights]:
    """The gradient that reaches each real token of a text through the state, those of the views, and of the selector.

    Args:
        state: the state, in the first columns.
        written: from `maw.kernels.selector_backward.write_gradients`.
        weights: the selector's parameters.
        query_views: f; its gradient and that of g are like it.
        views_share: from `maw.kernels.transform_backward`; None where the views are not trained.
    """
    size = weights.value_hidden.shape[1]
    depth, views = query_views.shape[1], query_views.numel()
    gradients = Weights(*[torch.empty_like(weight) for weight in weights])
    token = written.new_empty(len(written), size)
    f_gradient = g_gradient = None
    if views_share is not None:
        f_gradient, g_gradient = torch.empty_like(query_views), torch.empty_like(query_views)
    shares = 0 if views_share is None else len(views_share)
    plan = _plan(len(state), state.stride(0), written.stride(0), size, depth, views, shares)
    plan(state, written, weights.policy_hidden, views_share, *gradients, token, f_gradient, g_gradient)
    return token, (f_gradient, g_gradient), gradients
