"""BM25, the lexical row of the benchmark: bm25s with an analysis close to Lucene's for English.

score(q, d) = sum over the words w of q of  idf(w) * f / (f + k1 (1 - b + b |d| / avg|d|)),
idf(w) = log(1 + (N - n_w + 1/2) / (n_w + 1/2)),

f the count of w in d, n_w the number of the N documents that hold w; k1 = 0.9 and b = 0.4, the values of Anserini and
of the published BEIR and MS MARCO baselines. A word that a query repeats counts as often.

Analysis, after Lucene's EnglishAnalyzer: words (below), lower case, no possessive 's, without its 33 stop words,
stemmed by Porter's algorithm. Two things differ from Lucene: it stores a document's length in one byte, rounded down
to four significant bits, and it splits Chinese, Japanese and Thai into characters or syllables.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from maw.errors import MAWError
from maw.progress import counted, tracked
from maw.retrieval.data.texts import TextStore

__all__ = ["BM25Index", "analyser", "bm25_run"]

Item = TypeVar("Item")

_WORD = re.compile(
    r"""
    \w+
    (?: (?: (?<=\d) [.,;'’‘] (?=\d)                  # 3.14 and 1,000 are one word,
          | (?<=[^\W\d_]) [.:·'’‘] (?=[^\W\d_])      # and so are don't, U.S and e.g
        ) \w+
    )*
    """,
    re.VERBOSE,
)
"""Words as Unicode's annex 29 bounds them, for text in letters and digits; a hyphen or a slash separates."""

_POSSESSIVE = ("'s", "’s")


def bm25_run(
    documents: Mapping[str, str],
    queries: Mapping[str, str],
    k: int = 1000,
    *,
    k1: float = 0.9,
    b: float = 0.4,
    drop_own: bool = False,
    show_progress: bool = False,
) -> dict[str, dict[str, float]]:
    """Return, for every query, the k documents with the highest BM25 score.

    Equal scores are ordered by descending document id, at the k-th place too. A document without a word of the query
    has no score and is not retrieved, so a query may have fewer than k documents, or none.

    Args:
        documents: document id -> text.
        queries: query id -> text.
        k: how many documents to return for a query, at most.
        k1: how soon a repeated word stops to add to the score.
        b: how far the length of a document counts, 0 to 1.
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
    index = BM25Index(documents, k1=k1, b=b, show_progress=show_progress)
    run = {}
    for query, text in _progress(queries.items(), len(queries), "BM25: searching", show_progress):
        found = index.search(text, k + drop_own)
        run[query] = {name: score for name, score in found if not (drop_own and name == query)}
        if len(run[query]) > k:
            run[query].popitem()
    return run


PASSES = 3
"""How often bm25s asks for the words of every document."""


class BM25Index:
    """Documents indexed for BM25; see `bm25_run` for the arguments and what they raise.

    The index takes some 12 bytes for every different word of every document, and 45 while it is made. The texts are
    read once, in order, and not kept.
    """

    def __init__(
        self, documents: Mapping[str, str], *, k1: float = 0.9, b: float = 0.4, show_progress: bool = False
    ) -> None:
        # bm25s starts JAX where it is installed, and JAX would take most of a GPU's memory for itself at once
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        import bm25s

        if not documents:
            raise MAWError("BM25 needs at least one document, got none: check the data set that was read")
        if not (k1 >= 0 and 0 <= b <= 1):
            raise MAWError(f"k1 must be at least 0 and b between 0 and 1, got k1={k1} and b={b}: 0.9 and 0.4 are usual")
        self._analyse = analyser()
        self._vocabulary: dict[str, int] = {}
        tokens = self._read(documents, show_progress)
        # ties are by descending id: where in that order each document comes, and which comes where
        self._places: np.ndarray | None = None
        if isinstance(documents, TextStore):
            self._ids, self._descending = documents.ids, documents.descending()
            self._position = documents.position
        else:
            self._ids = list(documents)
            self._position = {name: place for place, name in enumerate(self._ids)}.__getitem__
            order = sorted(range(len(self._ids)), key=self._ids.__getitem__, reverse=True)
            self._descending = np.array(order, dtype=np.int64)
        self._index = bm25s.BM25(k1=k1, b=b, method="lucene") if self._vocabulary else None
        if self._index is not None:
            tokens.order = self._descending
            with counted("BM25: indexing", PASSES * len(tokens)) as tokens.tell:
                self._index.index(tokens, create_empty_token=False, show_progress=show_progress)

    def search(self, text: str, k: int) -> list[tuple[str, float]]:
        """The k best documents and their scores, best first; fewer where fewer have a word of the query."""
        return list(self.best(self.scores(text), k))

    def best(self, score: np.ndarray, k: int) -> Iterator[tuple[str, float]]:
        """The k best documents by what `scores` returned, and their scores, best first, one after the other."""
        return ((self._ids[int(self._descending[place])], float(score[place])) for place in _best(score, k))

    def places(self, identifiers: Iterable[str]) -> list[int]:
        """Where in the scores each of these documents is."""
        if self._places is None:
            self._places = np.empty_like(self._descending)
            self._places[self._descending] = np.arange(len(self._descending))
        return [int(self._places[self._position(name)]) for name in identifiers]

    def scores(self, text: str) -> np.ndarray:
        """The score of every document, in the order of descending ids."""
        if self._index is None:
            return np.zeros(len(self._descending), dtype=np.float32)
        known = [self._vocabulary[stem] for stem in self._analyse(text) if stem in self._vocabulary]
        return self._index.get_scores_from_ids(known)

    def _read(self, documents: Mapping[str, str], show_progress: bool) -> _Tokens:
        numbers, ends, vocabulary = array("i"), array("Q", [0]), self._vocabulary
        texts = _progress(documents.values(), len(documents), "BM25: reading documents", show_progress)
        for text in texts:
            numbers.extend([vocabulary.setdefault(stem, len(vocabulary)) for stem in self._analyse(text)])
            ends.append(len(numbers))
        return _Tokens(np.frombuffer(numbers, dtype=np.int32), np.frombuffer(ends, dtype=np.uint64), vocabulary)


class _Tokens(Sequence[list[int]]):
    """The words of every document, as bm25s asks for them, in one array; `order` says which document comes when."""

    def __init__(self, numbers: np.ndarray, ends: np.ndarray, vocabulary: dict[str, int]) -> None:
        self.numbers, self.ends, self.vocab = numbers, ends, vocabulary
        self.order = np.arange(len(ends) - 1)
        self.tell: Callable[[int], None] = lambda documents: None

    @property
    def ids(self) -> _Tokens:
        return self

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: Any) -> Any:
        document = self.order[place]
        self.tell(1)
        return self.numbers[int(self.ends[document]) : int(self.ends[document + 1])].tolist()


def _progress(items: Iterable[Item], total: int, description: str, show: bool) -> Iterable[Item]:
    if show:
        from rich.progress import track

        return track(items, description=description, total=total)
    return tracked(items, description, total)


def analyser() -> Callable[[str], list[str]]:
    """Return a function from a text to its stems; it remembers the stem of every word it has seen.

    Example:
        >>> analyser()("The U.S. runner's dogs weren't running 3.5 km/h")
        ['u.', 'runner', 'dog', "weren't", 'run', '3.5', 'km', 'h']
    """
    import Stemmer  # ty: ignore[import-not-found]
    from bm25s.stopwords import STOPWORDS_EN

    stemmer = Stemmer.Stemmer("porter", 0)  # 0: no cache of its own
    stop_words = frozenset(STOPWORDS_EN)
    stems: dict[str, str | None] = {}

    def stem(word: str) -> str | None:
        if word.endswith(_POSSESSIVE):
            word = word[:-2]
        return None if word in stop_words else stemmer.stemWord(word)

    def analyse(text: str) -> list[str]:
        found = []
        for word in _WORD.findall(text.lower()):
            if word not in stems:
                stems[word] = stem(word)
            if (known := stems[word]) is not None:
                found.append(known)
        return found

    return analyse


def _best(score: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k highest scores above 0, by (score descending, position ascending)."""
    found = np.flatnonzero(score > 0)
    if len(found) > k:
        kth = np.partition(score[found], len(found) - k)[len(found) - k]
        found = found[score[found] >= kth]
    return found[np.argsort(-score[found], kind="stable")][:k]
