"""What a MAW layer does to its query, as one node of the autograd graph: some eight launches forward, seven backward.

    q -> state -> selector -> w -> q' = q W(w)                  the transformed query
                  selector -> sampled depths -> entropy -> loss  the auxiliary loss and, in closed form, its gradient

The same as `maw.module.DepthAttention` composes from PyTorch's operations, where small launches from Python would take
longer than the work. Backward adds the auxiliary loss's gradient as `maw.auxiliary.add_gradient` does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from maw.auxiliary import GradientScale
from maw.config import MAWConfig
from maw.kernels import selector, transform
from maw.kernels.entropy import slice_entropy
from maw.kernels.group_loss import group_loss
from maw.kernels.selector import Weights
from maw.kernels.selector_backward import selector_gradients
from maw.kernels.token_mean import mean_and_share
from maw.kernels.transform import Mixture, rows_together

__all__ = ["Given", "Trained", "Weights", "encode", "train"]


class Given(NamedTuple):
    """A layer's parameters and settings."""

    query_views: Float[Tensor, "H D C"]
    key_views: Float[Tensor, "H D C"]
    constant: Float[Tensor, "H C C"] | None
    weights: Weights
    config: MAWConfig
    scale: float
    scaling: float
    gradient_scale: GradientScale

    def mixture(self, depth_weight: Tensor, query_views: Tensor, key_views: Tensor, constant: Tensor | None) -> Mixture:
        """W for a host that multiplies its logits with `scaling`."""
        return Mixture(query_views, key_views, depth_weight, constant, self.scale / self.scaling, 1 / self.scaling)


class Trained(NamedTuple):
    """One training forward; all but the query without gradient."""

    query: Float[Tensor, "B H Q C"]
    state: Float[Tensor, "B S"]
    logits: Float[Tensor, "B D"]
    value: Float[Tensor, " B"]
    depth_index: Int[Tensor, "B G"]
    log_probability: Float[Tensor, "B G"]
    reward: Float[Tensor, "B G"]
    loss: Float[Tensor, " B"]
    policy_loss: Float[Tensor, " B"]
    clip_share: Float[Tensor, " B"]


@torch.no_grad()
def encode(query: Float[Tensor, "B H Q C"], mask: Bool[Tensor, "B Q"] | None, given: Given) -> Float[Tensor, "B H Q C"]:
    """The query transformed by noise-free depth weights; no gradient."""
    query, mask = rows_together(query), None if mask is None else mask.contiguous()
    state, _ = mean_and_share(query, mask)
    hidden = selector.hidden_units(state, given.weights, with_value=False)
    choice = selector.choose(hidden, given.weights, None, tau=given.config.tau, noisy=False)
    return transform.apply(query, given.mixture(choice.depth_weight, *given[:3]))


def train(
    query: Float[Tensor, "B H Q C"],
    key: Float[Tensor, "B Hkv Q C"],
    mask: Bool[Tensor, "B Q"] | None,
    given: Given,
) -> Trained:
    """The query transformed by sampled depth weights, and the selector's loss, which follows it in backward.

    For `selection` "gumbel" or "softmax", `estimator` "sampled" and the entropy reward. One draw of exponential noise.
    """
    mask = None if mask is None else mask.contiguous()
    query, key = rows_together(query), rows_together(key.detach())
    return Trained(*_Layer.apply(query, given.query_views, given.key_views, *given.weights, key, mask, given))


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, f: Tensor, g: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *parameters, key, mask, given = rest
        weights, config = Weights(*parameters), given.config
        state, per_token = mean_and_share(query, mask)
        hidden = selector.hidden_units(state, weights, with_value=True)
        noise = state.new_empty(len(state), config.group_size + 1, config.depth).exponential_()
        choice = selector.choose(hidden, weights, noise, tau=config.tau, noisy=config.selection == "gumbel")
        transformed = transform.apply(query, given.mixture(choice.depth_weight, f, g, given.constant))
        entropy = slice_entropy(query, key, f, g, choice.depth_index, scale=given.scale, mask=mask)
        outcome = group_loss(choice, entropy, config)
        ctx.given = given
        ctx.save_for_backward(
            *(query, mask, f, g, given.constant, state, per_token, hidden, choice.depth_weight),
            *(outcome.logits_gradient, outcome.value_gradient, *weights),
        )
        aside = (state, choice.logits, choice.value, choice.depth_index, choice.log_probability, *outcome[:4])
        ctx.mark_non_differentiable(*aside)
        ctx.set_materialize_grads(False)
        return transformed, *aside

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *others: None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * len(ctx.needs_input_grad)
        query, mask, f, g, constant, state, per_token, hidden, depth_weight, *rest = ctx.saved_tensors
        logits_gradient, value_gradient, *parameters = rest
        given: Given = ctx.given
        needs_query, needs_f, needs_g, *_ = ctx.needs_input_grad
        mixture = given.mixture(depth_weight, f, g, constant)
        gradient = rows_together(gradient)
        _, shares = transform.backward(query, gradient, mixture, with_query=False, with_views=needs_f or needs_g)
        token_gradient, gradients = selector_gradients(
            *(state, hidden, Weights(*parameters), depth_weight, shares.depth_weight),
            *(logits_gradient, value_gradient, given.gradient_scale.factor(len(state), state.device), per_token),
            tau=given.config.tau,
        )
        query_gradient = None
        if needs_query:
            query_gradient = transform.apply(gradient, mixture, transposed=True, shift=token_gradient, mask=mask)
        return query_gradient, *shares.views_gradient(f.dtype), *gradients, None, None, None
