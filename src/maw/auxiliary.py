"""How a layer's auxiliary loss reaches its parameters without passing through the training loss.

The layer knows its auxiliary loss in forward; the training loss is computed elsewhere, possibly from cached
embeddings, possibly with the layer run twice by gradient checkpointing. So the gradient is put into the graph at the
layer: `add_gradient(x, loss)` is x in forward and adds d(loss) in backward whenever x receives a gradient. Each
layer's `GradientScale` says how much; `scale_gradient` at the root of the training loss sets it, for that backward
pass, from the gradient that arrives there, so that loss scaling and gradient accumulation apply to both alike.

What is computed beside the model's forward, as the loss of earlier samples is, goes to the parameters' `grad` itself
(`add_loss_beside`): the wrapper that averages gradients over processes then finds it there, whatever it watches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["GradientScale", "add_gradient", "add_loss_beside", "in_backward", "scale_gradient"]


class GradientScale:
    """How much one layer's auxiliary loss weighs, per text, in the backward pass that is running.

    The layer adds the *sum* over its texts of their auxiliary losses. Divided by all texts that one training loss
    covered, its forwards together weigh as one mean over texts, however they were split into mini-batches.
    """

    def __init__(self) -> None:
        self.texts = 0
        self.per_text: Tensor | None = None

    def factor(self, own_texts: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        """What the sum over `own_texts` texts is multiplied with; without a root, their plain mean."""
        if self.per_text is None:  # written on the device: a copy from the host would wait for it
            return torch.full((), 1.0 / max(own_texts, 1), dtype=dtype, device=device)
        return self.per_text.to(device, dtype)


class _AddGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor, scale: GradientScale, own_texts: int) -> Tensor:
        ctx.scale, ctx.own_texts = scale, own_texts
        ctx.dtype, ctx.device = loss.dtype, loss.device
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return grads[0], ctx.scale.factor(ctx.own_texts, ctx.device, ctx.dtype), None, None


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, scales: Sequence[GradientScale]) -> Tensor:
        ctx.covered = [(scale, scale.texts) for scale in scales]
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        def forget() -> None:
            for scale, _ in ctx.covered:
                scale.per_text = None

        for scale, texts in ctx.covered:
            scale.per_text = grads[0].detach() / max(texts, 1)
        # the scale holds for this backward pass alone
        torch.autograd.Variable._execution_engine.queue_callback(forget)
        return grads[0], None


def add_gradient(x: Tensor, loss: Tensor, scale: GradientScale, own_texts: int) -> Tensor:
    """`x` unchanged; in backward, `loss` (a sum over `own_texts` texts) gets the gradient `scale` says.

    >>> x, p = torch.ones(2, requires_grad=True), torch.ones((), requires_grad=True)
    >>> add_gradient(x, 3 * p, GradientScale(), own_texts=1).sum().backward()
    >>> p.grad.item(), x.grad.tolist()
    (3.0, [1.0, 1.0])
    """
    return _AddGradient.apply(x, loss, scale, own_texts)


@torch.compiler.disable(reason="it speaks to the layers while backward runs: compile the model, not the training loss")
def scale_gradient(loss: Tensor, scales: Sequence[GradientScale]) -> Tensor:
    """The training loss unchanged; its backward tells `scales` the gradient that arrived here, before any layer's."""
    return _ScaleGradient.apply(loss, scales)


class _AddLossBeside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, beside: Tensor, gradients: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        ctx.gradients = gradients
        return loss + beside

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        for parameter, gradient in ctx.gradients:
            scaled = gradient * grads[0].to(gradient.device, gradient.dtype)
            parameter.grad = scaled if parameter.grad is None else parameter.grad.add_(scaled)
        return grads[0], None, None


def add_loss_beside(loss: Tensor, beside: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """The sum of two losses; in backward, the gradient of `beside` is put into `grad` before any of `loss` arrives.

    A wrapper such as DistributedDataParallel expects each parameter's gradient once a backward pass, from the model's
    own forward; under a loss that caches gradients, that backward pass is not even the one that is running.

    Args:
        loss: the training loss.
        beside: a scalar loss that reaches the parameters on its own way.
        parameters: those it may reach.

    >>> p = torch.ones((), requires_grad=True)
    >>> (2 * add_loss_beside(3 * p, 5 * p, [p])).backward()
    >>> p.grad.item()
    16.0
    """
    reached = [parameter for parameter in parameters if parameter.requires_grad]
    found = torch.autograd.grad(beside, reached, allow_unused=True) if reached else ()
    gradients = [(parameter, grad) for parameter, grad in zip(reached, found, strict=True) if grad is not None]
    return _AddLossBeside.apply(loss, beside.detach(), gradients)


def in_backward() -> bool:
    """Whether this code runs inside a backward pass, as a checkpointed layer's second forward does."""
    return torch._C._current_graph_task_id() != -1
