"""Texts to vectors to ranked documents, without a file between them.

Documents are encoded when the search reads them, a block at a time, and their vectors are given up when they have been
scored. Vectors that are to be searched again belong into a store: `maw.retrieval.vectors.corpus_encoding`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from maw.errors import MAWError
from maw.progress import counted
from maw.retrieval.data.texts import TextStore
from maw.retrieval.ranking.runs import Run, rank_documents
from maw.retrieval.ranking.search import search
from maw.retrieval.similarity import is_normalised

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["dense_runs", "encode"]

BLOCK = 65_536
"""Documents encoded at a time."""


def encode(
    model: SentenceTransformer,
    texts: Sequence[str],
    kind: Literal["query", "document"],
    *,
    batch_size: int = 64,
    show_progress: bool = False,
    first: int = 0,
    tell: Callable[[int], None] | None = None,
) -> Float[Tensor, "n M"]:
    """One vector a text, in the order given, on the model's device; unit length where the model compares by cosine.

    Args:
        model: the encoder, used in evaluation mode.
        texts: what to encode.
        kind: models with prompts treat queries and documents differently.
        batch_size: texts a forward; texts of like length go together.
        show_progress: whether to draw a progress bar.
        first: the number of the first text, for the message.
        tell: told the number of texts of every batch; None counts these texts alone (`maw.progress`).

    Raises:
        MAWError: the model gave a vector that is not finite, or compares by neither cosine nor dot product.
    """
    function = model.encode_query if kind == "query" else model.encode_document
    with (
        counted("encoding queries" if kind == "query" else "encoding documents", len(texts)) as own,
        _batches_told(model, batch_size, tell or own),
    ):
        vectors = function(
            list(texts),
            batch_size=batch_size,
            show_progress_bar=show_progress,
            convert_to_tensor=True,
        )
    vectors = vectors.float()
    if is_normalised(model):  # in float32: in half precision lengths are off by as much as scores differ
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    if not bool(torch.isfinite(vectors).all()):
        row = int((~torch.isfinite(vectors).all(dim=1)).nonzero()[0]) + first
        raise MAWError(
            f"the model's vector of {kind} {row} is not finite: its weights are damaged, or training diverged"
        )
    return vectors


@contextmanager
def _batches_told(model: SentenceTransformer, batch_size: int, tell: Callable[[int], None]) -> Generator[None]:
    """Call `tell` after every batch that the model's first module has taken."""

    def told(module: Any, arguments: tuple[Any, ...], result: Any) -> None:
        features = arguments[0]
        mask = features.get("attention_mask") if isinstance(features, Mapping) else None
        tell(batch_size if mask is None else len(mask))

    hook = model[0].register_forward_hook(told)
    try:
        yield
    finally:
        hook.remove()


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
    document_ids, read = _in_order(documents)
    names = [(split, name) for split, texts in queries.items() for name in texts]
    texts = [queries[split][name] for split, name in names]
    query_vectors = encode(model, texts, "query", batch_size=batch_size)

    def encoded(begin: int, end: int) -> Tensor:
        options: dict[str, Any] = {"batch_size": batch_size, "show_progress": show_progress}
        return encode(model, read(begin, end), "document", **options, first=begin, tell=tell)

    vectors = _Encoded((len(document_ids), query_vectors.shape[-1]), encoded)
    with counted("encoding documents", len(document_ids)) as tell:
        scores, indices = search(query_vectors, vectors, k, document_chunk=BLOCK)
    runs, begin = {}, 0
    for split, texts in queries.items():
        end = begin + len(texts)
        runs[split] = rank_documents(list(texts), document_ids, scores[begin:end], indices[begin:end])
        begin = end
    return runs


class _Encoded:
    """A matrix whose rows are encoded when they are read."""

    ndim = 2

    def __init__(self, shape: tuple[int, int], encoded: Callable[[int, int], Tensor]) -> None:
        self.shape, self.encoded = shape, encoded

    def __getitem__(self, rows: slice) -> Tensor:
        begin, end, _ = rows.indices(self.shape[0])
        return self.encoded(begin, end)


def _in_order(documents: Mapping[str, str]) -> tuple[Sequence[str], Callable[[int, int], list[str]]]:
    """The ids in descending order, and what reads the texts of some places in it."""
    if isinstance(documents, TextStore):
        order = documents.descending()
        texts = documents.texts
        return _Picked(documents.ids, order), lambda begin, end: [texts[int(place)] for place in order[begin:end]]
    ids = sorted(documents, reverse=True)
    return ids, lambda begin, end: [documents[name] for name in ids[begin:end]]


class _Picked(Sequence[str]):
    """Strings by their place in another order, read one by one."""

    def __init__(self, strings: Sequence[str], order: np.ndarray) -> None:
        self.strings, self.order = strings, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: Any) -> Any:
        return self.strings[int(self.order[place])]
