"""A corpus on disk that reads like a dictionary: id -> text, without an object in memory for every text.

A store is a folder:

    texts.bin, ids.bin            all texts, and all ids, one after the other in UTF-8, in the order of the corpus
    text_ends.npy, id_ends.npy    where each of them starts; one number more than there are texts (uint64)
    hashes.npy, places.npy        the ids' 64-bit hashes in ascending order, and the position of each id
    text_hashes.npy               the 64-bit hash of every text, with which each is compared when it is read
    manifest.json                 what it was made of, how many texts there are, size and checksum of every file

Opening a store reads everything but the texts once, and compares checksums; a text is compared with its hash whenever
it is read. So a file that was edited or damaged is found, and no gigabytes are read before the first text.

The arrays are memory-mapped: 8.8 million texts have some 300 MB of them, which the system may drop and read again. An
id is found by binary search among the hashes and then compared as it is, so no collision can give a wrong text. Texts
are read with `pread` and not mapped, because mapped pages count as a process's memory for as long as they stay.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maw.errors import MAWError
from maw.io.checked import check_file
from maw.io.json import check_seal, read_json, shown

if TYPE_CHECKING:
    import numpy as np

__all__ = ["TextStore", "add_record", "content_checksum", "hash64", "raw_hash", "read_manifest"]

VERSION = 2
ARRAYS = ("text_ends", "id_ends", "hashes", "places", "text_hashes")
TEXTS = "texts.bin"
BLOCK = 8192
"""Texts read at a time when the whole store is read in order."""
LARGEST_TABLE = 2**29
"""Bytes of a table of ids that is sorted at once."""


def hash64(text: str) -> int:
    """The hash by which texts and ids are compared without keeping them; the same everywhere.

    Two of 8.8 million different texts have the same one with a probability of 2e-6.

    >>> hash64("depth")
    15668804919238924113
    """
    return raw_hash(text.encode("utf-8"))


def raw_hash(raw: bytes) -> int:
    """`hash64` of a text from its UTF-8 bytes."""
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


def content_checksum(texts: Mapping[str, str]) -> str:
    """The SHA-256 of ids and texts in their order: the same for a dictionary and for a store that hold the same.

    >>> content_checksum({"d": "text"})[:16]
    '437211b18f80d311'
    """
    if isinstance(texts, TextStore):
        return texts.manifest["content"]
    digest = hashlib.sha256()
    for identifier, text in texts.items():
        add_record(digest, identifier.encode("utf-8"), text.encode("utf-8"))
    return digest.hexdigest()


class TextStore(Mapping[str, str]):
    """An open store: id -> text, in the order of the corpus; it can be pickled, and read after a fork.

    Args:
        folder: what `maw.retrieval.data.text_writer.build_store` wrote.
        checked: another process opened it just now, so that sizes are compared and checksums are not.

    Raises:
        MAWError: it is not a store, or one of its files is not as it was written; reading a text raises it, too.

    Attributes:
        manifest: `stamp` (what it was made of), `counts` (texts in all, empty ones, texts met before), `content` (see
            `content_checksum`) and `files` (their sizes and checksums).
        ids: the ids by position.
        texts: the texts by position.
    """

    def __init__(self, folder: Path, *, checked: bool = False) -> None:
        import numpy as np

        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        remedy = f"Delete the folder {self.folder}, it is made anew from the corpus"

        def check(name: str) -> None:
            check_file(self.folder / name, self.manifest["files"][name], remedy, whole=not checked and name != TEXTS)

        with ThreadPoolExecutor(len(self.manifest["files"])) as pool:
            for _ in pool.map(check, self.manifest["files"]):
                pass
        arrays = [np.asarray(np.load(self.folder / f"{name}.npy", mmap_mode="r")) for name in ARRAYS]
        text_ends, id_ends, self._hashes, self._places, text_hashes = arrays
        self.texts = Strings(self.folder / TEXTS, text_ends, text_hashes)
        self.ids = Strings(self.folder / "ids.bin", id_ends)

    @property
    def counts(self) -> dict[str, int]:
        """How many texts there are in all, how many are empty, and how many were met before in the corpus."""
        return dict(self.manifest["counts"])

    def position(self, identifier: str) -> int:
        """The position of an id in the corpus, -1 where it is not there."""
        wanted, length = hash64(identifier), len(self._hashes)
        place = int(self._hashes.searchsorted(self._hashes.dtype.type(wanted)))
        while place < length and int(self._hashes[place]) == wanted:
            position = int(self._places[place])
            if self.ids[position] == identifier:
                return position
            place += 1
        return -1

    def known(self, identifiers: Iterable[str]) -> list[bool]:
        """Whether each of many ids is there: as many calls of `in`, but faster."""
        import numpy as np

        names = list(identifiers)
        wanted = np.fromiter((hash64(name) for name in names), dtype=np.uint64, count=len(names))
        places = np.minimum(self._hashes.searchsorted(wanted), len(self._hashes) - 1)
        return [
            bool(hit) and (self.ids[int(self._places[place])] == name or name in self)
            for name, place, hit in zip(names, places, self._hashes[places] == wanted, strict=True)
        ]

    def descending(self) -> np.ndarray:
        """The positions (int64) in the order of descending ids, in which equal scores are ranked."""
        import numpy as np

        ids, width = self.ids, int(np.diff(self.ids.ends).max())
        if len(ids) * width > LARGEST_TABLE:  # some ids are long: as many short objects need less than a table
            return np.array(sorted(range(len(ids)), key=list(ids).__getitem__, reverse=True), dtype=np.int64)
        table = np.empty(len(ids), dtype=f"S{width}")  # UTF-8 sorts like the characters it stands for
        for begin in range(0, len(ids), BLOCK):
            table[begin : begin + BLOCK] = [name.encode("utf-8") for name in ids[begin : begin + BLOCK]]
        return table.argsort(kind="stable")[::-1]

    def __getitem__(self, identifier: str) -> str:
        position = self.position(identifier) if isinstance(identifier, str) else -1
        if position < 0:
            raise KeyError(identifier)
        return self.texts[position]

    def __contains__(self, identifier: object) -> bool:
        return isinstance(identifier, str) and self.position(identifier) >= 0

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.texts)

    def values(self) -> ValuesView[str]:
        """The texts, read in order."""
        return _Values(self)

    def items(self) -> ItemsView[str, str]:
        """Ids and texts, read in order."""
        return _Items(self)

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return _open_again, (self.folder,)

    def __repr__(self) -> str:
        return f"TextStore({str(self.folder)!r}, {len(self)} texts)"


def _open_again(folder: Path) -> TextStore:
    return TextStore(folder, checked=True)


class Strings(Sequence[str]):
    """Strings in one file, by position; iterating reads many at once.

    Args:
        path: the file.
        ends: where each begins, and the last ends.
        hashes: `hash64` of each, with which it is compared; None compares nothing.
    """

    def __init__(self, path: Path, ends: np.ndarray, hashes: np.ndarray | None = None) -> None:
        self.ends, self.hashes = ends, hashes
        self._path = path
        self._file = os.open(path, os.O_RDONLY)  # kept, so that the file stays readable when it is replaced
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            begin, end, step = place.indices(len(self))
            return self._block(begin, end) if step == 1 else [self[i] for i in range(begin, end, step)]
        place = range(len(self))[place]
        return self._decoded([self._read(int(self.ends[place]), int(self.ends[place + 1]))], place)[0]

    def __iter__(self) -> Iterator[str]:
        for begin in range(0, len(self), BLOCK):
            yield from self._block(begin, min(begin + BLOCK, len(self)))

    def _block(self, begin: int, end: int) -> list[str]:
        if begin >= end:
            return []
        ends = self.ends[begin : end + 1].tolist()
        whole, first = self._read(ends[0], ends[-1]), ends[0]
        return self._decoded([whole[a - first : b - first] for a, b in pairwise(ends)], begin)

    def _decoded(self, raw: list[bytes], first: int) -> list[str]:
        """Consecutive strings from their bytes, compared with their hashes."""
        if self.hashes is not None:
            wanted = self.hashes[first : first + len(raw)].tolist()
            for place, (own, hashed) in enumerate(zip(raw, wanted, strict=True), first):
                if raw_hash(own) != hashed:
                    raise MAWError(
                        f"{self._path} is damaged: text {place + 1} of {len(self)} is not the one that was written; "
                        f"delete the folder {self._path.parent}, it is made anew from the corpus"
                    )
        return [own.decode("utf-8") for own in raw]

    def _read(self, begin: int, end: int) -> bytes:
        parts = []
        while begin < end:
            part = os.pread(self._file, end - begin, begin)
            if not part:
                raise MAWError(f"{self._path} ends at byte {begin}, wanted {end}: the store is damaged, delete it")
            parts.append(part)
            begin += len(part)
        return b"".join(parts)


class _Values(ValuesView[str]):
    def __init__(self, store: TextStore) -> None:
        super().__init__(store)
        self._store = store

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.texts)


class _Items(ItemsView[str, str]):
    def __init__(self, store: TextStore) -> None:
        super().__init__(store)
        self._store = store

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return zip(self._store.ids, self._store.texts, strict=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a store; MAWError where there is none that this version reads."""
    path, remedy = folder / "manifest.json", f"Delete the folder {folder}, it is made anew from the corpus"
    manifest = read_json(path, remedy, wanted=dict)
    if manifest.get("version") != VERSION:
        raise MAWError(
            f"{folder} is a store of version {shown(manifest.get('version'))}, wanted {VERSION}: delete the folder"
        )
    return check_seal(manifest, path, remedy, required=True)


def add_record(digest: Any, identifier: bytes, text: bytes) -> None:
    """Take one document into a checksum of contents."""
    digest.update(f"{len(identifier)} {len(text)} ".encode())
    digest.update(identifier)
    digest.update(text)
