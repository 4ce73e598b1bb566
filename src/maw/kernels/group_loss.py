"""The entropy reward, the auxiliary loss of sampled groups and its gradient in one launch: `maw.grpo.group_loss`.

Everything is closed form. With c_m = -ratio_m A_m / G where the clip lets it through, else 0, and l = log pi,

    d policy loss / d logits = sum_m c_m (onehot(d_m) - pi),
    d KL / d logits = d(-entropy) / d logits = pi (l - sum_d pi_d l_d),    d value loss / d value = 2 (value - mean r).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from maw.config import MAWConfig
from maw.grpo import EPSILON
from maw.kernels.launching import Launch
from maw.kernels.selector import Choice

__all__ = ["Outcome", "group_loss"]

SMALL_SPREAD = tl.constexpr(EPSILON)


@triton.jit
def _group_loss(
    logits,
    value,
    depth_index,
    sampled_log_probability,
    entropy,
    reward,
    loss,
    policy_loss,
    clip_share,
    logits_gradient,
    value_gradient,
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
    place = text * GROUP + member
    head = tl.arange(0, BLOCK_H)[:, None]
    of_heads = (text * HEADS + head) * GROUP + member[None, :]
    r = -tl.sum(tl.load(entropy + of_heads, mask=(head < HEADS) & there[None, :], other=0.0), axis=0) / HEADS
    tl.store(reward + place, r, mask=there)
    predicted = tl.load(value + text)
    mean = tl.sum(r, axis=0) / GROUP
    highest = tl.max(tl.where(there, r, -float("inf")), axis=0)
    lowest = tl.min(tl.where(there, r, float("inf")), axis=0)
    # equal rewards have no advantage at all; their mean may be off by a rounding
    advantage = tl.where(highest > lowest, tl.where(there, r - mean, 0.0), 0.0)
    if GROUP == 1:
        advantage = tl.where(there, r - predicted, 0.0)
    elif ADVANTAGE == "leave-one-out":
        advantage = advantage * (GROUP / (GROUP - 1))
    elif ADVANTAGE == "std":
        deviation = tl.sqrt(tl.sum(advantage * advantage, axis=0) / (GROUP - 1))
        advantage = tl.where(highest - lowest < SMALL_SPREAD, 0.0, advantage / (deviation + SMALL_SPREAD))

    logit = tl.load(logits + text * DEPTH + depth, mask=inside, other=-float("inf"))
    largest = tl.max(logit, axis=0)
    policy = tl.exp(logit - largest)
    total = tl.sum(policy, axis=0)
    policy = policy / total
    log_policy = tl.where(inside, logit - largest - tl.log(total), 0.0)
    chosen = tl.load(depth_index + place, mask=there, other=-1).to(tl.int32)
    hot = chosen[:, None] == depth[None, :]
    own = tl.sum(tl.where(hot, log_policy[None, :], 0.0), axis=1)
    ratio = tl.exp(own - tl.load(sampled_log_probability + place, mask=there, other=0.0))
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
    tl.store(loss + text, auxiliary_weight * whole)
    tl.store(policy_loss + text, surrogate)
    tl.store(clip_share + text, tl.sum(tl.where(there & clipped, 1.0, 0.0), axis=0) / GROUP)
    tl.store(logits_gradient + text * DEPTH + depth, auxiliary_weight * gradient, mask=inside)
    tl.store(value_gradient + text, auxiliary_weight * value_weight * 2 * gap)


_group_loss_launch = Launch(_group_loss)


class Outcome(NamedTuple):
    """What a group was worth, text by text."""

    reward: Float[Tensor, "B G"]
    loss: Float[Tensor, " B"]
    policy_loss: Float[Tensor, " B"]
    clip_share: Float[Tensor, " B"]
    logits_gradient: Float[Tensor, "B D"]
    value_gradient: Float[Tensor, " B"]


def group_loss(choice: Choice, entropy: Float[Tensor, "B H G"], config: MAWConfig) -> Outcome:
    """`maw.grpo.group_loss` of the reward minus mean entropy over heads, with the gradients of `loss`."""
    batch, heads, group = entropy.shape
    depth = choice.logits.shape[1]
    reward = entropy.new_empty(batch, group)
    logits_gradient = entropy.new_empty(batch, depth)
    loss, policy_loss, clip_share, value_gradient = entropy.new_empty(4, batch).unbind()
    _group_loss_launch(
        (batch, 1, 1),
        *(choice.logits, choice.value, choice.depth_index, choice.log_probability, entropy),
        *(reward, loss, policy_loss, clip_share, logits_gradient, value_gradient),
        *(config.clip, config.auxiliary_weight, config.value_weight, config.kl_weight, config.entropy_weight),
        math.log(depth),
        num_warps=1,
        HEADS=heads,
        DEPTH=depth,
        GROUP=group,
        BLOCK_H=triton.next_power_of_2(heads),
        BLOCK_D=triton.next_power_of_2(depth),
        BLOCK_G=triton.next_power_of_2(group),
        ADVANTAGE=config.advantage,
    )
    return Outcome(reward, loss, policy_loss, clip_share, logits_gradient, value_gradient)
