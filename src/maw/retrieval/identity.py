"""What makes an encoder's vectors: a fingerprint of its weights, its configuration and its tokenizer.

Vectors, negatives, trainings and benchmarks that are on the disk are known by it.

Two encoders with one fingerprint give the same vectors up to rounding. What has no part in that (where the model was
loaded from, which version of Transformers wrote it, to how many tokens a text is cut) is not in it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from maw.hf.attach import carried

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["document_prompt", "encoder_fingerprint", "fingerprint", "query_prompt", "set_prompts"]

IRRELEVANT = frozenset(
    {
        *("_name_or_path", "architectures", "dtype", "gradient_checkpointing", "id2label", "label2id", "problem_type"),
        *("output_attentions", "output_hidden_states", "return_dict", "transformers_version", "use_cache"),
    }
)
"""Fields of a host's configuration that its vectors do not depend on."""

ADAPTER = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
"""What an adapter does beside its weights."""


def fingerprint(model: torch.nn.Module) -> str:
    """sha256 over the names, shapes, types and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def encoder_fingerprint(model: SentenceTransformer) -> str:
    """SHA-256 over the weights and everything else that decides what vector a text gets.

    Args:
        model: an encoder, with or without MAW, with or without LoRA.

    Returns:
        64 hexadecimal digits; the same for the model in memory and for the folder it was saved to.
    """
    parts = {"weights": fingerprint(model), **_settings(model)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def document_prompt(model: SentenceTransformer) -> str | None:
    """What Sentence Transformers puts before a document: the model's own prompt for documents, else its default."""
    return _prompt(model, "document", "passage", "corpus")


def query_prompt(model: SentenceTransformer) -> str | None:
    """What Sentence Transformers puts before a query: the model's own prompt for queries, else its default."""
    return _prompt(model, "query")


def set_prompts(model: SentenceTransformer, query: str | None = None, document: str | None = None) -> None:
    """Set what stands before every query and every document, in training and wherever the model is used.

    They are written under the names that Sentence Transformers looks up first, also where they are the model's own:
    a folder then gives the same prompts when it is loaded.

    Args:
        model: the encoder; its prompts are saved with it.
        query, document: the prompts, used as they are, with the blank at their end; None keeps the model's own.
    """
    own = query_prompt(model), document_prompt(model)
    for name, given, kept in zip(("query", "document"), (query, document), own, strict=True):
        model.prompts[name] = (kept or "") if given is None else given


def _prompt(model: SentenceTransformer, *kinds: str) -> str | None:
    names = [name for name in kinds if name in model.prompts]
    name = names[0] if names else model.default_prompt_name
    return model.prompts.get(name) if name is not None else None


def _settings(model: SentenceTransformer) -> dict[str, Any]:
    modules: list[Any] = list(model)
    host: Any = getattr(modules[0], "model", None)
    config = host.config.get_text_config() if host is not None else None
    return {
        "modules": [(type(module).__name__, module.get_config_dict()) for module in modules],
        "host": None if config is None else _unusual(config),
        "maw": [asdict(layer.config) for layer in carried(model)],
        "adapters": {
            name: {field: getattr(adapter, field, None) for field in ADAPTER}
            for name, adapter in getattr(host, "peft_config", {}).items()
        },
        "tokenizer": _tokenizer(model),
        "prompts": dict(model.prompts),
        "default_prompt_name": model.default_prompt_name,
        "similarity": model.similarity_fn_name,
        "width": model.truncate_dim,
    }


def _unusual(config: Any) -> dict[str, Any]:
    """The fields that differ from their defaults, so that a field added by a later version changes nothing."""
    usual = type(config)().to_dict()
    return {
        name: value
        for name, value in config.to_dict().items()
        if name not in IRRELEVANT and (name not in usual or usual[name] != value)
    }


def _tokenizer(model: SentenceTransformer) -> str:
    """A checksum of the tokenizer, without how it happens to be set to cut and fill."""
    tokenizer: Any = model.tokenizer
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        whole: Any = tokenizer.get_vocab()
    else:
        whole = json.loads(fast.to_str())
        whole.pop("truncation", None)
        whole.pop("padding", None)
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
