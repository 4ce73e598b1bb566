"""`DepthAttention`: view vectors, selector and (7) as one module, with its auxiliary GRPO loss."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from maw import compiled
from maw.auxiliary import GradientScale, add_gradient, in_backward
from maw.choice import Choice, choose, keep_until_rewarded, rollout_loss
from maw.config import MAWConfig
from maw.errors import MAWError
from maw.kernels import use_triton
from maw.operations import Operations, choose_operations
from maw.random_numbers import drawing_apart
from maw.records import KEPT, Record, Rollout, statistics
from maw.rewards import entropy_reward
from maw.selector import Selector, depth_weights, token_mean
from maw.shapes import check_finite, check_layer_arguments, repeat_heads
from maw.views import Views

if TYPE_CHECKING:
    from maw.kernels.ledger import Ledger

__all__ = ["DepthAttention"]


class DepthAttention(nn.Module):
    """MAW for one attention layer: the host's attention on a transformed query.

        state = mean_tokens(q);  w = depth weights(policy(state));  out = attention(q @ W(w), k, v)

    In training, each forward also computes the GRPO loss of the selector on its own texts and hangs its gradient on the
    transformed query (`maw.auxiliary`); what happened is kept in `records` until `collect` is called.

    Args:
        config: the settings.
        views: how f and g start, with the constant that completes them where D < C.
        scaling: the host's factor on its logits; None is 1/sqrt(C).

    Raises:
        MAWError: the views' depth disagrees with `config.depth`, or they are not finite.

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
        self.records: deque[Record | Ledger] = deque(maxlen=KEPT)
        # kept only where something replays them: None until `replay_loss` is first called
        self.rollouts: list[tuple[int, Rollout]] | None = None
        self.progress = 1.0
        """How far training is, from 0 to 1, while a step of it runs; 1 at any other time. `tau_start` needs it."""
        self.forced: Tensor | None = None
        """Depth weights, (B, D), for the next forwards, whatever the selector says; they choose and record nothing."""
        self.pending: list[tuple[Choice, Tensor | None]] | None = None
        """Choices whose reward is known after the whole model's forward, with the part of it that is known; None where
        nobody waits for them."""
        self.handle = compiled.handle_of(self)
        check_finite(self)
        self.register_load_state_dict_post_hook(check_finite)

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy
        super().__setstate__(state)
        self.handle = compiled.handle_of(self)

    def extra_repr(self) -> str:
        """Heads, depths, channels and how weights are chosen."""
        heads, depth, channels = self.query_views.shape
        config = self.config
        return f"heads={heads}, depth={depth}, channels={channels}, selection={config.selection}, tau={config.tau}"

    def forward(
        self,
        query: Float[Tensor, "B H Q C"],
        key: Float[Tensor, "B Hkv K C"],
        value: Float[Tensor, "B Hkv K C"],
        mask: Bool[Tensor, "B K"] | None = None,
        *,
        attend: Callable[[Tensor], object] | None = None,
        apart: bool = False,
    ) -> object:
        """Attention with MAW's logits.

        Args:
            query: q, (B, H, Q, C).
            key: k, (B, Hkv, K, C); Hkv is H, or a divisor of H where query heads share keys.
            value: v, (B, Hkv, K, C).
            mask: (B, K), True where there is a token; queries and keys are the same tokens.
            attend: the host's attention as a function of the query alone; it applies `scaling` and its own mask.
                None is scaled-dot-product attention with `mask`.
            apart: whether the host draws random numbers in this forward, too. What MAW draws is then apart from them
                (`maw.random_numbers`), except where the layer is compiled.

        Returns:
            whatever `attend` returns; (B, H, Q, C) without it.

        Raises:
            MAWError: shapes, types or devices that do not fit, or a text without a real key (on a CUDA device
                `maw.hf.inputs` alone looks for that).
        """
        check_layer_arguments(query, key, value, mask, self.query_views)
        device, apart = query.device, apart and self.training and not torch.compiler.is_compiling()
        with torch.autocast(device.type, enabled=False), drawing_apart(device) if apart else nullcontext():
            query_transformed = (self._one_step if self._is_one_step(query) else self._composed)(query, key, mask)
        if attend is None:
            attention_mask = None if mask is None else mask[:, None, None, :]
            key, value = repeat_heads(key, query.shape[1]), repeat_heads(value, query.shape[1])
            return F.scaled_dot_product_attention(query_transformed, key, value, attention_mask, scale=self.scaling)
        return attend(query_transformed)

    def _composed(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """The transformed query, operation by operation."""
        operations, choice = choose_operations(self.config.kernels, query, self.config.depth), None
        if self.forced is not None:
            weight = self.forced
        elif self.config.selection == "uniform":
            weight = self.query_views.new_full((query.shape[0], self.config.depth), 1.0 / self.config.depth)
        else:
            state = operations.token_mean(query, mask).to(self.query_views.dtype)
            if self.training and len(query):
                choice = self._choose(state)
            weight = self.weights(state) if choice is None else choice.depth_weight
        constant = None if self.constant is None else self.constant / self.scaling
        query_transformed = operations.transform_query(
            query, self.query_views, self.key_views, weight, constant=constant, scale=self.scale / self.scaling
        )
        if choice is None:
            return query_transformed
        if self.config.reward == "retrieval":
            keep_until_rewarded(self.pending, choice, None, kind=self.config.reward)
            return query_transformed
        reward = self._reward(query.detach(), key.detach(), mask, choice.depth_index, operations)
        if self.config.reward == "sum":
            keep_until_rewarded(self.pending, choice, reward, kind=self.config.reward)
            return query_transformed
        return self._with_auxiliary(query_transformed, choice, reward)

    def weights(self, state: Float[Tensor, "B S"]) -> Float[Tensor, "B D"]:
        """Depth weights chosen for these states: noisy in training mode, the noise-free limit in evaluation mode."""
        logits = self._logits(state)
        config = self.config
        return depth_weights(
            logits, selection=config.selection, tau=self.tau, training=self.training, noise=config.noise
        )

    def policy_logits(
        self, query: Float[Tensor, "B H Q C"], mask: Bool[Tensor, "B Q"] | None = None
    ) -> Float[Tensor, "B D"]:
        """The policy's logits for texts with these queries, in float32 at least."""
        return self._logits(token_mean(query, mask).to(self.query_views.dtype))

    @property
    def tau(self) -> float:
        """The temperature now: `config.tau`, or on the way to it from `config.tau_start`."""
        start, end = self.config.tau_start, self.config.tau
        return end if start is None or self.progress >= 1 else start + self.progress * (end - start)

    def _logits(self, state: Tensor) -> Tensor:
        logits = self.selector.policy(state)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    # The auxiliary loss

    def _choose(self, state: Tensor) -> Choice:
        """Depth weights whose gradient reaches the encoder, and a group of depths whose loss must not."""
        if torch.compiler._is_exporting_flag:  # PyTorch 2.11's is_exporting() holds under torch.compile, too
            raise MAWError(
                "export the model in evaluation mode, call model.eval() first: in training mode a MAW layer draws "
                "depths and keeps records, which an exported program has no place for"
            )
        logits, own_logits = self._logits(torch.cat([state, state.detach()])).chunk(2)
        return choose(state.detach(), logits, own_logits, self.config, tau=self.tau)

    @torch.no_grad()
    def _reward(
        self, query: Tensor, key: Tensor, mask: Tensor | None, depth_index: Tensor, operations: Operations
    ) -> Tensor:
        views = self.query_views, self.key_views
        return entropy_reward(query, key, *views, depth_index, scale=self.scale, mask=mask, operations=operations)

    def settle(self, choice: Choice, reward: Tensor) -> Tensor:
        """The auxiliary loss per text, (B,), of a choice whose whole reward is known; recorded for `collect`."""
        with torch.autocast(reward.device.type, enabled=False):
            rollout = Rollout(choice.state, choice.depth_index, choice.log_probability, reward.detach())
            # logits of their own graph: those of the choice share one with the training loss
            loss, record = self._rollout_loss(rollout, self._logits(choice.state))
        self.records.append(record)
        return loss

    def _with_auxiliary(self, query_transformed: Tensor, choice: Choice, reward: Tensor) -> Tensor:
        """The transformed query, carrying the gradient of the selector's loss on these texts.

        A checkpointed layer runs twice, the second time inside backward: what happened is recorded the first time, and
        both times draw the same random numbers.
        """
        texts = len(reward)
        rollout = Rollout(choice.state, choice.depth_index, choice.log_probability, reward)
        loss, record = self._rollout_loss(rollout, choice.logits)
        compiling = torch.compiler.is_compiling()
        if compiling:
            compiled.remember(self.handle, record, rollout)
        else:
            self.remember(record, rollout, texts)
        if not torch.is_grad_enabled():
            return query_transformed
        if compiling:
            return compiled.add_gradient(query_transformed, loss.sum(), self.handle, texts)
        return add_gradient(query_transformed, loss.sum(), self.gradient_scale, texts)

    def remember(self, record: Record | Ledger, rollout: Rollout | None, texts: int) -> None:
        """Count one forward's texts and keep what happened to them; nothing in a checkpointed layer's second run."""
        if in_backward():
            return
        self.gradient_scale.texts += texts
        self.records.append(record)
        if self.rollouts is not None and self.config.updates > 1 and rollout is not None:
            self.rollouts.append((self.config.updates - 1, rollout))

    def _rollout_loss(self, rollout: Rollout, logits: Tensor) -> tuple[Tensor, Record]:
        return rollout_loss(rollout, logits, self.selector.value(rollout.state), self.config)

    # The same in one step on a GPU

    def _is_one_step(self, query: Tensor) -> bool:
        """Whether `maw.kernels.layer` serves this forward."""
        config = self.config
        if config.selection not in ("gumbel", "softmax") or not use_triton(config.kernels, query, config.depth):
            return False
        if self.forced is not None or config.reward != "entropy" or self.tau != config.tau:
            return False  # rare settings of studies, operation by operation
        return config.estimator == "sampled" if self.training else not torch.is_grad_enabled()

    def _one_step(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        from maw.kernels import layer

        views = self.query_views.contiguous(), self.key_views.contiguous(), self.constant
        weights = layer.Weights.of(self.selector)
        given = layer.Given(*views, weights, self.config, self.scale, self.scaling, self.gradient_scale)
        if not self.training:
            return layer.encode(query, mask, given)
        trained = layer.train(query, key, mask, given)
        self.remember(trained.ledger, trained.rollout() if self.config.updates > 1 else None, len(query))
        return trained.query

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
            with torch.autocast(rollout.state.device.type, enabled=False):  # as when it was sampled
                loss, record = self._rollout_loss(rollout, self._logits(rollout.state))
            losses.append(loss)
            self.records.append(record)
            if left > 1:
                self.rollouts.append((left - 1, rollout))
        return torch.cat(losses).mean()

    def collect(self) -> dict[str, Tensor]:
        """Means of what was recorded since the last call, which forgets it: see `maw.records.statistics`."""
        records, config = [kept.record() for kept in self.records], self.config
        collected = statistics(records, selection=config.selection, tau=config.tau)
        self.records.clear()
        return collected
