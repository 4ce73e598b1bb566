"""Why a file could not be read or written, in words."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import NoReturn, TypeAlias

from maw.errors import MAWError

__all__ = [
    "AnyPath",
    "check_readable",
    "refuse_reading",
    "refuse_writing",
    "refused_as_full",
    "saying_that_the_disk_is_full",
    "saying_what_cannot_be_written",
]

AnyPath: TypeAlias = str | os.PathLike[str]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TORCH = ("PytorchStreamWriter", "basic_ios::clear", ". unexpected pos ")
_NUMPY = re.compile(r"^\d+ requested and \d+ written$")


FORBIDDEN = (errno.EACCES, errno.EPERM)


def refuse_reading(path: AnyPath, error: OSError, remedy: str) -> NoReturn:
    """Say why a file could not be read.

    Args:
        path: the file.
        error: what the system said.
        remedy: what to do, as a sentence, where it is not that this user may not read it.

    Raises:
        MAWError: always.
    """
    if error.errno in FORBIDDEN:
        raise MAWError(f"{path} may not be read by this user: ask its owner, or change its permissions") from error
    said = f"{path} cannot be read: {error.strerror or error}"
    raise MAWError(f"{said}. {remedy}" if remedy else said) from error


def check_readable(folder: AnyPath) -> None:
    """Refuse a folder in which there is a file or a folder that this user may not read.

    Other libraries take such files for missing, or for damaged.

    Raises:
        MAWError: the first one.
    """

    def refuse(error: OSError) -> NoReturn:
        refuse_reading(error.filename or folder, error, "Check the path")

    for place, _, names in os.walk(folder, onerror=refuse):
        for name in names:
            path = os.path.join(place, name)
            if not os.access(path, os.R_OK) and os.path.exists(path):
                refuse(PermissionError(errno.EACCES, os.strerror(errno.EACCES), path))


def refuse_writing(path: AnyPath, error: OSError) -> NoReturn:
    """Say why a file could not be written.

    Raises:
        MAWError: always.
    """
    why = error.strerror or str(error)
    if error.errno in FULL:
        raise MAWError(
            f"{path} could not be written: {why}. What was finished is kept: free some space and run the "
            "same command again"
        ) from error
    if error.errno in FORBIDDEN:
        raise MAWError(
            f"{path} could not be written: this user may not write it ({why}): ask its owner, change the permissions "
            "of the file and its folder, or give another path"
        ) from error
    if error.errno == errno.EISDIR:
        raise MAWError(f"{path} could not be written: it is a folder: give the name of a file in it") from error
    raise MAWError(f"{path} could not be written: {why}: check the folder") from error


@contextmanager
def saying_what_cannot_be_written(path: AnyPath) -> Generator[None]:
    """Turn what writing raises into sentences; the body must do nothing that raises `OSError` but write `path`.

    Raises:
        MAWError: the body raised `OSError`, or what `saying_that_the_disk_is_full` knows.
    """
    try:
        with saying_that_the_disk_is_full(path):
            yield
    except OSError as error:
        refuse_writing(path, error)


@contextmanager
def saying_that_the_disk_is_full(path: AnyPath) -> Generator[None]:
    """Give what other libraries raise when they cannot write into a folder the words of `refuse_writing`.

    Raises:
        MAWError: the disk was full, or a file too large; every other exception stays what it is.

    >>> with saying_that_the_disk_is_full("model"):
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
        if (refused := refused_as_full(error)) is None:
            raise
        refuse_writing(path, refused)


def refused_as_full(error: BaseException) -> OSError | None:
    """The system's refusal to take more bytes that an exception tells of; None where it tells of something else.

    Of other libraries, tokenizers and safetensors name the error's number in their message. PyTorch says at what
    place in its code it noticed, NumPy how much was written; the refusal itself may be in the exception's context.
    """
    link: BaseException | None = error
    while link is not None:
        found = re.search(r"os error (\d+)", str(link))
        number = link.errno if isinstance(link, OSError) else int(found[1]) if found else None
        if number in FULL:
            return OSError(number, os.strerror(number))
        link = link.__cause__ or link.__context__
    said = str(error)
    if os.strerror(errno.ENOSPC) in said or (isinstance(error, OSError) and _NUMPY.search(said)):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if any(words in said for words in _TORCH):
        return OSError(errno.ENOSPC, "PyTorch could not write all of a file")
    return None
