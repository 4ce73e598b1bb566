"""The header of a .npy file, for numbers that are written after it in pieces."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

__all__ = ["npy_header"]


def npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """What comes before the numbers of a .npy file.

    >>> len(npy_header(np.dtype(np.float16), (3, 4))) % 64
    0
    """
    header = io.BytesIO()
    description: Any = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()
