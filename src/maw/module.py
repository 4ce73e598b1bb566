"""`DepthAttention`: view vectors, selector and (7) as one module, with its auxiliary GRPO loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from maw import grpo
from maw.auxiliary import GradientScale, add_gradient, in_backward
from maw.config import MAWConfig
from maw.errors import MAWError
from maw.functional import query_transform
from maw.rewards import entropy_reward
from maw.selector import Selector, depth_weights, token_mean
from maw.views import Views

__all__ = ["DepthAttention", "Rollout"]


class Rollout(NamedTuple):
    """One group of sampled depths per text, as it was when sampled; all detached."""

    state: Float[Tensor, "B S"]
    depth_index: Int[Tensor, "B G"]
    log_probability: Float[Tensor, "B G"]
    reward: Float[Tensor, "B G"]


class DepthAttention(nn.Module):
    """MAW for one attention layer: the host's attention on a transformed query.

        state = mean_tokens(q);  w = depth weights(policy(state));  out = attention(q @ W(w), k, v)

    In training, each forward also computes the GRPO loss of the selector on its own texts and hangs its gradient on the
    transformed query (`maw.auxiliary`); what happened is summed in `statistics` until `collect` is called.

    Args:
        config: the settings.
        views: how f and g start, with the constant that completes them where D < C.
        scaling: the host's factor on its logits; None is 1/sqrt(C).

    Raises:
        MAWError: the views' depth disagrees with `config.depth`.

    Source: method.md sections 1 to 4.

    >>> from maw.views import frame_views
    >>> layer = DepthAttention(MAWConfig(depth=5), frame_views(2, 4, 5, scaling=0.5)).eval()
    >>> q, k, v = torch.randn(3, 1, 2, 7, 4)
    >>> torch.allclose(layer(q, k, v), F.scaled_dot_product_attention(q, k, v), atol=1e-6)
    True
    """

    query_views: Tensor
    key_views: Tensor
    constant: Tensor | None

    def __init__(self, config: MAWConfig, views: Views, *, scaling: float | None = None) -> None:
        super().__init__()
        heads, depth, channels = views.query_views.shape
        if depth != config.depth:
            raise MAWError(f"views must have the configured depth {config.depth}, got {depth} view vectors per head")
        self.config = config
        self.scaling = channels**-0.5 if scaling is None else scaling
        self.scale = self.scaling * depth * channels**2 if config.scale is None else config.scale
        for name, start in (("query_views", views.query_views), ("key_views", views.key_views)):
            # a buffer stays untrained whatever sets requires_grad on all parameters, as adapters do
            setattr(self, name, nn.Parameter(start) if config.train_views else nn.Buffer(start))
        self.register_buffer("constant", views.constant)
        if config.selection != "uniform":  # parameters without a use can be an error in distributed training
            self.selector = Selector(heads * channels, depth)
        self.gradient_scale = GradientScale()
        self.statistics: dict[str, Tensor] = {}
        self.forwards = 0
        # kept only where something replays them: None until `replay_loss` is first called
        self.rollouts: list[tuple[int, Rollout]] | None = None

    def extra_repr(self) -> str:
        """Heads, depths, channels and how weights are chosen."""
        heads, depth, channels = self.query_views.shape
        config = self.config
        return f"heads={heads}, depth={depth}, channels={channels}, selection={config.selection}, tau={config.tau}"

    def forward(
        self,
        query: Float[Tensor, "B H Q C"],
        key: Float[Tensor, "B H K C"],
        value: Float[Tensor, "B H K C"],
        mask: Bool[Tensor, "B K"] | None = None,
        *,
        attend: Callable[[Tensor], object] | None = None,
    ) -> object:
        """Attention with MAW's logits.

        Args:
            query: q, (B, H, Q, C).
            key: k, (B, H, K, C).
            value: v, (B, H, K, C).
            mask: (B, K), True where there is a token; queries and keys are the same tokens.
            attend: the host's attention as a function of the query alone; it applies `scaling` and its own mask.
                None is scaled-dot-product attention with `mask`.

        Returns:
            whatever `attend` returns; (B, H, Q, C) without it.
        """
        with torch.autocast(query.device.type, enabled=False):
            state = token_mean(query, mask).to(self.query_views.dtype)
            weight = self.weights(state)
            transform = self.transform(weight)
            query_transformed = query @ transform.to(query.dtype)
            if self.training and self.config.selection != "uniform":
                query_transformed = self._with_auxiliary(query_transformed, query.detach(), key.detach(), state, mask)
        if attend is None:
            attention_mask = None if mask is None else mask[:, None, None, :]
            return F.scaled_dot_product_attention(query_transformed, key, value, attention_mask, scale=self.scaling)
        return attend(query_transformed)

    def weights(self, state: Float[Tensor, "B S"]) -> Float[Tensor, "B D"]:
        """Depth weights for these states: noisy in training mode, the noise-free limit in evaluation mode."""
        if self.config.selection == "uniform":
            depth = self.config.depth
            return state.new_full((state.shape[0], depth), 1.0 / depth)
        logits = self._logits(state)
        return depth_weights(logits, selection=self.config.selection, tau=self.config.tau, training=self.training)

    def transform(self, depth_weight: Float[Tensor, "B D"]) -> Float[Tensor, "B H C C"]:
        """W of (7) divided by the host's `scaling`, which the host applies itself."""
        constant = None if self.constant is None else self.constant / self.scaling
        return query_transform(
            self.query_views, self.key_views, depth_weight, constant=constant, scale=self.scale / self.scaling
        )

    def _logits(self, state: Tensor) -> Tensor:
        logits = self.selector.policy(state)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    # The auxiliary loss

    def _with_auxiliary(
        self, query_transformed: Tensor, query: Tensor, key: Tensor, state: Tensor, mask: Tensor | None
    ) -> Tensor:
        """The transformed query, carrying the gradient of the selector's loss on these texts.

        A checkpointed layer runs twice, the second time inside backward: what happened is recorded the first time, and
        both times draw the same random numbers.
        """
        texts, again = state.shape[0], in_backward()
        rollout, logits = self._sample(state.detach(), query, key, mask)
        loss, record = self._rollout_loss(rollout, logits)
        if not again:
            self.gradient_scale.texts += texts
            self._remember(record)
            if self.rollouts is not None and self.config.updates > 1:
                self.rollouts.append((self.config.updates - 1, rollout))
        if not torch.is_grad_enabled():
            return query_transformed
        return add_gradient(query_transformed, loss.sum(), self.gradient_scale, texts)

    def _sample(self, state: Tensor, query: Tensor, key: Tensor, mask: Tensor | None) -> tuple[Rollout, Tensor]:
        """One group of depths per text with their rewards, and the logits they were drawn from."""
        logits = self._logits(state)
        with torch.no_grad():
            if self.config.estimator == "exact":
                depth_index = torch.arange(self.config.depth, device=state.device).expand(state.shape[0], -1)
            else:
                depth_index = grpo.sample_group(logits, self.config.group_size)
            views = self.query_views, self.key_views
            reward = entropy_reward(query, key, *views, depth_index, scale=self.scale, mask=mask)
            return Rollout(state, depth_index, grpo.log_probability(logits, depth_index), reward), logits

    def _rollout_loss(self, rollout: Rollout, logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """auxiliary_weight * (policy + value_weight * value + kl_weight * KL - entropy_weight * entropy), per text."""
        config, reward = self.config, rollout.reward
        value = self.selector.value(rollout.state)
        uniform = torch.zeros_like(logits)
        kl, entropy = grpo.exact_kl(logits, uniform), grpo.policy_entropy(logits)
        if config.estimator == "exact":
            policy_loss = grpo.exact_policy_loss(logits, reward)
            expected = -policy_loss.detach()[:, None]
            clipped, k3 = torch.zeros_like(value), kl
        else:
            advantage = grpo.group_advantages(reward, config.advantage, value)
            policy_loss, clipped = grpo.clipped_policy_loss(
                logits, rollout.depth_index, advantage, rollout.log_probability, clip=config.clip
            )
            expected, k3 = reward, grpo.k3(logits, uniform, rollout.depth_index)
        value_loss = grpo.value_loss(value, expected)
        loss = policy_loss + config.value_weight * value_loss + config.kl_weight * kl - config.entropy_weight * entropy
        loss = config.auxiliary_weight * loss
        per_text = {
            "auxiliary_loss": loss,
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "reward": expected.mean(dim=-1),
            "reward_spread": reward.std(dim=-1, correction=0),
            "zero_spread": grpo.zero_spread(reward),
            "policy_entropy": entropy / math.log(max(config.depth, 2)),
            "kl": kl,
            "k3": k3,
            "clip_share": clipped,
        }
        with torch.no_grad():
            record = {name: values.detach().to(value.dtype).mean() for name, values in per_text.items()}
            record |= _over_texts(logits.detach(), record["value_loss"], expected.mean(dim=-1))
        return loss, record

    def replay_loss(self) -> Tensor | None:
        """With `updates` > 1: the mean loss per text of the groups sampled for earlier losses, under today's policy.

        Each call uses up one update of every kept group. None where there is none; groups are kept from the first
        call on, so a training that never replays keeps nothing.
        """
        kept, self.rollouts = self.rollouts or [], []
        if not kept:
            return None
        losses = []
        for left, rollout in kept:
            loss, record = self._rollout_loss(rollout, self._logits(rollout.state))
            losses.append(loss)
            self._remember(record)
            if left > 1:
                self.rollouts.append((left - 1, rollout))
        return torch.cat(losses).mean()

    def _remember(self, record: dict[str, Tensor]) -> None:
        for name, value in record.items():
            self.statistics[name] = self.statistics.get(name, torch.zeros_like(value)) + value
        self.forwards += 1

    def collect(self) -> dict[str, Tensor]:
        """Means of the recorded statistics since the last call, which forgets them.

        `depth_usage` is a vector, (D,); all others are scalars. Policy entropy is relative to log D.
        """
        collected = {name: total / self.forwards for name, total in self.statistics.items()}
        self.statistics, self.forwards = {}, 0
        return collected


def _over_texts(logits: Tensor, value_loss: Tensor, reward: Tensor) -> dict[str, Tensor]:
    """Statistics of a batch that are not means over its texts."""
    policy = logits.softmax(dim=-1)
    usage = policy.mean(dim=0)
    spread = reward.var(correction=0)
    return {
        # 0 where the rewards do not vary: there is nothing to explain
        "value_explained_variance": torch.where(spread > grpo.EPSILON**2, 1 - value_loss / spread, 0.0),
        # mutual information of depth and text, in nats
        "depth_information": torch.special.entr(usage).sum() - torch.special.entr(policy).sum(dim=-1).mean(),
        "depths_alive": (usage >= 1 / (4 * usage.numel())).to(usage.dtype).mean(),
        "depth_usage": usage,
    }
