"""MPNet's attention with MAW. MPNet adds a position bias to its logits inside the layer, where the attention
interface does not reach, so this layer's forward is written here.

    logit[b,h] = scaling * q W k^T + position_bias[h] + attention_mask

MAW transforms the query; position bias and mask stay the host's. A slice, for the reward, is without both.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from maw.hf.attention import check_implementation
from maw.hf.masks import key_mask

__all__ = ["IMPLEMENTATIONS", "carry", "release"]

IMPLEMENTATIONS = ("eager",)
"""What MPNet's own attention amounts to; Transformers offers no other for it."""


def carry(attention: Any, host_config: Any) -> None:
    """Let one MPNet attention layer compute its attention here."""
    attention.maw_host_config = host_config
    attention.forward = partial(_forward, attention)  # not a bound method, which could not be pickled


def release(attention: Any) -> None:
    """The inverse of `carry`."""
    del attention.forward, attention.maw_host_config


def _forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_bias: Tensor | None = None,
    output_attentions: bool = False,
    **_: Any,
) -> tuple[Tensor, ...]:
    check_implementation(self.maw_host_config._attn_implementation, IMPLEMENTATIONS)
    query, key, value = (
        projection(hidden_states).unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)
        for projection in (self.q, self.k, self.v)
    )
    batch, _, keys, channels = key.shape

    def attend(transformed: Tensor, *, added: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logit = channels**-0.5 * transformed @ key.mT
        for term in (added, position_bias, attention_mask):
            if term is not None:
                logit = logit + term
        attention = F.dropout(logit.softmax(dim=-1), self.dropout.p, self.training)
        return attention @ value, attention

    mask, draws = key_mask(attention_mask, batch, keys), self.training and self.dropout.p > 0
    out, attention = self.maw(query, key, value, mask, attend=attend, apart=draws)
    out = self.o(out.transpose(1, 2).flatten(2))
    return (out, attention) if output_attentions else (out,)
