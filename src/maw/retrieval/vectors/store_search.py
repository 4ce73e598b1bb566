"""Searching a store of vectors: the best documents of some queries, or a run file of many, in bounded memory.

Equal scores are ordered by descending document id, at the k-th place too: the rule of `maw.retrieval.ranking.runs`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from maw.errors import MAWError
from maw.hf.weights import set_weights_type, weights_type
from maw.io.atomic import write_whole
from maw.progress import counted
from maw.retrieval.data.corpus_file import CorpusFile
from maw.retrieval.ranking.dense import encode
from maw.retrieval.ranking.runs import check_run_ids
from maw.retrieval.ranking.search import search

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from maw.retrieval.vectors.store import VectorStore

__all__ = ["Hit", "read_queries", "search_store", "search_vectors", "text_of", "write_search"]

TOGETHER = 256
"""Queries whose document ids are looked up at a time."""


class Hit(NamedTuple):
    """A document that was found."""

    document: str
    score: float
    position: int
    """In the corpus, from 0."""


def read_queries(path: Path) -> dict[str, str]:
    """Read a file of queries in one of the layouts of `CorpusFile`: id to text.

    Raises:
        MAWError: the file or a line cannot be used, an id comes twice, a query is empty, or there is none.
    """
    queries: dict[str, str] = {}
    for block in CorpusFile(path, titles=False).blocks(lines=1024):
        for line, (name, text) in enumerate(block.records(), start=block.first + 1):
            if name in queries:
                first = list(queries).index(name) + 1
                block.refuse(line, f"id {name!r} was given in line {first} already: ids must be unique")
            if not text:
                block.refuse(line, f"query {name!r} has no text to search for: give it one, or remove the line")
            queries[name] = text
    if not queries:
        raise MAWError(f"there must be at least one query, got none: {path} is empty")
    return queries


def search_store(
    model: SentenceTransformer,
    store: VectorStore,
    queries: Mapping[str, str],
    k: int,
    *,
    drop_own: bool = False,
    show_progress: bool = False,
) -> Iterator[tuple[str, list[Hit]]]:
    """Search for every query and yield its id and its k best documents, best first.

    Args:
        model: the encoder that made the store; weights in half precision are put into float32 where the store was
            computed in another type than theirs.
        store: what to search.
        queries: id to text.
        k: how many documents a query; all of them where there are fewer.
        drop_own: whether a document with the query's own id is left out (ArguAna's queries are documents).
        show_progress: whether to draw a progress bar while the queries are encoded.

    Raises:
        MAWError: there is no query, one is empty, k is below 1, or the model is not the store's.
    """
    if not queries:
        raise MAWError("there must be at least one query, got none: give a query or a file of queries")
    if empty := [name for name, text in queries.items() if not text.strip()]:
        raise MAWError(
            f"a query must have a text to search for, got none for {empty[0]!r}: give it one, or leave it out"
        )
    if store.plan.settings.get("precision") != weights_type(model):
        set_weights_type(model, "float32")
    store.check_model(model, "the one given")
    vectors = encode(model, list(queries.values()), "query", show_progress=show_progress)
    yield from search_vectors(vectors, store, list(queries), k, drop_own=drop_own)


def search_vectors(
    vectors: Float[Tensor, "queries width"], store: VectorStore, names: list[str], k: int, *, drop_own: bool = False
) -> Iterator[tuple[str, list[Hit]]]:
    """Search for queries that are encoded already; see `search_store`."""
    with counted("searching documents", len(store)) as tell:
        scores, positions = search(vectors, _Told(store, tell), k + drop_own, order=store.order)
    score, position = scores.cpu().numpy(), positions.cpu().numpy()
    with counted("results: queries", len(names)) as tell:  # ids are looked up, and the caller writes them
        for begin in range(0, len(names), TOGETHER):
            part = slice(begin, begin + TOGETHER)
            ids = np.array(store.ids(position[part]), dtype=object).reshape(position[part].shape)
            columns = (ids.tolist(), score[part].tolist(), position[part].tolist())
            for name, *row in zip(names[part], *columns, strict=True):
                found = [Hit(*hit) for hit in zip(*row, strict=True)]
                yield name, [hit for hit in found if hit.document != name][:k] if drop_own else found
                tell(1)


class _Told:
    """The rows of a store; says how many have been asked for."""

    ndim = 2

    def __init__(self, store: VectorStore, tell: Callable[[int], None]) -> None:
        self.store, self.tell, self.shape = store, tell, store.shape

    def __getitem__(self, rows: slice) -> np.ndarray:
        part = self.store[rows]
        self.tell(len(part))
        return part


def text_of(store: VectorStore, corpus: CorpusFile, hit: Hit) -> str:
    """The text of a document, from the corpus that the store was made of.

    Raises:
        MAWError: the corpus has another document in that place.
    """
    number = int(store.starts.searchsorted(hit.position, side="right")) - 1
    first, offset, stop = int(store.starts[number]), store.plan.shards[number]["offset"], hit.position + 1
    try:
        (block,) = deque(corpus.blocks(lines=1024, first=first, offset=offset, stop=stop), maxlen=1)
        name, text = block.records()[-1]
    except MAWError as error:  # lines of another file begin elsewhere
        name, text = str(error), ""
    if name != hit.document:
        raise MAWError(
            f"{corpus.path}, line {hit.position + 1}: wanted document {hit.document!r}, got {name!r}: this is not the "
            f"corpus that {store.folder} was made of"
        )
    return text


def write_search(path: Path, results: Iterator[tuple[str, list[Hit]]], tag: str) -> int:
    """Write results as a run file in the TREC format, one query after the other; see `ranking.runs.write_run`.

    Returns:
        How many queries it has.

    Raises:
        MAWError: an id holds white space, or the file cannot be written.
    """
    queries = 0

    def lines() -> Iterator[bytes]:
        nonlocal queries
        for query, found in results:
            check_run_ids([query], (hit.document for hit in found))
            queries += 1
            ranked = enumerate(found, start=1)
            yield "".join(f"{query} Q0 {hit.document} {rank} {hit.score!r} {tag}\n" for rank, hit in ranked).encode()

    if not path.parent.is_dir():
        raise MAWError(f"the run file needs a folder that exists, got {str(path)!r}: create the folder first")
    write_whole(path, lines())
    return queries
