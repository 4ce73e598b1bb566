"""Checksums of the tensors that a folder was saved with, in its config.json, compared when it is loaded.

A tensor that was swapped with another, transposed or edited has a name, a shape and a type that fit, and would be
loaded without a word. The checksums are under "tensors" in config.json, which every program writes anew with the
weights: one that does not know them leaves them out, and the folder it wrote is loaded as any other's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maw.errors import MAWError
from maw.hf.loading import in_words, is_pooler, read_tensors, stored_file, weight_files
from maw.io.atomic import write_text

__all__ = ["check_tensors", "note_tensors"]

KEY = "tensors"
DIGITS = 16
"""Hexadecimal digits that are kept: 64 bits find every accident; against forgery config.json would be no place."""


def note_tensors(folder: Path, where: dict[str, Any]) -> None:
    """Write the checksums of a folder's tensors into its config.json.

    Args:
        folder: what was saved just now; the files are read again.
        where: the arguments of `save_pretrained`.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config[KEY] = _checksums(weight_files(folder, where))
    write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def check_tensors(name: Any, files: Iterable[Path], where: dict[str, Any]) -> None:
    """Raise unless each tensor is what was saved, where the folder says what that was.

    Whatever type the model is loaded in, the files are compared. The pooler may be missing.

    Args:
        name: the folder, or the name on the hub.
        files: its files of weights.
        where: the arguments of `from_pretrained`.

    Raises:
        MAWError: names the tensors.
    """
    path = stored_file(name, "config.json", where)
    wanted = None if path is None else json.loads(path.read_text(encoding="utf-8")).get(KEY)
    if wanted is None:
        return
    if not isinstance(wanted, dict) or not all(isinstance(value, str) for value in wanted.values()):
        raise MAWError(
            f'the checksums of {name}, "{KEY}" in its config.json, are damaged: wanted a text for each tensor. Copy or '
            "save the model again"
        )
    found = _checksums(files)
    changed = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if changed := [key for key in changed if key in found or not is_pooler(key)]:
        raise MAWError(
            f"{in_words(changed)} of {name} {'is' if len(changed) == 1 else 'are'} not what was saved there: copy or "
            f'save the model again; if the change is meant, delete "{KEY}" from its config.json'
        )


def _checksums(files: Iterable[Path]) -> dict[str, str]:
    """The start of SHA-256 over type, shape and bytes of each tensor."""
    return {key: _checksum(tensor) for key, tensor in read_tensors(files)}


def _checksum(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:DIGITS]
