"""Files that are whole or not there: written aside, brought to the disk, renamed. All of `maw` writes files here.

What is at the path decides how. A regular file, or nothing: a new file is written beside it and renamed. A link: it
stays, and its target is written so. Anything else, such as a pipe with a name or a device, and the process's own
standard output: the bytes go into it, nothing is replaced.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import sys
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal, TypedDict

from maw.io.failures import AnyPath, saying_what_cannot_be_written
from maw.io.json import sealed

__all__ = [
    "Checked",
    "atomic_folder",
    "atomic_write",
    "bring_to_disk",
    "remove_parts",
    "write_json",
    "write_text",
    "write_whole",
]

PIECE = 2**24
LONGEST = 100
"""Bytes of a file's name that are repeated in the name it is written under: names have 255 at most."""


class Checked(TypedDict):
    """What a file must be."""

    bytes: int
    sha256: str


@contextmanager
def atomic_write(path: AnyPath, mode: Literal["w", "wb", "w+b"] = "w") -> Generator[IO[Any]]:
    """Open a file for writing that appears under its name when the body ends and all of it is on the disk.

    If the body raises, what was there before stays. A new file has the permissions of one that `open` makes; one that
    is replaced keeps its permissions and, where the system allows it, its owner. A file that this user may not write
    is refused, though its folder would allow a replacement.

    Args:
        path: the file; the module says what happens to links, pipes and devices.
        mode: "w" for text, which is written as UTF-8 with line feeds, "wb" for bytes, "w+b" to read them back too.

    Raises:
        MAWError: it cannot be written; the body must do nothing that raises `OSError` but write.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "run.txt"
    >>> with atomic_write(path) as file:
    ...     _ = file.write("q1 Q0 d1 1 2.5 tag\\n")
    >>> path.read_text()
    'q1 Q0 d1 1 2.5 tag\\n'
    """
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    with saying_what_cannot_be_written(path):
        found = _found(path)
        if found is not None and (stream := _open_stream(path, found)) is not None:
            with open(stream, mode, **text) as file:
                yield file
            return
        target = Path(os.path.realpath(path))  # of a link; one that leads to nothing too
        if found is not None and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        aside = _part_of(target)
        descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            with open(descriptor, mode, **text) as file:
                if found is not None:
                    _keep(descriptor, found)
                yield file
                file.flush()
                os.fsync(descriptor)
            aside.replace(target)
            bring_to_disk(target.parent)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: AnyPath) -> Generator[Path]:
    """Give a new folder to fill, which gets its name when the body ends and all files in it are on the disk.

    A folder that is there is replaced then, and stays if the body raises. A link to a folder stays.

    Args:
        path: the folder; those above it must exist.

    Raises:
        OSError: it cannot be written; `saying_what_cannot_be_written` puts it in words.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    remove_parts(target.parent, target.name)
    aside, old = _part_of(target), _part_of(target)
    aside.mkdir()
    try:
        yield aside
        for file in aside.rglob("*"):
            bring_to_disk(file)
        bring_to_disk(aside)
        if target.exists():
            target.rename(old)
        try:
            aside.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        bring_to_disk(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_whole(path: AnyPath, parts: Iterable[Any]) -> Checked:
    """Write bytes and the like to a file, as `atomic_write` does.

    Returns:
        Its size and checksum.

    Raises:
        MAWError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    digest, size = hashlib.sha256(), 0
    with atomic_write(path, "wb") as file:
        for part in parts:
            view = memoryview(part).cast("B")
            for begin in range(0, len(view), PIECE):
                piece = view[begin : begin + PIECE]
                file.write(piece)
                digest.update(piece)
            size += len(view)
    return {"bytes": size, "sha256": digest.hexdigest()}


def write_text(path: AnyPath, text: str) -> None:
    """Write a text, as `atomic_write` does."""
    with atomic_write(path) as file:
        file.write(text)


def write_json(path: AnyPath, values: Mapping[str, Any]) -> None:
    """Write an object as JSON with a checksum of its values (`maw.io.json.sealed`), as `atomic_write` does."""
    write_text(path, json.dumps(sealed(values), indent=1, ensure_ascii=False) + "\n")


def remove_parts(folder: Path, name: str | None = None, *, of_all: bool = False) -> None:
    """Remove what processes of this machine left in a folder when they were killed.

    Args:
        folder: where they wrote.
        name: of the file or folder that they wrote; None means any.
        of_all: whether processes that live, and those of other machines, count too.
    """
    what = ".+" if name is None else rf"{re.escape(_shortened(name))}\.[0-9a-f]{{8}}"
    who = r".+\.\d+" if of_all else rf"{re.escape(socket.gethostname())}\.(?P<process>\d+)"
    own = re.compile(rf"\.{what}\.{who}\.part", re.DOTALL)
    for part in folder.glob(".*.part"):
        match = own.fullmatch(part.name)
        if match is None or (not of_all and _lives(int(match["process"]))):
            continue
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _found(path: AnyPath) -> os.stat_result | None:
    """What is at a path or at the end of its links; None if nothing is."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _open_stream(path: AnyPath, found: os.stat_result) -> int | None:
    """Open what must be written through; None where a new file is to take the place of what was found."""
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    # `/dev/stdout` may lead to a regular file, which the shell holds open: a new file in its place would lose the rest
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        with suppress(OSError):
            if os.path.samestat(os.fstat(number), found):
                if stream is not None:
                    stream.flush()
                return os.dup(number)
    return None if stat.S_ISREG(found.st_mode) else os.open(path, os.O_WRONLY)


def _keep(descriptor: int, found: os.stat_result) -> None:
    """Give a new file the owner and the permissions of the one it replaces."""
    own = os.fstat(descriptor)
    if (own.st_uid, own.st_gid) != (found.st_uid, found.st_gid):
        with suppress(OSError):
            os.fchown(descriptor, found.st_uid, found.st_gid)
    with suppress(OSError):  # after the owner: a change of that may take permissions away
        os.fchmod(descriptor, stat.S_IMODE(found.st_mode))


def _part_of(path: Path) -> Path:
    """A name under which this process writes a file aside."""
    return path.with_name(f".{_shortened(path.name)}.{secrets.token_hex(4)}.{socket.gethostname()}.{os.getpid()}.part")


def _shortened(name: str) -> str:
    raw = name.encode("utf-8", "surrogateescape")
    return name if len(raw) <= LONGEST else raw[:LONGEST].decode("utf-8", "ignore")


def bring_to_disk(path: Path) -> None:
    """Have a file or folder on the disk; some file systems cannot do it for folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
