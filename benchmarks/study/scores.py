"""What one trained model is measured by: rankings of every domain, and what its depth selection does.

Rankings are by noise-free weights. Beside them, on the domains it was trained on:

    sampled    queries and documents encoded with the noisy weights of training
    gaps       nDCG@10 with noise-free weights less that with sampled ones, of `DRAWS` draws, on dev and on test
    fused      a query's vector is the mean over `CHOICES` noisy ones, documents noise-free: depth as an ensemble

and of every MAW layer, over test queries and documents, and over dev queries and documents for what is chosen by it:
the smallest mean weight of a depth times D; the share of depths with a mean of at least 1 / (4 D); the mutual
information of depth and text under policy and weights, in nats, and the weights' among queries alone and among
documents alone, which does not count that the two differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import data as study_data
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from maw.hf.attach import maw_layers
from maw.hf.listening import listening
from maw.module import DepthAttention
from maw.retrieval.evaluation.measures import evaluate
from maw.retrieval.ranking.runs import rank_documents
from maw.retrieval.ranking.search import search
from maw.selector import depth_weights

__all__ = ["measure"]

METRIC = "nDCG@10"
CHOICES = 8
DRAWS = 3
SOME = study_data.SOME_DOCUMENTS
PerQuery = dict[str, dict[str, float]]


def measure(
    model: SentenceTransformer, data: Path, device: torch.device, *, trained_on: str, everything: bool
) -> tuple[PerQuery, dict[str, Any]]:
    """nDCG@10 of every query by `domain/split`, and the statistics of the selection (empty without one a text).

    Args:
        trained_on: a domain, `mixed`, or nothing.
        everything: all domains and MS MARCO's pool; else those it was trained on.
    """
    model.eval()
    own = study_data.DOMAINS if trained_on == "mixed" else (trained_on,)
    names = (*study_data.DOMAINS, study_data.POOL) if everything else own
    per_query: PerQuery = {}
    selection: dict[str, Any] = {}
    layers = maw_layers(model)
    chooses = [layer for layer in layers if layer.config.selection != "uniform" and type(layer) is DepthAttention]
    for name in names:
        found = study_data.domain(name, data, model.tokenizer)
        documents = study_data.encode(model, found.documents, device)
        vectors = {split: study_data.encode(model, tokens, device) for split, tokens in found.queries.items()}
        for split, queries in vectors.items():
            per_query[f"{name}/{split}"] = _scores(found, split, queries, documents)
        if chooses and name in own:
            quiet = {split: _mean(per_query[f"{name}/{split}"]) for split in ("dev", "test")}
            selection[name] = _selection(model, found, documents, quiet, device)
            per_query |= {f"{name}/test/{kind}": selection[name].pop(kind) for kind in ("sampled", "fused")}
    return per_query, selection


def _scores(found: study_data.Domain, split: str, queries: Tensor, documents: Tensor) -> dict[str, float]:
    score, place = search(queries, documents, 20)
    run = rank_documents(found.queries[split].ids, found.documents.ids, score, place)
    return evaluate(found.dataset.judgements(split), run, [METRIC]).per_query[METRIC]


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)


def _selection(
    model: SentenceTransformer,
    found: study_data.Domain,
    documents: Tensor,
    quiet: Mapping[str, float],
    device: torch.device,
) -> dict[str, Any]:
    layers = maw_layers(model)
    policies = {split: _policies(model, found, split, device) for split in ("dev", "test")}
    for layer in layers:
        layer.train()
    try:
        torch.manual_seed(0)
        noisy = [study_data.encode(model, found.queries["test"], device) for _ in range(CHOICES)]
        sampled: dict[str, list[dict[str, float]]] = {"dev": [], "test": []}
        for draw in range(DRAWS):
            noisy_documents = study_data.encode(model, found.documents, device)
            queries = {"test": noisy[draw], "dev": study_data.encode(model, found.queries["dev"], device)}
            for split, kept in sampled.items():
                kept.append(_scores(found, split, queries[split], noisy_documents))
    finally:
        for layer in layers:
            layer.eval()
            layer.collect()
    fused = torch.nn.functional.normalize(torch.stack(noisy).mean(dim=0), dim=-1)
    return {
        "sampled": sampled["test"][0],
        "fused": _scores(found, "test", fused, documents),
        "gaps": {split: [quiet[split] - _mean(draw) for draw in draws] for split, draws in sampled.items()},
        "layers": policies["test"],
        "layers on dev": policies["dev"],
    }


def _policies(
    model: SentenceTransformer, found: study_data.Domain, split: str, device: torch.device
) -> list[Mapping[str, float]]:
    layers = [layer for layer in maw_layers(model) if layer.config.selection != "uniform"]
    some = study_data.Tokens(found.documents.ids[:SOME], found.documents.rows[:SOME])
    logits: dict[DepthAttention, list[Tensor]] = {layer: [] for layer in layers}
    number: list[int] = []

    def hear(layer: DepthAttention, query: Tensor, _: Tensor, mask: Tensor | None) -> None:
        logits[layer].append(layer.policy_logits(query, mask))

    with listening(layers, hear):
        for texts in (found.queries[split], some):
            study_data.encode(model, texts, device)
            number.append(len(texts.ids))
    return [_usage(*torch.cat(kept).split(number), layer) for layer, kept in logits.items()]


def _usage(queries: Tensor, documents: Tensor, layer: DepthAttention) -> Mapping[str, float]:
    logits = torch.cat([queries, documents])
    policy = logits.softmax(dim=-1)
    weight = depth_weights(logits, selection=layer.config.selection, tau=layer.tau, training=False)
    depth = logits.shape[-1]

    def information(share: Tensor) -> float:
        return float(torch.special.entr(share.mean(dim=0)).sum() - torch.special.entr(share).sum(dim=-1).mean())

    own = {"queries": weight[: len(queries)], "documents": weight[len(queries) :]}
    return {
        "smallest mean weight * D": float(weight.mean(dim=0).min()) * depth,
        "depths alive by policy": float((policy.mean(dim=0) >= 1 / (4 * depth)).float().mean()),
        "depths alive by weight": float((weight.mean(dim=0) >= 1 / (4 * depth)).float().mean()),
        "policy entropy / log D": float(torch.special.entr(policy).sum(dim=-1).mean()) / math.log(depth),
        "information of policy, nat": information(policy),
        "information of weights, nat": information(weight),
        **{f"information of weights among {kind}, nat": information(share) for kind, share in own.items()},
    }
