"""The rank of every document by descending id, by which equal scores are ordered, in bounded memory.

Ids are sorted in ranges: as many at a time as fit `ROOM` bytes, from the lowest range up; with their places and order
they take some six times as much. The ids are read once for every range, so some ten million short ones take four
readings. UTF-8 sorts like the characters it stands for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from io import BufferedRandom
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np

from maw.errors import MAWError
from maw.io.atomic import Checked, atomic_write
from maw.retrieval.vectors.npy import npy_header

__all__ = ["write_order"]

ROOM = 2**24


def write_order(
    path: Path, shards: Callable[[], Iterator[list[bytes]]], rows: int, line: Callable[[int], str], *, room: int = ROOM
) -> Checked:
    """Write the rank of every document by descending id as a .npy file of whole numbers.

    Args:
        path: the file.
        shards: starts reading the ids in the order of the corpus.
        rows: how many there are.
        line: names the line of a document, for the message.
        room: bytes of ids that are sorted at a time.

    Returns:
        Its size and checksum.

    Raises:
        MAWError: an id comes twice, or the file cannot be written.
    """
    dtype = np.dtype(np.int32 if rows < 2**31 else np.int64)
    header = npy_header(dtype, (rows,))
    with atomic_write(path, "w+b") as file:
        file.write(header)
        file.flush()
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), len(header), rows * dtype.itemsize)  # a full disk says so here
        rank = np.memmap(file, dtype=dtype, mode="r+", offset=len(header), shape=(rows,))
        done = 0
        for unsorted, places in _ranges(shards, rows, room):
            order = unsorted.argsort(kind="stable")
            ids, positions = unsorted[order], places[order]
            equal = (ids[1:] == ids[:-1]).nonzero()[0]
            if len(equal):
                first, second = (int(positions[equal[0] + place]) for place in (0, 1))
                name = ids[equal[0]].decode("utf-8")
                raise MAWError(f"{line(second)}: id {name!r} was given in {line(first)} already: ids must be unique")
            rank[positions] = np.arange(rows - 1 - done, rows - 1 - done - len(ids), -1, dtype=dtype)
            done += len(ids)
        rank.flush()
        file.seek(0)
        sha256 = hashlib.file_digest(cast("BufferedRandom", file), "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": sha256}


def _ranges(
    shards: Callable[[], Iterator[list[bytes]]], rows: int, room: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the ids of every range with their positions, in the order of the corpus."""
    width, step, sample = 1, max(1, rows // 4096), []
    for ids in shards():
        width = max(width, max(map(len, ids), default=0))
        sample += ids[::step]
    count, sample = -(-rows * width // room), sorted(set(sample))
    bounds = sorted({sample[number * len(sample) // count] for number in range(1, count)})
    place_type = np.int32 if rows < 2**31 else np.int64
    for low, high in pairwise([None, *bounds, None]):
        parts, places, begin = [], [], 0
        for ids in shards():
            array = np.array(ids, dtype=f"S{width}")
            inside = np.ones(len(array), dtype=bool)
            if low is not None:
                inside &= array >= low
            if high is not None:
                inside &= array < high
            parts.append(array[inside])
            places.append((begin + np.flatnonzero(inside)).astype(place_type))
            begin += len(ids)
        yield np.concatenate(parts), np.concatenate(places)
