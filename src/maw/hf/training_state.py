"""Whether what is trained includes MAW, which an adapter of the user's own freezes without a word."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from maw.controls import Control
from maw.errors import MAWError
from maw.module import DepthAttention

__all__ = ["check_maw_is_trained", "is_training_step", "warn_if_maw_is_frozen"]

ADVICE = (
    "give the adapter modules_to_save=['maw'], as maw.lora_config(model) does; to keep MAW as it is on purpose, train "
    "with your own loss without maw's auxiliary one"
)


def check_maw_is_trained(model: nn.Module) -> None:
    """Nothing, if MAW is trained as a whole, or nothing at all is.

    Args:
        model: what is about to be trained.

    Raises:
        MAWError: something of the model is trainable and nothing of its MAW is, or an adapter sits inside MAW.

    >>> check_maw_is_trained(nn.Linear(2, 2))
    """
    if said := _what_is_frozen(model):
        raise MAWError(f"{said}: {ADVICE}")


def warn_if_maw_is_frozen(model: nn.Module) -> None:
    """The same as a warning, for trainings that are not ours to stop."""
    if said := _what_is_frozen(model):
        warnings.warn(f"{said}: if that is not what you want, {ADVICE.partition(';')[0]}", stacklevel=2)


def _what_is_frozen(model: nn.Module) -> str | None:
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (DepthAttention, Control)) and "original_module" not in name
    }
    named = [item for layer in layers.values() for item in layer.named_parameters()]
    if not named:
        return None
    if any("base_layer" in name.split(".") for name, _ in named):
        return "an adapter sits inside MAW's own small networks, whose weights it freezes"
    if any(parameter.requires_grad for _, parameter in named):
        return None
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return None
    count = sum(parameter.numel() for _, parameter in named)
    return f"none of the {count:,} parameters of MAW is trainable, though others of this model are"


def is_training_step(host: nn.Module) -> bool:
    """Whether a forward of `host` is one of a training; under `torch.compile` nobody looks."""
    return host.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
