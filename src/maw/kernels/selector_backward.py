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
from maw.kernels.ledger import Ledger
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
    ledger,
    weight_share,
    factor,
    per_token,
    written,
    stride,
    ledger_stride,
    shares,
    tau,
    STATE: tl.constexpr,
    WRITTEN: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_U: tl.constexpr,
):  # one text
    text = tl.program_id(0)
    hidden += text.to(tl.int64) * stride
    ledger += text.to(tl.int64) * ledger_stride
    active = written + text.to(tl.int64) * WRITTEN
    total_hidden = active + 3 * STATE
    through_hidden = total_hidden + 3 * STATE
    total_logits = through_hidden + 2 * STATE
    depth = tl.arange(0, BLOCK_D)
    inside = depth < DEPTH
    upstream = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for share in range(shares):
        upstream += tl.load(weight_share + (text * shares + share) * DEPTH + depth, mask=inside, other=0.0)
    w = tl.load(ledger + depth, mask=inside, other=0.0)
    through = w * (upstream - tl.sum(w * upstream, axis=0)) / tau
    auxiliary, of_one_token = tl.load(factor), tl.load(per_token + text * stride)
    total = through + auxiliary * tl.load(ledger + 2 * DEPTH + depth, mask=inside, other=0.0)
    tl.store(total_logits + depth, total, mask=inside)
    of_value = auxiliary * tl.load(ledger + 3 * DEPTH + 3 * GROUP + 1)
    tl.store(total_logits + DEPTH, of_value)
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
    left_stride,
    right_stride,
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
            left + text[None, :] * left_stride + row[:, None],
            mask=(text[None, :] < texts) & (row[:, None] < rows),
            other=0.0,
        )
        y = tl.load(
            right + text[:, None] * right_stride + column[None, :],
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
    written,
    hidden_weight,
    hidden_bias,
    policy_weight,
    policy_bias,
    value_weight,
    value_bias,
    texts,
    stride,
    STATE: tl.constexpr,
    WRITTEN: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PRECISION: tl.constexpr,
):  # three products of the same form, tile after tile
    tile = tl.program_id(0)
    active, total_hidden, total_logits = written, written + 3 * STATE, written + 8 * STATE
    across = (STATE + BLOCK_S - 1) // BLOCK_S
    tiles = (3 * STATE + BLOCK_R - 1) // BLOCK_R * across
    if tile < tiles:
        _sum_of_products(
            total_hidden, state, hidden_weight, hidden_bias, tile // across * BLOCK_R, tile % across * BLOCK_S,
            3 * STATE, STATE, texts, WRITTEN, stride, BLOCK_B, BLOCK_R, BLOCK_S, PRECISION,
        )  # fmt: skip
    else:
        tile -= tiles
        across = (2 * STATE + BLOCK_S - 1) // BLOCK_S
        tiles = (DEPTH + BLOCK_R - 1) // BLOCK_R * across
        if tile < tiles:
            _sum_of_products(
                total_logits, active, policy_weight, policy_bias, tile // across * BLOCK_R, tile % across * BLOCK_S,
                DEPTH, 2 * STATE, texts, WRITTEN, WRITTEN, BLOCK_B, BLOCK_R, BLOCK_S, PRECISION,
            )  # fmt: skip
        else:
            tile -= tiles
            _sum_of_products(
                total_logits + DEPTH, active + 2 * STATE, value_weight, value_bias, 0, tile * BLOCK_S,
                1, STATE, texts, WRITTEN, WRITTEN, BLOCK_B, BLOCK_R, BLOCK_S, PRECISION,
            )  # fmt: skip


_choose_backward_launch, _weight_gradients_launch = Launch(_choose_backward), Launch(_weight_gradients)


def selector_gradients(
    state: Float[Tensor, "B W"],
    per_token: Float[Tensor, "B W"],
    hidden: Float[Tensor, "B W"],
    weights: Weights,
    ledger: Ledger,
    weight_share: Float[Tensor, "B P D"],
    factor: Float[Tensor, ""],
    *,
    tau: float,
) -> tuple[Float[Tensor, "B S"], Weights]:
    """The gradient that reaches each real token of a text through the state, and those of the parameters.

    Args:
        state: the state; this, `per_token` and `hidden` begin at different columns of one tensor.
        per_token: 1 / number of real tokens, each one's share in the state.
        hidden: h.
        weights: the selector's parameters.
        ledger: w, and the auxiliary loss's gradients of logits and value.
        weight_share: shares of the training loss's gradient of w, to be summed over P.
        factor: what the auxiliary gradients are multiplied with; on the device, so that nothing waits for it.
        tau: temperature of w.
    """
    texts, size, depth = len(state), weights.value_hidden.shape[1], ledger.depth
    # gelu(h), gradients of h (both and through), of the logits, of the value
    width = triton.cdiv((3 + 3 + 2) * size + depth + 1, 16) * 16
    written = ledger.rows.new_empty(texts, width)
    _choose_backward_launch(
        (texts, 1, 1),
        (hidden, weights.policy, weights.value, ledger.rows, weight_share, factor, per_token, written),
        (hidden.stride(0), ledger.rows.stride(0), weight_share.shape[1], tau),
        num_warps=8,
        STATE=size,
        WRITTEN=width,
        DEPTH=depth,
        GROUP=ledger.group,
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
        (state, written, hidden_weight, hidden_bias, *output),
        (texts, state.stride(0)),
        STATE=size,
        WRITTEN=width,
        DEPTH=depth,
        BLOCK_B=TILE,
        BLOCK_R=TILE,
        BLOCK_S=TILE,
        PRECISION=PRECISION,
    )
    token_gradient = written[:, 6 * size : 8 * size] @ weights.policy_hidden.float()
    policy, value = slice(0, 2 * size), slice(2 * size, None)
    gradients = Weights(
        *(hidden_weight[policy], hidden_bias[policy], *output[:2]),
        *(hidden_weight[value], hidden_bias[value], *output[2:]),
    )
    return token_gradient, gradients
