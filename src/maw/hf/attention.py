"""What Transformers calls in an attention layer that carries MAW: the host's own attention on MAW's query.

The name "maw" is registered with Transformers' attention interface. Only the layers' own copies of the config carry
it (`maw.hf.attach`), so masks are built for whatever the model itself is set to, and arrive here in that form.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from maw.errors import MAWError

__all__ = ["IMPLEMENTATION", "KERNELS", "key_mask", "maw_attention"]

IMPLEMENTATION = "maw"
KERNELS = ("sdpa", "eager")
"""Attention implementations of the host that a MAW layer can call."""


def maw_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """The host's own attention, with the host's own mask, on MAW's query."""
    kernel = _host_kernel(module)

    def attend(transformed: Tensor) -> Any:
        return kernel(module, transformed, key, value, attention_mask, scaling=scaling, **options)

    maw = cast("nn.Module", module.maw)
    return maw(query, key, value, key_mask(attention_mask, key.shape[2]), attend=attend)


def _host_kernel(module: nn.Module) -> Callable[..., Any]:
    """The attention function the model is set to right now (it may have changed since MAW was attached)."""
    name = cast("Any", module.maw_host_config)._attn_implementation
    if name not in KERNELS:
        raise MAWError(
            f"MAW runs on the attention implementations {' and '.join(KERNELS)}, the encoder was set to {name!r}: "
            "call model.set_attn_implementation('sdpa')"
        )
    eager = sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)


def key_mask(attention_mask: Tensor | None, keys: int) -> Bool[Tensor, "B K"] | None:
    """Which keys are real tokens, from any mask a host makes: (B, K), True = token; None means all are.

    Understands None; boolean (B, 1, Q, K) with True = attend; additive (B, 1, Q, K) with 0 = attend and a large
    negative number elsewhere. A key is real if any query may attend to it.

    Raises:
        MAWError: another form of mask.
    """
    if attention_mask is None:
        return None
    if attention_mask.ndim != 4 or attention_mask.shape[-1] != keys:
        raise MAWError(f"MAW cannot read an attention mask of shape {tuple(attention_mask.shape)} for {keys} keys")
    if attention_mask.dtype != torch.bool:
        attention_mask = attention_mask > torch.finfo(attention_mask.dtype).min / 2
    return attention_mask[:, 0].any(dim=1)


AttentionInterface.register(IMPLEMENTATION, maw_attention)
# No model is ever set to "maw" as a whole; were one, a missing mask function would silently drop its padding mask.
AttentionMaskInterface.register(IMPLEMENTATION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
