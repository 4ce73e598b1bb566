"""What a store of vectors is made of, settled before the first vector: model, corpus, settings, and its shards.

A store is a folder:

    plan.json                what is written here; made once, compared by everyone who encodes into the folder
    order.npy                the rank of every document by descending id
    shards/00000.ids.txt     the ids of a shard, one a line
    shards/00000.npy         its vectors, one row a document, in the order of the corpus
    shards/00000.json        size and checksum of the vectors: a shard with this file is finished
    manifest.json            the plan with these sizes and checksums: a store with this file is complete

Every process that encodes reads the corpus once for the plan: its checksum, the ids, where each shard begins, and
whether every line can be used. A later start reads it for the checksum only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maw.errors import MAWError
from maw.io.atomic import Checked, write_json, write_whole
from maw.io.checked import check_file
from maw.io.json import check_seal, field, read_json, shown
from maw.progress import counted
from maw.retrieval.data.corpus_file import Block, CorpusFile
from maw.retrieval.vectors.ahead import map_ahead
from maw.retrieval.vectors.id_order import write_order

__all__ = ["BLOCK", "FORMAT", "Plan", "begun_files", "settle", "shard_file"]

FORMAT = 1
DTYPES = ("float16", "float32")
BLOCK = 1024
"""Documents that are taken apart at a time."""


@dataclass(frozen=True)
class Plan:
    """A store's plan.

    Args:
        model: `fingerprint` and `width`.
        corpus: `name`, `sha256` of the uncompressed file, `rows`.
        settings: what else decides the vectors and their files.
        order: size and checksum of order.npy.
        shards: for each its `rows`, the `offset` of its first line, size and checksum of its `ids`.
    """

    model: dict[str, Any]
    corpus: dict[str, Any]
    settings: dict[str, Any]
    order: Checked
    shards: tuple[dict[str, Any], ...]

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read a plan, or a manifest.

        Raises:
            MAWError: it is damaged, or of another version.
        """
        remedy = "Delete it and run the same `maw encode` again: no finished shard is encoded anew"
        values = read_json(path, remedy, wanted=dict)
        version = values.get("format")
        if version != FORMAT:
            raise MAWError(
                f"{path} has format {shown(version)}, this version of maw reads {FORMAT}: encode the corpus into "
                "another folder"
            )

        check_seal(values, path, remedy)

        def has(part: Any, **types: type) -> None:
            for name, wanted in types.items():
                field(part, name, wanted, path, remedy)

        has(values, model=dict, corpus=dict, settings=dict, order=dict, shards=list)
        has(values["model"], fingerprint=str, width=int)
        has(values["corpus"], name=str, sha256=str, rows=int)
        has(values["settings"], dtype=str)
        has(values["order"], bytes=int, sha256=str)
        for shard in values["shards"]:
            has({"shard": shard}, shard=dict)
            has(shard, rows=int, offset=int, ids=dict)
            for part in (shard["ids"], *([shard["vectors"]] if isinstance(shard.get("vectors"), dict) else ())):
                has(part, bytes=int, sha256=str)
        if values["settings"]["dtype"] not in DTYPES or sum(shard["rows"] for shard in values["shards"]) < 1:
            raise MAWError(f"{path} is damaged: it has no rows, or vectors of a type that is not known. {remedy}")
        return cls(*(values[name] for name in ("model", "corpus", "settings", "order")), tuple(values["shards"]))

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, {"format": FORMAT, **asdict(self)})

    @property
    def starts(self) -> np.ndarray:
        """The first document of every shard, and the number of documents."""
        return np.cumsum([0, *(shard["rows"] for shard in self.shards)])

    @property
    def identity(self) -> str:
        """A checksum of what decides the vectors: a shard with another one belongs to another store."""
        corpus = {"sha256": self.corpus["sha256"]}
        parts = [self.model, corpus, self.settings]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def shard_file(folder: Path, number: int, kind: str) -> Path:
    """The file of a shard; kind is npy, ids.txt or json.

    >>> shard_file(Path("vectors"), 3, "npy").as_posix()
    'vectors/shards/00003.npy'
    """
    return folder / "shards" / f"{number:05}.{kind}"


def begun_files(folder: Path) -> list[Path]:
    """The files of a store that are written before its plan."""
    return [*folder.glob("order.npy"), *folder.glob("shards/*.ids.txt")]


def settle(
    folder: Path,
    corpus: CorpusFile,
    model: dict[str, Any],
    settings: dict[str, Any],
    executor: Executor,
    *,
    ahead: int = 4,
) -> Plan:
    """Return the folder's plan, made now or before; ids of shards that a new plan does not have are removed.

    Args:
        folder: the store's; its subfolder `shards` must be there.
        corpus: what is encoded.
        model: see `Plan`.
        settings: see `Plan`.
        executor: where the corpus is taken apart.
        ahead: how many blocks of it at a time.

    Raises:
        MAWError: the folder belongs to another model, corpus or settings, a line of the corpus cannot be used, or an id
            comes twice.
    """
    path = folder / "plan.json"
    if path.is_file():
        plan = Plan.read(path)
        _compare(folder, plan, model, settings)
        _compare_corpus(folder, plan, _checksum(corpus))
        check_begun(folder, plan)
        return plan
    plan = _survey(folder, corpus, model, settings, executor, ahead)
    plan.write(path)
    written = Plan.read(path)  # by another process, perhaps, with other arguments
    _compare(folder, written, model, settings)
    _compare_corpus(folder, written, plan.corpus["sha256"])
    own = {folder / "order.npy", *(shard_file(folder, number, "ids.txt") for number in range(len(written.shards)))}
    for path in begun_files(folder):
        if path not in own:  # of an attempt that came to no plan
            path.unlink(missing_ok=True)
    return written


def check_begun(folder: Path, plan: Plan) -> None:
    """Check the files that were written before a plan.

    Raises:
        MAWError: one of them is not as it was written.
    """
    remedy = f"Delete {folder / 'plan.json'} and run the same `maw encode` again: no finished shard is encoded anew"
    check_file(folder / "order.npy", plan.order, remedy)
    for number, shard in enumerate(plan.shards):
        check_file(shard_file(folder, number, "ids.txt"), shard["ids"], remedy)


def _survey(
    folder: Path, corpus: CorpusFile, model: dict[str, Any], settings: dict[str, Any], executor: Executor, ahead: int
) -> Plan:
    digest, offset, rows, size = hashlib.sha256(), 0, 0, settings["shard_size"]
    shards: list[dict[str, Any]] = []
    ids: list[str] = []

    def finish() -> None:
        path = shard_file(folder, len(shards), "ids.txt")
        found = write_whole(path, [("\n".join(ids) + "\n").encode()])
        shards.append({"rows": len(ids), "offset": begin, "ids": found})
        ids.clear()

    begin = 0
    with counted(f"reading {corpus.path.name}: documents") as tell:
        for part, length in map_ahead(executor, _look, _sized(corpus, size, digest), ahead):
            tell(len(part))
            ids += part
            rows += len(part)
            offset += length
            if len(ids) == size:
                finish()
                begin = offset
    if ids:
        finish()
    if not rows:
        raise MAWError(f"wanted documents to encode, but {corpus.path} is empty")

    def read_ids() -> Iterator[list[bytes]]:
        for number in range(len(shards)):
            yield shard_file(folder, number, "ids.txt").read_bytes().split(b"\n")[:-1]

    order = write_order(folder / "order.npy", read_ids, rows, lambda place: f"{corpus.path}, line {place + 1}")
    about = {"name": corpus.path.name, "sha256": digest.hexdigest(), "rows": rows}
    return Plan(model, about, settings, order, tuple(shards))


def _sized(corpus: CorpusFile, size: int, digest: Any) -> Iterator[Block]:
    """Blocks that end where shards end."""
    for block in corpus.blocks(lines=BLOCK, border=size):
        digest.update(block.raw)
        yield block


def _look(block: Block) -> tuple[list[str], int]:
    return block.ids(), len(block.raw)


def _checksum(corpus: CorpusFile) -> str:
    digest = hashlib.sha256()
    for block in corpus.blocks(lines=16 * BLOCK):
        digest.update(block.raw)
    return digest.hexdigest()


def _compare(folder: Path, plan: Plan, model: dict[str, Any], settings: dict[str, Any]) -> None:
    wrong = [
        f"{name} {plan.settings.get(name)!r} there and {settings.get(name)!r} now"
        for name in sorted({*plan.settings, *settings})
        if plan.settings.get(name) != settings.get(name)
    ]
    if plan.model != model:
        wrong.insert(0, f"model {plan.model['fingerprint'][:12]} there and {model['fingerprint'][:12]} now")
    if wrong:
        raise MAWError(
            f"{folder} was begun with other arguments: {'; '.join(wrong)}. Give the same ones, or another --output"
        )


def _compare_corpus(folder: Path, plan: Plan, found: str) -> None:
    if plan.corpus["sha256"] != found:
        raise MAWError(
            f"{folder} was begun with another corpus: {plan.corpus['name']} had sha256 {plan.corpus['sha256'][:12]}, "
            f"this one has {found[:12]}. Give the same one, or another --output"
        )
