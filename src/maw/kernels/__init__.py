"""Optional Triton kernels, one file a kernel, and the rule that says when they are used.

    MAWConfig.kernels = "auto"    Triton where the tensors are on a CUDA device, Triton is installed, a head has at most
                                  `LARGEST_HEAD` channels and `LARGEST_DEPTH` view vectors, and nothing is being
                                  compiled or exported; else PyTorch
    MAWConfig.kernels = "triton"  Triton, or an error that says what is missing
    MAWConfig.kernels = "torch"   PyTorch

With TRITON_INTERPRET=1 in the environment "triton" runs on the CPU, through Triton's interpreter (for tests).
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from maw.config import Kernels
from maw.errors import MAWError

__all__ = ["LARGEST_DEPTH", "LARGEST_HEAD", "use_triton"]

LARGEST_HEAD = 128
"""C above which a C x C transform does not fit into a program's registers."""

LARGEST_DEPTH = 128
"""D above which a head's view vectors and their gradients do not."""


def use_triton(kernels: Kernels, query: Tensor, depth: int = 1) -> bool:
    """Whether the Triton kernels serve this query.

    Args:
        kernels: `MAWConfig.kernels`.
        query: (.., C), on the device where the kernels would run.
        depth: D.

    Raises:
        MAWError: "triton" was asked for and cannot run.

    >>> use_triton("auto", torch.zeros(2, 3, 5, 4))
    False
    """
    if kernels == "torch" or query.numel() == 0:  # nothing to launch
        return False
    interpreted = kernels == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    missing = _what_is_missing(query, depth, interpreted=interpreted)
    if missing is not None and kernels == "triton":
        raise MAWError(f"kernels='triton' was asked for, but {missing}: use kernels='auto' or 'torch'")
    return missing is None


def _what_is_missing(query: Tensor, depth: int, *, interpreted: bool) -> str | None:
    if torch.compiler.is_compiling():
        return "PyTorch is compiling or exporting the model"
    for number, what, most in (
        (query.shape[-1], "channels", LARGEST_HEAD),
        (depth, "view vectors", LARGEST_DEPTH),
    ):
        if number > most:
            return f"a head has {number} {what}, more than {most}"
    if query.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the query is of type {query.dtype}, not float32, float16 or bfloat16"
    if query.device.type != "cuda" and not interpreted:
        return f"the query is on {query.device}, not on a CUDA device"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    return None
