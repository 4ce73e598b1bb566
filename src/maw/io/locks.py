"""One command at a time: locks that the system gives back when a process ends, however it ends."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from maw.errors import MAWError
from maw.io.failures import refuse_writing

__all__ = ["LOCK", "alone_in", "locked"]

LOCK = ".lock"
"""The file in an output folder that the command at work there holds; it stays, and alone means nothing."""

MISSING = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems without locks answer."""


@contextmanager
def alone_in(folder: Path) -> Generator[None]:
    """Keep other commands out of an output folder, which is made where it is not there.

    A process that was killed blocks nobody.

    Raises:
        MAWError: another command is at work there, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    # where there are no locks, a file that means one would outlive a process that is killed
    lock = FileLock(folder / LOCK, blocking=False, fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise MAWError(
            f"{folder} is in use, another command writes into it: wait until that one ends, or give another --output"
        ) from None
    except OSError as error:
        if error.errno not in MISSING:
            refuse_writing(folder, error)
        why = f"there are no locks in {folder} ({error.strerror or error})"
        warnings.warn(f"{why}: let no other command write into it meanwhile", stacklevel=3)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def locked(file: Path) -> Generator[None]:
    """Wait until no other process holds this lock, and hold it.

    Raises:
        OSError: the file cannot be written, or its file system has no locks.
    """
    from filelock import FileLock

    with FileLock(file, fallback_to_soft=False):
        yield
