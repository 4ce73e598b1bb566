"""What a compiled training step still does in Python: keep records, and look up how much the auxiliary loss weighs.

`torch.compile` runs Python once, while it traces; afterwards its graph runs alone. What must happen in every step is
an operator here that the compiler does not look into. A graph holds tensors, so a layer is named by a number in one.
"""

from __future__ import annotations

import itertools
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from maw.auxiliary import GradientScale
from maw.records import Record, Rollout

__all__ = ["add_gradient", "handle_of", "remember"]


class Layer(Protocol):
    """What this needs of a `maw.module.DepthAttention`."""

    gradient_scale: GradientScale

    def remember(self, record: Record, rollout: Rollout, texts: int) -> None:
        """Keep what happened in one forward."""


_NUMBERS = itertools.count()
_LAYERS: WeakValueDictionary[int, Layer] = WeakValueDictionary()


def handle_of(layer: Layer) -> Tensor:
    """A new number for `layer`, in a tensor on the CPU; it is found by it for as long as it lives."""
    number = next(_NUMBERS)
    _LAYERS[number] = layer
    return torch.tensor(number, device="cpu")


def remember(handle: Tensor, record: Record, rollout: Rollout) -> None:
    """Have the layer keep these, as `DepthAttention.remember` does, whenever the graph runs."""
    kept = [tensor for tensor in (*record[:-1], *rollout) if tensor is not None]
    _remember(handle, kept, record.all_arms)


def add_gradient(x: Tensor, loss: Tensor, handle: Tensor, own_texts: int) -> Tensor:
    """`maw.auxiliary.add_gradient` whose factor is looked up whenever the graph's backward runs."""
    return _AddGradient.apply(x, loss, handle, own_texts)


class _AddGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor, handle: Tensor, own_texts: int) -> Tensor:
        ctx.handle, ctx.own_texts, ctx.dtype = handle, own_texts, loss.dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        # the gradient is an argument so that the operator runs in backward, when the factor is known
        return grads[0], _factor(ctx.handle, grads[0], ctx.own_texts, ctx.dtype), None, None


# `handle` is not changed; an operator that changes nothing and returns nothing would be left out of the graph. Neither
# may become part of a CUDA graph, whose replay runs no Python.


@torch.library.custom_op(
    "maw::remember",
    mutates_args=("handle",),
    schema="(Tensor(a!) handle, Tensor[] kept, bool all_arms) -> ()",
    tags=(torch.Tag.cudagraph_unsafe,),
)
def _remember(handle: Tensor, kept: list[Tensor], all_arms: bool) -> None:
    own = [tensor.clone() for tensor in kept]  # the graph goes on to use their memory
    rollout = Rollout(*own[-len(Rollout._fields) :])
    record, clip_share = own[: -len(Rollout._fields)], None
    if not all_arms:
        clip_share = record.pop()
    _LAYERS[int(handle)].remember(
        Record(*record, clip_share=clip_share, all_arms=all_arms), rollout, len(rollout.reward)
    )


@torch.library.custom_op(
    "maw::gradient_factor",
    mutates_args=(),
    schema="(Tensor handle, Tensor gradient, SymInt own_texts, ScalarType dtype) -> Tensor",
    tags=(torch.Tag.cudagraph_unsafe,),
)
def _factor(handle: Tensor, gradient: Tensor, own_texts: int, dtype: torch.dtype) -> Tensor:
    return _LAYERS[int(handle)].gradient_scale.factor(own_texts, gradient.device, dtype).clone()


@_factor.register_fake
def _(handle: Tensor, gradient: Tensor, own_texts: int, dtype: torch.dtype) -> Tensor:
    return gradient.new_empty((), dtype=dtype)
