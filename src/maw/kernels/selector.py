"""The selector in two launches: hidden units of both networks, then depth weights, sampled depths and value.

    hidden     h = [W1 state + b1 of the policy | of the value network]                        (B, 2 S + S)
    choose     logits = W2 gelu(h) + b2,  value likewise,  w = softmax((logits - noise log E_0) / tau)
               d_m = argmax_d pi_d / E_md, m = 1..G

-log E is Gumbel noise where E is exponential, and the first of D clocks with rates pi to ring is a draw from pi.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor, nn

from maw.kernels.launching import PLANS, Plan
from maw.kernels.ledger import Ledger
from maw.selector import Selector

__all__ = ["PRECISION", "TILE", "Weights", "gelu", "units_at_a_time", "write_choice", "write_hidden"]


class Weights(NamedTuple):
    """The parameters of a `maw.selector.Selector`, in the order of its state; contiguous."""

    policy_hidden: Float[Tensor, "2*S S"]
    policy_hidden_bias: Float[Tensor, " 2*S"]
    policy: Float[Tensor, "D 2*S"]
    policy_bias: Float[Tensor, " D"]
    value_hidden: Float[Tensor, "S S"]
    value_hidden_bias: Float[Tensor, " S"]
    value: Float[Tensor, "1 S"]
    value_bias: Float[Tensor, " 1"]

    @classmethod
    def of(cls, selector: Selector) -> Weights:
        """The parameters themselves."""
        layers = [
            layer for layer in (*selector.policy_network, *selector.value_network) if isinstance(layer, nn.Linear)
        ]
        return cls(*(tensor.contiguous() for layer in layers for tensor in (layer.weight, layer.bias)))


@triton.jit
def _hidden(
    state,
    policy_weight,
    policy_bias,
    value_weight,
    value_bias,
    hidden,
    texts,
    stride,
    STATE: tl.constexpr,
    POLICY_TILES: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_U: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PRECISION: tl.constexpr,
):  # hidden[b, u] = state[b] . weight[u] + bias[u]
    tile = tl.program_id(0)
    of_policy = tile < POLICY_TILES
    units, offset = tl.where(of_policy, 2 * STATE, STATE), tl.where(of_policy, 0, 2 * STATE)
    tile = tl.where(of_policy, tile, tile - POLICY_TILES)
    if of_policy:
        weight, bias = policy_weight, policy_bias
    else:
        weight, bias = value_weight, value_bias
    unit = tile * BLOCK_U + tl.arange(0, BLOCK_U)
    text = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    total = tl.zeros((BLOCK_B, BLOCK_U), dtype=tl.float32)
    for start in range(0, STATE, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        x = tl.load(
            state + text[:, None] * stride + s[None, :], mask=(text[:, None] < texts) & (s[None, :] < STATE), other=0.0
        )
        w = tl.load(
            weight + unit[:, None] * STATE + s[None, :], mask=(unit[:, None] < units) & (s[None, :] < STATE), other=0.0
        )
        total += tl.dot(x, tl.trans(w.to(tl.float32)), input_precision=PRECISION)
    total += tl.load(bias + unit, mask=unit < units, other=0.0).to(tl.float32)[None, :]
    inside = (text[:, None] < texts) & (unit[None, :] < units)
    tl.store(hidden + text[:, None] * stride + offset + unit[None, :], total, mask=inside)


@triton.jit
def gelu(x):
    """x times the normal distribution function, exactly."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _choose(
    hidden,
    policy_weight,
    policy_bias,
    value_weight,
    value_bias,
    clocks,
    ledger,
    stride,
    ledger_stride,
    tau,
    noise,
    STATE: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    NOISY: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_U: tl.constexpr,
):  # one text; without clocks there are only depth weights
    text = tl.program_id(0)
    hidden += text.to(tl.int64) * stride
    ledger += text.to(tl.int64) * ledger_stride
    depth = tl.arange(0, BLOCK_D)
    inside = depth < DEPTH
    logit = tl.load(policy_bias + depth, mask=inside, other=0.0).to(tl.float32)
    for start in range(0, 2 * STATE, BLOCK_U):
        unit = start + tl.arange(0, BLOCK_U)
        active = gelu(tl.load(hidden + unit, mask=unit < 2 * STATE, other=0.0))
        there = inside[:, None] & (unit[None, :] < 2 * STATE)
        w = tl.load(policy_weight + depth[:, None] * 2 * STATE + unit[None, :], mask=there, other=0.0).to(tl.float32)
        logit += tl.sum(w * active[None, :], axis=1)
    logit = tl.where(inside, logit, -float("inf"))
    noisy = logit
    if clocks is not None:
        clocks += text.to(tl.int64) * (GROUP + 1) * DEPTH
    if NOISY:
        noisy -= noise * tl.log(tl.load(clocks + depth, mask=inside, other=1.0))
    noisy = noisy / tau
    noisy = tl.exp(noisy - tl.max(noisy, axis=0))
    tl.store(ledger + depth, noisy / tl.sum(noisy, axis=0), mask=inside)
    if clocks is not None:
        tl.store(ledger + DEPTH + depth, logit, mask=inside)
        largest = tl.max(logit, axis=0)
        policy = tl.exp(logit - largest)
        log_policy = logit - largest - tl.log(tl.sum(policy, axis=0))
        for member in range(GROUP):
            clock = tl.load(clocks + (member + 1) * DEPTH + depth, mask=inside, other=1.0)
            chosen = tl.minimum(tl.argmax(policy / clock, axis=0), DEPTH - 1)  # whatever it is among NaN
            own = tl.sum(tl.where(depth == chosen, log_policy, 0.0), axis=0)
            tl.store(ledger + 3 * DEPTH + member, own)
            tl.store(ledger + 3 * DEPTH + GROUP + member, chosen.to(tl.float32))
        predicted = tl.zeros((BLOCK_U,), dtype=tl.float32)
        for start in range(0, STATE, BLOCK_U):
            unit = start + tl.arange(0, BLOCK_U)
            active = gelu(tl.load(hidden + 2 * STATE + unit, mask=unit < STATE, other=0.0))
            predicted += active * tl.load(value_weight + unit, mask=unit < STATE, other=0.0).to(tl.float32)
        value = tl.sum(predicted, axis=0) + tl.load(value_bias).to(tl.float32)
        tl.store(ledger + 3 * DEPTH + 3 * GROUP, value)


PRECISION = "tf32x3"
"""Of products of float32 numbers: as good as float32, on the matrix units."""

TILE = 32
"""Rows and columns of a product that one program computes."""


@lru_cache(PLANS)
def _hidden_plan(texts: int, stride: int, size: int, with_value: bool) -> Plan:
    policy_tiles = triton.cdiv(2 * size, TILE)
    tiles = policy_tiles + (triton.cdiv(size, TILE) if with_value else 0)
    return Plan(
        _hidden,
        (tiles, triton.cdiv(texts, TILE), 1),
        (texts, stride),
        STATE=size,
        POLICY_TILES=policy_tiles,
        BLOCK_B=TILE,
        BLOCK_U=TILE,
        BLOCK_S=64,
        PRECISION=PRECISION,
    )


@lru_cache(PLANS)
def _choose_plan(
    texts: int, strides: tuple[int, int], tau: float, noise: float, size: int, depth: int, group: int
) -> Plan:
    return Plan(
        _choose,
        (texts, 1, 1),
        (*strides, tau, noise),
        STATE=size,
        DEPTH=depth,
        GROUP=group,
        NOISY=noise > 0,
        BLOCK_D=triton.next_power_of_2(depth),
        BLOCK_U=units_at_a_time(depth),
    )


def write_hidden(
    state: Float[Tensor, "B W"], hidden: Float[Tensor, "B W"], weights: Weights, *, with_value: bool
) -> None:
    """Write h, 3 S numbers a text, or 2 S without the value network; state and h are columns of one tensor."""
    size = weights.value_hidden.shape[1]
    _hidden_plan(len(state), state.stride(0), size, with_value)(
        state, weights[0], weights[1], weights[4], weights[5], hidden
    )


def write_choice(
    hidden: Float[Tensor, "B W"],
    weights: Weights,
    clocks: Float[Tensor, "B G+1 D"] | None,
    ledger: Ledger,
    *,
    tau: float,
    noise: float,
) -> None:
    """Write the depth weights; with `clocks` also logits, value and G sampled depths.

    Args:
        hidden: h.
        weights: the selector's parameters.
        clocks: standard exponential numbers; the first row of a text is for its depth weights.
        ledger: where to.
        tau: temperature of the weights.
        noise: factor on the weights' Gumbel noise; 0 leaves them without.
    """
    rows, depth, group = ledger
    strides, size = (hidden.stride(0), rows.stride(0)), weights.value_hidden.shape[1]
    _choose_plan(len(hidden), strides, float(tau), float(noise), size, depth, group)(
        hidden, weights[2], weights[3], weights[6], weights[7], clocks, rows
    )


def units_at_a_time(depth: int) -> int:
    """So many that a tile of W2 fits into a program's registers."""
    return max(16, min(128, 8192 // triton.next_power_of_2(depth)))
