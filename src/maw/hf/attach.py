"""Put MAW into chosen layers of a Hugging Face encoder, and take it out again.

An attention layer with MAW keeps its own class, weights and place. It gets a submodule `maw` and a shallow copy of
the model's config whose attention implementation is named "maw"; Transformers then calls `maw_attention` for that
layer alone, which transforms the query and calls whatever implementation the model is set to, with the model's own
mask (MPNet does not go through that interface: `maw.hf.mpnet`). A hook before the host's forward sees to it that MAW
gets whole texts (`maw.hf.inputs`). Nothing else about the host changes, so taking MAW out restores it bit for bit.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from maw.config import MAWConfig
from maw.controls import Control, make_control
from maw.errors import MAWError
from maw.hf import attention as interface
from maw.hf import mpnet
from maw.hf.hosts import AttentionLayer, family_of, find_layers
from maw.hf.inputs import unwatch, watch
from maw.module import DepthAttention
from maw.views import (
    MAXIMAL_CONDITION,
    Views,
    frame_views,
    ones_views,
    random_views,
    spectral_views,
    triangular_factors,
)

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from maw.hf.model import MAWModel

__all__ = [
    "Attachment",
    "LayerReport",
    "attach",
    "carried",
    "carrying_host",
    "detach",
    "has_maw",
    "insert",
    "maw_layers",
    "remove",
    "surgeries",
]


@dataclass(frozen=True)
class LayerReport:
    """What one layer got."""

    index: int
    name: str
    heads: int
    channels: int
    depth: int
    views: str | None
    parameters: int
    mechanism: str = "maw"

    def __str__(self) -> str:
        if self.views is None:
            return f"{self.mechanism} in {self.name}: {self.parameters:,} parameters"
        return (
            f"MAW in {self.name}: {self.heads} heads of {self.channels} channels, depth {self.depth}, "
            f"{self.views} views, {self.parameters:,} parameters"
        )


@dataclass(frozen=True)
class Attachment:
    """What `attach` changed. `model` is the model to use, train and save from now on."""

    model: MAWModel
    layers: tuple[LayerReport, ...]

    @property
    def parameters(self) -> int:
        """How many parameters MAW added."""
        return sum(layer.parameters for layer in self.layers)

    def __str__(self) -> str:
        return "\n".join(str(layer) for layer in self.layers)


def attach(model: PreTrainedModel | SentenceTransformer, config: MAWConfig | None = None) -> Attachment:
    """Put MAW into `config.layers` of an encoder; with the default views its outputs do not change.

    A SentenceTransformer is changed in place: its encoder becomes a `MAWModel` around the host. A bare Transformers
    encoder gets MAW in its layers, and the `MAWModel` to use and to save is `Attachment.model`.

    Args:
        model: an encoder (no task head), or a SentenceTransformer whose first module holds one.
        config: the settings; None is the default recipe.

    Returns:
        what was changed; printing it names the layers.

    Raises:
        MAWError: the host cannot carry MAW, a layer does not exist, `num_heads` disagrees, or MAW is there already.

    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    >>> print(attach(BertModel(tiny), MAWConfig(depth=4)))
    MAW in encoder.layer.0.attention.self: 2 heads of 4 channels, depth 4, spectral views, 357 parameters
    """
    from maw.hf.model import MAWModel

    config = MAWConfig() if config is None else config
    host = _transformer(model).model if _is_sentence_transformer(model) else model
    if not isinstance(host, PreTrainedModel):
        raise MAWError(
            f"attach needs a Transformers encoder or a SentenceTransformer, got {type(host).__name__}: attach MAW "
            "before wrapping the encoder (a CrossEncoder or SparseEncoder has a task head: not supported yet)"
        )
    if isinstance(host, MAWModel) or has_maw(host):
        raise MAWError("this model carries MAW already: call maw.detach(model) first")
    reports = insert(host, config)
    wrapped = MAWModel.around(host, config)
    if _is_sentence_transformer(model):
        _transformer(model).model = wrapped
        cast(
            "Any", model
        )._model_card_text = None  # that of the model without MAW, which would be saved beside this one
    return Attachment(wrapped, reports)


Model = TypeVar("Model", PreTrainedModel, "SentenceTransformer")


def detach(model: Model) -> Model:
    """Take MAW out: the host's own classes, config and attention, bit for bit.

    Args:
        model: what was given to `attach`, or a `MAWModel`.

    Returns:
        the host: the same SentenceTransformer, or the bare encoder.

    Raises:
        MAWError: there is no MAW in it, or an adapter wraps it (merge the adapter first).
    """
    host = carrying_host(model, "detach")
    remove(host)
    if not _is_sentence_transformer(model):
        return cast("Model", host)
    _transformer(model).model = host
    return model


def carrying_host(model: PreTrainedModel | SentenceTransformer, verb: str) -> PreTrainedModel:
    """The bare encoder in `model`, its MAW still in place; without MAW there is nothing to `verb`."""
    from maw.hf.model import MAWModel

    held = _transformer(model).model if _is_sentence_transformer(model) else model
    host = held.backbone if isinstance(held, MAWModel) else held
    if not isinstance(host, nn.Module) or not has_maw(host):
        raise MAWError(f"there is no MAW in this {type(model).__name__}: nothing to {verb}")
    if not isinstance(host, PreTrainedModel):
        raise MAWError(
            f"{verb} needs the encoder or SentenceTransformer that maw.attach was given, got a {type(host).__name__} "
            "around it: unwrap it first (an adapter: merge it)"
        )
    return host


def has_maw(model: nn.Module) -> bool:
    """Whether any layer carries MAW, or a control in its place."""
    return any(isinstance(module, (DepthAttention, Control)) for module in model.modules())


def maw_layers(model: nn.Module) -> list[DepthAttention]:
    """The MAW layers in use, in order; of a layer copied by an adapter, the adapter's copy."""
    return [module for module in carried(model) if isinstance(module, DepthAttention)]


def carried(model: nn.Module) -> list[DepthAttention | Control]:
    """What the layers carry, MAW or a control, in order; of a layer copied by an adapter, the adapter's copy."""
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, (DepthAttention, Control)) and "original_module" not in name
    ]


# Surgery on the layers

surgeries = [0]
"""How often it was done, to any model."""


def insert(host: PreTrainedModel, config: MAWConfig) -> tuple[LayerReport, ...]:
    """Give the chosen layers of `host` their MAW submodule and their own attention implementation."""
    surgeries[0] += 1
    layers = find_layers(host)
    heads = host.config.num_attention_heads
    if config.num_heads is not None and config.num_heads != heads:
        raise MAWError(
            f"num_heads is {config.num_heads} but the encoder has {heads} heads: MAW uses the encoder's own; "
            f"leave num_heads out or give {heads}"
        )
    allowed = interface.IMPLEMENTATIONS if layers[0].family.interface else mpnet.IMPLEMENTATIONS
    interface.check_implementation(host.config._attn_implementation, allowed)
    reports, chosen = [], [layers[index] for index in config.layer_indices(len(layers))]
    # of all first: where one is refused, none is changed
    starts = [_initial_views(layer, config) if config.mechanism == "maw" else None for layer in chosen]
    for layer, views in zip(chosen, starts, strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed * 10_007 + layer.index)  # torch.manual_seed: GPUs' too
            maw = (
                make_control(config, layer.heads, layer.channels, scaling=layer.scaling)
                if views is None
                else DepthAttention(config, views, scaling=layer.scaling)
            )
        layer.attention.maw = maw.to(layer.projections[0].weight.device).train(host.training)
        if layer.family.interface:
            interface.carry(layer.attention)
        else:
            mpnet.carry(layer.attention, host.config)
        parameters, kind = sum(p.numel() for p in maw.parameters()), None if views is None else views.kind
        reports.append(
            LayerReport(
                layer.index, layer.name, heads, layer.channels, config.depth, kind, parameters, config.mechanism
            )
        )
    watch(host)
    return tuple(reports)


def remove(host: PreTrainedModel) -> None:
    """The inverse of `insert`."""
    surgeries[0] += 1
    carrying = [(name, module) for name, module in host.named_modules() if "maw_host_config" in vars(module)]
    for name, attention in carrying:
        if not isinstance(attention.maw, (DepthAttention, Control)):
            raise MAWError(f"{name}: an adapter wraps MAW: call maw.merge_lora(model) first")
    for _, attention in carrying:
        (interface if family_of(host).interface else mpnet).release(attention)
        del attention.maw
    unwatch(host)


def _initial_views(layer: AttentionLayer, config: MAWConfig) -> Views:
    heads, channels, between = layer.heads, layer.channels, layer.family.between
    kind, scaling, seed = config.views, layer.scaling, config.seed * 10_007 + layer.index
    if kind == "spectral" and between is not None:
        raise MAWError(
            f"spectral views are the singular components of the projections' form, which {between} change in this "
            "host: use views='frame' or 'auto'"
        )
    if layer.projections[0].weight.is_meta:  # about to be loaded from a file: only shapes matter
        blank = torch.zeros(heads, config.depth, channels)
        exact = kind in ("auto", "spectral", "frame") and config.depth < channels
        return Views(blank, blank.clone(), torch.zeros(heads, channels, channels) if exact else None, "frame")
    if kind == "auto" and between is not None:
        kind = "frame"
    if kind in ("auto", "spectral"):
        query_weight, key_weight = layer.head_weights()
        if kind == "spectral" or (_well_conditioned(query_weight) and _well_conditioned(key_weight)):
            return spectral_views(query_weight, key_weight, config.depth, scaling=scaling, seed=seed)
        kind = "frame"
    if kind == "frame":
        return frame_views(heads, channels, config.depth, scaling=scaling, seed=seed)
    if kind == "random":
        return random_views(heads, channels, config.depth, seed=seed)
    return ones_views(heads, channels, config.depth)


def _well_conditioned(weight: Tensor) -> bool:
    if weight.shape[2] < weight.shape[1]:
        return False
    return bool(torch.linalg.cond(triangular_factors(weight)).max() <= MAXIMAL_CONDITION)


def _is_sentence_transformer(model: object) -> bool:
    module = sys.modules.get("sentence_transformers")
    return module is not None and isinstance(model, module.SentenceTransformer)


def _transformer(model: Any) -> Any:
    """The module of a SentenceTransformer that holds the encoder."""
    first = model[0]
    if not isinstance(getattr(first, "model", None), nn.Module):
        raise MAWError(
            f"the first module of this SentenceTransformer, {type(first).__name__}, holds no Transformers encoder"
        )
    return first
