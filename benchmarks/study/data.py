"""What the study trains and measures on: four domains, their mixture, and MS MARCO's pool as a domain never trained on.

Texts are cut to `LENGTH` tokens and tokenised once a process; every run then only forms batches.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from maw.retrieval.data.dataset import RetrievalDataset
from maw.retrieval.data.loading import load_dataset

__all__ = ["DOMAINS", "POOL", "SOME_DOCUMENTS", "Domain", "Tokens", "domain", "encode", "training_set"]

DOMAINS = ("pydocs", "nfcorpus", "nq-qed", "tldr-commands")
POOL = "msmarco-passage-pool"
SOME_DOCUMENTS = 2000
"""Of a collection, that depth weights are looked at; every domain has more."""
LENGTH = 128
TOKENS_A_BATCH = 32_768


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts by id."""

    ids: list[str]
    rows: list[np.ndarray]


@dataclass(frozen=True)
class Domain:
    """A collection with its judged queries, tokenised; documents in descending order of ids, as equal scores rank."""

    dataset: RetrievalDataset
    documents: Tokens
    queries: Mapping[str, Tokens]


@functools.cache
def dataset(name: str, data: Path) -> RetrievalDataset:
    return load_dataset("pydocs" if name == "pydocs" else f"beir:{data / name}")


def tokenise(tokenizer: Any, texts: Mapping[str, str], ids: Sequence[str]) -> Tokens:
    found = tokenizer([texts[name] for name in ids], truncation=True, max_length=LENGTH, add_special_tokens=True)
    return Tokens(list(ids), [np.array(row, dtype=np.int32) for row in found["input_ids"]])


_DOMAINS: dict[str, Domain] = {}


def domain(name: str, data: Path, tokenizer: Any) -> Domain:
    """The documents and the queries of every evaluation split of one domain."""
    if name not in _DOMAINS:
        whole = dataset(name, data)
        splits = [split for split in whole.evaluation_splits if split not in whole.counts["unions"]]
        queries = {}
        for split in splits:
            texts, _ = whole.evaluation_split(split)
            queries[split] = tokenise(tokenizer, texts, list(texts))
        documents = tokenise(tokenizer, whole.documents, sorted(whole.documents, reverse=True))
        _DOMAINS[name] = Domain(whole, documents, queries)
    return _DOMAINS[name]


@functools.cache
def training_set(name: str, data: Path) -> RetrievalDataset:
    """The train split alone; `mixed` is that of all domains, without queries that any evaluation asks."""
    if name != "mixed":
        whole = dataset(name, data)
        return replace(whole, qrels={"train": whole.qrels["train"]})
    documents, queries = {}, {}
    qrels: dict[str, dict[str, dict[str, int]]] = {"train": {}, "test": {}}
    for part in (*DOMAINS, POOL):
        whole = dataset(part, data)
        documents |= {f"{part}/{key}": whole.documents[key] for key in whole.documents} if part != POOL else {}
        queries |= {f"{part}/{key}": whole.queries[key] for key in whole.queries}
        for split, judged in whole.qrels.items():
            if part == POOL:  # its queries are only kept out of train
                continue
            kind = "train" if split == "train" else "test"
            for query, grades in judged.items():
                qrels[kind][f"{part}/{query}"] = {f"{part}/{key}": grade for key, grade in grades.items()}
    mixture = RetrievalDataset.from_parts("mixed", documents, queries, qrels)
    return replace(mixture, qrels={"train": mixture.qrels["train"]})


@torch.no_grad()
def encode(model: SentenceTransformer, tokens: Tokens, device: torch.device) -> Tensor:
    """Unit vectors in the order of the ids, computed in float16 on a GPU; modules' modes are the caller's."""
    lengths = np.array([len(row) for row in tokens.rows])
    order = np.argsort(-lengths, kind="stable")
    vectors, begin = None, 0
    while begin < len(order):
        longest = int(lengths[order[begin]])
        chosen = order[begin : begin + max(1, TOKENS_A_BATCH // longest)]
        ids = np.zeros((len(chosen), longest), dtype=np.int64)
        for place, row in enumerate(chosen):
            ids[place, : lengths[row]] = tokens.rows[row]
        mask = np.arange(longest) < lengths[chosen, None]
        features = {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": np.zeros_like(ids)}
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            output = model({name: torch.from_numpy(value).to(device) for name, value in features.items()})
        found = torch.nn.functional.normalize(output["sentence_embedding"].float(), dim=-1)
        if vectors is None:
            vectors = found.new_empty(len(order), found.shape[1])
        vectors[torch.from_numpy(chosen).to(device)] = found
        begin += len(chosen)
    return vectors
