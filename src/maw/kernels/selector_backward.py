"""The gradients of `maw.kernels.selector`, in two launches and one matrix product.

Two gradients meet in the policy's weights: that of the training loss, through w, which goes on into the state, and that
of the auxiliary loss, which must not. So `through` (the first) and `total` (both) are carried side by side. The sums
over texts that the parameters' gradients are, run in a fixed order: the result is the same every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from maw.kernels.launching import Launch
from maw.kernels.selector import PRECISION, TILE, Weights, gelu, units_at_a_time

__all__ = ["selector_gradients"]


@triton.jit
def _gelu_slope(x):
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * tl.exp(-0.5 * x * x) * 0.3989422804014327


@triton.jit
def _choose_backward(
    hidden,
    policy_weight,
    value_weight,
    depth_weight,
    weight_share,
    logits_gradient,
    value_gradient,
    factor,
    per_token,
    active,
    total_logits,
    total_value,
    total_hidden,
    through_hidden,
    shares,
    tau,
    STATE: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_U: tl.constexpr,
):  # one text
    text = tl.program_id(0)
    hidden += text * WIDTH
    active += text * WIDTH
    total_hidden += text * WIDTH
    through_hidden += text * 2 * STATE
    depth = tl.arange(0, BLOCK_D)
    inside = depth < DEPTH
    upstream = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for share in range(shares):
        upstream += tl.load(weight_share + (text * shares + share) * DEPTH + depth, mask=inside, other=0.0)
    w = tl.load(depth_weight + text * DEPTH + depth, mask=inside, other=0.0)
    through = w * (upstream - tl.sum(w * upstream, axis=0)) / tau
    auxiliary, of_one_token = tl.load(factor), tl.load(per_token + text)
    total = through + auxiliary * tl.load(logits_gradient + text * DEPTH + depth, mask=inside, other=0.0)
    tl.store(total_logits + text * DEPTH + depth, total, mask=inside)
    of_value = auxiliary * tl.load(value_gradient + text)
    tl.store(total_value + text, of_value)
    for start in range(0, 2 * STATE, BLOCK_U):
        unit = start + tl.arange(0, BLOCK_U)
        there = unit < 2 * STATE
        h = tl.load(hidden + unit, mask=there, other=0.0)
        tl.store(active + unit, gelu(h), mask=there)
        both = inside[:, None] & there[None, :]
        w2 = tl.load(policy_weight + depth[:, None] * 2 * STATE + unit[None, :], mask=both, other=0.0).to(tl.float32)
        slope = _gelu_slope(h)
        tl.store(total_hidden + unit, slope * tl.sum(w2 * total[:, None], axis=0), mask=there)
        of_unit = slope * tl.sum(w2 * through[:, None], axis=0)
        tl.store(through_hidden + unit, of_unit * of_one_token, mask=there)
    for start in range(0, STATE, BLOCK_U):
        unit = start + tl.arange(0, BLOCK_U)
        there = unit < STATE
        h = tl.load(hidden + 2 * STATE + unit, mask=there, other=0.0)
        tl.store(active + 2 * STATE + unit, gelu(h), mask=there)
        w2 = tl.load(value_weight + unit, mask=there, other=0.0).to(tl.float32)
        tl.store(total_hidden + 2 * STATE + unit, _gelu_slope(h) * w2 * of_value, mask=there)


@triton.jit
def _sum_of_products(
    left,
    right,
    product,
    row_sum,
    first_row,
    first_column,
    rows,
    columns,
    texts,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PRECISION: tl.constexpr,
):  # product[r, c] = sum_b left[b, r] right[b, c] of one tile; where it is the first of its rows, sum_b left[b, r] too
    row, column = first_row + tl.arange(0, BLOCK_R), first_column + tl.arange(0, BLOCK_S)
    total = tl.zeros((BLOCK_R, BLOCK_S), dtype=tl.float32)
    summed = tl.zeros((BLOCK_R,), dtype=tl.float32)
    for start in range(0, texts, BLOCK_B):
        text = start + tl.arange(0, BLOCK_B)
        x = tl.load(
            left + text[None, :] * LEFT + row[:, None], mask=(text[None, :] < texts) & (row[:, None] < rows), other=0.0
        )
        y = tl.load(
            right + text[:, None] * RIGHT + column[None, :],
            mask=(text[:, None] < texts) & (column[None, :] < columns),
            other=0.0,
        )
        total += tl.dot(x, y, input_precision=PRECISION)
        summed += tl.sum(x, axis=1)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    tl.store(product + row[:, None] * columns + column[None, :], total.to(product.dtype.element_ty), mask=inside)
    if first_column == 0:
        tl.store(row_sum + row, summed.to(row_sum.dtype.element_ty), mask=row < rows)


@triton.jit
def _weight_gradients(
    state,
    active,
    total_logits,
    total_value,
    total_hidden,
    hidden_weight,
    hidden_bias,
    policy_weight,
    policy_bias,
    value_weight,
    value_bias,
    texts,
    STATE: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PRECISION: tl.constexpr,
):  # three products of the same form, tile after tile
    tile = tl.program_id(0)
    across = (STATE + BLOCK_S - 1) // BLOCK_S
    tiles = (WIDTH + BLOCK_R - 1) // BLOCK_R * across
    if tile < tiles:
        _sum_of_products(
            total_hidden, state, hidden_weight, hidden_bias, tile // across * BLOCK_R, tile % across * BLOCK_S,
            WIDTH, STATE, texts, WIDTH, STATE, BLOCK_B, BLOCK_R, BLOCK_S, PRECISION,
        )  # fmt: skip
    else:
        tile -= tiles
        across = (2 * STATE + BLOCK_S - 1) // BLOCK_S
        tiles = (DEPTH + BLOCK_R - 1) // BLOCK_R * across
        if tile < tiles:
            _sum_of_products(
                total_logits, active, policy_weight, policy_bias, tile // across * BLOCK_R, tile % across * BLOCK_S,
                DEPTH, 2 * STATE, texts, DEPTH, WIDTH, BLOCK_B, BLOCK_R, BLOCK_S, PRECISION,
            )  # fmt: skip
        else:
            tile -= tiles
            _sum_of_products(
                total_value, active + 2 * STATE, value_weight, value_bias, 0, tile * BLOCK_S,
                1, STATE, texts, 1, WIDTH, BLOCK_B, BLOCK_R, BLOCK_S, PRECISION,
            )  # fmt: skip


_choose_backward_launch, _weight_gradients_launch = Launch(_choose_backward), Launch(_weight_gradients)


def selector_gradients(
    state: Float[Tensor, "B S"],
    hidden: Float[Tensor, "B 3*S"],
    weights: Weights,
    depth_weight: Float[Tensor, "B D"],
    weight_share: Float[Tensor, "B P D"],
    logits_gradient: Float[Tensor, "B D"],
    value_gradient: Float[Tensor, " B"],
    factor: Float[Tensor, ""],
    per_token: Float[Tensor, " B"],
    *,
    tau: float,
) -> tuple[Float[Tensor, "B S"], Weights]:
    """The gradient that reaches each real token of a text through the state, and those of the parameters.

    Args:
        state: (B, S).
        hidden: h.
        weights: the selector's parameters.
        depth_weight: w.
        weight_share: shares of the training loss's gradient of w, to be summed over P.
        logits_gradient: the auxiliary loss's gradient of the logits.
        value_gradient: and of the value.
        factor: what both are multiplied with; on the device, so that nothing waits for it.
        per_token: 1 / number of real tokens, each one's share in the state.
        tau: temperature of w.
    """
    texts, size = state.shape
    depth = depth_weight.shape[1]
    total_logits, total_value = torch.empty_like(depth_weight), depth_weight.new_empty(texts)
    (active, total_hidden), through_hidden = hidden.new_empty(2, texts, 3 * size), hidden.new_empty(texts, 2 * size)
    _choose_backward_launch(
        (texts, 1, 1),
        *(hidden, weights.policy, weights.value, depth_weight, weight_share, logits_gradient, value_gradient),
        *(
            factor,
            per_token,
            active,
            total_logits,
            total_value,
            total_hidden,
            through_hidden,
            weight_share.shape[1],
            tau,
        ),
        STATE=size,
        WIDTH=3 * size,
        DEPTH=depth,
        BLOCK_D=triton.next_power_of_2(depth),
        BLOCK_U=units_at_a_time(depth),
    )
    hidden_weight = torch.empty(3 * size, size, dtype=weights.value_hidden.dtype, device=state.device)
    hidden_bias = hidden_weight.new_empty(3 * size)
    output = [torch.empty_like(weights[place]) for place in (2, 3, 6, 7)]
    across = triton.cdiv(size, TILE)
    tiles = triton.cdiv(3 * size, TILE) * across
    tiles += triton.cdiv(depth, TILE) * triton.cdiv(2 * size, TILE) + across
    _weight_gradients_launch(
        (tiles, 1, 1),
        *(state, active, total_logits, total_value, total_hidden, hidden_weight, hidden_bias, *output, texts),
        STATE=size,
        WIDTH=3 * size,
        DEPTH=depth,
        BLOCK_B=TILE,
        BLOCK_R=TILE,
        BLOCK_S=TILE,
        PRECISION=PRECISION,
    )
    token_gradient = through_hidden @ weights.policy_hidden.float()
    policy, value = slice(0, 2 * size), slice(2 * size, None)
    gradients = Weights(
        *(hidden_weight[policy], hidden_bias[policy], *output[:2]),
        *(hidden_weight[value], hidden_bias[value], *output[2:]),
    )
    return token_gradient, gradients
