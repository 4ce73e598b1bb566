"""Whether a file is as it was written: its size and its SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path

from maw.errors import MAWError
from maw.io.atomic import Checked
from maw.io.failures import refuse_reading

__all__ = ["check_file", "checksum"]


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path, wanted: Checked, remedy: str, *, whole: bool = True) -> None:
    """Check a file's size and, if `whole`, its checksum.

    Raises:
        MAWError: it is not as it was written; `remedy` says what to do.
    """
    try:
        size = path.stat().st_size
        if size != wanted["bytes"]:
            raise MAWError(f"{path} is damaged: it has {size:,} bytes, but had {wanted['bytes']:,}. {remedy}")
        if whole and (found := checksum(path)) != wanted["sha256"]:
            raise MAWError(f"{path} is damaged: its sha256 is {found}, but was {wanted['sha256']}. {remedy}")
    except OSError as error:
        refuse_reading(path, error, remedy)
