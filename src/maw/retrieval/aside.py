"""Files that are whole or not there: written aside, brought to the disk, renamed; checked by size and SHA-256.

And folders into which one command at a time writes.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import socket
import warnings
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypedDict

import numpy as np

from maw.errors import MAWError
from maw.io.json import sealed

__all__ = [
    "LOCK",
    "Checked",
    "alone_in",
    "check_file",
    "checksum",
    "npy_header",
    "part_of",
    "put",
    "refuse_writing",
    "remove_parts",
    "saying_that_the_disk_is_full",
    "write_json",
    "write_whole",
]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PIECE = 2**24
LOCK = ".lock"
"""The file in an output folder that the command at work there holds; it stays, and alone means nothing."""


class Checked(TypedDict):
    """What a file must be."""

    bytes: int
    sha256: str


def write_whole(path: Path, parts: Iterable[Any]) -> Checked:
    """Write bytes and the like to a file, which appears under its name when all of them are on the disk.

    Returns:
        Its size and checksum.

    Raises:
        MAWError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    digest, size, aside = hashlib.sha256(), 0, part_of(path)
    try:
        with aside.open("wb") as file:
            for part in parts:
                view = memoryview(part).cast("B")
                for begin in range(0, len(view), PIECE):
                    piece = view[begin : begin + PIECE]
                    file.write(piece)
                    digest.update(piece)
                size += len(view)
            file.flush()
            os.fsync(file.fileno())
        put(aside, path)
    except OSError as error:
        refuse_writing(path, error)
    finally:
        aside.unlink(missing_ok=True)
    return {"bytes": size, "sha256": digest.hexdigest()}


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object as JSON with a checksum of its values (`maw.io.json.sealed`), as `write_whole` does."""
    write_whole(path, [(json.dumps(sealed(values), indent=1, ensure_ascii=False) + "\n").encode()])


def part_of(path: Path) -> Path:
    """The name under which this process writes a file aside."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")


def put(aside: Path, path: Path) -> None:
    """Give a finished file its name, for good."""
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_parts(folder: Path) -> None:
    """Remove what processes of this machine left when they were killed."""
    for part in folder.glob(".*.part"):
        match = re.fullmatch(rf"\..+\.{re.escape(socket.gethostname())}\.(\d+)\.part", part.name)
        if match and not _lives(int(match[1])):
            part.unlink(missing_ok=True)


def refuse_writing(path: Path, error: OSError) -> NoReturn:
    """Say why a file could not be written.

    Raises:
        MAWError: always.
    """
    if error.errno in FULL:
        raise MAWError(
            f"{path} could not be written: {error.strerror}. What was finished is kept: free some space and run the "
            "same command again"
        ) from error
    raise MAWError(f"{path} could not be written: {error.strerror or error}: check the folder") from error


@contextmanager
def alone_in(folder: Path) -> Generator[None]:
    """Keep other commands out of an output folder, which is made where it is not there.

    The system gives the lock back when the process ends, however it ends: one that was killed blocks nobody.

    Raises:
        MAWError: another command is at work there, or the folder cannot be written.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a")
    except OSError as error:
        refuse_writing(folder, error)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MAWError(
                f"{folder} is in use, another command writes into it: wait until that one ends, or give another "
                "--output"
            ) from None
        except OSError as error:
            why = f"there are no locks in {folder} ({error.strerror or error})"
            warnings.warn(f"{why}: let no other command write into it meanwhile", stacklevel=3)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)  # at once, also where a child of this process still has the file open


@contextmanager
def saying_that_the_disk_is_full(folder: Path) -> Generator[None]:
    """Give what other libraries raise when they cannot write into a folder the words of `refuse_writing`.

    Of these, tokenizers and safetensors name the error's number in their message, and PyTorch names none.

    Raises:
        MAWError: the disk was full, or a file too large; every other exception stays what it is.

    >>> with saying_that_the_disk_is_full(Path("model")):
    ...     raise Exception("No space left on device (os error 28)")
    Traceback (most recent call last):
    ...
    maw.errors.MAWError: model could not be written: No space left on device. What was finished is kept: free some \
space and run the same command again
    """
    try:
        yield
    except MAWError:
        raise
    except Exception as error:
        found = re.search(r"os error (\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        if "inline_container.cc" in str(error):
            refuse_writing(folder, OSError(errno.ENOSPC, "PyTorch could not write all of a file"))
        if number not in FULL:
            raise
        refuse_writing(folder, OSError(number, os.strerror(number)))


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
        raise MAWError(f"{path} cannot be read: {error.strerror or error}. {remedy}") from error


def npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """What comes before the numbers of a .npy file.

    >>> len(npy_header(np.dtype(np.float16), (3, 4))) % 64
    0
    """
    header = io.BytesIO()
    description: Any = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
