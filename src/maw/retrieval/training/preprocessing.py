"""Sentence Transformers' preprocessing of texts, with the same result in less time.

Transformers turns a batch's token ids into a tensor number by number in Python; where several cores find the ids, that
takes longer than finding them. NumPy does it at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["preprocessing"]

LISTS: Any = {"common": {"return_tensors": None}}


def preprocessing(model: SentenceTransformer) -> Callable[..., dict[str, Any]]:
    """What `model.preprocess` makes of texts, prompts and truncation included.

    Args:
        model: an encoder of texts; one that does not begin with a transformer preprocesses as it always does.
    """
    from sentence_transformers.sentence_transformer.modules import Transformer

    if not isinstance(model[0], Transformer):
        return model.preprocess

    def preprocessed(texts: Sequence[str], **options: Any) -> dict[str, Any]:
        made = model.preprocess(texts, processing_kwargs=LISTS, **options)
        return {name: _tensor(value) if isinstance(value, list) else value for name, value in made.items()}

    return preprocessed


def _tensor(rows: list[Any]) -> torch.Tensor:
    array = np.array(rows)
    return torch.from_numpy(array) if array.dtype == np.int64 else torch.tensor(rows)
