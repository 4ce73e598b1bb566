"""Sentence Transformers' model cards say how a model with MAW is loaded.

The library writes a card beside each model that it saves, with a snippet that loads it. A model with MAW needs one more
word there, and the library has no place for it: its `to_dict`, which gathers what a card says, is extended.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from sentence_transformers.base.model_card import BaseModelCardData

__all__ = ["explain_loading"]

LOADING = re.compile(r'^(model = \w+\("[^"\n]*")\)$', re.MULTILINE)
INSTALLING = "# pip install maw-attention: this model has Multi-Attention-Weight attention\n"


def explain_loading(snippet: str) -> str:
    """The snippet of a card, its model loaded by who may not have imported maw.

    >>> print(explain_loading('model = SentenceTransformer("user/model")'))
    # pip install maw-attention: this model has Multi-Attention-Weight attention
    model = SentenceTransformer("user/model", trust_remote_code=True)
    """
    return LOADING.sub(rf"{INSTALLING}\1, trust_remote_code=True)", snippet)


def _explained(to_dict: Any) -> Any:
    @functools.wraps(to_dict)
    def explained(self: BaseModelCardData) -> dict[str, Any]:
        from maw.hf.attach import has_maw

        said = to_dict(self)
        if self.model is not None and has_maw(self.model):
            said["usage_snippet"] = explain_loading(said.get("usage_snippet", ""))
        return said

    return explained


BaseModelCardData.to_dict = _explained(BaseModelCardData.to_dict)
