"""A model's MAW layers, without a walk through all its modules at every training step."""

from __future__ import annotations

from torch import nn

from maw.hf.attach import maw_layers, surgeries
from maw.module import DepthAttention

__all__ = ["LayersInPlace"]


class LayersInPlace:
    """`maw_layers` again and again: a model is walked through anew only after MAW was attached to or taken from any
    model, and where a layer is no longer in its place, as when an adapter put a copy there.

    A walk takes as long as many launches, which counts in a training step.

    >>> layers = LayersInPlace()
    >>> layers(nn.Linear(2, 2))
    []
    """

    def __init__(self) -> None:
        self.model: nn.Module | None = None
        self.surgeries = 0
        self.found: list[DepthAttention] = []
        self.places: list[tuple[nn.Module, str, DepthAttention]] = []

    def __call__(self, model: nn.Module) -> list[DepthAttention]:
        """The MAW layers of `model` in use, in order."""
        if model is not self.model or self.surgeries != surgeries[0] or self._moved():
            places = {child: (parent, name) for parent in model.modules() for name, child in parent.named_children()}
            self.found = maw_layers(model)
            self.places = [(*places[layer], layer) for layer in self.found if layer is not model]
            self.model, self.surgeries = model, surgeries[0]
        return self.found

    def _moved(self) -> bool:
        return any(getattr(parent, name, None) is not layer for parent, name, layer in self.places)
