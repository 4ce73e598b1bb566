"""A corpus to a store of vectors: by one process, by several that share the shards, or by a cluster.

Every shard is written aside and renamed, so whoever is stopped goes on with the shards that are missing. Processes
that torchrun started need not know of each other: process r of n takes the shards r, r + n, r + 2n, ..., and whoever
finds all shards finished writes the manifest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from maw.errors import MAWError
from maw.hf.weights import TYPES, set_weights_type, weights_type
from maw.io.atomic import Checked, remove_parts
from maw.io.checked import check_file
from maw.io.failures import refuse_writing
from maw.io.json import field, read_sealed
from maw.retrieval.data.corpus_file import CorpusFile
from maw.retrieval.identity import document_prompt, encoder_fingerprint
from maw.retrieval.processes import own_share
from maw.retrieval.similarity import is_normalised
from maw.retrieval.vectors.plan import Plan, begun_files, settle, shard_file
from maw.retrieval.vectors.shard_encoder import Finished, Pace, ShardEncoder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["EncodingSettings", "Outcome", "encode_corpus"]


@dataclass(frozen=True)
class EncodingSettings:
    """What decides the vectors and their files beside the model and the corpus.

    Args:
        dtype: how vectors are stored, float16 or float32.
        precision: the type in which the model is computed; None is that of its weights. With another one, weights in
            half precision are put into float32 first, and bfloat16 or float16 is computed by autocast.
        shard_size: documents of a shard.
    """

    dtype: Literal["float16", "float32"] = "float16"
    precision: Literal["float32", "bfloat16", "float16"] | None = None
    shard_size: int = 65_536

    def __post_init__(self) -> None:
        for name, allowed in (("dtype", ("float16", "float32")), ("precision", TYPES)):
            if getattr(self, name) not in allowed and (name, self.precision) != ("precision", None):
                raise MAWError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.shard_size < 1:
            raise MAWError(f"shard_size must be at least 1, got {self.shard_size}: ask for one document or more")

    def of(self, model: SentenceTransformer) -> dict[str, Any]:
        """These settings and the model's own, as a plan has them."""
        return {
            **asdict(self),
            "precision": self.precision or weights_type(model),
            "max_length": model.max_seq_length,
            "prompt": document_prompt(model) or "",
            "normalised": is_normalised(model),
        }


@dataclass(frozen=True)
class Outcome:
    """What was done.

    Args:
        documents: how many this process encoded.
        seconds: how long that took, reading the corpus for the plan included.
        waited: how long of it the model waited for tokens.
        complete: whether the store is complete now.
        missing: how many shards are not finished, by this process or others.
    """

    documents: int
    seconds: float
    waited: float
    complete: bool
    missing: int


def encode_corpus(
    model: SentenceTransformer,
    corpus: Path,
    folder: Path,
    settings: EncodingSettings | None = None,
    *,
    pace: Pace | None = None,
    share: tuple[int, int] | None = None,
    engine: Literal["local", "ray"] = "local",
    begin: Callable[[int], Callable[[int], None]] | None = None,
) -> Outcome:
    """Encode a corpus into a folder, or what is missing of it.

    Args:
        model: an encoder of texts, on the device to use; it is put into evaluation mode, and its weights into float32
            where `precision` asks for another type than theirs.
        corpus: a file that `CorpusFile` reads.
        folder: the store's; made where it is missing.
        settings: what decides the vectors; the defaults where not given.
        pace: how to work.
        share: this process's number and how many there are; None asks the environment.
        engine: "local" is this process; "ray" a cluster whose nodes see corpus and folder under the same paths.
        begin: called once with the number of documents to do; what it returns is called with the documents of
            every batch, or with Ray of every shard.

    Returns:
        What was done.

    Raises:
        MAWError: the folder holds something else or is damaged, the corpus cannot be used, or the disk is full.
    """
    start = time.perf_counter()
    settings, pace, share = settings or EncodingSettings(), pace or Pace(), share or own_share()
    if engine not in ("local", "ray"):
        raise MAWError(f"engine must be local or ray, got {engine!r}")
    source, folder = CorpusFile(corpus), Path(folder)
    stamp = source.stamp()
    _make_folder(folder)
    model.eval()
    if settings.precision not in (None, weights_type(model)):
        set_weights_type(model, "float32")
    about = {"fingerprint": encoder_fingerprint(model), "width": _width(model)}
    encoder = ShardEncoder(model, source, folder, pace)
    waited, documents = 0.0, 0
    with encoder.tokenising() as executor:
        with _left_as_found(folder, alone=share[1] == 1):
            plan = settle(folder, source, about, settings.of(model), executor, ahead=encoder.ahead)
        _check_room(folder, plan)
        numbers = range(share[0], len(plan.shards), share[1])
        todo = _missing(folder, plan, numbers, whole=True)
        total = sum(plan.shards[number]["rows"] for number in todo)
        progress = begin(total) if begin is not None else _ignore
        for finished in _finish(engine, encoder, plan, todo, executor, pace, progress):
            documents, waited = documents + finished.rows, waited + finished.waited
    if source.stamp() != stamp:
        raise MAWError(f"{corpus} was changed while it was encoded: delete {folder} and encode it again")
    missing = len(_missing(folder, plan, range(len(plan.shards)), whole=False))
    if not missing:
        _write_manifest(folder, plan)
    return Outcome(documents, time.perf_counter() - start, waited, not missing, missing)


def _ignore(documents: int) -> None:
    """No progress is shown."""


def _finish(
    engine: str,
    encoder: ShardEncoder,
    plan: Plan,
    todo: list[int],
    executor: Executor,
    pace: Pace,
    progress: Callable[[int], None],
) -> Iterator[Finished]:
    if engine == "local":
        yield from encoder.encode(plan, todo, executor, progress)
        return
    from maw.retrieval.vectors.ray_engine import encode_on_ray

    for finished in encode_on_ray(encoder.model, encoder.corpus, encoder.folder, plan, todo, pace):
        progress(finished.rows)
        yield finished


def _make_folder(folder: Path) -> None:
    known = ("plan.json", "shards", "order.npy", "manifest.json")
    if folder.exists() and not folder.is_dir():
        raise MAWError(f"wanted a folder for vectors, but {folder} is a file: give another --output")
    if folder.is_dir() and (other := sorted({path.name for path in folder.iterdir()} - {*known})):
        other = [name for name in other if not name.endswith(".part")]
        if other:
            raise MAWError(f"{folder} holds other things ({other[0]}): give an empty or a new folder as --output")
    try:
        (folder / "shards").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse_writing(folder, error)
    remove_parts(folder)
    remove_parts(folder / "shards")


@contextmanager
def _left_as_found(folder: Path, *, alone: bool) -> Generator[None]:
    """Remove what was written for a plan that did not come about, and the folder again if nothing else is in it.

    Of several processes none removes what the others may be reading: `settle` does, once there is a plan.
    """
    before = {*begun_files(folder)}
    try:
        yield
    except MAWError:
        if alone and not (folder / "plan.json").exists():
            for path in {*begun_files(folder)} - before:
                path.unlink(missing_ok=True)
        with suppress(OSError):  # others write there, or it holds shards already
            (folder / "shards").rmdir()
            folder.rmdir()
        raise


def _width(model: SentenceTransformer) -> int:
    with torch.inference_mode():
        return int(model.encode(["width"], show_progress_bar=False).shape[1])


def _check_room(folder: Path, plan: Plan) -> None:
    """Refuse at once what cannot fit."""
    size = torch.empty(0, dtype=getattr(torch, plan.settings["dtype"])).element_size()
    rows = sum(
        shard["rows"] for number, shard in enumerate(plan.shards) if not shard_file(folder, number, "json").is_file()
    )
    wanted, free = rows * plan.model["width"] * size, os.statvfs(folder)
    if wanted > free.f_bavail * free.f_frsize:
        raise MAWError(
            f"the vectors of {rows:,} documents need {wanted:,} bytes, but {folder} has room for "
            f"{free.f_bavail * free.f_frsize:,}: free some space, or choose --dtype float16 or another --output"
        )


def _missing(folder: Path, plan: Plan, numbers: range, *, whole: bool) -> list[int]:
    """The shards that are not finished; one that is damaged or belongs to another store is refused."""

    def is_missing(number: int) -> bool:
        record = shard_file(folder, number, "json")
        if not record.is_file():
            return True
        remedy = f"Delete {record} and run the same command again: only this shard is encoded anew"
        found = read_sealed(record, remedy)
        if found.get("identity") != plan.identity:
            raise MAWError(
                f"{record} belongs to another model, corpus or settings: encode into another folder, or delete {folder}"
            )
        check_file(shard_file(folder, number, "npy"), _vectors(found, record, remedy), remedy, whole=whole)
        return False

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return [number for number, missing in zip(numbers, pool.map(is_missing, numbers), strict=True) if missing]


def _write_manifest(folder: Path, plan: Plan) -> None:
    def about(number: int) -> dict[str, Any]:
        record, remedy = shard_file(folder, number, "json"), "Delete it and run the same command again"
        return {
            "file": shard_file(Path(), number, "npy").as_posix(),
            "vectors": _vectors(read_sealed(record, remedy), record, remedy),
        }

    shards = tuple({**shard, **about(number)} for number, shard in enumerate(plan.shards))
    manifest = replace(plan, shards=shards)
    path = folder / "manifest.json"
    if not path.is_file() or Plan.read(path) != manifest:
        manifest.write(path)


def _vectors(found: dict[str, Any], record: Path, remedy: str) -> Checked:
    """What the vectors of a finished shard must be, from its record."""
    vectors = field(found, "vectors", dict, record, remedy)
    return {
        "bytes": field(vectors, "bytes", int, record, remedy),
        "sha256": field(vectors, "sha256", str, record, remedy),
    }
