"""How a model ranks the documents of a data set for its test queries, in memory."""

from __future__ import annotations

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from maw.retrieval.data.dataset import RetrievalDataset
from maw.retrieval.evaluation.measures import evaluate
from maw.retrieval.ranking.runs import rank_documents
from maw.retrieval.ranking.search import search

__all__ = ["METRIC", "ranked"]

METRIC = "nDCG@10"


def ranked(model: SentenceTransformer, data: RetrievalDataset) -> tuple[torch.Tensor, np.ndarray]:
    """The test queries' vectors and their nDCG@10."""
    queries, _ = data.evaluation_split("test")
    vectors = [
        model.encode(list(texts.values()), convert_to_tensor=True, show_progress_bar=False)
        for texts in (queries, data.documents)
    ]
    score, place = search(*vectors, 20)
    run = rank_documents(list(queries), list(data.documents), score, place)
    values = evaluate(data.judgements("test"), run, [METRIC]).per_query[METRIC]
    return vectors[0], np.array([values[query] for query in queries])
