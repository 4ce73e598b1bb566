"""The metric on the dev split that chooses the best checkpoint."""

from __future__ import annotations

import hashlib
import heapq
from typing import TYPE_CHECKING, Any

from sentence_transformers.base.evaluation import BaseEvaluator

from maw.errors import MAWError
from maw.retrieval.evaluation.measures import evaluate
from maw.retrieval.ranking.dense import dense_runs
from maw.retrieval.ranking.runs import without_own

if TYPE_CHECKING:
    from maw.retrieval.data.dataset import RetrievalDataset

__all__ = ["METRIC", "DevEvaluator"]

METRIC = "nDCG@10"
DEPTH = 100
"""So many documents a query are ranked."""


class DevEvaluator(BaseEvaluator):
    """nDCG@10 on the split that chooses checkpoints, over its relevant documents and seeded others.

    Where the collection asks for it (`drop_own`), a query does not find its own document, as where it is reported.

    Args:
        dataset: has such a split (`dev_split`).
        size: documents to search in, if there are so many; all relevant ones are among them, whatever it says.
        seed: another seed chooses other documents beside the relevant ones.
    """

    def __init__(self, dataset: RetrievalDataset, size: int, seed: int) -> None:
        super().__init__()
        self.primary_metric = f"dev_{METRIC}"
        if dataset.dev_split is None:
            raise MAWError(f"{dataset.name}: wanted a split that chooses checkpoints, such as dev: it has none")
        self.drop_own = dataset.drop_own
        self.queries, self.judged = dataset.evaluation_split(dataset.dev_split)
        judged = {document for grades in self.judged.values() for document in grades}
        documents = {document for document in judged if document in dataset.documents}  # some collections lack some

        def key(document: str) -> bytes:
            return hashlib.sha256(f"{seed}\0dev documents\0{document}".encode()).digest()

        others = (document for document in dataset.documents if document not in documents)
        documents |= set(heapq.nsmallest(max(0, size - len(documents)), others, key=key))
        self.documents = {document: dataset.documents[document] for document in sorted(documents)}

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """The metric, under the name `primary_metric`."""
        found = dense_runs(model, self.documents, {"dev": self.queries}, k=DEPTH + int(self.drop_own))["dev"]
        run = without_own(found, DEPTH) if self.drop_own else found
        return {f"dev_{METRIC}": evaluate(self.judged, run, [METRIC]).means[METRIC]}
