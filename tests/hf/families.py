"""Every supported family as a tiny random model. Names are strings: a Transformers without a family skips it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers

import maw
from maw.hf.attach import maw_layers
from maw.hf.hosts import FAMILIES

BERT_LIKE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 31}
ROTARY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 31}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# 6 query heads share 2 key heads; C = 10 is not M / H = 4
DECODER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 31,
    "bos_token_id": None,
    "eos_token_id": None,
}
WINDOWED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3}


@dataclass(frozen=True)
class Host:
    """How to build one, and what is true of it."""

    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    implementations: tuple[str, ...] = ("sdpa", "eager")
    left_padding: bool = False
    views: str = "spectral"


HOSTS = {
    "bert": Host("Bert", BERT_LIKE),
    "roberta": Host("Roberta", BERT_LIKE),
    "xlm-roberta": Host("XLMRoberta", BERT_LIKE),
    "camembert": Host("Camembert", BERT_LIKE),
    "electra": Host("Electra", {**BERT_LIKE, "embedding_size": 24}),
    "distilbert": Host("DistilBert", {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 31}),
    "mpnet": Host("MPNet", BERT_LIKE, implementations=("eager",)),
    "modernbert": Host(
        "ModernBert",
        {
            **ROTARY,
            "layer_types": ["sliding_attention", "full_attention"],
            "local_attention": 4,
            "bos_token_id": None,
            "eos_token_id": None,
            "cls_token_id": None,
            "sep_token_id": None,
        },
        left_padding=True,
        views="frame",
    ),
    "nomic_bert": Host("NomicBert", ROTARY, left_padding=True, views="frame"),
    "gte": Host("Gte", ROTARY, left_padding=True, views="frame"),
    "jina_embeddings_v3": Host(
        "JinaEmbeddingsV3", {**ROTARY, "bos_token_id": None, "eos_token_id": None}, left_padding=True, views="frame"
    ),
    "eurobert": Host("EuroBert", {**DECODER, "mask_token_id": 60}, left_padding=True, views="frame"),
    "llama": Host("Llama", DECODER, left_padding=True, views="frame"),
    "qwen3": Host("Qwen3", {**DECODER, **WINDOWED, "use_sliding_window": True}, left_padding=True, views="frame"),
    "gemma3_text": Host(
        "Gemma3Text", {**DECODER, **WINDOWED, "query_pre_attn_scalar": 7}, left_padding=True, views="frame"
    ),
}
CAUSAL = ("llama", "qwen3", "gemma3_text")
MODELS = {"Gemma3Text": "Gemma3TextModel"}
assert HOSTS.keys() == FAMILIES.keys()

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [11, 12, 13, 14, 1, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
LENGTH = 4  # of the second text


def build(name: str, attention: str | None = None, **changes: Any):
    """A tiny random model of the family, without dropout, in evaluation mode."""
    host = HOSTS[name]
    model = getattr(transformers, f"{host.model}Model", None)
    if model is None:
        pytest.skip(f"transformers {transformers.__version__} has no {host.model}Model")
    torch.manual_seed(0)
    # the default range of .02 gives attention that is uniform whatever MAW does
    common = {"vocab_size": 61, "pad_token_id": 1, "initializer_range": 0.5, "max_position_embeddings": 64}
    config = getattr(transformers, f"{host.model}Config")(**{**common, **host.settings, **changes})
    for dropout in [key for key in config.to_dict() if "drop" in key and key != "classifier_dropout"]:
        setattr(config, dropout, 0.0)
    config._attn_implementation = attention or host.implementations[0]
    return model(config).eval()


def attach(model, layers="all", depth=5, **settings):
    """Weights that stay mixtures even with the policies that `stir` makes, and are noisy in training."""
    settings = {"tau": 10.0, "noise": 1.0, "kl_weight": 1.0, **settings}
    return maw.attach(model, maw.MAWConfig(layers=layers, depth=depth, **settings)).model


def stir(model, size: float = 0.3):
    """Move every MAW parameter, so that MAW does something; also the policy, so that weights are far from uniform."""
    generator = torch.Generator().manual_seed(1)
    for layer in maw_layers(model):
        for parameter in layer.parameters():
            parameter.data += size * torch.randn(parameter.shape, generator=generator)
        layer.selector.policy_network[-1].bias.data += 5 * torch.randn(layer.config.depth, generator=generator)
    return model


def hidden(model, tokens=TOKENS, mask=MASK, **inputs):
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=mask, **inputs).last_hidden_state
