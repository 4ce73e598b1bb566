"""Exact top-k by inner product, in chunks, with bounded memory and one stated tie rule.

The rule: the higher score first, and among equal scores the lower document position. It holds inside a chunk, across
the borders of chunks, and at the k-th place, where it decides which of several equal documents is returned at all.
Whoever sorts the documents by descending id before encoding them therefore ranks equal scores as `maw.retrieval.runs`
does.

`torch.topk` keeps no such rule: it gives the k largest values, but among equal values an arbitrary choice. Only the
k-th value can be affected, so the choice is made again for the rows in which more documents share that value than
there is room for.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from maw.errors import MAWError

__all__ = ["search"]


@torch.no_grad()
def search(
    query_vectors: Float[Tensor, "queries width"] | np.ndarray,
    document_vectors: Float[Tensor, "documents width"] | np.ndarray,
    k: int,
    *,
    document_chunk: int = 65_536,
    query_chunk: int = 256,
) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]:
    """Return the k documents with the largest inner product for every query: score(i, j) = sum_c q(i, c) d(j, c).

    Products are taken in float32 at full precision, whatever the vectors' own type, an autocast region or a TF32
    setting outside. The documents may be a memory-mapped array: each chunk of them is read once and moved to the
    queries' device. At any time memory holds one chunk of documents, `query_chunk * document_chunk` scores and the
    best k of every query.

    Where rounding decides, the last bit of a score can depend on the chunk sizes, because a matrix product may add in
    another order for another shape; two documents with the same vector can then differ in that bit. Scores that
    float32 holds exactly are the same for every chunk size.

    Args:
        query_vectors: real vectors, one row a query; the result lies on their device.
        document_vectors: real vectors of the same width, one row a document.
        k: how many documents to return for a query; where there are fewer documents, all of them are returned.
        document_chunk: how many documents are scored at a time.
        query_chunk: how many queries are scored at a time.

    Returns:
        Scores (queries, k) as float32 and document positions (queries, k) as int64, best first; equal scores in the
        order of the positions.

    Raises:
        MAWError: widths differ, there is no document, k or a chunk is below 1, or a vector or a score is not finite.

    Example:
        >>> queries = torch.tensor([[1.0, 0.0]])
        >>> documents = torch.tensor([[0.0, 1.0], [2.0, 0.0], [3.0, 1.0], [2.0, 5.0]])
        >>> scores, indices = search(queries, documents, k=3)
        >>> scores.tolist(), indices.tolist()
        ([[3.0, 2.0, 2.0]], [[2, 1, 3]])
    """
    for name, value in (("k", k), ("document_chunk", document_chunk), ("query_chunk", query_chunk)):
        if value < 1:
            raise MAWError(f"{name} must be at least 1, got {value}: ask for one document or more at a time")
    _check_matrix("query vectors", query_vectors)
    _check_matrix("document vectors", document_vectors)
    if query_vectors.shape[1] != document_vectors.shape[1]:
        raise MAWError(
            f"query and document vectors must have the same width, got {query_vectors.shape[1]} and "
            f"{document_vectors.shape[1]}: encode both with the same model"
        )
    documents = document_vectors.shape[0]
    if documents == 0:
        raise MAWError("there must be at least one document vector, got none: encode the documents first")
    device = query_vectors.device if isinstance(query_vectors, Tensor) else torch.device("cpu")
    query_all = _rows("query vectors", query_vectors, 0, query_vectors.shape[0], device)
    k = min(k, documents)

    best: list[tuple[Tensor, Tensor]] = []  # one (scores, positions) for every chunk of queries
    with _full_precision(device):
        for begin in range(0, documents, document_chunk):
            chunk = _rows("document vectors", document_vectors, begin, begin + document_chunk, device)
            for number, query in enumerate(query_all.split(query_chunk)):
                score, position = _top(query @ chunk.T, k)
                position += begin
                if begin == 0:
                    best.append((score, position))
                else:
                    best[number] = _merge(best[number], (score, position), k)
    if not best:
        return query_all.new_empty(0, k), torch.empty(0, k, dtype=torch.int64, device=device)
    return torch.cat([score for score, _ in best]), torch.cat([position for _, position in best])


def _check_matrix(name: str, vectors: Tensor | np.ndarray) -> None:
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise MAWError(
            f"{name} must be a matrix with one row a text and at least one column, got shape {tuple(vectors.shape)}: "
            "stack the vectors of the texts"
        )
    is_complex = vectors.is_complex() if isinstance(vectors, Tensor) else np.iscomplexobj(vectors)
    if is_complex:
        raise MAWError(f"{name} must be real numbers, got {vectors.dtype}: convert them first")


def _rows(name: str, vectors: Tensor | np.ndarray, begin: int, end: int, device: torch.device) -> Tensor:
    """Rows begin to end as finite float32 on the device."""
    part = vectors[begin:end]
    if isinstance(part, np.ndarray):
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused below
            part = np.ascontiguousarray(part, dtype=np.float32)
        part = torch.from_numpy(part if part.flags.writeable else part.copy())
    rows = part.to(device=device, dtype=torch.float32)
    finite = rows.isfinite().all(dim=1)
    if not finite.all():
        wrong = int(finite.logical_not().nonzero()[0, 0])
        raise MAWError(
            f"{name} must be finite in float32, got NaN or infinity in row {begin + wrong} "
            f"(and {int(finite.logical_not().sum()) - 1} more of the rows {begin} to {begin + len(rows) - 1}): "
            "look for a failed training or half-precision overflow in the encoder"
        )
    return rows


def _top(score: Float[Tensor, "queries chunk"], k: int) -> tuple[Tensor, Tensor]:
    """The best k of each row by (score descending, position ascending)."""
    k = min(k, score.shape[1])
    value, position = score.topk(k, dim=1)
    if not value.isfinite().all():
        raise MAWError(
            "scores must be finite, got NaN or infinity: the vectors are so long that float32 cannot hold their inner "
            "product; normalise them"
        )
    # Every score above the k-th value is in; of those equal to it, `room` are, and they stand last in each row.
    last = value[:, -1:]
    room = (value == last).sum(dim=1)
    crowded = ((score == last).sum(dim=1) > room).nonzero()[:, 0]
    if len(crowded):
        equal = score[crowded] == last[crowded]
        first = equal & (equal.cumsum(dim=1, dtype=torch.int32) <= room[crowded, None])
        chosen = position[crowded]
        chosen[value[crowded] == last[crowded]] = first.nonzero()[:, 1]
        position[crowded] = chosen
    position, order = position.sort(dim=1)
    return _by_score(value.gather(1, order), position)


def _by_score(value: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Sort by score, keeping the order among equals."""
    value, order = (value + 0.0).sort(dim=1, descending=True, stable=True)  # + 0.0: some sorts put -0.0 below 0.0
    return value, position.gather(1, order)


def _merge(earlier: tuple[Tensor, Tensor], later: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Merge two sorted lists; every position in `earlier` is below every position in `later`."""
    value = torch.cat([earlier[0], later[0]], dim=1)
    value, position = _by_score(value, torch.cat([earlier[1], later[1]], dim=1))
    return value[:, :k], position[:, :k]


@contextmanager
def _full_precision(device: torch.device) -> Generator[None]:
    """Switch autocast and the reduced-precision matrix products off, and put them back afterwards."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # ty: ignore[missing-attribute]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, setting in zip(backends, before, strict=True):
            backend.fp32_precision = setting
