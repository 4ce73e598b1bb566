"""What `reference.depth_attention` and `functional.depth_attention` demand of their arguments, checked once."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from maw.errors import MAWError

__all__ = ["check_arguments", "check_mask", "check_real_keys", "repeat_heads"]


def check_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_views: Tensor,
    key_views: Tensor,
    depth_weight: Tensor,
    constant: Tensor | None = None,
    mask: Tensor | None = None,
) -> None:
    """Raise unless the shapes fit together and every row has a real key.

    Raises:
        MAWError: names the argument, the shape wanted in the letters of docs/notation.md, and the shape got.
    """
    if query.ndim != 4:
        raise MAWError(f"query must have shape (B, H, Q, C), got {tuple(query.shape)}")
    batch, heads, _, channels = query.shape
    if key.ndim != 4 or key.shape[:2] != (batch, heads) or key.shape[3] != channels:
        raise MAWError(f"key must have shape (B={batch}, H={heads}, K, C={channels}), got {tuple(key.shape)}")
    keys = key.shape[2]
    if value.ndim != 4 or value.shape[:3] != (batch, heads, keys):
        raise MAWError(f"value must have shape (B={batch}, H={heads}, K={keys}, C), got {tuple(value.shape)}")
    if query_views.ndim != 3 or query_views.shape[0] != heads or query_views.shape[2] != channels:
        raise MAWError(f"query_views must have shape (H={heads}, D, C={channels}), got {tuple(query_views.shape)}")
    if key_views.shape != query_views.shape:
        raise MAWError(
            f"key_views must have the shape of query_views, {tuple(query_views.shape)}, got {tuple(key_views.shape)}"
        )
    depth = query_views.shape[1]
    if depth_weight.shape != (batch, depth):
        raise MAWError(f"depth_weight must have shape (B={batch}, D={depth}), got {tuple(depth_weight.shape)}")
    if constant is not None and constant.shape != (heads, channels, channels):
        raise MAWError(f"constant must have shape (H={heads}, C={channels}, C={channels}), got {tuple(constant.shape)}")
    if mask is not None:
        check_mask(mask, batch, keys)


def check_mask(mask: Tensor, batch: int, keys: int) -> None:
    """Raise unless `mask` is (B, K), boolean, with at least one real key in every row."""
    if mask.shape != (batch, keys) or mask.dtype != torch.bool:
        raise MAWError(
            f"mask must be boolean of shape (B={batch}, K={keys}), True where there is a token, "
            f"got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    check_real_keys(mask)


def check_real_keys(mask: Tensor) -> None:
    """Raise unless every row of a (B, K) mask has a real key.

    On a GPU the check does not wait for the device: a violation ends the program with a device-side assertion. Under
    `torch.compile` and `torch.export` nothing is checked.
    """
    if torch.compiler.is_compiling():
        return
    real = mask.any(dim=-1)
    if mask.device.type == "cuda":
        torch._assert_async(real.all(), "a text has no real key, so its attention is undefined: drop the empty text")
    elif not bool(real.all()):
        row = int((~real).nonzero()[0])
        raise MAWError(f"mask: row {row} has no real key, so its attention is undefined: drop the empty text")


def repeat_heads(key: Float[Tensor, "B Hkv K C"], heads: int) -> Float[Tensor, "B H K C"]:
    """Keys as each query head sees them: query heads h * H/Hkv, h * H/Hkv + 1, ... share key head h.

    >>> repeat_heads(torch.arange(2.0).view(1, 2, 1, 1), 4).flatten().tolist()
    [0.0, 0.0, 1.0, 1.0]
    """
    return key if key.shape[1] == heads else key.repeat_interleave(heads // key.shape[1], dim=1)
