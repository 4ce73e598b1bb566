"""How to train: one frozen value for a variant and its twin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from maw.errors import MAWError
from maw.hf.weights import TYPES

__all__ = ["TrainingSettings"]


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; a MAW variant and its dense twin share one value of this.

    Attributes:
        batch_size: pairs a batch of one process; the candidates of a query are the documents of all processes.
        mini_batch_size: so many texts a forward, the gradient of the whole batch (GradCache); None is one forward.
        positives_per_query: at most so many relevant documents a query, chosen by the seed; None takes all.
        hard_negatives: so many hard negatives a pair (`rows` says what happens where there are fewer).
        negatives: where they come from: BM25, the model as it is before training, or files ("given").
        negative_margin: they score at least this share less than the query's best-scored relevant document, by BM25 or
            by the model as it is before training; None asks for no distance.
        negative_files: the files of "given" (`NegativeSettings.files`); none takes those that came with the data.
        similarity_scale: the loss's factor on the similarity that the model ranks with; None is 20 for cosines, 1 for
            dot products of vectors that have no unit length.
        dev_documents: what the dev split is searched in during training.
        query_prompt, document_prompt: what stands before every query and every document, in training and, saved with
            the model, wherever it is used; None keeps the model's own.
        dtype: the type that weights are saved in; None is the one they were loaded in. They are trained in float32.
        save_steps: save a checkpoint after every so many steps too, not after every epoch alone.
        seed: of every draw: order, dropout, depth noise, positives, negatives that are missing, dev documents.
        mask_relevant: whether what is judged relevant to a query is never its negative. False trains against the
            judgements, as was done before this could be avoided; it is there to measure what that costs.
    """

    learning_rate: float = 5e-5
    epochs: int = 3
    batch_size: int = 64
    mini_batch_size: int | None = None
    max_length: int = 128
    warmup_share: float = 0.1
    weight_decay: float = 0.01
    similarity_scale: float | None = None
    positives_per_query: int | None = None
    hard_negatives: int = 0
    negatives: Literal["bm25", "model", "given"] = "bm25"
    negative_margin: float | None = None
    negative_files: tuple[Path, ...] = ()
    dev_documents: int = 2000
    gradient_checkpointing: bool = False
    query_prompt: str | None = None
    document_prompt: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    save_steps: int | None = None
    seed: int = 0
    mask_relevant: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "mini_batch_size", "max_length", "dev_documents", "save_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise MAWError(f"{name} must be at least 1, got {value}")
        if self.mini_batch_size is not None and self.mini_batch_size > self.batch_size:
            raise MAWError(
                f"mini_batch_size must be at most the batch size {self.batch_size}, got {self.mini_batch_size}"
            )
        if self.hard_negatives < 0:
            raise MAWError(f"hard_negatives must be 0 or more, got {self.hard_negatives}")
        if self.negatives not in ("bm25", "model", "given"):
            raise MAWError(f"negatives must be bm25, model or given, got {self.negatives!r}")
        if self.dtype is not None and self.dtype not in TYPES:
            raise MAWError(f"dtype must be one of {', '.join(TYPES)}, got {self.dtype!r}")
        self._check_negatives()
        for name in ("learning_rate", "similarity_scale"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise MAWError(f"{name} must be above 0, got {value}")

    def _check_negatives(self) -> None:
        margin = self.negative_margin
        if margin is not None and not (math.isfinite(margin) and margin >= 0):
            raise MAWError(f"negative_margin must be 0 or more, got {margin}: it is a share of a score")
        if self.negative_files and self.negatives != "given":
            raise MAWError(f'negative_files are for negatives "given", got "{self.negatives}": name one source of them')
        if not self.hard_negatives and (margin is not None or self.negative_files):
            raise MAWError(
                "negative_margin and negative_files choose hard negatives, but hard_negatives is 0: say how many of "
                "them a pair gets"
            )
