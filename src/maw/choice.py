"""What a selector chooses for the texts of one forward, and what it learns from it.

A choice has two halves that share the policy: depth weights, through which the training loss reaches it, and a group of
depths (or all of them, under the exact estimator) that are rewarded. The group's loss is the auxiliary one.

Source: method.md section 4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from maw import grpo
from maw.auxiliary import in_backward
from maw.config import MAWConfig
from maw.errors import MAWError
from maw.records import Record, Rollout
from maw.selector import depth_weights

__all__ = ["Choice", "choose", "keep_until_rewarded", "rollout_loss"]


class Choice(NamedTuple):
    """How the depths of a batch are mixed and which are to be rewarded; `logits` are those of the detached state."""

    state: Float[Tensor, "B S"]
    logits: Float[Tensor, "B D"]
    depth_weight: Float[Tensor, "B D"]
    depth_index: Int[Tensor, "B G"]
    log_probability: Float[Tensor, "B G"]


def choose(
    state: Float[Tensor, "B S"],
    logits: Float[Tensor, "B D"],
    own_logits: Float[Tensor, "B D"],
    config: MAWConfig,
    *,
    tau: float,
) -> Choice:
    """Training's depth weights, and G depths drawn from the policy; all D in their order under the exact estimator.

    Args:
        state: the selector's state, detached.
        logits: the policy's logits, through which gradients reach the encoder.
        own_logits: the same of the detached state.
        config: selection, estimator and group size.
        tau: temperature of the weights.

    >>> zeros = torch.zeros(2, 5)
    >>> choose(torch.zeros(2, 3), zeros, zeros, MAWConfig(depth=5, group_size=4), tau=10.0).depth_index.shape
    torch.Size([2, 4])
    """
    weight = depth_weights(logits, selection=config.selection, tau=tau, training=True, noise=config.noise)
    if config.estimator == "exact":
        depth_index = torch.arange(config.depth, device=state.device).expand(state.shape[0], -1)
    else:
        depth_index = grpo.sample_group(logits, config.group_size)
    log_probability = grpo.log_probability(logits.detach(), depth_index)
    return Choice(state, own_logits, weight, depth_index, log_probability)


def keep_until_rewarded(
    pending: list[tuple[Choice, Tensor | None]] | None, choice: Choice, known: Tensor | None, *, kind: str
) -> None:
    """Keep a choice until the model's output says what it was worth (`maw.retrieval.training.rollouts`).

    Args:
        pending: where it waits; None where nobody waits for it, which is right without gradient alone.
        choice: the choice.
        known: the part of the reward that is known already.
        kind: the reward's name.

    Raises:
        MAWError: nobody waits, or the layer is compiled or runs a second time.

    >>> waiting = []
    >>> zeros = torch.zeros(1, 2)
    >>> choice = choose(zeros, zeros, zeros, MAWConfig(depth=2), tau=1.0)
    >>> keep_until_rewarded(waiting, choice, None, kind="retrieval")
    >>> len(waiting)
    1
    """
    instead = "or take reward='entropy'"
    if torch.compiler.is_compiling():
        raise MAWError(
            f"reward={kind!r} needs choices that a compiled graph does not keep: do not compile the model, {instead}"
        )
    if in_backward():
        raise MAWError(
            f"reward={kind!r} needs every layer to run once, and gradient checkpointing runs it again in backward: "
            f"switch it off, {instead}"
        )
    if pending is not None:
        pending.append((choice, known))
    elif torch.is_grad_enabled():
        raise MAWError(
            f"with reward={kind!r} the policy learns from the finished vectors, and nothing waits for them here: "
            f"wrap the training loss in maw.retrieval.training.losses.AuxiliaryLoss, {instead}"
        )


def rollout_loss(
    rollout: Rollout, logits: Float[Tensor, "B D"], value: Float[Tensor, " B"], config: MAWConfig
) -> tuple[Float[Tensor, " B"], Record]:
    """The auxiliary loss per text, and what is remembered of it.

    Args:
        rollout: what was chosen and what it was worth.
        logits: the policy's logits on these texts now.
        value: the value network's predictions.
        config: estimator, advantage and the weights of the loss's parts.

    >>> rollout = Rollout(torch.zeros(1, 3), torch.tensor([[0, 1]]), torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))
    >>> rollout_loss(rollout, torch.zeros(1, 2), torch.zeros(1), MAWConfig(depth=2))[0].shape
    torch.Size([1])
    """
    reward, depth_index = rollout.reward, rollout.depth_index
    if config.estimator == "exact":
        policy_loss, clip_share = grpo.exact_policy_loss(logits, reward), None
        loss = policy_loss
        if config.depth_baseline:
            baseline = grpo.depth_baselines(reward, depth_index, logits.shape[-1])
            loss = grpo.exact_policy_loss(logits, reward - baseline)
        loss = loss + config.value_weight * grpo.value_loss(value, -policy_loss[:, None])
        loss = loss + grpo.regularisation(logits, config.kl_weight, config.entropy_weight)
        loss = config.auxiliary_weight * loss
    else:
        names = ("advantage", "clip", "auxiliary_weight", "value_weight", "kl_weight", "entropy_weight")
        settings = {name: getattr(config, name) for name in (*names, "depth_baseline")}
        loss, policy_loss, clip_share = grpo.group_loss(
            logits, value, depth_index, reward, rollout.log_probability, **settings
        )
    # logits are half of a tensor that also holds the other half's: kept as their own
    kept = (logits.clone(), depth_index, reward, value, loss, policy_loss)
    all_arms = config.estimator == "exact"
    return loss, Record(*(tensor.detach() for tensor in kept), clip_share=clip_share, all_arms=all_arms)
