"""How much each depth weighs in a trained model, by layer and by kind of input: queries and documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from maw.hf.attach import carrying_host, maw_layers
from maw.hf.hosts import family_of
from maw.hf.listening import listening
from maw.retrieval.data.texts import TextStore
from maw.retrieval.ranking.dense import encode
from maw.selector import depth_weights

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from maw.module import DepthAttention
    from maw.retrieval.data.dataset import RetrievalDataset

__all__ = ["TEXTS", "depth_usage"]

TEXTS = 256
"""Texts of each kind that are looked at, at most."""


def depth_usage(model: SentenceTransformer, dataset: RetrievalDataset, splits: Sequence[str]) -> dict[str, Any] | None:
    """The mean depth weights over queries and over documents, in every MAW layer, in evaluation mode.

    They are the `weight_usage` of the training logs, but of each kind of input alone: up to `TEXTS` queries of the
    evaluation splits and as many documents, evenly spaced.

    Args:
        model: an encoder; it is left as it was.
        dataset: where the texts come from.
        splits: whose queries.

    Returns:
        None where no layer has a policy (without MAW, with a control in its place, or with uniform weights). Otherwise
        `layers`, the layers' indices in the encoder; `query` and `document`, one list of D shares a layer; and `texts`,
        how many texts of each kind were looked at.
    """
    if not maw_layers(model):
        return None
    host = carrying_host(model, "look at")
    blocks: Any = host.get_submodule(family_of(host).layers)
    layers = {place: found[0] for place, block in enumerate(blocks) if (found := maw_layers(block))}
    if any(layer.config.selection == "uniform" for layer in layers.values()):
        return None
    asked = {query: dataset.queries[query] for split in splits for query in dataset.judgements(split)}
    texts: dict[Literal["query", "document"], list[str]]
    texts = {"query": _some(asked), "document": _some(dataset.documents)}
    return {
        "layers": list(layers),
        **{kind: _mean_weights(model, list(layers.values()), those, kind) for kind, those in texts.items()},
        "texts": {kind: len(those) for kind, those in texts.items()},
    }


def _some(texts: Mapping[str, str]) -> list[str]:
    """At most `TEXTS` of them, evenly spaced; of a store on disk the others are not read."""
    found = texts.texts if isinstance(texts, TextStore) else list(texts.values())
    return list(found[:: max(1, -(-len(found) // TEXTS))])


@torch.no_grad()
def _mean_weights(
    model: SentenceTransformer,
    layers: Sequence[DepthAttention],
    texts: Sequence[str],
    kind: Literal["query", "document"],
) -> list[list[float]]:
    found: dict[DepthAttention, list[Tensor]] = {layer: [] for layer in layers}

    def hear(layer: DepthAttention, query: Tensor, _: Tensor, mask: Tensor | None) -> None:
        logits, config = layer.policy_logits(query, mask).cpu().double(), layer.config
        weight = depth_weights(logits, selection=config.selection, tau=config.tau, training=False)
        found[layer].append(weight)

    with listening(layers, hear):
        encode(model, texts, kind)
    return [[round(share, 6) for share in torch.cat(those).mean(dim=0).tolist()] for those in found.values()]
