"""Sentence Transformers' multiple negatives ranking loss, without what is known to be relevant among the negatives.

    loss = mean_i [ log sum_{j not in R(i)} exp(scale s(q_i, d_j)) - scale s(q_i, d_i) ]

R(i) are the candidates relevant to query i, but its row's own relevant document d_i (`relevance`). Their logits are set
to minus infinity, so they have no part in the loss or its gradient. Where nothing is relevant beside the rows' own
documents, this is Sentence Transformers' loss to the last bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import all_gather, all_gather_with_grad, get_rank
from torch import Tensor

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from maw.retrieval.training.relevance import Relevance

__all__ = ["CachedContrastiveLoss", "ContrastiveLoss", "Masked"]


class Masked:
    """What is relevant in each batch, and how much of it there was since it was last asked.

    Args:
        relevance: of the training's texts.
    """

    def __init__(self, relevance: Relevance) -> None:
        self.relevance = relevance
        self.last: Bool[Tensor, "B candidates"] | None = None
        """The mask of the latest batch."""
        self._sum: Tensor | None = None
        self._queries = 0

    def of(self, ids: Int[Tensor, "B columns"], *, gather: bool) -> Bool[Tensor, "B candidates"]:
        """The mask of a batch, by the numbers of its texts (`Relevance.mask`)."""
        everybody = all_gather(ids) if gather else ids
        offset = get_rank() * len(ids) if gather else 0
        self.last = self.relevance.mask(ids, everybody, offset)
        total = self.last.sum()
        self._sum = total if self._sum is None else self._sum + total
        self._queries += len(ids)
        return self.last

    def collect(self) -> Tensor | None:
        """The mean number of candidates left out for a query since the last call; None without a batch since then."""
        mean = None if self._sum is None else self._sum / self._queries
        self._sum, self._queries = None, 0
        return mean


class ContrastiveLoss(MultipleNegativesRankingLoss):
    """The loss on the whole batch at once; `labels` are the numbers of its texts, (B, columns)."""

    def __init__(self, model: SentenceTransformer, relevance: Relevance | None, **options: Any) -> None:
        super().__init__(model, **options)
        self.masked = None if relevance is None else Masked(relevance)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """The loss of the columns' vectors."""
        if self.masked is None or labels is None:
            return super().compute_loss_from_embeddings(embeddings, labels)  # ty: ignore[invalid-argument-type]
        mask = self.masked.of(labels, gather=self.gather_across_devices)
        queries, documents, begin = _sides(embeddings, gather=self.gather_across_devices)
        own = torch.arange(begin, begin + len(queries), device=queries.device)
        return _losses(self, queries, documents, own, mask).mean()


class CachedContrastiveLoss(CachedMultipleNegativesRankingLoss):
    """The same in mini-batches, with the gradient of the whole batch (GradCache)."""

    def __init__(self, model: SentenceTransformer, relevance: Relevance | None, **options: Any) -> None:
        super().__init__(model, **options)
        self.masked = None if relevance is None else Masked(relevance)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss of the mini-batches' vectors, with as many queries at a time as a mini-batch has."""
        if self.masked is None or labels is None:
            return super().calculate_loss(reps, labels, with_backward=with_backward)
        mask = self.masked.of(labels, gather=self.gather_across_devices)
        queries, documents, begin = _sides([torch.cat(rep) for rep in reps], gather=self.gather_across_devices)
        own = torch.arange(begin, begin + len(queries), device=queries.device)
        losses = []
        for rows in torch.arange(len(queries), device=queries.device).split(self.mini_batch_size):
            part = _losses(self, queries[rows], documents, own[rows], mask[rows]).mean() * len(rows) / len(queries)
            if with_backward:
                part.backward()
                part = part.detach()
            losses.append(part)
        return sum(losses[1:], start=losses[0])


def _sides(columns: list[Tensor], *, gather: bool) -> tuple[Tensor, Tensor, int]:
    """This process's queries, the documents of all processes, and where its own rows begin among them."""
    queries, *documents = columns
    begin = 0
    if gather:
        begin = get_rank() * len(queries)
        documents = [all_gather_with_grad(column) for column in documents]
    return queries, torch.cat(documents), begin


def _losses(
    loss: MultipleNegativesRankingLoss | CachedMultipleNegativesRankingLoss,
    queries: Float[Tensor, "rows M"],
    documents: Float[Tensor, "candidates M"],
    own: Int[Tensor, " rows"],
    mask: Bool[Tensor, "rows candidates"],
) -> Float[Tensor, " rows"]:
    """Each query's loss."""
    score = (loss.similarity_fct(queries, documents) * loss.scale).masked_fill(mask, -torch.inf)
    return score.logsumexp(dim=1) - score[torch.arange(len(own), device=own.device), own]
