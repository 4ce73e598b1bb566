"""The selector: from a text's state to policy logits, a value, and depth weights (method.md section 4)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from maw.config import Selection
from maw.shapes import check_real_keys

__all__ = ["Selector", "depth_weights", "token_mean"]


def token_mean(query: Float[Tensor, "B H Q C"], mask: Bool[Tensor, "B Q"] | None = None) -> Float[Tensor, "B H*C"]:
    """The selector's state: the mean of q over real tokens, heads side by side.

    Args:
        query: q, (B, H, Q, C).
        mask: (B, Q), True where there is a token.

    Returns:
        (B, H*C), in float32 at least.

    Raises:
        MAWError: a text without a real token.

    >>> token_mean(torch.ones(2, 3, 5, 4)).shape
    torch.Size([2, 12])
    """
    query = query.to(torch.promote_types(query.dtype, torch.float32))
    if mask is None:
        return query.mean(dim=2).flatten(1)
    check_real_keys(mask)
    token = mask[:, None, :, None]
    return (query.masked_fill(~token, 0.0).sum(dim=2) / token.sum(dim=2)).flatten(1)


def depth_weights(
    logits: Float[Tensor, "B D"], *, selection: Selection, tau: float, training: bool, noise: float = 1.0
) -> Float[Tensor, "B D"]:
    """Depth weights from policy logits; evaluation is the noise-free limit of training, with the same tau.

        gumbel     softmax((logits + noise * Gumbel) / tau) in training, softmax(logits / tau) in evaluation
        softmax    softmax(logits / tau)
        hard       one-hot of the largest (logits + noise * Gumbel) in training, of the largest logit in evaluation,
                   with the soft weights' gradient (straight-through); not an exact start
        uniform    1 / D

    Args:
        logits: policy logits, (B, D).
        selection: one of the above.
        tau: temperature.
        training: whether noise is drawn.
        noise: factor on the Gumbel noise. With 1 a training weight is a Gumbel-Softmax of softmax(logits); with less
            noise at a smaller tau the weights stay as calm and follow the policy further.

    Returns:
        (B, D), rows sum to 1.

    Source: Jang et al. 2017, Categorical Reparameterization with Gumbel-Softmax; method.md section 4.

    >>> depth_weights(torch.zeros(1, 4), selection="gumbel", tau=5.0, training=False).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """
    if selection == "uniform":
        return torch.full_like(logits, 1.0 / logits.shape[-1])
    if training and selection in ("gumbel", "hard"):
        logits = logits - noise * torch.empty_like(logits).exponential_().log()  # -log of an exponential is Gumbel
    soft = (logits / tau).softmax(dim=-1)
    if selection == "hard":
        one_hot = F.one_hot(soft.argmax(dim=-1), soft.shape[-1]).to(soft.dtype)
        return one_hot - soft.detach() + soft
    return soft


class Selector(nn.Module):
    """Policy and value networks over the state.

        policy: S -> 2 S -> D, last layer zero, so the start is uniform;   value: S -> S -> 1

    Args:
        state_size: S = H * C.
        depth: D.

    Source: method.md section 4.

    >>> Selector(12, 5).policy(torch.randn(2, 12)).tolist()[0]
    [0.0, 0.0, 0.0, 0.0, 0.0]
    """

    def __init__(self, state_size: int, depth: int) -> None:
        super().__init__()
        uniform = nn.Linear(2 * state_size, depth)
        nn.init.zeros_(uniform.weight)
        nn.init.zeros_(uniform.bias)
        self.policy_network = nn.Sequential(nn.Linear(state_size, 2 * state_size), nn.GELU(), uniform)
        self.value_network = nn.Sequential(nn.Linear(state_size, state_size), nn.GELU(), nn.Linear(state_size, 1))

    def hidden(self, state: Float[Tensor, "B S"]) -> Float[Tensor, "B 3*S"]:
        """What the hidden units get: those of the policy, 2 S, and of the value network, S."""
        return torch.cat([network[0](state) for network in (self.policy_network, self.value_network)], dim=-1)

    @torch.no_grad()
    def standardise(self, mean: Float[Tensor, " 3*S"], variance: Float[Tensor, " 3*S"]) -> None:
        """Give every hidden unit mean 0 and the deviation that its initialisation intends, over some texts.

            unit  <-  (unit - mean) / (sqrt(3) deviation)                                            (10)
            deviation^2 = variance + (mean over units of mean^2) / 10,000

        A second time changes next to nothing. Texts that are all alike have no variance, and are not blown up.

        Args:
            mean: of what `hidden` gives, over texts, (3 S,).
            variance: likewise.

        Source: method.md (10).
        """
        least = 1e-4 * mean.square().mean() + torch.finfo(mean.dtype).tiny
        factor = (3 * (variance + least)).rsqrt()
        sizes = [network[0].out_features for network in (self.policy_network, self.value_network)]
        for network, shift, share in zip(
            (self.policy_network, self.value_network), mean.split(sizes), factor.split(sizes), strict=True
        ):
            first: Any = network[0]
            first.bias.copy_((first.bias - shift) * share)
            first.weight.mul_(share[:, None])

    def policy(self, state: Float[Tensor, "B S"]) -> Float[Tensor, "B D"]:
        """Policy logits, (B, D)."""
        return self.policy_network(state)

    def value(self, state: Float[Tensor, "B S"]) -> Float[Tensor, " B"]:
        """The expected reward of the policy on each text, (B,)."""
        return self.value_network(state).squeeze(-1)
