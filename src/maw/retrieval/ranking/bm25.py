"""BM25, the lexical row of the benchmark, as Lucene computes it for English; the published baselines come out of it.

score(q, d) = sum over the words w of q of  idf(w) * f / (f + k1 (1 - b + b |d| / avg|d|)),
idf(w) = log(1 + (N - n_w + 1/2) / (n_w + 1/2)),

f the count of w in d, n_w the number of the N documents that hold w; k1 = 0.9 and b = 0.4, the values of Anserini and
of the published BEIR and MS MARCO baselines. A word that a query repeats counts as often. Words are found and stemmed
by `maw.retrieval.ranking.english`.

As in Lucene, a document's length is what one byte holds of it (`rounded_lengths`), the average is of exact lengths,
documents without any word count neither in it nor in N, and numbers have single precision. As in Anserini, equal
scores are ordered by ascending document id, and each is lowered by 1e-6 more than the one before it, in single
precision, so that trec_eval keeps that order. Where scores are above 32, as for ArguAna's long queries, so little is
lost in rounding; they stay equal, and trec_eval's order is by descending id. On test sets of BEIR that gives
Anserini's published figures: NFCorpus nDCG@10 .3218, R@100 .2457, R@1000 .3704; ArguAna nDCG@10 .3970.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from maw.errors import MAWError
from maw.progress import counted, tracked
from maw.retrieval.data.texts import TextStore
from maw.retrieval.ranking.english import analyser

if TYPE_CHECKING:
    from scipy.sparse import csc_array

__all__ = ["VERSION", "BM25Index", "bm25_run", "rounded_lengths"]

VERSION = 3
"""Changes wherever scores or their order change: what is kept of an earlier one is not taken for this one's."""

LOWERED = 1e-6
"""What an equal score is lowered by, as Anserini does."""

Item = TypeVar("Item")


def bm25_run(
    documents: Mapping[str, str],
    queries: Mapping[str, str],
    k: int = 1000,
    *,
    k1: float = 0.9,
    b: float = 0.4,
    exact_lengths: bool = False,
    drop_own: bool = False,
    show_progress: bool = False,
) -> dict[str, dict[str, float]]:
    """Return, for every query, the k documents with the highest BM25 score.

    Equal scores are ordered by ascending document id, at the k-th place too, and lowered by 1e-6 each, as the module
    says; what is still equal then is ordered by descending id, as evaluation orders it. A document without a word of
    the query has no score and is not retrieved, so a query may have fewer than k documents, or none.

    Args:
        documents: document id -> text.
        queries: query id -> text.
        k: how many documents to return for a query, at most.
        k1: how soon a repeated word stops to add to the score.
        b: how far the length of a document counts, 0 to 1.
        exact_lengths: whether to take a document's length as it is, not as Lucene keeps it in one byte.
        drop_own: leave out a document with the query's own id.
        show_progress: whether to show progress bars.

    Returns:
        Query id -> document id -> score, every query in the order given, documents best first.

    Raises:
        MAWError: there is no document or no query, or k, k1 or b is out of its range.

    Source: Robertson and Zaragoza (2009), doi 10.1561/1500000019; the variant is Lucene's, see Kamphuis et al. (2020),
    doi 10.1007/978-3-030-45442-5_4.

    Example:
        >>> run = bm25_run({"a": "running dogs", "b": "a dog runs and runs", "c": "cats"}, {"q": "does the dog run?"})
        >>> {query: list(found) for query, found in run.items()}
        {'q': ['b', 'a']}
    """
    if not queries:
        raise MAWError("BM25 needs at least one query, got none: check the data set that was read")
    if k < 1:
        raise MAWError(f"k must be at least 1, got {k}: ask for one document or more")
    index = BM25Index(documents, k1=k1, b=b, exact_lengths=exact_lengths, show_progress=show_progress)
    run = {}
    for query, text in _progress(queries.items(), len(queries), "BM25: searching", show_progress):
        found = index.best(index.scores(text), k + drop_own)
        run[query] = _falling((name, score) for name, score in found if not (drop_own and name == query))
        if len(run[query]) > k:
            run[query].popitem()
    return run


def _falling(found: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Equal scores lowered one after the other, as far as single precision can tell; by descending score and id."""
    run, last, equal = {}, math.inf, 0
    for name, score in found:
        equal = equal + 1 if score == last else 0
        run[name], last = float(np.float32(score - LOWERED * equal)), score
    return dict(sorted(run.items(), key=lambda item: (item[1], item[0]), reverse=True))


DOCUMENTS_AT_ONCE = 8192


class BM25Index:
    """Documents indexed for BM25; see `bm25_run` for the arguments and what they raise.

    The index takes 8 bytes for every different word of every document, and some 20 while it is made, besides 4 for
    every word. The texts are read once, in order, and not kept.
    """

    def __init__(
        self,
        documents: Mapping[str, str],
        *,
        k1: float = 0.9,
        b: float = 0.4,
        exact_lengths: bool = False,
        show_progress: bool = False,
    ) -> None:
        if not documents:
            raise MAWError("BM25 needs at least one document, got none: check the data set that was read")
        if not (0 <= k1 < math.inf and 0 <= b <= 1):
            raise MAWError(f"k1 must be at least 0 and b between 0 and 1, got k1={k1} and b={b}: 0.9 and 0.4 are usual")
        self._analyse = analyser()
        self._vocabulary: dict[str, int] = defaultdict(itertools.count().__next__)
        words, ends = self._read(documents, show_progress)
        # equal scores are by ascending id: which document comes when, and when each comes
        if isinstance(documents, TextStore):
            self._ids, self._order = documents.ids, documents.descending()[::-1]
            self._position = documents.position
        else:
            self._ids = list(documents)
            self._position = {name: place for place, name in enumerate(self._ids)}.__getitem__
            self._order = np.array(sorted(range(len(self._ids)), key=self._ids.__getitem__), dtype=np.int64)
        self._places: np.ndarray | None = None
        counts = self._counts(words, ends)
        holding = np.diff(counts.indptr)
        total = np.count_nonzero(np.diff(ends))  # an empty document counts neither here nor in the average
        self._idf = np.log(1 + (total - holding + 0.5) / (holding + 0.5)).astype(np.float32)
        lengths = np.diff(ends)[self._order]
        average = np.float32(len(words) / max(total, 1))
        inverse = _inverse_norms(lengths if exact_lengths else rounded_lengths(lengths), average, k1, b)
        counts.data *= inverse[counts.indices]
        counts.data += 1
        self._starts, self._found_in, self._saturation = counts.indptr, counts.indices, counts.data

    def best(self, score: np.ndarray, k: int) -> Iterator[tuple[str, float]]:
        """The k best documents by what `scores` returned, and their scores, best first, one after the other."""
        return ((self._ids[int(self._order[place])], float(score[place])) for place in _best(score, k))

    def places(self, identifiers: Iterable[str]) -> list[int]:
        """Where in the scores each of these documents is."""
        if self._places is None:
            self._places = np.empty(len(self._order), dtype=np.int64)
            self._places[self._order] = np.arange(len(self._order))
        return [int(self._places[self._position(name)]) for name in identifiers]

    def scores(self, text: str) -> np.ndarray:
        """The score of every document, in the order of ascending ids."""
        score = np.zeros(len(self._order))
        known = Counter(self._vocabulary[stem] for stem in self._analyse(text) if stem in self._vocabulary)
        for word, count in known.items():
            place = slice(self._starts[word], self._starts[word + 1])
            weight = np.float32(count) * self._idf[word]
            score[self._found_in[place]] += weight - weight / self._saturation[place]
        return score.astype(np.float32)

    def _read(self, documents: Mapping[str, str], show_progress: bool) -> tuple[np.ndarray, np.ndarray]:
        """The words of all documents, one document after the other, as numbers; and where each document ends."""
        numbers, ends, number_of = array("i"), array("q", [0]), self._vocabulary.__getitem__
        texts = _progress(documents.values(), len(documents), "BM25: reading documents", show_progress)
        for text in texts:
            numbers.extend(map(number_of, self._analyse(text)))
            ends.append(len(numbers))
        return np.frombuffer(numbers, dtype=np.int32), np.frombuffer(ends, dtype=np.int64)

    def _counts(self, words: np.ndarray, ends: np.ndarray) -> csc_array:
        """How often each document, in the order of ascending ids, has each word."""
        from scipy.sparse import csr_array

        rows, columns, counts = [np.zeros(1, dtype=np.int64)], [], []
        size = max(len(self._vocabulary), 1)
        with counted("BM25: indexing", len(self._order)) as tell:
            for begin in range(0, len(self._order), DOCUMENTS_AT_ONCE):
                part = self._order[begin : begin + DOCUMENTS_AT_ONCE]
                lengths = ends[part + 1] - ends[part]
                row = np.repeat(np.arange(len(part)), lengths)
                first = np.cumsum(lengths) - lengths
                word = words[np.arange(len(row)) + (ends[part] - first)[row]]
                pair, count = np.unique(row * size + word, return_counts=True)
                columns.append((pair % size).astype(np.int32))
                counts.append(count.astype(np.float32))
                rows.append(np.bincount(pair // size, minlength=len(part)))
                tell(len(part))
        start = np.cumsum(np.concatenate(rows))
        if start[-1] < 2**31:  # scipy would take the places of documents in 64 bits otherwise
            start = start.astype(np.int32)
        # each list goes as soon as it is one array: there are as many as words
        count, counts = np.concatenate(counts), []
        column, columns = np.concatenate(columns), []
        return csr_array((count, column, start), shape=(len(self._order), size)).tocsc()


def rounded_lengths(lengths: np.ndarray) -> np.ndarray:
    """Lengths as Lucene keeps them, in one byte: exact to 39, from there in 16 steps, then 8 for every doubling.

    What is above 24 is rounded down to four significant bits.

    Source: Apache Lucene's documentation, org.apache.lucene.util.SmallFloat, intToByte4 and byte4ToInt.

    Example:
        >>> rounded_lengths(np.array([0, 23, 39, 40, 41, 57, 100, 1000])).tolist()
        [0, 23, 39, 40, 40, 56, 96, 984]
    """
    above = np.maximum(lengths - 24, 0)
    dropped = np.maximum(np.frexp(above)[1] - 4, 0)
    return np.where(lengths < 24, lengths, 24 + (above >> dropped << dropped))


def _inverse_norms(lengths: np.ndarray, average: np.float32, k1: float, b: float) -> np.ndarray:
    """1 / (k1 (1 - b + b |d| / avg|d|)), in single precision at every step, as Lucene computes it."""
    one, slope = np.float32(1), np.float32(b)
    with np.errstate(divide="ignore"):
        return one / (np.float32(k1) * ((one - slope) + slope * lengths.astype(np.float32) / max(average, one)))


def _progress(items: Iterable[Item], total: int, description: str, show: bool) -> Iterable[Item]:
    if show:
        from rich.progress import track

        return track(items, description=description, total=total)
    return tracked(items, description, total)


def _best(score: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k highest scores above 0, by (score descending, position ascending)."""
    found = np.flatnonzero(score > 0)
    if len(found) > k:
        kth = np.partition(score[found], len(found) - k)[len(found) - k]
        found = found[score[found] >= kth]
    return found[np.argsort(-score[found], kind="stable")][:k]
