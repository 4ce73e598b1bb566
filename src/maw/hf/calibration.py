"""Let untrained selectors begin where they can tell texts apart.

A selector's state is the mean query of a text. Most of it is common to all texts: in all-MiniLM-L6-v2's last layer the
mean over texts is 2.1 to 2.7 times as long as a text's distance from it. A policy that starts from the raw state learns
for hundreds of steps which depths are good on the whole before it learns for which text. So training begins by looking
at some texts and folding the state's mean and variance into the first layers of both networks; a policy that is zero
stays zero.

Source: method.md (10); data-dependent initialisation as in Salimans and Kingma 2016, Weight Normalization, section 3.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from maw.errors import MAWError
from maw.hf.attach import maw_layers
from maw.module import DepthAttention
from maw.selector import token_mean

__all__ = ["calibrating"]


class _Moments:
    """Number, sum and sum of squares of the states that a layer gets."""

    def __init__(self) -> None:
        self.texts = 0
        self.sums: tuple[Tensor, Tensor] | None = None

    def listen(self, layer: nn.Module, arguments: tuple[Any, ...], _: dict[str, Any]) -> None:
        query, _, _, mask = arguments
        with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            state = token_mean(query, mask).double()
        found = state.sum(dim=0), state.square().sum(dim=0)
        self.sums = found if self.sums is None else (self.sums[0] + found[0], self.sums[1] + found[1])
        self.texts += len(state)


@contextmanager
def calibrating(model: nn.Module) -> Generator[None]:
    """Let the untrained selectors of `model` see standardised states, by the texts that are encoded within.

    `Selector.standardise` has the equation. Selectors whose policy has been trained are left as they are. No embedding
    changes.

    Args:
        model: an encoder with MAW, of Sentence Transformers or Transformers; one without is left alone.

    Raises:
        MAWError: fewer than two texts were encoded.

    >>> from transformers import BertConfig, BertModel
    >>> import maw
    >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    >>> model = maw.attach(BertModel(BertConfig(**sizes)), maw.MAWConfig(depth=4)).model
    >>> with calibrating(model):
    ...     _ = model(input_ids=torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 8]]))
    """
    layers = [layer for layer in maw_layers(model) if _is_untrained(layer)]
    moments = [_Moments() for _ in layers]
    with ExitStack() as stack:
        for layer, found in zip(layers, moments, strict=True):
            stack.callback(layer.register_forward_pre_hook(found.listen, with_kwargs=True).remove)
        yield
    for layer, found in zip(layers, moments, strict=True):
        if found.texts < 2 or found.sums is None:
            raise MAWError(f"calibrating needs at least two texts, got {found.texts}: encode some within")
        mean, square = (total / found.texts for total in found.sums)
        layer.selector.standardise(mean, (square - mean.square()).clamp(min=0))


def _is_untrained(layer: DepthAttention) -> bool:
    if layer.config.selection == "uniform":
        return False
    return not any(parameter.any() for parameter in layer.selector.policy_network[-1].parameters())
