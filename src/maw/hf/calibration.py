"""Let untrained selectors begin where they can tell texts apart.

A selector's state is the mean query of a text. Most of it is common to all texts: in all-MiniLM-L6-v2's last layer the
mean over texts is 2.1 to 2.3 times as long as a text's distance from it (docs/results/calibration.md), in its first 1.4
times. A policy that starts from such states learns for hundreds of steps which depths are good on the whole before it
learns for which text. So its hidden units, and the value network's, are shifted and scaled to mean 0 over some texts; a
policy that is zero stays zero.

Source: method.md (10); data-dependent initialisation, Salimans and Kingma 2016, Weight Normalization, section 3.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from maw.errors import MAWError
from maw.hf.attach import maw_layers
from maw.hf.listening import listening
from maw.module import DepthAttention
from maw.selector import token_mean

__all__ = ["calibrating"]


class _Moments:
    """Number, sum and sum of squares of what a selector's hidden units get, in float64 on the CPU."""

    def __init__(self) -> None:
        self.texts = 0
        self.sum = self.square = torch.zeros((), dtype=torch.float64)

    def add(self, hidden: Tensor) -> None:
        hidden = hidden.cpu().double()
        self.texts += len(hidden)
        self.sum, self.square = self.sum + hidden.sum(dim=0), self.square + hidden.square().sum(dim=0)


@contextmanager
def calibrating(model: nn.Module) -> Generator[None]:
    """Standardise the hidden units of the untrained selectors in `model` over the texts that are encoded within.

    To be done in evaluation mode, in which Sentence Transformers' `encode` puts a model anyway. `Selector.standardise`
    has the equation. Selectors whose policy is trained are left as they are, and so are those that hear no text, as an
    adapter's copies do while another adapter is active. No embedding changes. A second time over the same texts changes
    next to nothing.

    Args:
        model: an encoder with MAW, of Sentence Transformers or Transformers; one without is left alone.

    Raises:
        MAWError: fewer than two texts were encoded; nothing was changed then.

    >>> from transformers import BertConfig, BertModel
    >>> import maw
    >>> sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    >>> model = maw.attach(BertModel(BertConfig(**sizes)), maw.MAWConfig(depth=4)).model.eval()
    >>> with calibrating(model):
    ...     _ = model(input_ids=torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 8]]))
    """
    untrained = [layer for layer in maw_layers(model) if _is_untrained(layer)]
    moments = {layer: _Moments() for layer in untrained}

    def hear(layer: DepthAttention, query: Tensor, _: Tensor, mask: Tensor | None) -> None:
        moments[layer].add(layer.selector.hidden(token_mean(query, mask).to(layer.query_views.dtype)))

    with listening(untrained, hear):
        yield
    texts = max((found.texts for found in moments.values()), default=2)
    if texts < 2:
        raise MAWError(f"calibrating needs at least two texts, got {texts}: encode some within")
    for layer, found in moments.items():
        if found.texts:
            mean = found.sum / found.texts
            variance = (found.square / found.texts - mean.square()).clamp(min=0)
            of = layer.query_views
            layer.selector.standardise(mean.to(of.device, of.dtype), variance.to(of.device, of.dtype))


def _is_untrained(layer: DepthAttention) -> bool:
    if layer.config.selection == "uniform":
        return False
    return not any(parameter.any() for parameter in layer.selector.policy_network[-1].parameters())
