"""What attention and its layers demand of their arguments, checked once, before anything is computed.

Shapes, types and devices cost nothing to look at. What is in a tensor is looked at for the mask alone: NaN in q, k or v
is left to the attention, and NaN in a layer's own tensors is found when they are given or loaded.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from maw.errors import MAWError

__all__ = [
    "check_arguments",
    "check_finite",
    "check_layer_arguments",
    "check_mask",
    "check_real_keys",
    "repeat_heads",
    "require_all",
]


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
    """Raise unless shapes, types and devices fit together and every row has a real key.

    q, k and v share one floating type (under autocast they need not); views, weights and constant may be of another,
    such as float32 beside bfloat16.

    Raises:
        MAWError: names the argument, what was wanted in the letters of docs/notation.md, and what was got.
    """
    _check_tokens(query, key, value, "H")
    batch, heads, _, channels = query.shape
    own = {"query_views": query_views, "key_views": key_views, "depth_weight": depth_weight, "constant": constant}
    for name, tensor in own.items():
        if tensor is not None:
            _check_floating(name, tensor)
            _check_device(name, tensor, query.device)
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
    if 0 in query_views.shape:
        raise MAWError(f"H, D and C must be at least 1, got views of shape {tuple(query_views.shape)}")
    if mask is not None:
        _check_device("mask", mask, query.device)
        check_mask(mask, batch, key.shape[2])
        check_real_keys(mask)


def check_layer_arguments(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, query_views: Float[Tensor, "H D C"]
) -> None:
    """Raise unless q, k, v and the mask suit a layer with these views.

    On a CUDA device, and in a compiled layer, whether every text has a real key is left to whoever calls the layer:
    `maw.hf.inputs` asks once for all layers.

    Raises:
        MAWError: names the argument, what was wanted in the letters of docs/notation.md, and what was got.
    """
    _check_tokens(query, key, value, "Hkv")
    heads, _, channels = query_views.shape
    batch, _, queries, _ = query.shape
    if query.shape[1] != heads or query.shape[3] != channels:
        raise MAWError(f"query must have shape (B, H={heads}, Q, C={channels}), got {tuple(query.shape)}")
    if not key.shape[1] or heads % key.shape[1] or key.shape[2] != queries:
        raise MAWError(
            f"key must have shape (B={batch}, Hkv, K={queries}, C={channels}), Hkv a divisor of H={heads} and as many "
            f"keys as queries, got {tuple(key.shape)}"
        )
    _check_device("query", query, query_views.device, of="the layer")
    if mask is not None:
        _check_device("mask", mask, query.device)
        check_mask(mask, batch, queries)
        if mask.device.type != "cuda" and not torch.compiler.is_compiling():
            check_real_keys(mask)


def check_finite(layer: nn.Module, *_: object) -> None:
    """Raise if anything in a layer is NaN or infinite: asked where it is made and loaded, never in a forward.

    Raises:
        MAWError: names the first such tensor.
    """
    for name, tensor in layer.state_dict().items():
        if not (tensor.is_meta or bool(torch.isfinite(tensor).all())):
            raise MAWError(
                f"{name} of a MAW layer holds NaN or infinity: the weights are damaged, or the training that made them "
                "diverged; use an earlier checkpoint"
            )


def check_mask(mask: Tensor, batch: int, keys: int) -> None:
    """Raise unless `mask` is (B, K) and boolean."""
    if mask.shape != (batch, keys) or mask.dtype != torch.bool:
        raise MAWError(
            f"mask must be boolean of shape (B={batch}, K={keys}), True where there is a token, "
            f"got {mask.dtype} of shape {tuple(mask.shape)}: of a mask of ones and zeros, give mask.bool()"
        )


def check_real_keys(mask: Tensor, name: str = "mask") -> None:
    """Raise unless every row of a (B, K) mask has a real key: see `require_all`."""
    problem = "has no real key, so its attention is undefined: drop the empty text"
    require_all(mask.any(dim=-1), f"{name}: {{row}} {problem}")


def require_all(good: Bool[Tensor, " n"], message: str) -> None:
    """Raise unless all of `good` hold, without waiting for a device.

    On a CUDA device a violation ends the program with a device-side assertion, in a compiled or exported program with
    a RuntimeError; both say `message`. On the meta device nothing is known.

    Args:
        good: what must hold, one value a row.
        message: what is said of `{row}`, the first that violates it.

    Raises:
        MAWError: in an ordinary program on the CPU.

    >>> require_all(torch.tensor([True, False]), "{row} is odd")
    Traceback (most recent call last):
    ...
    maw.errors.MAWError: row 1 is odd
    """
    device, compiling = good.device.type, torch.compiler.is_compiling()
    if device == "cuda" or (compiling and device == "cpu"):
        torch._assert_async(good.all(), message.format(row="a row"))
    elif not compiling and device != "meta" and not bool(good.all()):
        raise MAWError(message.format(row=f"row {int((~good).nonzero()[0])}"))


def repeat_heads(key: Float[Tensor, "B Hkv K C"], heads: int) -> Float[Tensor, "B H K C"]:
    """Keys as each query head sees them: query heads h * H/Hkv, h * H/Hkv + 1, ... share key head h.

    >>> repeat_heads(torch.arange(2.0).view(1, 2, 1, 1), 4).flatten().tolist()
    [0.0, 0.0, 1.0, 1.0]
    """
    return key if key.shape[1] == heads else key.repeat_interleave(heads // key.shape[1], dim=1)


def _check_tokens(query: Tensor, key: Tensor, value: Tensor, key_heads: str) -> None:
    """q, k and v: four axes each that fit together, one floating type, one device, and keys to attend to."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        _check_floating(name, tensor)
        _check_device(name, tensor, query.device)
        if tensor.dtype != query.dtype and not torch.is_autocast_enabled(query.device.type):
            raise MAWError(
                f"{name} must have the type of query, {query.dtype}, got {tensor.dtype}: convert one of them"
            )
    if query.ndim != 4:
        raise MAWError(f"query must have shape (B, H, Q, C), got {tuple(query.shape)}")
    batch, heads, _, channels = query.shape
    wanted = f"{key_heads}={heads}" if key_heads == "H" else key_heads
    fits = key.ndim == 4 and key.shape[0] == batch and key.shape[3] == channels
    if not fits or (key_heads == "H" and key.shape[1] != heads):
        raise MAWError(f"key must have shape (B={batch}, {wanted}, K, C={channels}), got {tuple(key.shape)}")
    if value.ndim != 4 or value.shape[:3] != key.shape[:3]:
        _, heads, keys, _ = key.shape
        raise MAWError(f"value must have shape (B={batch}, {key_heads}={heads}, K={keys}, C), got {tuple(value.shape)}")
    if key.shape[2] == 0:
        raise MAWError(f"key has no tokens to attend to, got {tuple(key.shape)}: drop the empty texts")


def _check_floating(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise MAWError(f"{name} must be a tensor of a floating type, got {got}: convert it, as with {name}.float()")


def _check_device(name: str, tensor: Tensor, device: torch.device, of: str = "query") -> None:
    if tensor.device != device:
        raise MAWError(f"{name} must be on the device of {of}, {device}, got {tensor.device}: move one of them")
