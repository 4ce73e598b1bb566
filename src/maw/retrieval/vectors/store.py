"""A complete store of vectors, opened for reading: memory-mapped shards that read like one matrix, and their ids."""

from __future__ import annotations

import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maw.errors import MAWError
from maw.io.checked import check_file
from maw.progress import tracked
from maw.retrieval.vectors.plan import Plan, shard_file

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["VectorStore"]

OPEN = 4
"""Shards mapped at a time; a shard that is let go leaves the process's memory."""


class VectorStore:
    """A folder that `maw.retrieval.vectors.corpus_encoding.encode_corpus` filled.

    Args:
        folder: the store's.
        checksums: whether to read every file once and compare its checksum; sizes are always compared.

    Raises:
        MAWError: it is no store, not complete, of another version, or damaged.

    Attributes:
        plan: what it was made of.
        shape: documents and width; with `ndim` and slices of rows, the store is what `search` takes as a matrix.
        order: the rank of every document by descending id, memory-mapped.
    """

    ndim = 2

    def __init__(self, folder: Path, *, checksums: bool = True) -> None:
        self.folder = Path(folder)
        self.plan = _complete_plan(self.folder)
        _check(self.folder, self.plan, whole=checksums)
        self.starts = self.plan.starts
        self.dtype = np.dtype(self.plan.settings["dtype"])
        self.shape = (int(self.starts[-1]), int(self.plan.model["width"]))
        self.order: np.ndarray = _mapped(self.folder / "order.npy")
        self._mapped: OrderedDict[int, np.ndarray] = OrderedDict()
        self._names: OrderedDict[int, tuple[bytes, np.ndarray]] = OrderedDict()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Consecutive rows: a view of a mapped shard, or a copy where they lie in several."""
        begin, end, step = rows.indices(len(self))
        if step != 1:
            raise MAWError(f"rows of a store are read one after the other, got a step of {step}")
        parts = []
        while begin < end or not parts:
            number = min(int(self.starts.searchsorted(begin, side="right")) - 1, len(self.plan.shards) - 1)
            first, stop = int(self.starts[number]), min(end, int(self.starts[number + 1]))
            parts.append(self.shard(number)[begin - first : max(stop, begin) - first])
            begin = max(stop, begin)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def shard(self, number: int) -> np.ndarray:
        """The vectors of one shard, memory-mapped."""
        vectors = self._mapped.pop(number, None)
        if vectors is None:
            path = shard_file(self.folder, number, "npy")
            vectors = _mapped(path)
            wanted = (self.plan.shards[number]["rows"], self.shape[1]), self.dtype
            if (vectors.shape, vectors.dtype) != wanted:
                raise MAWError(f"{path} holds {vectors.dtype} of shape {vectors.shape}, wanted {wanted}: it is damaged")
        self._mapped[number] = vectors
        while len(self._mapped) > OPEN:
            self._mapped.popitem(last=False)
        return vectors

    def ids(self, positions: np.ndarray) -> list[str]:
        """The ids of documents by their positions; every shard is read at most once."""
        flat = np.asarray(positions).ravel()
        found = np.empty(len(flat), dtype=object)
        numbers = self.starts.searchsorted(flat, side="right") - 1
        for number in np.unique(numbers).tolist():
            raw, ends = self._lines(number)
            here = numbers == number
            lines = flat[here] - self.starts[number]
            spans = zip(ends[lines].tolist(), ends[lines + 1].tolist(), strict=True)
            found[here] = [raw[begin + 1 : end].decode("utf-8") for begin, end in spans]
        return found.tolist()

    def shard_ids(self, number: int) -> list[str]:
        """The ids of one shard."""
        return self._lines(number)[0].decode("utf-8").split("\n")[:-1]

    def check_model(self, model: SentenceTransformer, name: str) -> None:
        """Refuse a model other than the one that made the vectors.

        Raises:
            MAWError: it is another one; both fingerprints are named.
        """
        from maw.retrieval.identity import encoder_fingerprint

        found, wanted = encoder_fingerprint(model), self.plan.model["fingerprint"]
        if found != wanted:
            raise MAWError(
                f"{self.folder} was encoded by a model with fingerprint {wanted[:12]}, but {name} has {found[:12]}: "
                "name the model that encoded it, or encode the corpus with this one"
            )

    def _lines(self, number: int) -> tuple[bytes, np.ndarray]:
        """The bytes of a shard's ids, and where the line before each begins to end."""
        entry = self._names.pop(number, None)
        if entry is None:
            raw = shard_file(self.folder, number, "ids.txt").read_bytes()
            entry = raw, np.concatenate([[-1], np.flatnonzero(np.frombuffer(raw, dtype=np.uint8) == ord("\n"))])
        self._names[number] = entry
        while len(self._names) > OPEN:
            self._names.popitem(last=False)
        return entry


def _mapped(path: Path) -> np.ndarray:
    """An array on the disk."""
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise MAWError(f"{path} is damaged: it holds no array ({error}). Search without --skip-checksums") from error


def _complete_plan(folder: Path) -> Plan:
    if (folder / "manifest.json").is_file():
        return Plan.read(folder / "manifest.json")
    if not (folder / "plan.json").is_file():
        raise MAWError(f"{folder} is not a store of vectors: name a folder that `maw encode` wrote")
    plan = Plan.read(folder / "plan.json")
    done = sum(shard_file(folder, number, "json").is_file() for number in range(len(plan.shards)))
    raise MAWError(
        f"{folder} is not complete: {done} of {len(plan.shards)} shards are finished; run the same `maw encode` again"
    )


def _check(folder: Path, plan: Plan, *, whole: bool) -> None:
    again = "run the same `maw encode` again: nothing else is encoded anew"
    files = [(folder / "order.npy", plan.order, f"Delete {folder / 'plan.json'} and {again}")]
    for number, shard in enumerate(plan.shards):
        if "vectors" not in shard:
            raise MAWError(
                f"{folder / 'manifest.json'} is damaged: its shard {number} has no vectors. Delete it and {again}"
            )
        record = shard_file(folder, number, "json")
        files.append((shard_file(folder, number, "npy"), shard["vectors"], f"Delete {record} and {again}"))
        files.append((shard_file(folder, number, "ids.txt"), shard["ids"], files[0][2]))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        checked = pool.map(lambda file: check_file(*file, whole=whole), files)
        for _ in tracked(checked, f"checking {folder}: files", len(files)):
            pass
