"""Vectors as Parquet files, which vector databases load: a file a shard, with the columns `id` and `vector`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maw.errors import MAWError
from maw.io.atomic import atomic_write, remove_parts
from maw.io.failures import refuse_writing

if TYPE_CHECKING:
    from maw.retrieval.vectors.store import VectorStore

__all__ = ["check_parquet_folder", "export_parquet"]

GROUP = 8192
"""Rows of a row group, which is what a reader holds at a time."""


def check_parquet_folder(folder: Path) -> None:
    """Refuse a path that cannot become a folder, before anything long.

    Raises:
        MAWError: it, or a folder it should lie in, is a file.
    """
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if there.exists() and not there.is_dir():
        raise MAWError(f"wanted a folder for Parquet files, but {there} is a file: give another --parquet folder")


def export_parquet(store: VectorStore, folder: Path) -> int:
    """Write every shard of a store as a Parquet file; files of this store that are there already are kept.

    The columns are `id` (string) and `vector` (a list of fixed size, float32 whatever the store's type), the rows are
    in the order of the corpus. The files' metadata name the store under the key `maw.store`.

    Args:
        store: a complete store.
        folder: made where it is missing.

    Returns:
        How many files were written.

    Raises:
        MAWError: pyarrow is not installed, the folder is a file, holds files of another store or damaged ones, or the
            disk is full.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MAWError("Parquet needs pyarrow: pip install 'maw-attention[retrieval]'") from error
    identity = store.plan.identity.encode()
    kind = pa.list_(pa.float32(), store.shape[1])
    schema = pa.schema(
        [pa.field("id", pa.string(), nullable=False), pa.field("vector", kind, nullable=False)],
        metadata={"maw.store": identity},
    )
    _make_folder(folder)
    written = 0
    for number in range(len(store.plan.shards)):
        path = folder / f"{number:05}.parquet"
        if path.is_file():
            try:
                metadata = pq.read_schema(path).metadata or {}
            except (pa.ArrowException, OSError) as error:
                raise MAWError(
                    f"wanted a Parquet file of this store, but {path} cannot be read as one ({error}): delete it "
                    "and run the same command again, or give another --parquet folder"
                ) from error
            _check_same(path, metadata.get(b"maw.store"), identity)
            continue
        ids, vectors = store.shard_ids(number), store.shard(number)
        with atomic_write(path, "wb") as file, pq.ParquetWriter(file, schema, use_dictionary=False) as writer:
            for begin in range(0, len(ids), GROUP):
                flat = np.ascontiguousarray(vectors[begin : begin + GROUP], dtype=np.float32).ravel()
                column = pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind)
                writer.write_table(pa.table([pa.array(ids[begin : begin + GROUP]), column], schema=schema))
        written += 1
    return written


def _make_folder(folder: Path) -> None:
    check_parquet_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse_writing(folder, error)
    remove_parts(folder)


def _check_same(path: Path, found: bytes | None, wanted: bytes) -> None:
    if found != wanted:
        raise MAWError(f"{path} is there already and not of this store: give another --parquet folder")
