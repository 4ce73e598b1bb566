"""Opening the text files of the field: packed with gzip or not, with a byte order mark or not."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import IO, cast

from maw.errors import MAWError

__all__ = ["BYTE_ORDER_MARK", "open_text", "saying_what_cannot_be_read", "skip_mark", "text_lines"]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""What some editors write before the first line of a UTF-8 file; it belongs to no line."""

_GZIP = b"\x1f\x8b"


def open_text(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a text file for its lines as bytes, unpacked, after a byte order mark.

    Whether the file is packed is decided by its first two bytes, not by its name.

    Args:
        path: an existing file.

    Raises:
        OSError, EOFError, zlib.error: it cannot be opened, or is a damaged gzip file; `text_lines` says it in words.
    """
    raw = io.BufferedReader(io.FileIO(path), buffer_size=2**20)
    try:
        # a gzip file is never UTF-8 text: 0x8b is no first byte of a character
        packed = raw.peek(2)[:2] == _GZIP
        file = cast("IO[bytes]", _Unpacked(raw)) if packed else raw
        skip_mark(file)
    except BaseException:
        raw.close()
        raise
    return file


def text_lines(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yield the lines of a text file as bytes, as `open_text` reads them.

    Args:
        path: the file.

    Raises:
        MAWError: it cannot be opened or read, or it is a damaged gzip file.

    >>> import tempfile
    >>> from pathlib import Path
    >>> file = Path(tempfile.mkdtemp()) / "run.gz"
    >>> _ = file.write_bytes(gzip.compress(BYTE_ORDER_MARK + b"q1 Q0 d1 1 2.5 tag"))
    >>> list(text_lines(file))
    [b'q1 Q0 d1 1 2.5 tag']
    """
    with saying_what_cannot_be_read(path), open_text(path) as file:
        yield from file


@contextmanager
def saying_what_cannot_be_read(path: str | os.PathLike[str]) -> Generator[None]:
    """Turn what reading a file raises into sentences; the body must do nothing but read `path`."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise MAWError(f"{path} is no whole gzip file ({error}): fetch it again, or pack it again") from error
    except PermissionError as error:
        raise MAWError(f"{path} may not be read by this user: ask its owner, or change its permissions") from error
    except OSError as error:
        raise MAWError(f"{path} cannot be read: {error.strerror or error}: check the path") from error


def skip_mark(file: IO[bytes]) -> None:
    """Pass over a byte order mark where a file that was just opened begins with one."""
    if file.read(len(BYTE_ORDER_MARK)) != BYTE_ORDER_MARK:
        file.seek(0)


class _Unpacked(gzip.GzipFile):
    """A gzip file that closes the file it reads, too."""

    def __init__(self, raw: IO[bytes]) -> None:
        super().__init__(fileobj=raw)
        self._raw = raw

    def close(self) -> None:
        super().close()
        self._raw.close()
