"""Texts to vectors to ranked documents, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from maw.errors import MAWError
from maw.retrieval.runs import Run, rank_documents
from maw.retrieval.search import search

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["dense_runs", "encode"]


def encode(
    model: SentenceTransformer,
    texts: Sequence[str],
    kind: Literal["query", "document"],
    *,
    batch_size: int = 64,
    show_progress: bool = False,
) -> Float[Tensor, "n M"]:
    """One vector a text, in the order given, on the model's device; unit length where the model compares by cosine.

    Args:
        model: the encoder, used in evaluation mode.
        texts: what to encode.
        kind: models with prompts treat queries and documents differently.
        batch_size: texts a forward; texts of like length go together.
        show_progress: whether to draw a progress bar.

    Raises:
        MAWError: the model gave a vector that is not finite.
    """
    function = model.encode_query if kind == "query" else model.encode_document
    vectors = function(
        list(texts),
        batch_size=batch_size,
        show_progress_bar=show_progress,
        convert_to_tensor=True,
        normalize_embeddings=model.similarity_fn_name in (None, "cosine"),
    )
    vectors = vectors.float()
    if not bool(torch.isfinite(vectors).all()):
        row = int((~torch.isfinite(vectors).all(dim=1)).nonzero()[0])
        raise MAWError(
            f"the model's vector of {kind} {row} is not finite: its weights are damaged, or training diverged"
        )
    return vectors


def dense_runs(
    model: SentenceTransformer,
    documents: Mapping[str, str],
    queries: Mapping[str, Mapping[str, str]],
    *,
    k: int = 1000,
    batch_size: int = 64,
    show_progress: bool = False,
) -> dict[str, Run]:
    """The k best documents of every query of every split, by exact search; documents are encoded once.

    Args:
        model: the encoder.
        documents: id to text; equal scores rank by descending id.
        queries: split to query id to text.
        k: how many documents a query.
        batch_size: texts a forward.
        show_progress: whether to draw progress bars.

    Returns:
        split to run.
    """
    document_ids = sorted(documents, reverse=True)  # equal scores keep this order
    vectors = encode(
        model, [documents[i] for i in document_ids], "document", batch_size=batch_size, show_progress=show_progress
    )
    runs = {}
    for split, texts in queries.items():
        ids = list(texts)
        query_vectors = encode(model, [texts[i] for i in ids], "query", batch_size=batch_size)
        scores, indices = search(query_vectors, vectors, k)
        runs[split] = rank_documents(ids, document_ids, scores, indices)
    return runs
