"""Which Hugging Face encoders can carry MAW, and where their attention layers are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from maw.errors import MAWError

__all__ = ["AttentionLayer", "find_layers", "head_weight"]


@dataclass(frozen=True)
class Family:
    """Where a family of encoders keeps its layers and their projections.

    `between` names what the host does to a query after its projection and before attention, such as rotary positions.
    """

    layers: str
    attention: str
    query: str
    key: str
    between: str | None = None


BERT = Family(layers="encoder.layer", attention="attention.self", query="query", key="key")

FAMILIES: dict[str, Family] = {
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "camembert": BERT,
    "electra": BERT,
    "distilbert": Family(layers="transformer.layer", attention="attention", query="q_lin", key="k_lin"),
}

REFUSED: dict[str, str] = {
    "albert": "it shares one attention module among all layers, so MAW in one layer would be MAW in all",
    "mpnet": "it adds its own relative position terms to the logits inside the layer",
    "deberta": "its logits have position terms that are not a form in its queries and keys",
    "deberta-v2": "its logits have position terms that are not a form in its queries and keys",
    "t5": "it adds its own relative position terms to the logits inside the layer",
    "mt5": "it adds its own relative position terms to the logits inside the layer",
}


class AttentionLayer(NamedTuple):
    """One attention layer of a host: its index, its module path, the module, its projections, its family."""

    index: int
    name: str
    attention: Any  # each family has a class of its own
    query: nn.Linear
    key: nn.Linear
    family: Family

    @property
    def projections(self) -> tuple[nn.Linear, nn.Linear]:
        """The query projection, then the key projection."""
        return self.query, self.key


def find_layers(model: PreTrainedModel) -> list[AttentionLayer]:
    """Every self-attention layer of a supported encoder, in order.

    Raises:
        MAWError: the model cannot carry MAW; the message says why and which families can.
    """
    kind = model.config.model_type
    if kind in REFUSED:
        raise MAWError(f"{type(model).__name__} cannot carry MAW: {REFUSED[kind]}. Supported: {', '.join(FAMILIES)}")
    if kind not in FAMILIES:
        raise MAWError(
            f"{type(model).__name__} (model type {kind!r}) is not supported. Supported: {', '.join(FAMILIES)}"
        )
    if model.base_model is not model:
        raise MAWError(
            f"{type(model).__name__} has a task head: attach MAW to its encoder alone, `.{model.base_model_prefix}`"
        )
    if getattr(model.config, "is_decoder", False):
        raise MAWError(f"{type(model).__name__} is configured as a decoder (causal): MAW needs a bidirectional encoder")
    family = FAMILIES[kind]
    found = []
    for index, layer in enumerate(model.get_submodule(family.layers)):  # ty: ignore[invalid-argument-type]
        attention = layer.get_submodule(family.attention)
        if any(hasattr(projection, "lora_A") for projection in attention.modules()):
            raise MAWError(
                f"{family.layers}.{index} already carries LoRA: attach MAW first, then add the adapter "
                "(an adapter added before would be saved without MAW)"
            )
        query, key = attention.get_submodule(family.query), attention.get_submodule(family.key)
        if not isinstance(query, nn.Linear) or not isinstance(key, nn.Linear):
            raise MAWError(
                f"{family.layers}.{index}: the query and key projections must be linear, got {type(query).__name__} "
                f"and {type(key).__name__}: attach MAW before quantising or wrapping the encoder"
            )
        name = f"{family.layers}.{index}.{family.attention}"
        found.append(AttentionLayer(index, name, attention, query, key, family))
    return found


def head_weight(projection: nn.Linear, heads: int) -> Float[Tensor, "H C M"]:
    """A projection's weight split into heads."""
    return projection.weight.detach().unflatten(0, (heads, -1))
