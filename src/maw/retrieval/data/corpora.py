"""Where the texts of a corpus are kept: in memory while they are few, else on disk in a store that is made once.

A store lies in the cache folder: `$MAW_CACHE`, else `$XDG_CACHE_HOME/maw`, else `~/.cache/maw`. It is used again as
long as its stamp fits: for a file its size and its time of modification, so that a changed file is read anew and
another copy of it has a store of its own. The file's SHA-256 is computed while it is read and kept with the store.
Several processes that want the same store make it once: the others wait for the first.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from maw.errors import MAWError
from maw.io.atomic import remove_parts
from maw.io.locks import locked
from maw.progress import tracked
from maw.retrieval.data.lines import refuse
from maw.retrieval.data.text_writer import Records, build_store
from maw.retrieval.data.texts import TextStore, read_manifest

__all__ = ["IN_MEMORY", "Origin", "cache_folder", "file_origin", "hold_file", "hold_texts", "keep_on_disk"]

IN_MEMORY = 64 * 2**20
"""Characters of text up to which a corpus stays in memory."""


@dataclass(frozen=True)
class Origin:
    """What texts come from.

    Args:
        name: decides which store holds them; another version of the reader has another name.
        stamp: what must be the same for a store to be used again, as plain JSON.
        found: filled while the texts are read, and kept with them: the checksum of a file.
    """

    name: str
    stamp: Mapping[str, Any]
    found: dict[str, str] = field(default_factory=dict)


def cache_folder() -> Path:
    """The folder for what can be made again: `$MAW_CACHE`, else `$XDG_CACHE_HOME/maw`, else `~/.cache/maw`."""
    named = os.environ.get("MAW_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "maw"


def file_origin(path: Path, layout: str) -> Origin:
    """The origin of texts that are read from one file.

    Args:
        path: the file; where it is missing, reading it says so.
        layout: the name and version of the reader.
    """
    there = path.stat() if path.is_file() else None
    stamp = {"size": there.st_size, "modified": there.st_mtime_ns} if there else {}
    return Origin(f"{layout} {path.resolve()}", stamp)


def hold_texts(
    origin: Origin, records: Callable[[], Iterator[tuple[str, str]]], repeated: Callable[[str, int, int], NoReturn]
) -> Mapping[str, str]:
    """Return id -> text: a dictionary where the texts have at most `IN_MEMORY` characters, else a store.

    Args:
        origin: what the texts come from; `origin.found` has afterwards what reading them found.
        records: starts reading (id, text) from the first on.
        repeated: called with an id that comes twice and its two positions, from 0; it raises.

    Raises:
        MAWError: the cache folder cannot be written, or reading raises it.
    """
    folder = cache_folder() / "texts" / hashlib.sha256(origin.name.encode()).hexdigest()[:32]
    kept = _kept(folder, origin)
    if kept is not None:
        return kept
    reading, texts, size = tracked(records(), "reading texts"), {}, 0
    for identifier, text in reading:
        if identifier in texts:
            repeated(identifier, list(texts).index(identifier), len(texts))
        texts[identifier] = text
        size += len(text)
        if size > IN_MEMORY:
            break
    else:
        return texts
    return keep_on_disk(folder, origin, lambda: _after(chain(texts.items(), reading), texts), repeated)


def keep_on_disk(
    folder: Path,
    origin: Origin,
    records: Callable[[], Iterator[tuple[str, str]]],
    repeated: Callable[[str, int, int], NoReturn],
) -> TextStore:
    """Return the store in a folder: the one that is there, if it is of this origin, else a new one.

    Args:
        folder: the store's own folder.
        origin, records, repeated: as in `hold_texts`; reading starts only where there is no store to use again.

    Raises:
        MAWError: the folder cannot be written, or reading raises it.
    """
    with _locked(folder):
        remove_parts(folder.parent, folder.name, of_all=True)  # nobody else can be writing it
        kept = _kept(folder, origin)
        return build_store(folder, records(), _Stamp(origin), repeated) if kept is None else kept


def hold_file(
    path: Path,
    layout: str,
    records: Callable[[dict[str, str]], Iterator[tuple[str, str]]],
    checksums: dict[str, str],
    key: str,
) -> Mapping[str, str]:
    """Return id -> text of a file in which every line is one text, as `hold_texts` does.

    Args:
        path: the file.
        layout: the name and version of its reader.
        records: starts reading; it gets a dictionary and puts the file's SHA-256 into it under `key`.
        checksums: gets the SHA-256 under `key`, read or remembered.
        key: the name of the file in `checksums`.

    Raises:
        MAWError: an id comes twice (named by file and line), or as `hold_texts`.
    """
    origin = file_origin(path, layout)

    def repeated(identifier: str, first: int, second: int) -> NoReturn:
        already = f"id {identifier!r} was given in line {first + 1} already: ids must be unique"
        refuse(path, second + 1, already)

    texts = hold_texts(origin, lambda: records(origin.found), repeated)
    checksums[key] = origin.found[key]
    return texts


class _Stamp(dict[str, Any]):
    """An origin as a store keeps it; `found` is looked at when the manifest is written, after all was read."""

    def __init__(self, origin: Origin) -> None:
        super().__init__(name=origin.name, stamp=dict(origin.stamp), found=origin.found)


def _after(records: Records, texts: dict[str, str]) -> Iterator[tuple[str, str]]:
    """The records, giving up the dictionary of the first ones while they pass."""
    yield from records
    texts.clear()


def _kept(folder: Path, origin: Origin) -> TextStore | None:
    """The store, if it is there, whole, and of this very origin."""
    if not folder.is_dir():
        return None
    try:
        stamp = read_manifest(folder)["stamp"]
        store = TextStore(folder) if (stamp["name"], stamp["stamp"]) == (origin.name, dict(origin.stamp)) else None
    except MAWError:  # of another version, or damaged: it is made again
        return None
    if store is not None:
        origin.found.update(stamp["found"])
    return store


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Wait until no other process makes this store."""
    with ExitStack() as until_done:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            until_done.enter_context(locked(folder.with_suffix(".lock")))
        except OSError as error:
            raise MAWError(
                f"cannot write the store {folder}: {error.strerror or error}: it needs a folder that can be written; "
                "that of corpora is the environment variable MAW_CACHE"
            ) from error
        yield
