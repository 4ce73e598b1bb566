"""Depth weights finer than one set a text: for each head, for each token, or for each head of each token.

    head              w[b,h,d]      a policy S -> 2 S -> H D on the text's state
    token             w[b,i,d]      a policy S -> 2 S -> D on each token's own q, heads side by side
    head and token    w[b,h,i,d]    a policy S -> 2 S -> H D on the same (S = H C)

    q'[b,h,i] = scale / (scaling C^2) * sum_d w[b,h,i,d] (f[h,d] . q[b,h,i]) g[h,d]   [+ q constant / scaling]

Each weight has noise of its own. Nothing rewards them: they learn from the training loss alone. Only the study has
them, to ask whether they would be worth a place in the library.

Source: method.md section 5 (its per-token and per-head-and-token rows).
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from maw.module import DepthAttention
from maw.selector import Selector, depth_weights, token_mean

__all__ = ["FINER", "FinerAttention", "refine"]

FINER = ("head", "token", "head and token")


class FinerAttention(DepthAttention):
    """MAW with such weights; made of an attached layer by `refine`."""

    weights_per: str

    def _is_one_step(self, query: Tensor) -> bool:
        return False

    def _composed(
        self, query: Float[Tensor, "B H Q C"], key: Tensor, mask: Bool[Tensor, "B Q"] | None
    ) -> Float[Tensor, "B H Q C"]:
        heads, depth, channels = self.query_views.shape
        wide = query.to(self.query_views.dtype)
        texts = len(query)
        per_token = wide.transpose(1, 2).flatten(2)
        state = token_mean(wide, mask)[:, None] if self.weights_per == "head" else per_token
        logits = self._logits(state.flatten(0, 1)).reshape(-1, depth)
        weight = self._weights_of(logits).reshape(texts, -1, 1 if self.weights_per == "token" else heads, depth)
        mixed = weight.transpose(1, 2) * (wide @ self.query_views.mT)
        transformed = self.scale / (self.scaling * channels**2) * (mixed @ self.key_views)
        if self.constant is not None:
            transformed = transformed + wide @ self.constant / self.scaling
        return transformed.to(query.dtype)

    def _weights_of(self, logits: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        config = self.config
        return depth_weights(
            logits, selection=config.selection, tau=self.tau, training=self.training, noise=config.noise
        )


def refine(layer: DepthAttention, weights_per: str) -> None:
    """Turn an attached layer into one with finer weights, uniform at the start.

    What is saved of such a model loads as plain MAW or not at all: for trainings that load no checkpoint.

    Args:
        layer: as `maw.attach` made it.
        weights_per: one of `FINER`.
    """
    if weights_per not in FINER:
        raise ValueError(f"weights are per {', '.join(FINER)}, got {weights_per!r}")
    if layer.config.calibrate and weights_per != "head":
        raise ValueError(f"calibrating looks at states of texts, and these weights are per {weights_per}")
    heads, depth, channels = layer.query_views.shape
    layer.__class__ = FinerAttention
    layer.weights_per = weights_per
    selector = Selector(heads * channels, depth if weights_per == "token" else heads * depth)
    layer.selector = selector.to(layer.query_views)
