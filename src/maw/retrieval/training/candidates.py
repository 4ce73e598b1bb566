"""Candidates for hard negatives, query by query: from BM25, from a model, or from files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from maw.errors import MAWError
from maw.io.reading import text_lines
from maw.progress import counted, tracked
from maw.retrieval.data.checks import lacking
from maw.retrieval.data.texts import TextStore

if TYPE_CHECKING:
    import numpy as np
    import torch
    from sentence_transformers import SentenceTransformer

    from maw.retrieval.data.dataset import RetrievalDataset
    from maw.retrieval.training.negatives import NegativeSettings

__all__ = ["Candidates", "candidates"]

DOCUMENTS_AT_ONCE = 65_536
"""Documents that are encoded and searched at a time."""
PAIRS_AT_ONCE = 8_192
"""Pairs of query and document that are scored at a time."""

RelevantTo = Callable[[str], set[str]]


class Candidates(NamedTuple):
    """One query's candidates, best first, and the score of its best-scored relevant document where there is one."""

    ranking: Iterable[tuple[str, float | None]]
    positive: float | None


def candidates(
    dataset: RetrievalDataset,
    judged: Mapping[str, Mapping[str, int]],
    settings: NegativeSettings,
    model: SentenceTransformer | None,
    relevant_to: RelevantTo,
) -> Iterator[tuple[str, Candidates]]:
    """Yield every query of `judged`, in order, with its candidates: at least `depth` beside the relevant ones.

    Args:
        dataset: documents and queries.
        judged: the train queries and their judgements.
        settings: the source and its settings.
        model: the encoder of "dense", and of "given" with a margin.
        relevant_to: query id -> ids of its relevant documents.
    """
    if settings.source == "bm25":
        return _bm25(dataset, judged, settings, relevant_to)
    if settings.source == "given":
        return _given(dataset, judged, settings, model, relevant_to)
    if model is None:
        raise MAWError("negatives of the source dense are found by a model: give one")
    return _dense(dataset, judged, settings, model, relevant_to)


def _bm25(
    dataset: RetrievalDataset,
    judged: Mapping[str, Mapping[str, int]],
    settings: NegativeSettings,
    relevant_to: RelevantTo,
) -> Iterator[tuple[str, Candidates]]:
    from maw.retrieval.ranking.bm25 import BM25Index

    index = BM25Index(dataset.documents, k1=settings.k1, b=settings.b)
    for query in tracked(judged, "negatives: queries", len(judged)):
        score, positives = index.scores(dataset.queries[query]), sorted(relevant_to(query))
        best = max(float(score[place]) for place in index.places(positives))
        yield query, Candidates(index.best(score, settings.depth + len(positives)), best)


def _dense(
    dataset: RetrievalDataset,
    judged: Mapping[str, Mapping[str, int]],
    settings: NegativeSettings,
    model: SentenceTransformer,
    relevant_to: RelevantTo,
) -> Iterator[tuple[str, Candidates]]:
    import torch

    from maw.retrieval.ranking.dense import encode
    from maw.retrieval.ranking.search import search

    queries = list(judged)
    positives = {query: relevant_to(query) for query in queries}
    wanted = settings.depth + max(map(len, positives.values()))
    asked = encode(model, [dataset.queries[query] for query in queries], "query", batch_size=settings.batch_size)
    score = asked.new_empty(len(queries), 0)
    place = torch.empty(len(queries), 0, dtype=torch.int64, device=asked.device)
    names, text_at = _descending(dataset.documents)
    with counted("negatives: documents", len(names)) as tell:
        for begin in range(0, len(names), DOCUMENTS_AT_ONCE):
            texts = [text_at(number) for number in range(begin, min(begin + DOCUMENTS_AT_ONCE, len(names)))]
            vectors = encode(model, texts, "document", batch_size=settings.batch_size, tell=tell)
            more, where = search(asked, vectors, wanted)
            score, order = torch.cat([score, more], dim=1).sort(dim=1, descending=True, stable=True)
            place = torch.cat([place, where + begin], dim=1).gather(1, order)[:, :wanted]
            score = score[:, :wanted]
    best = _best_positives(dataset, positives, model, settings) if settings.has_margin else {}
    for row, query in enumerate(queries):
        found = zip(place[row].tolist(), score[row].tolist(), strict=True)
        yield query, Candidates([(names[number], value) for number, value in found], best.get(query))


def _given(
    dataset: RetrievalDataset,
    judged: Mapping[str, Mapping[str, int]],
    settings: NegativeSettings,
    model: SentenceTransformer | None,
    relevant_to: RelevantTo,
) -> Iterator[tuple[str, Candidates]]:
    files = settings.files or dataset.negative_files
    if not files:
        raise MAWError(
            f"negatives of the source given come from files, but none is named and {dataset.name} has none: name "
            "triples or rankings (--negative-files, or `files` of NegativeSettings)"
        )
    if settings.has_margin and model is None:
        raise MAWError("a margin needs scores, and given negatives have none: give a model, or no margin")
    found: dict[str, list[str]] = {query: [] for query in judged}
    for file in files:
        _read_given(file, dataset, found, settings.depth, relevant_to)
    if not settings.has_margin or model is None:
        for query, names in found.items():
            yield query, Candidates([(name, None) for name in names], None)
        return
    best = _best_positives(dataset, {query: relevant_to(query) for query in judged}, model, settings)
    for query, names in tracked(found.items(), "negatives: queries", len(found)):
        scores = _similarities(dataset, [(query, name) for name in names], model, settings)
        yield query, Candidates(list(zip(names, scores, strict=True)), best[query])


def _read_given(
    file: Path, dataset: RetrievalDataset, found: dict[str, list[str]], depth: int, relevant_to: RelevantTo
) -> None:
    """Add to every query's list the documents that a file names for it, the first `depth` that are not relevant."""
    if not file.is_file():
        raise MAWError(f"wanted the file of negatives {file}, but it is not there: check the path")
    of_train, known = 0, 0
    taken: dict[str, set[str]] = {}
    for columns in tracked(_columns(file), f"reading {file.name}: lines"):
        query, document = columns[0], columns[1 if len(columns) in (2, 4) else 2]
        if query not in found:
            continue
        of_train += 1
        listed = found[query]
        seen = taken.setdefault(query, {*listed, *relevant_to(query)})
        if document in seen:
            known += 1
        elif len(listed) < depth and not lacking(dataset.documents, [document]):
            known += 1
            listed.append(document)
            seen.add(document)
    if not known:
        what = "none of its documents is in the collection" if of_train else "none of its queries is one of train"
        raise MAWError(
            f"{file}: {what} of {dataset.name}: wanted ids, not texts (MS MARCO's qidpidtriples, not its triples)"
        )


def _columns(file: Path) -> Iterator[list[str]]:
    """Yield the columns of every line: separated by any mixture of tabs and blanks, but by tabs where there are texts.

    The first line decides whether there are texts. Empty lines, and comments as in TREC's files, are not read.
    """
    width, texts = 0, False
    for number, raw in enumerate(text_lines(file), start=1):
        line = raw.rstrip(b"\r\n")
        words = line.split()
        if not words:
            continue
        if words[0].startswith(b"#") and not texts and (words[0] == b"#" or width not in (0, len(words))):
            continue  # a comment; one that looks like a line names a query that train does not have
        if not width:
            texts = b"\t" in line and len(words) not in (2, 3) and not (len(words) == 6 and words[1] == b"Q0")
            width = line.count(b"\t") + 1 if texts else len(words)
        columns = line.split(b"\t") if texts else line.split()
        if len(columns) != width or width not in (2, 3, 4, 6):
            raise MAWError(
                f"{file}, line {number}: wanted 2 columns (query, document), 3 (query, relevant, other document), 4 "
                "separated by tabs (query, document and their texts) or 6 (a TREC run), all lines alike, got "
                f"{len(columns)}"
            )
        try:
            yield [column.decode("utf-8") for column in columns]
        except UnicodeDecodeError as error:
            raise MAWError(
                f"{file}, line {number}: wanted text in UTF-8, got {error.reason}: convert it first"
            ) from error


def _best_positives(
    dataset: RetrievalDataset,
    positives: Mapping[str, set[str]],
    model: SentenceTransformer,
    settings: NegativeSettings,
) -> dict[str, float]:
    """Query id -> the highest similarity of a relevant document."""
    pairs = [(query, document) for query, documents in positives.items() for document in sorted(documents)]
    best: dict[str, float] = {}
    for (query, _), score in zip(pairs, _similarities(dataset, pairs, model, settings), strict=True):
        best[query] = max(score, best.get(query, score))
    return best


def _similarities(
    dataset: RetrievalDataset, pairs: Sequence[tuple[str, str]], model: SentenceTransformer, settings: NegativeSettings
) -> list[float]:
    """The model's score of every pair of query and document."""
    scores: list[float] = []
    for begin in range(0, len(pairs), PAIRS_AT_ONCE):
        part = pairs[begin : begin + PAIRS_AT_ONCE]
        queries = _vectors(dataset.queries, [query for query, _ in part], model, "query", settings)
        documents = _vectors(dataset.documents, [document for _, document in part], model, "document", settings)
        scores += (queries * documents).sum(dim=1).tolist()
    return scores


def _vectors(
    texts: Mapping[str, str],
    ids: Sequence[str],
    model: SentenceTransformer,
    kind: Literal["query", "document"],
    settings: NegativeSettings,
) -> torch.Tensor:
    """A row for every id; a text that comes more than once is encoded once."""
    from maw.retrieval.ranking.dense import encode

    rows = {name: row for row, name in enumerate(dict.fromkeys(ids))}
    vectors = encode(model, [texts[name] for name in rows], kind, batch_size=settings.batch_size)
    return vectors[[rows[name] for name in ids]]


def _descending(documents: Mapping[str, str]) -> tuple[Sequence[str], Callable[[int], str]]:
    """The ids in descending order, in which equal scores rank, and the text at each place of it."""
    if isinstance(documents, TextStore):
        order = documents.descending()
        return _At(documents.ids, order), lambda number: documents.texts[int(order[number])]
    names = sorted(documents, reverse=True)
    return names, lambda number: documents[names[number]]


class _At(Sequence[str]):
    """A sequence in another order."""

    def __init__(self, items: Sequence[str], order: np.ndarray) -> None:
        self.items, self.order = items, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: Any) -> Any:
        return self.items[int(self.order[number])]
