"""What a layer's selector did in one forward, kept raw, and the statistics that are made of it when somebody asks.

Training keeps a few small tensors a forward and computes nothing of them: a training step would pay for statistics that
only every so many steps are logged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from maw import grpo
from maw.config import Selection
from maw.selector import depth_weights

__all__ = ["KEPT", "Record", "Rollout", "statistics"]

KEPT = 256
"""The latest forwards whose records a layer keeps until they are collected."""


class Record(NamedTuple):
    """The texts of one forward; all detached. `reward` and `depth_index` hold all D arms under the exact estimator."""

    logits: Float[Tensor, "B D"]
    depth_index: Int[Tensor, "B G"]
    reward: Float[Tensor, "B G"]
    value: Float[Tensor, " B"]
    auxiliary_loss: Float[Tensor, " B"]
    policy_loss: Float[Tensor, " B"]
    clip_share: Float[Tensor, " B"] | None
    all_arms: bool

    def record(self) -> Record:
        """Itself; what the kernels keep makes one only when it is asked."""
        return self


class Rollout(NamedTuple):
    """One group of sampled depths per text, as it was when sampled; all detached."""

    state: Float[Tensor, "B S"]
    depth_index: Int[Tensor, "B G"]
    log_probability: Float[Tensor, "B G"]
    reward: Float[Tensor, "B G"]


def statistics(records: Sequence[Record], *, selection: Selection, tau: float) -> dict[str, Tensor]:
    """What the selector did on all texts of these records together; empty without records.

    Every text counts alike, however texts were split into forwards, once for each update that its group serves: a
    replay counts it again, under the policy of that time. A layer keeps its latest `KEPT` forwards, so of a longer
    stretch these are the statistics of its end.

    Args:
        records: of one layer.
        selection: how the saved model makes depth weights of policy logits (`maw.selector.depth_weights`).
        tau: its temperature; where it moves while training runs, the one it ends with.

    Returns:
        scalars, and the vectors `depth_usage` and `weight_usage`, (D,): the mean policy and the mean weights. A group
        of one has no `reward_spread` and `zero_spread`, which are within texts; `reward_deviation` is over all texts
        and their depths. Policy entropy is relative to log D, `kl` and `k3` are against the uniform policy,
        `depth_information` and `weight_information` are the mutual information of depth and text in nats, under the
        policy and under the weights.
    """
    return _of_one(_joined(records), selection, tau) if records else {}


def _joined(records: Sequence[Record]) -> Record:
    """All texts in one record; those of one layer differ in their number of texts only."""
    columns: list[Any] = list(zip(*records, strict=True))
    *kept, clip_share, all_arms = columns
    clipped = None if clip_share[0] is None else torch.cat(clip_share)
    return Record(*(torch.cat(values) for values in kept), clip_share=clipped, all_arms=all_arms[0])


@torch.no_grad()
def _of_one(record: Record, selection: Selection, tau: float) -> dict[str, Tensor]:
    logits, reward = record.logits, record.reward
    depth = logits.shape[-1]
    policy, uniform = logits.softmax(dim=-1), torch.zeros_like(logits)
    weight = depth_weights(logits, selection=selection, tau=tau, training=False)
    kl = grpo.exact_kl(logits, uniform)
    expected = -record.policy_loss if record.all_arms else reward.mean(dim=-1)
    k3 = kl if record.all_arms else grpo.k3(logits, uniform, record.depth_index)
    value_loss = (record.value - expected).square()
    per_text = {
        "auxiliary_loss": record.auxiliary_loss,
        "policy_loss": record.policy_loss,
        "value_loss": value_loss,
        "reward": expected,
        "reward_spread": reward.std(dim=-1, correction=0),
        "zero_spread": grpo.zero_spread(reward),
        "policy_entropy": grpo.policy_entropy(logits) / math.log(max(depth, 2)),
        "kl": kl,
        "k3": k3,
        "clip_share": torch.zeros_like(kl) if record.clip_share is None else record.clip_share,
    }
    if reward.shape[-1] == 1:  # a group of one has no spread, whatever its reward
        del per_text["reward_spread"], per_text["zero_spread"]
    usage, spread = policy.mean(dim=0), expected.var(correction=0)
    return {name: values.to(value_loss.dtype).mean() for name, values in per_text.items()} | {
        "reward_deviation": reward.std(correction=0),
        # 0 where the rewards do not vary: there is nothing to explain
        "value_explained_variance": torch.where(spread > grpo.EPSILON**2, 1 - value_loss.mean() / spread, 0.0),
        "depth_information": _information(policy),
        "weight_information": _information(weight),
        "depths_alive": (usage >= 1 / (4 * depth)).to(usage.dtype).mean(),
        "depth_usage": usage,
        "weight_usage": weight.mean(dim=0),
    }


def _information(share: Tensor) -> Tensor:
    """Mutual information of depth and text, in nats, of every text's distribution over depths, (B, D)."""
    return torch.special.entr(share.mean(dim=0)).sum() - torch.special.entr(share).sum(dim=-1).mean()
