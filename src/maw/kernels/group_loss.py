"""The entropy reward, the auxiliary loss of sampled groups and its gradient: `maw.grpo.group_loss`, in one launch.

Baselines of depths take another one before, a program a depth: `maw.grpo.depth_baselines`.

Everything is closed form. With c_m = -ratio_m A_m / G where the clip lets it through, else 0, and l = log pi,

    d policy loss / d logits = sum_m c_m (onehot(d_m) - pi),
    d KL / d logits = d(-entropy) / d logits = pi (l - sum_d pi_d l_d),    d value loss / d value = 2 (value - mean r).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from maw.config import Advantage, MAWConfig
from maw.grpo import EPSILON
from maw.kernels.launching import PLANS, Plan
from maw.kernels.ledger import Ledger

__all__ = ["write_group_loss"]

SMALL_SPREAD = tl.constexpr(EPSILON)


@triton.jit
def _depth_baseline(
    ledger,
    entropy,
    baseline,
    stride,
    samples,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One depth: look for its samples twice, for their sum and to write each the mean of the others."""
    depth, place = tl.program_id(0), tl.arange(0, BLOCK)
    total, count = tl.full((), 0.0, tl.float32), tl.full((), 0.0, tl.float32)
    for start in range(0, samples, BLOCK):
        own, r = _rewards_of(ledger, entropy, depth, start + place, stride, samples, HEADS, DEPTH, GROUP)
        total += tl.sum(r, axis=0)
        count += tl.sum(tl.where(own, 1.0, 0.0), axis=0)
    for start in range(0, samples, BLOCK):
        own, r = _rewards_of(ledger, entropy, depth, start + place, stride, samples, HEADS, DEPTH, GROUP)
        others = tl.where(count > 1, (total - r) / tl.maximum(count - 1, 1.0), r)
        tl.store(baseline + start + place, others, mask=own)


@triton.jit
def _rewards_of(
    ledger, entropy, depth, sample, stride, samples, HEADS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr
):
    text, member = (sample // GROUP).to(tl.int64), sample % GROUP
    index = tl.load(ledger + text * stride + 3 * DEPTH + GROUP + member, mask=sample < samples, other=-1.0)
    own = index.to(tl.int32) == depth
    r = tl.zeros_like(index)
    for head in range(HEADS):
        r -= tl.load(entropy + (text * HEADS + head) * GROUP + member, mask=own, other=0.0)
    return own, r / HEADS


@triton.jit
def _group_loss(
    ledger,
    entropy,
    baseline,
    stride,
    clip,
    auxiliary_weight,
    value_weight,
    kl_weight,
    entropy_weight,
    log_depth,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    ADVANTAGE: tl.constexpr,
):
    text = tl.program_id(0)
    depth, member = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_G)
    inside, there = depth < DEPTH, member < GROUP
    ledger += text.to(tl.int64) * stride
    of_group, single = ledger + 3 * DEPTH + member, ledger + 3 * DEPTH + 3 * GROUP
    head = tl.arange(0, BLOCK_H)[:, None]
    of_heads = (text * HEADS + head) * GROUP + member[None, :]
    r = -tl.sum(tl.load(entropy + of_heads, mask=(head < HEADS) & there[None, :], other=0.0), axis=0) / HEADS
    tl.store(of_group + 2 * GROUP, r, mask=there)
    predicted = tl.load(single)
    mean = tl.sum(r, axis=0) / GROUP
    worth = r
    if baseline is not None:
        worth -= tl.load(baseline + text * GROUP + member, mask=there, other=0.0)
    highest = tl.max(tl.where(there, worth, -float("inf")), axis=0)
    lowest = tl.min(tl.where(there, worth, float("inf")), axis=0)
    # equal rewards have no advantage at all; their mean may be off by a rounding
    advantage = tl.where(highest > lowest, tl.where(there, worth - tl.sum(worth, axis=0) / GROUP, 0.0), 0.0)
    if GROUP == 1:
        advantage = tl.where(there, r - predicted, 0.0)
    elif ADVANTAGE == "leave-one-out":
        advantage = advantage * (GROUP / (GROUP - 1))
    elif ADVANTAGE == "std":
        deviation = tl.sqrt(tl.sum(advantage * advantage, axis=0) / (GROUP - 1))
        advantage = tl.where(highest - lowest < SMALL_SPREAD, 0.0, advantage / (deviation + SMALL_SPREAD))

    logit = tl.load(ledger + DEPTH + depth, mask=inside, other=-float("inf"))
    largest = tl.max(logit, axis=0)
    policy = tl.exp(logit - largest)
    total = tl.sum(policy, axis=0)
    policy = policy / total
    log_policy = tl.where(inside, logit - largest - tl.log(total), 0.0)
    chosen = tl.load(of_group + GROUP, mask=there, other=-1).to(tl.int32)
    hot = chosen[:, None] == depth[None, :]
    own = tl.sum(tl.where(hot, log_policy[None, :], 0.0), axis=1)
    ratio = tl.exp(own - tl.load(of_group, mask=there, other=0.0))
    plain = ratio * advantage
    limited = tl.minimum(tl.maximum(ratio, 1 - clip), 1 + clip) * advantage
    clipped = limited < plain
    surrogate = -tl.sum(tl.where(there, tl.minimum(plain, limited), 0.0), axis=0) / GROUP
    coefficient = tl.where(clipped, 0.0, -plain / GROUP)
    gradient = tl.sum(tl.where(hot, coefficient[:, None], 0.0), axis=0) - tl.sum(coefficient, axis=0) * policy
    negative_entropy = tl.sum(policy * log_policy, axis=0)
    gradient += (kl_weight + entropy_weight) * policy * (log_policy - negative_entropy)
    gap = predicted - mean
    whole = surrogate + value_weight * gap * gap
    whole += kl_weight * (negative_entropy + log_depth) + entropy_weight * negative_entropy
    tl.store(single + 2, auxiliary_weight * whole)
    tl.store(single + 3, surrogate)
    tl.store(single + 4, tl.sum(tl.where(there & clipped, 1.0, 0.0), axis=0) / GROUP)
    tl.store(ledger + 2 * DEPTH + depth, auxiliary_weight * gradient, mask=inside)
    tl.store(single + 1, auxiliary_weight * value_weight * 2 * gap)


@lru_cache(PLANS)
def _plan_of_baseline(texts: int, heads: int, depth: int, group: int, stride: int) -> Plan:
    samples = texts * group
    block = min(1024, triton.next_power_of_2(samples))
    constants = {"HEADS": heads, "DEPTH": depth, "GROUP": group, "BLOCK": block}
    return Plan(_depth_baseline, (depth, 1, 1), (stride, samples), **constants)


@lru_cache(PLANS)
def _plan(
    texts: int, heads: int, depth: int, group: int, stride: int, weights: tuple[float, ...], advantage: Advantage
) -> Plan:
    return Plan(
        _group_loss,
        (texts, 1, 1),
        (stride, *weights, math.log(depth)),
        num_warps=1,
        HEADS=heads,
        DEPTH=depth,
        GROUP=group,
        BLOCK_H=triton.next_power_of_2(heads),
        BLOCK_D=triton.next_power_of_2(depth),
        BLOCK_G=triton.next_power_of_2(group),
        ADVANTAGE=advantage,
    )


def write_group_loss(ledger: Ledger, entropy: Tensor, heads: int, config: MAWConfig) -> None:
    """`maw.grpo.group_loss` of the reward minus mean entropy over heads: write reward, loss and its gradients.

    Args:
        ledger: with logits, value, sampled depths and their log-probabilities.
        entropy: B * H * G numbers in this order.
        heads: H.
        config: advantage, clip and weights of the loss.
    """
    weights = (config.clip, config.auxiliary_weight, config.value_weight, config.kl_weight, config.entropy_weight)
    rows, depth, group = ledger
    sizes, baseline = (len(rows), heads, depth, group, rows.stride(0)), None
    if config.depth_baseline and group > 1:
        baseline = torch.empty(len(rows) * group, dtype=rows.dtype, device=rows.device)
        _plan_of_baseline(*sizes)(rows, entropy, baseline)
    _plan(*sizes, weights, config.advantage)(rows, entropy, baseline)
