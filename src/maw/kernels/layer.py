"""What a MAW layer does to its query, as one node of the autograd graph: eight launches forward, four backward.

    q -> state -> selector -> w -> q' = q W(w)                  the transformed query
                  selector -> sampled depths -> entropy -> loss  the auxiliary loss and, in closed form, its gradient

The same as `maw.module.DepthAttention` composes from PyTorch's operations, where small launches from Python would take
longer than the work. Backward adds the auxiliary loss's gradient as `maw.auxiliary.add_gradient` does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from maw.auxiliary import GradientScale
from maw.config import MAWConfig
from maw.kernels.entropy import write_entropy
from maw.kernels.group_loss import write_group_loss
from maw.kernels.launching import rows_together
from maw.kernels.ledger import Ledger
from maw.kernels.mixture import Mixture
from maw.kernels.parameter_gradients import parameter_gradients
from maw.kernels.selector import Weights, write_choice, write_hidden
from maw.kernels.selector_backward import write_gradients
from maw.kernels.token_mean import write_mean_and_share
from maw.kernels.transform import apply
from maw.kernels.transform_backward import transform_gradients
from maw.records import Rollout

__all__ = ["Given", "Trained", "Weights", "encode", "train"]

PADDED = 16
"""Columns between state and hidden units, so that both begin at a multiple of 16 bytes; the first holds the share."""


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
    ledger: Ledger

    def rollout(self) -> Rollout:
        """The sampled depths and what they were worth."""
        return Rollout(self.state, self.ledger.depth_index, self.ledger.log_probability, self.ledger.reward)


@torch.no_grad()
def encode(query: Float[Tensor, "B H Q C"], mask: Bool[Tensor, "B Q"] | None, given: Given) -> Float[Tensor, "B H Q C"]:
    """The query transformed by noise-free depth weights; no gradient."""
    query, mask = rows_together(query), None if mask is None else mask.contiguous()
    batch, heads, _, channels = query.shape
    size, depth = heads * channels, given.config.depth
    worked = query.new_empty(batch, 3 * size + PADDED + depth, dtype=torch.float32)
    state, hidden, chosen = worked, worked[:, size + PADDED :], worked[:, 3 * size + PADDED :]
    write_mean_and_share(query, mask, state)
    write_hidden(state, hidden, given.weights, with_value=False)
    write_choice(hidden, given.weights, None, Ledger(chosen, depth, 0), tau=given.config.tau, noise=0.0)
    return apply(query, given.mixture(chosen, *given[:3]))


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
    views = given.query_views, given.key_views
    transformed, worked, rows = _Layer.apply(query, *views, *given.weights, key, mask, given)
    state = worked[:, : query.shape[1] * query.shape[3]]
    return Trained(transformed, state, Ledger(rows, given.config.depth, given.config.group_size))


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, f: Tensor, g: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        *parameters, key, mask, given = rest
        weights, config = Weights(*parameters), given.config
        batch, heads, _, channels = query.shape
        size = heads * channels
        worked = query.new_empty(batch, 4 * size + PADDED, dtype=torch.float32)
        state, hidden = worked, worked[:, size + PADDED :]
        ledger = Ledger.empty(worked, batch, config.depth, config.group_size)
        clocks = worked.new_empty(batch, config.group_size + 1, config.depth).exponential_()
        write_mean_and_share(query, mask, state)
        write_hidden(state, hidden, weights, with_value=True)
        noise = config.noise if config.selection == "gumbel" else 0.0
        write_choice(hidden, weights, clocks, ledger, tau=config.tau, noise=noise)
        transformed = apply(query, given.mixture(ledger.rows, f, g, given.constant))
        entropy = write_entropy(
            query, key, f, g, ledger.rows, ledger.group, column=ledger.index_column, scale=given.scale, mask=mask
        )
        write_group_loss(ledger, entropy[-batch * heads * ledger.group :], heads, config)
        ctx.given = given
        ctx.save_for_backward(query, mask, f, g, given.constant, worked, ledger.rows, *weights)
        ctx.mark_non_differentiable(worked, ledger.rows)
        ctx.set_materialize_grads(False)
        return transformed, worked, ledger.rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *others: None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * len(ctx.needs_input_grad)
        query, mask, f, g, constant, worked, rows, *parameters = ctx.saved_tensors
        given: Given = ctx.given
        config = given.config
        needs_query, needs_f, needs_g, *_ = ctx.needs_input_grad
        mixture = given.mixture(rows, f, g, constant)
        gradient = rows_together(gradient)
        _, shares = transform_gradients(query, gradient, mixture, with_query=False, with_views=needs_f or needs_g)
        size, weights = query.shape[1] * query.shape[3], Weights(*parameters)
        ledger = Ledger(rows, config.depth, config.group_size)
        hidden, per_token = worked[:, size + PADDED :], worked[:, size:]
        factor = given.gradient_scale.factor(len(rows), rows.device)
        written = write_gradients(hidden, per_token, weights, ledger, shares.depth_weight, factor, tau=config.tau)
        token_gradient, of_views, of_weights = parameter_gradients(worked, written, weights, f, shares.views)
        query_gradient = None
        if needs_query:
            query_gradient = apply(gradient, mixture, transposed=True, shift=token_gradient, mask=mask)
        return query_gradient, *of_views, *of_weights, None, None, None
