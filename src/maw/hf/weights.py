"""The type of number that a model's weights are in: found, and changed.

MAW's own weights and an adapter's are in float32 beside a host in half precision, in memory and in folders.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from maw.errors import MAWError

__all__ = ["HALF", "TYPES", "in_full", "say_lost_steps", "set_weights_type", "weights_type"]

logger = logging.getLogger(__name__)

HALF = ("bfloat16", "float16")
"""Types in which small steps of training are lost: 1 + 1/512 is 1 in bfloat16."""

TYPES = ("float32", *HALF)


def weights_type(model: nn.Module) -> str:
    """The type of the first weight that is neither MAW's nor an adapter's; "float32" where there is none.

    Args:
        model: an encoder or a SentenceTransformer.

    >>> weights_type(nn.Linear(2, 2).to(torch.bfloat16))
    'bfloat16'
    """
    found = next((tensor for name, tensor in _floating(model) if not _stays(name)), torch.empty(0, dtype=torch.float32))
    return str(found.dtype).removeprefix("torch.")


@torch.no_grad()
def set_weights_type(model: nn.Module, name: str) -> None:
    """Put a model's weights into another type, in place; MAW's own and an adapter's are in float32 afterwards.

    What is computed from the configuration, such as the angles of rotary positions, stays as it is.

    Args:
        model: an encoder or a SentenceTransformer.
        name: float32, bfloat16 or float16.

    Raises:
        MAWError: another name, or a weight that is too large for the type; nothing was changed then.

    >>> model = nn.Linear(2, 2)
    >>> set_weights_type(model, "float16")
    >>> model.weight.dtype
    torch.float16
    """
    if name not in TYPES:
        raise MAWError(f"the type of weights must be one of {', '.join(TYPES)}, got {name!r}")
    changed = []
    for key, tensor in _floating(model):
        other = tensor.to(torch.float32 if _stays(key) else getattr(torch, name))
        if lost := int((tensor.isfinite() & ~other.isfinite()).sum()):
            numbers = "1 number" if lost == 1 else f"{lost:,} numbers"
            raise MAWError(
                f"{numbers} of {key} {'is' if lost == 1 else 'are'} too large for {name} (at most "
                f"{torch.finfo(other.dtype).max:g}): take bfloat16 or float32"
            )
        changed.append((tensor, other))
    for tensor, other in changed:
        tensor.grad = None
        tensor.data = other


def in_full(model: nn.Module) -> str:
    """Put weights that are in half precision into float32, as training wants them; returns the type they had."""
    found = weights_type(model)
    if any(str(tensor.dtype).removeprefix("torch.") in HALF for _, tensor in _floating(model)):
        set_weights_type(model, "float32")
    return found


def say_lost_steps(model: nn.Module) -> None:
    """Warn where weights in half precision are about to be trained in it."""
    trained = {str(tensor.dtype).removeprefix("torch.") for tensor in model.parameters() if tensor.requires_grad}
    if half := sorted(trained & {*HALF}):
        logger.warning(
            "weights in %s are about to be trained in that type, in which most small steps are lost to rounding: put "
            "them into float32 first (model.float()), and save them in the type you want",
            " and ".join(half),
        )


def _floating(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a folder holds of floating-point numbers, by name."""
    return ((name, tensor) for name, tensor in model.state_dict(keep_vars=True).items() if tensor.is_floating_point())


def _stays(name: str) -> bool:
    return ".maw." in f".{name}" or "lora_" in name
