"""What a host with MAW may be given: one text a row, each beginning at position 0.

`watch` puts a hook before the host's forward that sees to both, and to a token in every text, once for all layers.
The first forward of a training also warns where MAW is frozen (`maw.hf.training_state`).

- Several texts flattened into one row have one state and one set of depth weights between them: refused.
- MAW transforms queries after they were rotated, so its logits depend on the positions themselves, not only on their
  differences as a rotary host's do. With padding on the left the first token would sit at a position that depends on
  the longest text in the batch. Positions therefore begin at the first real token, which changes nothing for the host.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from maw.errors import MAWError
from maw.hf.hosts import family_of
from maw.hf.training_state import is_training_step, warn_if_maw_is_frozen
from maw.shapes import check_real_keys, require_all

__all__ = ["positions_from_first_token", "unwatch", "watch"]

FLATTENED = ("cu_seq_lens_q", "cu_seq_lens_k")


def watch(host: PreTrainedModel) -> None:
    """Look at the inputs of every forward of `host` from now on."""
    vars(host)["maw_inputs"] = host.register_forward_pre_hook(_prepare, with_kwargs=True)


def unwatch(host: PreTrainedModel) -> None:
    """The inverse of `watch`."""
    vars(host).pop("maw_inputs").remove()
    vars(host).pop("maw_training_began", None)


def positions_from_first_token(attention_mask: Int[Tensor, "B K"]) -> Int[Tensor, "B K"]:
    """Position ids that are 0 at the first real token of each row (and in the padding before it).

    >>> positions_from_first_token(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])).tolist()
    [[0, 0, 0, 1], [0, 1, 2, 3]]
    """
    first = attention_mask.ne(0).int().argmax(dim=-1, keepdim=True)
    return (torch.arange(attention_mask.shape[1], device=attention_mask.device) - first).clamp(min=0)


def _prepare(host: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if is_training_step(host) and not vars(host).get("maw_training_began"):
        vars(host)["maw_training_began"] = True
        warn_if_maw_is_frozen(host)
    names = inspect.signature(host.forward).parameters if args else ()
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    flattened = [name for name in FLATTENED if given.get(name) is not None]
    if flattened:
        raise MAWError(
            f"MAW needs one text a row, got a flattened batch ({', '.join(flattened)}): pad the texts instead "
            "(in Sentence Transformers: do not unpad inputs; in a collator: no flattening)"
        )
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    tokens = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
    if isinstance(tokens, Tensor) and 0 in tokens.shape[:2]:
        raise MAWError(
            f"MAW needs a text, and a token in every text, got inputs of shape {tuple(tokens.shape)}: "
            "drop empty texts and empty batches"
        )
    if not isinstance(tokens, Tensor) or not isinstance(mask, Tensor) or mask.shape != tokens.shape[:2]:
        mask = None
    else:
        check_real_keys(mask, "attention_mask")
    if positions is not None:
        _check_one_text_a_row(positions, mask)
    elif mask is not None and family_of(host).rotary:
        # everything by name: the argument may have been given in its place, as None
        return (), {**given, "position_ids": positions_from_first_token(mask)}
    return None


def _check_one_text_a_row(positions: Tensor, mask: Tensor | None) -> None:
    """Raise where positions do not count up by one from token to token: Transformers takes that for a new text."""
    good = positions.diff(dim=-1) == 1
    if mask is not None:
        good = good | mask[:, 1:].eq(0) | mask[:, :-1].eq(0)
    require_all(
        good.all(dim=-1),
        "MAW needs one text a row, got position_ids that do not count up by one in {row}: texts packed into one row? "
        "Pad the texts instead",
    )
