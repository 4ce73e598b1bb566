"""Which Hugging Face encoders can carry MAW: one row a family, and the attention layers that the row leads to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from maw.errors import MAWError
from maw.shapes import repeat_heads

__all__ = ["FAMILIES", "REFUSED", "AttentionLayer", "Family", "family_of", "find_layers"]


@dataclass(frozen=True)
class Family:
    """Where a family keeps its layers and their projections, and what happens to queries and keys after them.

    Args:
        layers: path of the list of layers in the model.
        attention: path of the attention module in a layer.
        projections: names of the query, key and value projections in it, or of the one that makes all three.
        rotary: queries and keys are rotated by their token's position.
        norms: queries and keys are normalised.
        interface: the layer calls Transformers' attention interface; where not, MAW has an adapter for it.
    """

    layers: str
    attention: str
    projections: tuple[str, ...]
    rotary: bool = False
    norms: bool = False
    interface: bool = True

    @property
    def between(self) -> str | None:
        """What stands between the projections and the logits, so that their weights alone do not make the form."""
        found = ["rotary positions"] * self.rotary + ["query and key norms"] * self.norms
        return " and ".join(found) or None


BERT = Family("encoder.layer", "attention.self", ("query", "key", "value"))
LLAMA = Family("layers", "self_attn", ("q_proj", "k_proj", "v_proj"), rotary=True)
QWEN3 = Family("layers", "self_attn", ("q_proj", "k_proj", "v_proj"), rotary=True, norms=True)

FAMILIES: dict[str, Family] = {
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "camembert": BERT,
    "electra": BERT,
    "distilbert": Family("transformer.layer", "attention", ("q_lin", "k_lin", "v_lin")),
    "mpnet": Family("encoder.layer", "attention.attn", ("q", "k", "v"), interface=False),
    "modernbert": Family("layers", "attn", ("Wqkv",), rotary=True),
    "nomic_bert": LLAMA,
    "gte": LLAMA,
    "jina_embeddings_v3": LLAMA,
    "eurobert": LLAMA,
    "llama": LLAMA,
    "qwen3": QWEN3,
    "gemma3_text": QWEN3,
}

_DISENTANGLED = (
    "its logits also pair queries and keys with position embeddings, inside the layer, so that a transformed query "
    "would change the position terms too"
)
_T5 = "its unscaled logits with a relative position bias have not been tested with MAW"

REFUSED: dict[str, str] = {
    "albert": "it shares one attention module among layers, so MAW in one layer would be MAW in all of them",
    "deberta": _DISENTANGLED,
    "deberta-v2": _DISENTANGLED,
    "t5": _T5,
    "mt5": _T5,
    "umt5": _T5,
    "gemma3": "it is multimodal: attach MAW to its text model, `.language_model`",
}


class AttentionLayer(NamedTuple):
    """One attention layer of a host."""

    index: int
    name: str
    attention: Any  # each family has a class of its own
    family: Family
    heads: int
    key_heads: int
    projections: tuple[nn.Linear, ...]

    @property
    def channels(self) -> int:
        """C: the rows that query, key and value heads share."""
        return sum(projection.out_features for projection in self.projections) // (self.heads + 2 * self.key_heads)

    @property
    def scaling(self) -> float:
        """The host's factor on its logits: the layer's own where it names one, else 1/sqrt(C)."""
        return getattr(self.attention, "scaling", self.channels**-0.5)

    def head_weights(self) -> tuple[Float[Tensor, "H C M"], Float[Tensor, "H C M"]]:
        """The query projection of each head, and the key projection of the key head that it uses."""
        rows = torch.cat([projection.weight.detach() for projection in self.projections])
        query, key, _ = rows.unflatten(0, (-1, self.channels)).split([self.heads, self.key_heads, self.key_heads])
        return query, repeat_heads(key[None], self.heads)[0]


def family_of(model: PreTrainedModel) -> Family:
    """The row of a model's family.

    Raises:
        MAWError: the family cannot carry MAW, with the reason, or is not known.
    """
    kind = model.config.model_type
    if kind in REFUSED:
        raise MAWError(f"{type(model).__name__} cannot carry MAW: {REFUSED[kind]}. Supported: {', '.join(FAMILIES)}")
    if kind not in FAMILIES:
        raise MAWError(
            f"{type(model).__name__} (model type {kind!r}) is not supported. Supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[kind]


def find_layers(model: PreTrainedModel) -> list[AttentionLayer]:
    """Every self-attention layer of a supported encoder, in order.

    Raises:
        MAWError: the model cannot carry MAW; the message says why and which families can.
    """
    family = family_of(model)
    if model.base_model is not model:
        raise MAWError(
            f"{type(model).__name__} has a task head, and a task model cannot be saved with MAW yet: attach MAW to an "
            "encoder without a head, such as AutoModel.from_pretrained loads (attached to "
            f"`.{model.base_model_prefix}` it computes, and the task model then refuses to be saved)"
        )
    if getattr(model.config, "is_decoder", False):
        raise MAWError(
            f"{type(model).__name__} is configured as a decoder: MAW takes this family as an encoder only; "
            "load it with is_decoder=False"
        )
    heads = model.config.num_attention_heads
    key_heads = getattr(model.config, "num_key_value_heads", None) or heads
    found = []
    for index, layer in enumerate(model.get_submodule(family.layers)):  # ty: ignore[invalid-argument-type]
        attention = layer.get_submodule(family.attention)
        if any(hasattr(projection, "lora_A") for projection in attention.modules()):
            raise MAWError(
                f"{family.layers}.{index} already carries LoRA: attach MAW first, then add the adapter "
                "(an adapter added before would be saved without MAW)"
            )
        projections = tuple(attention.get_submodule(name) for name in family.projections)
        for name, projection in zip(family.projections, projections, strict=True):
            if not isinstance(projection, nn.Linear):
                raise MAWError(
                    f"{family.layers}.{index}: the projection {name} must be linear, got "
                    f"{type(projection).__name__}: attach MAW before quantising or wrapping the encoder"
                )
        path = f"{family.layers}.{index}.{family.attention}"
        found.append(AttentionLayer(index, path, attention, family, heads, key_heads, projections))
    return found
