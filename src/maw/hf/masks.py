"""Which tokens are real, read from the mask that a host has built for its own attention."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maw.errors import MAWError

__all__ = ["key_mask", "with_added"]

ADVICE = "give the encoder a mask of shape (B, K), ones where there is a token"


def key_mask(attention_mask: Any, batch: int, keys: int) -> Bool[Tensor, "B K"] | None:
    """Which keys are real tokens: (B, K), True = token; None means all are.

    A token is real if it may attend to itself: the diagonal of the host's mask. That holds for padding on either
    side, causal masks and sliding windows alike.

    Args:
        attention_mask: None; boolean (B, 1, Q, K) with True = attend; additive (B, 1, Q, K) with 0 = attend and a
            large negative number elsewhere; either with B = 1 or Q = 1 for all texts or queries; or flex attention's
            `BlockMask`, whose function is evaluated on the K pairs of the diagonal.
        batch: B.
        keys: K; there are as many queries.

    Raises:
        MAWError: another form of mask.

    >>> causal = torch.ones(3, 3, dtype=torch.bool).tril() & torch.tensor([False, True, True])
    >>> key_mask(causal[None, None], 1, 3).tolist()
    [[False, True, True]]
    """
    if attention_mask is None:
        return None
    if isinstance(attention_mask, BlockMask):
        return _block_diagonal(attention_mask, batch, keys)
    if not isinstance(attention_mask, Tensor):
        raise MAWError(
            f"the attention mask must be a tensor or a BlockMask, got {type(attention_mask).__name__}: {ADVICE}"
        )
    shape = tuple(attention_mask.shape)
    if len(shape) != 4 or shape[1] != 1 or shape[0] not in (1, batch) or shape[2] not in (1, keys) or shape[3] != keys:
        raise MAWError(
            f"the attention mask must have shape (B={batch} or 1, 1, Q={keys} or 1, K={keys}), got {shape}: {ADVICE}"
        )
    diagonal = attention_mask[:, 0, 0] if shape[2] == 1 else attention_mask[:, 0].diagonal(dim1=1, dim2=2)
    if diagonal.is_floating_point():
        diagonal = diagonal > torch.finfo(diagonal.dtype).min / 2
    elif diagonal.dtype != torch.bool:
        raise MAWError(f"the attention mask must be boolean or of a floating type, got {diagonal.dtype}: {ADVICE}")
    return diagonal.expand(batch, -1)


def with_added(attention_mask: Any, added: Float[Tensor, "B H Q K"]) -> Float[Tensor, "B H Q K"]:
    """A mask that also adds something to each logit: masked pairs stay masked.

    Args:
        attention_mask: None, a boolean or an additive mask, as in `key_mask`.
        added: what to add.

    Raises:
        MAWError: the mask is a `BlockMask`, which adds nothing.

    >>> with_added(torch.tensor([[[[True, False]]]]), torch.full((1, 1, 1, 2), 3.0))[0, 0, 0, 0].item()
    3.0
    """
    if attention_mask is None:
        return added
    if not isinstance(attention_mask, Tensor):
        raise MAWError("nothing can be added to the logits under flex attention: use attn_implementation='sdpa'")
    if attention_mask.dtype == torch.bool:
        return added.masked_fill(~attention_mask, torch.finfo(added.dtype).min)
    return (added + attention_mask).clamp(min=torch.finfo(added.dtype).min)


def _block_diagonal(mask: BlockMask, batch: int, keys: int) -> Tensor:
    device = mask.kv_num_blocks.device
    token = torch.arange(keys, device=device)
    text = torch.arange(mask.shape[0], device=device)[:, None]
    return mask.mask_mod(text, torch.zeros_like(text), token, token).expand(batch, keys)
