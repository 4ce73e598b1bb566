"""What Transformers calls in an attention layer that carries MAW: the host's own attention on MAW's query.

The name "maw" is registered with Transformers' attention interface. Only the layers' own copies of the config carry
it (`carry`), so masks are built for whatever the model itself is set to, and arrive here in that form.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from maw.errors import MAWError
from maw.hf.masks import key_mask, with_added

__all__ = ["IMPLEMENTATIONS", "NAME", "carry", "check_implementation", "maw_attention", "release"]

NAME = "maw"
IMPLEMENTATIONS = ("sdpa", "eager", "flex_attention")
"""Attention implementations of the host that a MAW layer can call."""


def maw_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """The host's own attention, with the host's own mask, on MAW's query.

    A causal mask or a sliding window limits the attention itself, as in the host. The depth weights do not obey it:
    they belong to the text, so their state is the mean over all its tokens, and the reward of a slice is its entropy
    over all of them (method.md section 1, readings).

    Raises:
        MAWError: the host was set to an implementation that MAW cannot call, or there are more keys than queries.
    """
    name = cast("Any", module.maw_host_config)._attn_implementation
    check_implementation(name)
    eager = sys.modules[type(module).__module__].eager_attention_forward
    host_attention: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
    batch, _, queries, _ = query.shape
    keys = key.shape[2]
    if queries != keys:
        raise MAWError(
            f"MAW needs the whole text at once, got {queries} query tokens for {keys} keys (a cache of earlier "
            "tokens): call the encoder on whole texts, with use_cache=False"
        )

    def attend(transformed: Tensor, *, added: Tensor | None = None) -> Any:
        mask = attention_mask
        if added is not None:
            if mask is None and name == "sdpa" and _is_causal(module, options.get("is_causal")):
                mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()[None, None]
            mask = with_added(mask, added)
        return host_attention(module, transformed, key, value, mask, scaling=scaling, **options)

    maw = cast("nn.Module", module.maw)
    draws = bool(options.get("dropout"))
    return maw(query, key, value, key_mask(attention_mask, batch, keys), attend=attend, apart=draws)


def _is_causal(module: nn.Module, given: bool | None) -> bool:
    """Whether SDPA without a mask is causal in this layer; it would forget that once there is something to add."""
    return bool(getattr(module, "is_causal", True)) if given is None else given


def check_implementation(name: str | None, allowed: tuple[str, ...] = IMPLEMENTATIONS) -> None:
    """Raise unless MAW can call this attention implementation.

    Raises:
        MAWError: says why not and which can be used.
    """
    if name in allowed:
        return
    reason = ""
    if "flash" in str(name):
        reason = (
            " (FlashAttention's layers may get several texts flattened into one, where MAW cannot tell whose depth "
            "weights are whose, and it has not been tested)"
        )
    raise MAWError(
        f"MAW runs on the attention implementations {', '.join(allowed)} here, the encoder is set to {name!r}{reason}: "
        f"load it with attn_implementation={allowed[0]!r} or call model.set_attn_implementation({allowed[0]!r})"
    )


def carry(attention: Any) -> None:
    """Let one attention layer call `maw_attention`: through its own copy of the config."""
    attention.maw_host_config = attention.config
    attention.config = copy.copy(attention.config)
    attention.config._attn_implementation = NAME


def release(attention: Any) -> None:
    """The inverse of `carry`."""
    attention.config = attention.maw_host_config
    del attention.maw_host_config


AttentionInterface.register(NAME, maw_attention)
# No model is ever set to "maw" as a whole; were one, a missing mask function would silently drop its padding mask.
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
