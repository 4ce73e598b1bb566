"""Look on while an encoder encodes a text: what one of its MAW layers got and gave."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from maw.module import DepthAttention

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedModel

__all__ = ["Captured", "capture", "plain_attention", "readable_tokens"]


@dataclass
class Captured:
    """What one text's forward gave a MAW layer, and three attentions of its host, (H, Q, K).

    `computed` is what the layer attended to, `host` what it attends to without MAW, on the same q, and `without_query`
    what it attends to for a query of zeros: the host's own term, which is its mask or its position bias or neither.
    `ids` are the real tokens', `whole` is how many tokens the text has uncut.
    """

    ids: list[int]
    whole: int
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    computed: Tensor
    host: Tensor
    without_query: Tensor


@contextmanager
def plain_attention(model: SentenceTransformer, host: PreTrainedModel, longest: int) -> Generator[None]:
    """With the host's plain attention, which returns its probabilities, and texts of at most `longest` tokens."""
    training = [(part, part.training) for part in model.modules()]  # encoding puts all of them in evaluation mode
    implementation, limit = host.config._attn_implementation, model.max_seq_length
    try:
        if implementation != "eager":
            host.set_attn_implementation("eager")
        model.max_seq_length = longest if limit is None else min(limit, longest)
        yield
    finally:
        model.max_seq_length = limit
        if implementation != "eager":
            host.set_attn_implementation(implementation)
        for part, was in training:
            part.training = was


def capture(model: SentenceTransformer, host: PreTrainedModel, module: DepthAttention, text: str) -> Captured:
    """Encode one text as the model always does, and keep what one of its MAW layers got and gave.

    To be called within `plain_attention`.

    Args:
        model: the encoder.
        host: the Transformers model in it.
        module: the layer.
        text: one that has a token.
    """
    kept: dict[str, Any] = {}

    def keep_ids(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept["ids"] = kwargs["input_ids"] if "input_ids" in kwargs else args[0]

    def keep_layer(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        query, kept["key"], kept["value"], kept["mask"] = args
        kept["query"], kept["computed"] = query, output[1][0]
        kept["host"], kept["without_query"] = (kwargs["attend"](q)[1][0] for q in (query, torch.zeros_like(query)))

    hooks = [
        host.register_forward_pre_hook(keep_ids, with_kwargs=True),
        module.register_forward_hook(keep_layer, with_kwargs=True),
    ]
    try:
        model.encode([text], show_progress_bar=False)
    finally:
        for hook in hooks:
            hook.remove()
    mask = kept["mask"]
    ids = kept.pop("ids")[0]
    ids = ids if mask is None else ids[mask[0]]
    prompt = model.prompts.get(model.default_prompt_name or "") or ""
    whole = model.tokenizer(prompt + text, truncation=False, padding=False, verbose=False)["input_ids"]
    return Captured(ids=ids.tolist(), whole=max(len(whole), len(ids)), **kept)


def readable_tokens(tokenizer: Any, ids: list[int]) -> tuple[str, ...]:
    """Tokens as people read them; what decodes to nothing keeps the tokenizer's own spelling."""
    words = (tokenizer.decode([i]).strip() or str(tokenizer.convert_ids_to_tokens(i)) for i in ids)
    return tuple("".join(letter if letter.isprintable() else "\ufffd" for letter in word) for word in words)
