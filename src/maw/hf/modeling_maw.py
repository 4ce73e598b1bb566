"""Where Transformers finds this model's classes, which are those of the package maw; maw wrote this file."""

try:
    from maw.hf.configuration import MAWModelConfig
    from maw.hf.model import MAWModel
except ImportError as error:
    raise ImportError(
        "this model has Multi-Attention-Weight attention, which the package maw-attention computes: install it "
        f"(pip install maw-attention) and load the model again ({error})"
    ) from error

__all__ = ["MAWModel", "MAWModelConfig"]
