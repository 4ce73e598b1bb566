"""Fold MAW back into the host where its depth weights are constant: a plain encoder with the same vectors.

With uniform weights W of (7) is one matrix a head, the same for every text, and so part of the query projection:

    q' = q W / scaling = (x W_q^T + b_q) W / scaling,   W_q <- (W / scaling)^T W_q,   b_q <- b_q W / scaling       (8)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from maw.errors import MAWError
from maw.functional import query_transform
from maw.hf.attach import Model, carrying_host, detach
from maw.hf.hosts import AttentionLayer, find_layers

if TYPE_CHECKING:
    from maw.module import DepthAttention

__all__ = ["fold"]


def fold(model: Model) -> Model:
    """Multiply MAW's constant transform into the host's query projections and take MAW out; in place, like `detach`.

    The host then computes the same vectors with its own attention at its own cost, and needs no `maw` to be saved,
    loaded or trained. W is computed in float64 and stored in the host's dtype. Grouped keys are no obstacle: only
    the query projection, which has all H heads, changes.

    Args:
        model: what was given to `attach`, or a `MAWModel`; every MAW layer in it with `selection="uniform"`.

    Returns:
        the host: the same SentenceTransformer, or the bare encoder.

    Raises:
        MAWError: there is no MAW in it; its weights depend on the text; an adapter is not merged; or the host does
            something between the query projection and the attention that W does not commute with. Nothing has
            changed then.

    Source: method.md (8).

    >>> from transformers import BertConfig, BertModel
    >>> import maw
    >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    >>> attachment = maw.attach(BertModel(tiny), maw.MAWConfig(depth=4, selection="uniform"))
    >>> type(fold(attachment.model)).__name__
    'BertModel'
    """
    host = carrying_host(model, "fold")
    _refuse_adapter(host)
    layers = [layer for layer in find_layers(host) if hasattr(layer.attention, "maw")]
    for layer in layers:
        _refuse_what_is_not_constant(layer)
    for layer in layers:
        _fold_layer(layer)
    return detach(model)


def _refuse_adapter(host: PreTrainedModel) -> None:
    if any(hasattr(module, "get_base_layer") or hasattr(module, "modules_to_save") for module in host.modules()):
        raise MAWError(
            "an adapter stands between the query projection and MAW: call maw.merge_lora(model) first, then maw.fold"
        )


def _refuse_what_is_not_constant(layer: AttentionLayer) -> None:
    mechanism = layer.attention.maw.config.mechanism
    if mechanism != "maw":
        raise MAWError(f"{layer.name} carries the control {mechanism!r}, not MAW: fold is for MAW")
    selection = layer.attention.maw.config.selection
    if selection != "uniform":
        raise MAWError(
            f"{layer.name}: fold needs depth weights that are the same for every text, selection='uniform', got "
            f"selection={selection!r}, whose weights depend on the text: keep MAW, or train with selection='uniform'"
        )
    if layer.family.between:
        raise MAWError(
            f"{layer.name}: between its query projection and its attention this host has {layer.family.between}, "
            "which MAW's transform does not commute with, so it cannot be folded into the projection: keep MAW"
        )


@torch.no_grad()
def _fold_layer(layer: AttentionLayer) -> None:
    transform, projection = _constant_transform(layer.attention.maw), layer.projections[0]
    heads, channels, _ = transform.shape
    rows = slice(0, heads * channels)  # of a projection that makes keys and values too, the queries come first
    weight = projection.weight[rows].cpu().double().unflatten(0, (heads, channels))
    projection.weight[rows] = (transform.mT @ weight).flatten(0, 1).to(projection.weight)
    if projection.bias is not None:
        bias = projection.bias[rows].cpu().double().unflatten(0, (heads, 1, channels))
        projection.bias[rows] = (bias @ transform).flatten().to(projection.bias)


def _constant_transform(maw: DepthAttention) -> Float[Tensor, "H C C"]:
    """W of (7) at weights 1/D, divided by the host's `scaling`; in float64 on the CPU."""

    def exact(tensor: Tensor) -> Tensor:
        return tensor.detach().cpu().double()

    depth = maw.config.depth
    return query_transform(
        exact(maw.query_views),
        exact(maw.key_views),
        torch.full((1, depth), 1 / depth, dtype=torch.float64),
        constant=None if maw.constant is None else exact(maw.constant) / maw.scaling,
        scale=maw.scale / maw.scaling,
    )[0]
