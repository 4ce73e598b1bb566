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
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import numpy as np

from maw.errors import MAWError

__all__ = ["analyser", "bm25_run"]

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
    # bm25s starts JAX where it is installed, and JAX would take most of a GPU's memory for itself at once
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import bm25s
    from rich.progress import track

    for name, given in (("document", documents), ("query", queries)):
        if not given:
            raise MAWError(f"BM25 needs at least one {name}, got none: check the data set that was read")
    if k < 1:
        raise MAWError(f"k must be at least 1, got {k}: ask for one document or more")
    if not (k1 >= 0 and 0 <= b <= 1):
        raise MAWError(f"k1 must be at least 0 and b between 0 and 1, got k1={k1} and b={b}: 0.9 and 0.4 are usual")

    def progress(items: Iterable[Item], total: int, description: str) -> Iterable[Item]:
        return track(items, description=description, total=total, disable=not show_progress)

    analyse = analyser()
    ids = sorted(documents, reverse=True)  # ties by position are then ties by descending id
    vocabulary: dict[str, int] = {}
    tokens = [
        np.array([vocabulary.setdefault(stem, len(vocabulary)) for stem in analyse(documents[name])], dtype=np.int32)
        for name in progress(ids, len(ids), "BM25: reading documents")
    ]
    if not vocabulary:
        return {query: {} for query in queries}
    index = bm25s.BM25(k1=k1, b=b, method="lucene")
    index.index((tokens, vocabulary), create_empty_token=False, show_progress=show_progress)
    run = {}
    for query, text in progress(queries.items(), len(queries), "BM25: searching"):
        known = [vocabulary[stem] for stem in analyse(text) if stem in vocabulary]
        score = index.get_scores_from_ids(known)
        run[query] = {ids[place]: float(score[place]) for place in _best(score, k)}
    return run


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
