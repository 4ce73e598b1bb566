"""By which similarity a model compares two vectors, and what a training loss multiplies it with.

A model is trained by the similarity that it ranks with (`SentenceTransformer.similarity_fn_name`): cosine, or the dot
product. Cosines are between -1 and 1 and need a factor to tell candidates apart; dot products of vectors that have no
set length grow on their own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from maw.errors import MAWError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["SCALE_OF_UNIT_VECTORS", "is_normalised", "similarity_of", "similarity_scale"]

SCALE_OF_UNIT_VECTORS = 20.0
"""The factor on cosines, where none is asked for."""


def similarity_of(model: SentenceTransformer) -> Literal["cosine", "dot"]:
    """The similarity that the model ranks with; cosine where it does not say.

    Raises:
        MAWError: it ranks by another one, such as a distance.

    >>> from maw.retrieval.models import choose_device, load_encoder
    >>> similarity_of(load_encoder("packaged", device=choose_device("cpu")))
    'cosine'
    """
    match model.similarity_fn_name:
        case None | "cosine":
            return "cosine"
        case "dot":
            return "dot"
        case other:
            raise MAWError(
                f"wanted a model that compares vectors by cosine or dot product, got one that compares by {other}: "
                "such models are neither trained nor searched with here; if its vectors may be compared by cosine, set "
                '"similarity_fn_name": "cosine" in its config_sentence_transformers.json'
            )


def is_normalised(model: SentenceTransformer) -> bool:
    """Whether vectors are given unit length before they are compared: where the model compares by cosine.

    Raises:
        MAWError: anything `similarity_of` refuses.
    """
    return similarity_of(model) == "cosine"


def similarity_scale(model: SentenceTransformer, asked: float | None = None) -> float:
    """The training loss's factor on similarities.

    Args:
        model: what is trained.
        asked: the factor that is asked for; None takes 20 where the model compares by cosine or its vectors have unit
            length, else 1.

    Raises:
        MAWError: the factor is not above 0, or anything `similarity_of` refuses.

    >>> from maw.retrieval.models import choose_device, load_encoder
    >>> model = load_encoder("packaged", device=choose_device("cpu"))
    >>> similarity_scale(model), similarity_scale(model, 50)
    (20.0, 50.0)
    """
    from sentence_transformers.sentence_transformer.modules import Normalize

    unit = is_normalised(model) or isinstance(list(model)[-1], Normalize)
    if asked is None:
        return SCALE_OF_UNIT_VECTORS if unit else 1.0
    if not (math.isfinite(asked) and asked > 0):
        raise MAWError(f"similarity_scale must be above 0, got {asked}")
    return float(asked)
