"""Hard negatives: documents that rank high for a training query without being relevant to it.

Candidates come from BM25, from a model, or from files that came with the data (`candidates`), for the
queries of the split train only. From them are left out, in this order:

1. every document judged relevant to the query, or to another train query with the same text;
2. every document with the same text as one of these: data sets hold duplicates;
3. the query's own document, where the collection asks for it;
4. what scores too near to the best-scored relevant document, and so may be an answer that nobody judged: with margins
   a (absolute) and r (relative) and that document's score p, candidates with a score above p - a or above p - r |p|.

What is left is taken best first, or drawn by a seed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from maw.errors import MAWError
from maw.retrieval.data.checks import TRAIN
from maw.retrieval.data.corpora import Origin, keep_on_disk
from maw.retrieval.data.dataset import normalise, relevant, seeded
from maw.retrieval.data.texts import content_checksum, hash64
from maw.retrieval.training.candidates import Candidates, candidates

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from maw.retrieval.data.dataset import RetrievalDataset

__all__ = ["NegativeSettings", "Negatives", "file_checksum", "mine"]

VERSION = 1
TEXTS_REMEMBERED = 200_000
"""Documents of which the hash of the text is kept at hand."""


@dataclass(frozen=True)
class NegativeSettings:
    """How to find hard negatives.

    Args:
        source: "bm25", "dense" (the model that `mine` is given), or "given" (files).
        per_query: at most so many negatives a query.
        depth: how many candidates a query are looked at.
        skip: so many of the best candidates are left out, after the relevant ones.
        absolute_margin: a candidate must score at least so much less than the best-scored relevant document; None
            asks for no distance.
        relative_margin: the same, as a share of that document's score.
        draw: whether to draw from the candidates that are left, by `seed`, and not to take the best.
        k1, b: of BM25.
        files: triples (query, relevant, other document), rankings (query, document) or TREC runs, packed with gzip or
            not; none takes those that came with the data set.
        batch_size: texts a forward.
        seed: of `draw`.
    """

    source: Literal["bm25", "dense", "given"] = "bm25"
    per_query: int = 8
    depth: int = 200
    skip: int = 0
    absolute_margin: float | None = None
    relative_margin: float | None = None
    draw: bool = False
    k1: float = 0.9
    b: float = 0.4
    files: tuple[Path, ...] = ()
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.source not in ("bm25", "dense", "given"):
            raise MAWError(f"negatives come from bm25, dense or given, got {self.source!r}: choose one of them")
        for name, least in (("per_query", 1), ("depth", 1), ("skip", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise MAWError(f"{name} of negatives must be at least {least}, got {getattr(self, name)}")
        if self.depth < self.skip + self.per_query:
            raise MAWError(
                f"depth must be at least skip + per_query = {self.skip + self.per_query}, got {self.depth}: look at "
                "more candidates"
            )
        for name in ("absolute_margin", "relative_margin"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise MAWError(f"{name} must be 0 or more, got {value}: it is a distance below the relevant document")

    @property
    def has_margin(self) -> bool:
        """Whether a candidate must keep a distance."""
        return self.absolute_margin is not None or self.relative_margin is not None

    def limit(self, score: float) -> float:
        """The highest score a negative may have beside a relevant document with this score.

        >>> NegativeSettings(absolute_margin=0.25, relative_margin=0.25).limit(0.5)
        0.25
        """
        absolute = math.inf if self.absolute_margin is None else score - self.absolute_margin
        relative = math.inf if self.relative_margin is None else score - self.relative_margin * abs(score)
        return min(absolute, relative)


class Negatives(Mapping[str, list[str]]):
    """Query id -> ids of its negatives, best first; every train query that has a relevant document is there.

    Attributes:
        report: how many queries and negatives there are, how many candidates were left out for which reason, and how
            many queries have fewer negatives than asked for.
    """

    def __init__(self, lists: Mapping[str, str], report: Mapping[str, Any]) -> None:
        self._lists = lists
        self.report = dict(report)

    def __getitem__(self, query: str) -> list[str]:
        return json.loads(self._lists[query])

    def __iter__(self) -> Iterator[str]:
        return iter(self._lists)

    def __len__(self) -> int:
        return len(self._lists)


def mine(
    dataset: RetrievalDataset,
    settings: NegativeSettings,
    model: SentenceTransformer | None = None,
    cache: Path | None = None,
) -> Mapping[str, list[str]]:
    """Find hard negatives for every train query that has a relevant document.

    Args:
        dataset: documents, queries, and the judgements of train; no other split is looked at.
        settings: where candidates come from and which are left out.
        model: finds the candidates of "dense", and scores those of "given" where there is a margin.
        cache: a folder in which negatives are kept, and found again by the checksums of documents, train queries and
            judgements, the settings, and the model's fingerprint; None keeps them in memory.

    Returns:
        Query id -> ids of its negatives, best first, in the order of the judgements; a list may be shorter than asked
        for, or empty. It is a `Negatives`, whose `report` says what was left out.

    Raises:
        MAWError: there is no split train, a model or files are wanted but not given, or a file cannot be used.

    >>> from maw.retrieval.data.dataset import RetrievalDataset
    >>> documents = {"d1": "a river runs", "d2": "a river in a valley", "d3": "a mill by the river", "d4": "stars"}
    >>> data = RetrievalDataset.from_parts("toy", documents, {"q": "the river"}, {"train": {"q": {"d2": 1}}})
    >>> dict(mine(data, NegativeSettings(per_query=2)))
    {'q': ['d1', 'd3']}
    """
    judged = {query: row for query, row in dataset.judgements(TRAIN).items() if relevant(row)}
    if not judged:
        raise MAWError(f"{dataset.name}: wanted train queries with a relevant document to find negatives for, got none")
    report: dict[str, Any] = {}
    if cache is None:
        return Negatives(dict(_lists(dataset, judged, settings, model, report)), report)
    identity = _identity(dataset, judged, settings, model)
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    origin = Origin(f"negatives {key}", identity, found=report)
    folder = Path(cache) / f"negatives-{settings.source}-{key[:16]}"
    store = keep_on_disk(folder, origin, lambda: _lists(dataset, judged, settings, model, report), _never_repeated)
    return Negatives(store, store.manifest["stamp"]["found"])


def _never_repeated(query: str, first: int, second: int) -> NoReturn:
    raise MAWError(f"the negatives of the query {query!r} were found twice, as number {first + 1} and {second + 1}")


def _identity(
    dataset: RetrievalDataset,
    judged: Mapping[str, Mapping[str, int]],
    settings: NegativeSettings,
    model: SentenceTransformer | None,
) -> dict[str, Any]:
    from maw.retrieval.identity import encoder_fingerprint

    queries = {query: dataset.queries[query] for query in judged}
    rows = {query: json.dumps(dict(row)) for query, row in judged.items()}
    files = settings.files or dataset.negative_files if settings.source == "given" else ()
    identity: dict[str, Any] = {
        "version": VERSION,
        "documents": content_checksum(dataset.documents),
        "queries": content_checksum(queries),
        "judgements": content_checksum(rows),
        "drop_own": dataset.drop_own,
        "settings": {**asdict(settings), "files": [file_checksum(file) for file in files]},
    }
    if settings.source == "bm25":
        from maw.retrieval.ranking.bm25 import VERSION as BM25_VERSION

        identity["bm25"] = BM25_VERSION
    elif model is not None:
        identity["model"] = [encoder_fingerprint(model), model.max_seq_length]
    return json.loads(json.dumps(identity))


def file_checksum(file: Path) -> str:
    """SHA-256 of a file of negatives; MAWError where it is not there."""
    if not file.is_file():
        raise MAWError(f"wanted the file of negatives {file}, but it is not there: check the path")
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _lists(
    dataset: RetrievalDataset,
    judged: Mapping[str, Mapping[str, int]],
    settings: NegativeSettings,
    model: SentenceTransformer | None,
    report: dict[str, Any],
) -> Iterator[tuple[str, str]]:
    """Yield (query id, its negatives as JSON); fill the report at the end."""
    counted: Counter[str] = Counter()
    filters = _Filter(dataset, judged, settings, counted)
    for query, found in candidates(dataset, judged, settings, model, filters.relevant_to):
        chosen = filters.choose(query, found)
        counted["queries"] += 1
        counted["negatives"] += len(chosen)
        counted["queries_with_fewer"] += len(chosen) < settings.per_query
        yield query, json.dumps(chosen)
    report.update(counted)


class _Filter:
    """Leaves out of one query's candidates what is no negative."""

    def __init__(
        self,
        dataset: RetrievalDataset,
        judged: Mapping[str, Mapping[str, int]],
        settings: NegativeSettings,
        counted: Counter[str],
    ) -> None:
        self.dataset, self.judged, self.settings, self.counted = dataset, judged, settings, counted
        self.text_of = lru_cache(TEXTS_REMEMBERED)(lambda name: hash64(normalise(dataset.documents[name])))
        self.twins: dict[int, list[str]] = {}  # queries by text
        for query in judged:
            self.twins.setdefault(hash64(normalise(dataset.queries[query])), []).append(query)

    def relevant_to(self, query: str) -> set[str]:
        """Every document judged relevant to the query or to one with the same text."""
        twins = self.twins[hash64(normalise(self.dataset.queries[query]))]
        return {document for twin in twins for document in relevant(self.judged[twin])}

    def choose(self, query: str, found: Candidates) -> list[str]:
        """The negatives among the candidates."""
        settings, counted = self.settings, self.counted
        positives = self.relevant_to(query)
        texts = {self.text_of(document) for document in positives}
        limit = math.inf if found.positive is None else settings.limit(found.positive)
        kept: list[str] = []
        wanted = settings.depth if settings.draw else settings.skip + settings.per_query
        for document, score in found.ranking:
            if len(kept) == wanted:
                break
            if document in positives:
                counted["left_out_relevant"] += 1
            elif self.text_of(document) in texts:
                counted["left_out_same_text"] += 1
            elif self.dataset.drop_own and document == query:
                counted["left_out_own"] += 1
            elif score is not None and score > limit:
                counted["left_out_margin"] += 1
            else:
                kept.append(document)
        kept = kept[settings.skip :]
        if settings.draw:
            drawn = set(seeded(kept, settings.seed, f"negatives of {query}")[: settings.per_query])
            kept = [document for document in kept if document in drawn]
        return kept
