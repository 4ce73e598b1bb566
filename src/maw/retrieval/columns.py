"""Training pairs and their hard negatives as columns of texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from maw.errors import MAWError

if TYPE_CHECKING:
    from maw.retrieval.datasets import RetrievalDataset

__all__ = ["training_columns"]


def training_columns(
    dataset: RetrievalDataset,
    negatives: Mapping[str, Sequence[str]],
    number: int,
    *,
    positives_per_query: int | None = None,
    seed: int = 0,
) -> Iterator[dict[str, str]]:
    """Yield the texts of every training pair with its negatives, as Sentence Transformers' losses take them.

    The columns are anchor, positive, negative_1 to negative_`number`, in this order. A pair takes the first negatives
    of its query; one whose query has fewer than `number` is left out.

    Args:
        dataset: where the texts are.
        negatives: query id -> ids of its negatives, best first.
        number: negatives a row.
        positives_per_query, seed: as in `RetrievalDataset.training_pairs`.

    Raises:
        MAWError: `number` is below 1, or there are no training pairs.

    >>> from maw.retrieval.datasets import RetrievalDataset
    >>> data = RetrievalDataset.from_parts("toy", {"d": "yes", "e": "no"}, {"q": "what"}, {"train": {"q": {"d": 1}}})
    >>> list(training_columns(data, {"q": ["e"]}, 1))
    [{'anchor': 'what', 'positive': 'yes', 'negative_1': 'no'}]
    """
    if number < 1:
        raise MAWError(f"number must be at least 1, got {number}: without negatives use training_pairs")
    for query, document in dataset.training_pairs(positives_per_query, seed):
        chosen = list(negatives.get(query, ()))[:number]
        if len(chosen) == number:
            row = {"anchor": dataset.queries[query], "positive": dataset.documents[document]}
            yield row | {f"negative_{n}": dataset.documents[name] for n, name in enumerate(chosen, start=1)}
