"""Exact top-k by inner product, in chunks, with bounded memory and one stated tie rule.

The rule: the higher score first, and among equal scores the lower document position, or the lower `order` where one is
given. It holds inside a chunk, across the borders of chunks, and at the k-th place, where it decides which of several
equal documents is returned at all. Whoever sorts the documents by descending id before encoding them, or gives their
ranks in that order, therefore ranks equal scores as `maw.retrieval.ranking.runs` does.

The matrix product is the work; `maw.retrieval.ranking.best` chooses among its scores with one comparison each.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from maw.errors import MAWError
from maw.retrieval.ranking.best import Best

__all__ = ["Rows", "search"]

CHUNKS = {"cpu": (16_384, 256), "cuda": (65_536, 4096)}
"""Documents and queries scored at a time, where nothing is asked for: a CPU's fit its cache."""


class Rows(Protocol):
    """A matrix that is not in memory: consecutive rows are made or read when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and width."""
        ...

    @property
    def ndim(self) -> int:
        """Two."""
        ...

    def __getitem__(self, rows: slice, /) -> np.ndarray | Tensor: ...


@torch.no_grad()
def search(
    query_vectors: Float[Tensor, "queries width"] | np.ndarray,
    document_vectors: Float[Tensor, "documents width"] | np.ndarray | Rows,
    k: int,
    *,
    document_chunk: int | None = None,
    query_chunk: int | None = None,
    order: Int[np.ndarray, " documents"] | None = None,
) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]:
    """Return the k documents with the largest inner product for every query: score(i, j) = sum_c q(i, c) d(j, c).

    Products are taken in float32 at full precision, whatever the vectors' own type, an autocast region or a TF32
    setting outside. The documents may be a memory-mapped array: each chunk of them is read once and moved to the
    queries' device, on a GPU while the chunk before is scored. At any time memory holds two chunks of documents,
    `query_chunk * document_chunk` scores and some 2k candidates of every query. Queries on a device that is neither
    a CPU nor CUDA are searched on the CPU.

    Where rounding decides, the last bit of a score can depend on the chunk sizes, because a matrix product may add in
    another order for another shape; two documents with the same vector can then differ in that bit. Scores that
    float32 holds exactly are the same for every chunk size.

    Args:
        query_vectors: real vectors, one row a query; the result lies on their device.
        document_vectors: real vectors of the same width, one row a document; rows that are not in memory are asked
            for once, in order.
        k: how many documents to return for a query; where there are fewer documents, all of them are returned.
        document_chunk: how many documents are scored at a time; None is 16,384 on a CPU and 65,536 on a GPU.
        query_chunk: how many queries are scored at a time; None is 256 on a CPU and 4,096 on a GPU.
        order: a different whole number from 0 to 2^32 - 1 for every document; of equal scores the lower comes first.
            None is the position.

    Returns:
        Scores (queries, k) as float32 and document positions (queries, k) as int64, best first; equal scores in the
        order of `order`.

    Raises:
        MAWError: widths differ, there is no document, k or a chunk is below 1, or a vector or a score is not finite.

    Example:
        >>> queries = torch.tensor([[1.0, 0.0]])
        >>> documents = torch.tensor([[0.0, 1.0], [2.0, 0.0], [3.0, 1.0], [2.0, 5.0]])
        >>> scores, indices = search(queries, documents, k=3)
        >>> scores.tolist(), indices.tolist()
        ([[3.0, 2.0, 2.0]], [[2, 1, 3]])
    """
    home = query_vectors.device if isinstance(query_vectors, Tensor) else torch.device("cpu")
    device = home if home.type in CHUNKS else torch.device("cpu")
    document_chunk = CHUNKS[device.type][0] if document_chunk is None else document_chunk
    query_chunk = CHUNKS[device.type][1] if query_chunk is None else query_chunk
    for name, value in (("k", k), ("document_chunk", document_chunk), ("query_chunk", query_chunk)):
        if value < 1:
            raise MAWError(f"{name} must be at least 1, got {value}: ask for one document or more at a time")
    _check_matrix("query vectors", query_vectors)
    _check_matrix("document vectors", document_vectors)
    _check_shapes(query_vectors, document_vectors, order)
    documents = document_vectors.shape[0]
    k = min(k, documents)
    query_all = _to_device(query_vectors, device)
    _check_finite("query vectors", query_all, 0)
    queries = query_all.split(query_chunk) if len(query_all) else ()
    best = [Best(len(query), k, device, by_position=order is None) for query in queries]
    with _full_precision(device):
        for begin, chunk in _chunks(document_vectors, document_chunk, device):
            tie = torch.arange(begin, begin + len(chunk), device=device)
            if order is not None:
                tie = torch.from_numpy(order[begin : begin + len(chunk)].astype(np.int64)).to(device)
            for query, found in zip(queries, best, strict=True):
                if not found.add(query @ chunk.T, begin, tie):
                    _check_finite("document vectors", chunk, begin)
                    _refuse_scores()
            del chunk  # before the next one is made
    if not best:
        return torch.empty(0, k, device=home), torch.empty(0, k, dtype=torch.int64, device=home)
    results = [result if (result := found.result()) is not None else _refuse_scores() for found in best]
    return torch.cat([score for score, _ in results]).to(home), torch.cat([place for _, place in results]).to(home)


def _check_matrix(name: str, vectors: Any) -> None:
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise MAWError(
            f"{name} must be a matrix with one row a text and at least one column, got shape {tuple(vectors.shape)}: "
            "stack the vectors of the texts"
        )
    if (
        vectors.is_complex()
        if isinstance(vectors, Tensor)
        else isinstance(vectors, np.ndarray) and np.iscomplexobj(vectors)
    ):
        raise MAWError(f"{name} must be real numbers, got {vectors.dtype}: convert them first")


def _check_shapes(query_vectors: Any, document_vectors: Any, order: np.ndarray | None) -> None:
    documents, width = document_vectors.shape
    if query_vectors.shape[1] != width:
        raise MAWError(
            f"query and document vectors must have the same width, got {query_vectors.shape[1]} and {width}: encode "
            "both with the same model"
        )
    if not 0 < documents < 2**32:
        raise MAWError(
            f"there must be at least one document vector and fewer than 2^32, got {documents or 'none'}: encode the "
            "documents first, and search parts of a larger collection one by one"
        )
    if order is not None and (order.shape != (documents,) or not np.issubdtype(order.dtype, np.integer)):
        raise MAWError(
            f"order must have a whole number for each of the {documents} documents, got {order.dtype} of shape "
            f"{order.shape}: give the ranks of the documents among equals"
        )


def _check_finite(name: str, rows: Tensor, begin: int) -> None:
    finite = rows.isfinite().all(dim=1)
    if not finite.all():
        wrong = int(finite.logical_not().nonzero()[0, 0])
        raise MAWError(
            f"{name} must be finite in float32, got NaN or infinity in row {begin + wrong} "
            f"(and {int(finite.logical_not().sum()) - 1} more of the rows {begin} to {begin + len(rows) - 1}): "
            "look for a failed training or half-precision overflow in the encoder"
        )


def _refuse_scores() -> NoReturn:
    raise MAWError(
        "scores must be finite, got NaN or infinity: the vectors are so long that float32 cannot hold their inner "
        "product; normalise them"
    )


def _chunks(vectors: Any, size: int, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Yield the first position and the rows of every chunk, as float32 on the device."""
    begins = range(0, vectors.shape[0], size)
    if device.type == "cpu" or isinstance(vectors, Tensor):
        for begin in begins:
            yield begin, _to_device(vectors[begin : begin + size], device)
        return

    def read(begin: int) -> Tensor:
        part = vectors[begin : begin + size]
        return part if isinstance(part, Tensor) else _as_tensor(part).pin_memory()

    with ThreadPoolExecutor(1) as reader:  # the next chunk comes from the disk while this one is scored
        coming = reader.submit(read, 0)
        for begin in begins:
            part = coming.result()
            if begin + size < vectors.shape[0]:
                coming = reader.submit(read, begin + size)
            yield begin, _to_device(part, device)


def _to_device(part: Tensor | np.ndarray, device: torch.device) -> Tensor:
    """As float32 on the device; moved in the type it has, which is often the smaller one."""
    part = part if isinstance(part, Tensor) else _as_tensor(part)
    return part.detach().to(device, non_blocking=part.is_pinned()).to(torch.float32)


class _Borrowed:
    """Memory that torch may read: it warns of arrays that it must not write, and nothing here writes."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}


def _as_tensor(array: np.ndarray) -> Tensor:
    """The array's own memory as a tensor, where torch has its type."""
    if array.dtype not in (np.float16, np.float32) or not array.dtype.isnative or not array.flags.c_contiguous:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused
            array = np.ascontiguousarray(array, dtype=np.float32)
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Borrowed(array)))


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
