"""Group-relative policy optimisation over D depths: advantages, ratio, KL and losses as pure tensor functions.

A text's policy is pi = softmax(logits), (B, D). A group is G depths d_1..d_G drawn from it, with rewards r_1..r_G.
Losses are returned per text, (B,), so that the caller decides how texts are averaged. With D arms the exact
gradient is computable; it is an estimator of its own and the oracle of the sampled ones.

Sources: Shao et al. 2024, DeepSeekMath (GRPO); Schulman et al. 2017 (clipped ratio); Kool et al. 2019 (leave-one-out);
Schulman 2020, Approximating KL Divergence (k3); method.md section 4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maw.config import Advantage

__all__ = [
    "GroupLoss",
    "clipped_policy_loss",
    "depth_baselines",
    "exact_kl",
    "exact_policy_loss",
    "group_advantages",
    "group_loss",
    "k3",
    "log_probability",
    "policy_entropy",
    "regularisation",
    "sample_group",
    "value_loss",
    "zero_spread",
]

EPSILON = 1e-6
"""Below this spread a group's rewards count as equal: no direction is better than another."""


def sample_group(logits: Float[Tensor, "B D"], group_size: int) -> Int[Tensor, "B G"]:
    """d_1..d_G drawn independently from softmax(logits).

    >>> sample_group(torch.tensor([[0.0, 100.0]]), 3).tolist()
    [[1, 1, 1]]
    """
    # the first of D exponential clocks with rates pi to ring
    policy = logits.detach().softmax(dim=-1)[:, None, :]
    return (policy / torch.empty_like(policy.expand(-1, group_size, -1)).exponential_()).argmax(dim=-1)


def log_probability(logits: Float[Tensor, "B D"], depth_index: Int[Tensor, "B G"]) -> Float[Tensor, "B G"]:
    """log pi(d_g).

    >>> log_probability(torch.zeros(1, 2), torch.tensor([[0]])).exp().tolist()
    [[0.5]]
    """
    return logits.log_softmax(dim=-1).gather(-1, depth_index)


def zero_spread(rewards: Float[Tensor, "B G"]) -> Bool[Tensor, " B"]:
    """Which groups hold no information: all rewards equal (to `EPSILON`).

    >>> zero_spread(torch.tensor([[1.0, 1.0], [0.0, 1.0]])).tolist()
    [True, False]
    """
    return rewards.amax(dim=-1) - rewards.amin(dim=-1) < EPSILON


def depth_baselines(rewards: Float[Tensor, "B G"], depth_index: Int[Tensor, "B G"], depth: int) -> Float[Tensor, "B G"]:
    """What a depth is worth on the whole: the mean reward of its other samples in this batch.

        b_g = mean of r_h over samples h with d_h = d_g, without g itself                           (11)

    A sample whose depth nobody else drew is its own baseline, so that nothing is learnt from it. What is left of a
    reward, r - b, is what a depth is worth to this text more than to others. What all texts prefer needs no selection:
    a weight that is the same for every text is a factor on the depth's view vectors, which the training loss trains.

    Args:
        rewards: (B, G).
        depth_index: the depth of each, (B, G).
        depth: D.

    Returns:
        (B, G), detached.

    Source: method.md (11).

    >>> depth_baselines(torch.tensor([[1.0, 5.0], [3.0, 7.0]]), torch.tensor([[0, 1], [0, 2]]), 3).tolist()
    [[3.0, 5.0], [1.0, 7.0]]
    """
    rewards, index = rewards.detach().flatten(), depth_index.flatten()
    total = rewards.new_zeros(depth).index_add_(0, index, rewards)[index]
    count = rewards.new_zeros(depth).index_add_(0, index, torch.ones_like(rewards))[index]
    baseline = torch.where(count > 1, (total - rewards) / (count - 1).clamp(min=1), rewards)
    return baseline.unflatten(0, depth_index.shape)


def group_advantages(
    rewards: Float[Tensor, "B G"], kind: Advantage, value: Float[Tensor, " B"] | None = None
) -> Float[Tensor, "B G"]:
    """Advantages relative to the group; the value network's prediction is the baseline only when G = 1.

        none            r_g - mean(r)                 its policy gradient is (G-1)/G of the exact one
        leave-one-out   r_g - mean of the others      unbiased; = G/(G-1) (r_g - mean(r))
        std             (r_g - mean(r)) / std(r)      sample standard deviation; 0 where the spread is zero; biased:
                                                      it can even lower the depth that the exact gradient raises
        G = 1           r - value

    Args:
        rewards: (B, G).
        kind: one of the above.
        value: (B,), required when G = 1, detached here.

    Returns:
        (B, G), detached.

    Raises:
        ValueError: G = 1 without a value.

    >>> group_advantages(torch.tensor([[0.0, 1.0, 2.0]]), "leave-one-out").tolist()
    [[-1.5, 0.0, 1.5]]
    """
    rewards = rewards.detach()
    group = rewards.shape[-1]
    if group == 1:
        if value is None:
            raise ValueError("a group of one needs the value network's prediction as its baseline")
        return rewards - value.detach()[:, None]
    equal = rewards.amax(dim=-1, keepdim=True) == rewards.amin(dim=-1, keepdim=True)
    # equal rewards have no advantage at all; their mean may be off by a rounding
    centred = (rewards - rewards.mean(dim=-1, keepdim=True)).masked_fill(equal, 0.0)
    if kind == "none":
        return centred
    if kind == "leave-one-out":
        return centred * (group / (group - 1))
    spread = rewards.std(dim=-1, keepdim=True)
    return torch.where(zero_spread(rewards)[:, None], torch.zeros_like(centred), centred / (spread + EPSILON))


def clipped_policy_loss(
    logits: Float[Tensor, "B D"],
    depth_index: Int[Tensor, "B G"],
    advantages: Float[Tensor, "B G"],
    sampled_log_probability: Float[Tensor, "B G"],
    *,
    clip: float,
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """-mean_g min(ratio A, clip(ratio, 1 - clip, 1 + clip) A), ratio = pi(d) / pi_when_sampled(d).

    Returns:
        the loss, (B,), and the share of choices whose gradient the clip removed, (B,).

    >>> logits = torch.zeros(1, 2)
    >>> depth = torch.tensor([[0, 1]])
    >>> loss, clipped = clipped_policy_loss(
    ...     logits, depth, torch.tensor([[1.0, -1.0]]), log_probability(logits, depth), clip=0.2
    ... )
    >>> loss.abs().tolist(), clipped.tolist()
    ([0.0], [0.0])
    """
    ratio = (log_probability(logits, depth_index) - sampled_log_probability.detach()).exp()
    plain = ratio * advantages
    limited = ratio.clamp(1 - clip, 1 + clip) * advantages
    return -torch.minimum(plain, limited).mean(dim=-1), (limited < plain).to(logits.dtype).mean(dim=-1)


class GroupLoss(NamedTuple):
    """The auxiliary loss per text, its policy part before any weight, and the share of clipped choices."""

    loss: Float[Tensor, " B"]
    policy_loss: Float[Tensor, " B"]
    clip_share: Float[Tensor, " B"]


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
    depth_baseline: bool = False,
) -> GroupLoss:
    """auxiliary_weight * (policy + value_weight * value + kl_weight * KL(pi || uniform) - entropy_weight * entropy).

    With `depth_baseline` the advantages are those of the rewards less `depth_baselines`; a group of one has its value
    as the only baseline. The value network learns the rewards themselves.

    >>> depth, r = torch.tensor([[0, 1]]), torch.tensor([[0.0, 1.0]])
    >>> weights = {"auxiliary_weight": 1.0, "value_weight": 0.5, "kl_weight": 0.0, "entropy_weight": 0.0}
    >>> logits, before = torch.zeros(1, 2), log_probability(torch.zeros(1, 2), depth)
    >>> group_loss(logits, torch.zeros(1), depth, r, before, advantage="none", clip=0.2, **weights).loss.tolist()
    [0.125]
    """
    worth = reward
    if depth_baseline and reward.shape[-1] > 1:
        worth = reward - depth_baselines(reward, depth_index, logits.shape[-1])
    advantages = group_advantages(worth, advantage, value)
    policy_loss, clip_share = clipped_policy_loss(logits, depth_index, advantages, sampled_log_probability, clip=clip)
    loss = policy_loss + value_weight * value_loss(value, reward) + regularisation(logits, kl_weight, entropy_weight)
    return GroupLoss(auxiliary_weight * loss, policy_loss.detach(), clip_share)


def regularisation(
    logits: Float[Tensor, "B D"], kl_weight: float, entropy_weight: float
) -> Float[Tensor, " B"] | float:
    """kl_weight * KL(pi || uniform) - entropy_weight * entropy; nothing is computed of a part without weight.

    >>> regularisation(torch.zeros(1, 2), 0.0, 0.0)
    0.0
    """
    part: Tensor | float = 0.0
    if kl_weight:
        part = part + kl_weight * exact_kl(logits, torch.zeros_like(logits))
    if entropy_weight:
        part = part - entropy_weight * policy_entropy(logits)
    return part


def exact_policy_loss(logits: Float[Tensor, "B D"], rewards: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """-sum_d pi_d r_d over all D arms: its gradient is the exact policy gradient.

    >>> exact_policy_loss(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]])).tolist()
    [-2.0]
    """
    return -(logits.softmax(dim=-1) * rewards.detach()).sum(dim=-1)


def policy_entropy(logits: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """-sum_d pi_d log pi_d, in nats; at most log D.

    >>> policy_entropy(torch.zeros(1, 2)).exp().tolist()
    [2.0]
    """
    log_policy = logits.log_softmax(dim=-1)
    return -(log_policy.exp() * log_policy).sum(dim=-1)


def exact_kl(logits: Float[Tensor, "B D"], reference_logits: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """KL(pi || reference), exact over D arms. Against the uniform reference it is log D minus the policy's entropy.

    >>> exact_kl(torch.zeros(1, 2), torch.zeros(1, 2)).tolist()
    [0.0]
    """
    log_policy = logits.log_softmax(dim=-1)
    return (log_policy.exp() * (log_policy - reference_logits.log_softmax(dim=-1))).sum(dim=-1)


def k3(
    logits: Float[Tensor, "B D"], reference_logits: Float[Tensor, "B D"], depth_index: Int[Tensor, "B G"]
) -> Float[Tensor, " B"]:
    """The sampled estimate mean_g( x - 1 - log x ), x = reference(d_g) / pi(d_g), of KL(pi || reference).

    Logged, never a loss: as a sampled loss its gradient is that of KL(reference || pi).

    >>> k3(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([[0, 1]])).tolist()
    [0.0]
    """
    difference = log_probability(reference_logits, depth_index) - log_probability(logits, depth_index)
    return (difference.expm1() - difference).mean(dim=-1)


def value_loss(value: Float[Tensor, " B"], rewards: Float[Tensor, "B G"]) -> Float[Tensor, " B"]:
    """Squared error of the value network against the group's mean reward.

    >>> value_loss(torch.tensor([1.0]), torch.tensor([[0.0, 4.0]])).tolist()
    [1.0]
    """
    return (value - rewards.detach().mean(dim=-1)).square()
