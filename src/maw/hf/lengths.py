"""How many tokens a text may have: the real limit of an encoder, which its config does not always say."""

from __future__ import annotations

from torch import nn

__all__ = ["longest_input"]

POSITION_TABLES = ("position_embeddings", "wpe")
"""What families call their table of learnt positions; MPNet, RoBERTa and their kin number them after the padding id."""


def longest_input(model: nn.Module) -> int | None:
    """The number of tokens that an encoder takes at most, special tokens included.

    With a table of learnt positions it is the table's rows, less those that no token gets: RoBERTa, XLM-RoBERTa,
    CamemBERT and MPNet number positions from padding id + 1, so a table of 514 rows takes 512 tokens. An encoder with
    rotary positions computes texts of any length; its limit is the length it says it was trained for.

    Args:
        model: a Transformers encoder, with or without MAW, or what holds one.

    Returns:
        the limit, or None where there is none.

    >>> from transformers import RobertaConfig, RobertaModel
    >>> tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    >>> longest_input(RobertaModel(RobertaConfig(**tiny, vocab_size=9, max_position_embeddings=514)))
    512
    """
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in POSITION_TABLES and isinstance(module, nn.Embedding):
            before_the_first = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - before_the_first
    configs = (getattr(module, "config", None) for module in model.modules())
    stated = (getattr(config, "max_position_embeddings", None) for config in configs if config is not None)
    limit = next((limit for limit in stated if isinstance(limit, int)), None)
    return limit if limit is not None and limit > 0 else None  # -1 is how some say that there is none
