"""The auxiliary loss of sampled groups and its gradient in one launch: `maw.grpo.group_loss`.

Everything is closed form. With c_m = -ratio_m A_m / G where the clip lets it through, else 0, and l = log pi,

    d policy loss / d logits = sum_m c_m (onehot(d_m) - pi),
    d KL / d logits = d(-entropy) / d logits = pi (l - sum_d pi_d l_d),    d value loss / d value = 2 (value - mean r).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from maw.config import Advantage
from maw.grpo import EPSILON, GroupLoss

__all__ = ["group_loss"]

SMALL_SPREAD = tl.constexpr(EPSILON)


@triton.jit
def _group_loss(
    logits,
    value,
    depth_index,
    sampled_log_probability,
    reward,
    loss,
    policy_loss,
    clip_share,
    logits_gradient,
    value_gradient,
    stride,
    clip,
    auxiliary_weight,
    value_weight,
    kl_weight,
    entropy_weight,
    log_depth,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    ADVANTAGE: tl.constexpr,
):
    text = tl.program_id(0)
    depth, member = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_G)
    inside, there = depth < DEPTH, member < GROUP
    place = text * GROUP + member
    r = tl.load(reward + place, mask=there, other=0.0)
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

    logit = tl.load(logits + text * stride + depth, mask=inside, other=-float("inf"))
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


class _GroupLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        value: Tensor,
        depth_index: Tensor,
        reward: Tensor,
        sampled_log_probability: Tensor,
        advantage: str,
        weights: tuple[float, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        (batch, depth), group = logits.shape, reward.shape[1]
        loss, policy_loss, clip_share, value_gradient = logits.new_empty(4, batch).unbind()
        logits_gradient = logits.new_empty(batch, depth)
        _group_loss[(batch,)](
            logits,
            value.contiguous(),
            depth_index.contiguous(),
            sampled_log_probability.contiguous(),
            reward.contiguous(),
            loss,
            policy_loss,
            clip_share,
            logits_gradient,
            value_gradient,
            logits.stride(0),
            *weights,
            math.log(depth),
            DEPTH=depth,
            GROUP=group,
            BLOCK_D=triton.next_power_of_2(depth),
            BLOCK_G=triton.next_power_of_2(group),
            ADVANTAGE=advantage,
            num_warps=1,
        )
        ctx.save_for_backward(logits_gradient, value_gradient)
        ctx.mark_non_differentiable(policy_loss, clip_share)
        return loss, policy_loss, clip_share

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits_gradient, value_gradient = ctx.saved_tensors
        return logits_gradient * grads[0][:, None], value_gradient * grads[0], None, None, None, None, None


def group_loss(
    logits: Float[Tensor, "B D"],
    value: Float[Tensor, " B"],
    depth_index: Int[Tensor, "B G"],
    reward: Float[Tensor, "B G"],
    sampled_log_probability: Float[Tensor, "B G"],
    *,
    advantage: Advantage,
    clip: float,
    auxiliary_weight: float,
    value_weight: float,
    kl_weight: float,
    entropy_weight: float,
) -> GroupLoss:
    """The same as `maw.grpo.group_loss`, in float32; gradients flow from `loss` alone."""
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    weights = (clip, auxiliary_weight, value_weight, kl_weight, entropy_weight)
    return GroupLoss(
        *_GroupLoss.apply(logits, value.float(), depth_index, reward, sampled_log_probability, advantage, weights)
    )
