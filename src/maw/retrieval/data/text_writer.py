"""Writing a corpus to disk as a store that `maw.retrieval.data.texts.TextStore` opens, in bounded memory."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from maw.errors import MAWError
from maw.io.atomic import Checked, atomic_folder, write_json
from maw.io.checked import checksum
from maw.io.failures import refused_as_full
from maw.retrieval.data.texts import TEXTS, VERSION, Strings, TextStore, add_record, hash64, raw_hash

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Records", "build_store", "count_distinct"]

Records: TypeAlias = Iterable[tuple[str, str]]
"""(id, text), in the order of the corpus."""


def build_store(
    folder: Path, records: Records, stamp: Mapping[str, Any], repeated: Callable[[str, int, int], NoReturn]
) -> TextStore:
    """Write a store and open it; it is written aside and appears under its name when it is whole.

    Args:
        folder: the store; one that is there is replaced.
        records: (id, text) of every document.
        stamp: what the texts come from, kept in the manifest; may be filled while `records` are read.
        repeated: called with an id that comes twice and its two positions, from 0; it raises.

    Raises:
        MAWError: there is no record, or the folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as aside:
            _write(aside, _marked(records), stamp, repeated)
    except _SourceFailure as failure:
        raise failure.__cause__ or failure from None
    except OSError as error:
        known = refused_as_full(error) or error
        raise MAWError(
            f"cannot write the store {folder}: {known.strerror or error}: it needs a folder that can be written and "
            "has room for it; that of corpora is the environment variable MAW_CACHE"
        ) from error
    return TextStore(folder)


class _SourceFailure(Exception):
    """Reading the records failed, not writing them."""


def _marked(records: Records) -> Records:
    try:
        yield from records
    except OSError as error:
        raise _SourceFailure from error


def _write(
    folder: Path, records: Records, stamp: Mapping[str, Any], repeated: Callable[[str, int, int], NoReturn]
) -> None:
    import numpy as np

    text_ends, id_ends, id_hashes, text_hashes = (array("Q") for _ in range(4))
    text_ends.append(0)
    id_ends.append(0)
    empty, content = 0, hashlib.sha256()
    with ExitStack() as stack:
        texts, ids = (stack.enter_context((folder / f"{name}.bin").open("wb")) for name in ("texts", "ids"))
        for identifier, text in records:
            raw_id, raw_text = identifier.encode("utf-8"), text.encode("utf-8")
            ids.write(raw_id)
            texts.write(raw_text)
            id_ends.append(id_ends[-1] + len(raw_id))
            text_ends.append(text_ends[-1] + len(raw_text))
            id_hashes.append(hash64(identifier))
            text_hashes.append(raw_hash(raw_text))
            empty += not raw_text
            add_record(content, raw_id, raw_text)
    total = len(id_hashes)
    if not total:
        raise MAWError("wanted documents to search, got none: the corpus is empty")
    distinct = count_distinct(text_hashes)
    unsorted = np.frombuffer(id_hashes, dtype=np.uint64)
    places = unsorted.argsort(kind="stable")
    hashes = unsorted[places]
    arrays = {
        "text_ends": np.frombuffer(text_ends, dtype=np.uint64),
        "id_ends": np.frombuffer(id_ends, dtype=np.uint64),
        "hashes": hashes,
        "places": places.astype(np.uint32 if total < 2**32 else np.uint64),
        "text_hashes": np.frombuffer(text_hashes, dtype=np.uint64),
    }
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    _refuse_repeated(Strings(folder / "ids.bin", arrays["id_ends"]), hashes, places, repeated)
    files = {path.name: _checked(path) for path in sorted(folder.iterdir())}
    manifest = {
        "version": VERSION,
        "stamp": dict(stamp),
        "counts": {"total": total, "empty": empty, "repeated": total - distinct},
        "content": content.hexdigest(),
        "files": files,
    }
    write_json(folder / "manifest.json", manifest)


def _checked(path: Path) -> Checked:
    """What a file must be; the texts have a checksum each and need none together."""
    return {"bytes": path.stat().st_size, "sha256": "" if path.name == TEXTS else checksum(path)}


def _refuse_repeated(
    ids: Sequence[str], hashes: np.ndarray, places: np.ndarray, repeated: Callable[[str, int, int], NoReturn]
) -> None:
    """Report the id whose second place comes first in the corpus, as reading line by line would."""
    found: list[tuple[int, int, str]] = []
    for later in ((hashes[1:] == hashes[:-1]).nonzero()[0] + 1).tolist():
        second, earlier = int(places[later]), later - 1  # equal hashes keep the order of the corpus
        while earlier >= 0 and hashes[earlier] == hashes[later]:
            if ids[int(places[earlier])] == ids[second]:
                found.append((second, int(places[earlier]), ids[second]))
            earlier -= 1
    if found:
        second, first, identifier = min(found)
        repeated(identifier, first, second)


def count_distinct(hashes: array[int]) -> int:
    """How many different numbers there are."""
    import numpy as np

    ordered = np.sort(np.frombuffer(hashes, dtype=np.uint64))
    return int((ordered[1:] != ordered[:-1]).sum()) + (len(ordered) > 0)
