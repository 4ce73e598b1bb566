"""The gradients of hidden units and logits of `maw.kernels.selector`, one program a text.

Two gradients meet in the policy's weights: that of the training loss, through w, which goes on into the state, and that
of the auxiliary loss, which must not. So `through` (the first) and `total` (both) are carried side by side.

    columns written   0                gelu(h)                            3 S
                      3 S              total gradient of h                3 S
                      6 S              through gradient of the policy's   2 S    times a token's share in the state
                      8 S              total gradient of the logits       D
                      8 S + D          gradient of the value              1
"""

from __future__ import annotations

from functools import lru_cache

import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from maw.kernels.launching import PLANS, Plan
from maw.kernels.ledger import Ledger
from maw.kernels.selector import Weights, gelu, units_at_a_time

__all__ = ["gradient_columns", "write_gradients"]


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


@lru_cache(PLANS)
def _plan(texts: int, strides: tuple[int, int], shares: int, tau: float, size: int, depth: int, group: int) -> Plan:
    return Plan(
        _choose_backward,
        (texts, 1, 1),
        (*strides, shares, tau),
        num_warps=8,
        STATE=size,
        WRITTEN=gradient_columns(size, depth),
        DEPTH=depth,
        GROUP=group,
        BLOCK_D=triton.next_power_of_2(depth),
        BLOCK_U=units_at_a_time(depth),
    )


def gradient_columns(size: int, depth: int) -> int:
    """How many columns are written, rounded up so that each row begins at a multiple of 16 bytes."""
    return triton.cdiv(8 * size + depth + 1, 16) * 16


def write_gradients(
    hidden: Float[Tensor, "B W"],
    per_token: Float[Tensor, "B W"],
    weights: Weights,
    ledger: Ledger,
    weight_share: Float[Tensor, "B P D"],
    factor: Float[Tensor, ""],
    *,
    tau: float,
) -> Float[Tensor, "B V"]:
    """The columns above.

    Args:
        hidden: h; this and `per_token` begin at different columns of one tensor.
        per_token: 1 / number of real tokens, each one's share in the state.
        weights: the selector's parameters.
        ledger: w, and the auxiliary loss's gradients of logits and value.
        weight_share: shares of the training loss's gradient of w, to be summed over P.
        factor: what the auxiliary gradients are multiplied with; on the device, so that nothing waits for it.
        tau: temperature of w.
    """
    rows, depth, group = ledger
    texts, size = len(rows), weights.value_hidden.shape[1]
    written = rows.new_empty(texts, gradient_columns(size, depth))
    strides = hidden.stride(0), rows.stride(0)
    _plan(texts, strides, weight_share.shape[1], tau, size, depth, group)(
        hidden, weights.policy, weights.value, rows, weight_share, factor, per_token, written
    )
    return written
