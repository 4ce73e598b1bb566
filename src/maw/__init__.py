"""Multi-Attention-Weight attention for pretrained text encoders."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from maw._registration import register_model_type
from maw.config import MAWConfig
from maw.errors import MAWError

if TYPE_CHECKING:
    from maw import functional, reference
    from maw.hf.attach import Attachment, attach, detach
    from maw.hf.calibration import calibrating
    from maw.hf.fold import fold
    from maw.hf.lora import lora_config, merge_lora
    from maw.hf.model import MAWModel
    from maw.module import DepthAttention

__all__ = [
    "Attachment",
    "DepthAttention",
    "MAWConfig",
    "MAWError",
    "MAWModel",
    "attach",
    "calibrating",
    "detach",
    "fold",
    "functional",
    "lora_config",
    "merge_lora",
    "reference",
]

__version__ = "0.1.0"

# Names whose modules import torch or Transformers are imported when they are used.
_LAZY = {
    "Attachment": "maw.hf.attach",
    "DepthAttention": "maw.module",
    "MAWModel": "maw.hf.model",
    "attach": "maw.hf.attach",
    "calibrating": "maw.hf.calibration",
    "detach": "maw.hf.attach",
    "fold": "maw.hf.fold",
    "lora_config": "maw.hf.lora",
    "merge_lora": "maw.hf.lora",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in ("functional", "reference"):
        return importlib.import_module(f"maw.{name}")
    raise AttributeError(f"module 'maw' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_model_type()
