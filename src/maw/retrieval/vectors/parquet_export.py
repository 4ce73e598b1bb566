"""Vectors as Parquet files, which vector databases load: a file a shard, with the columns `id` and `vector`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maw.errors import MAWError
from maw.retrieval.aside import part_of, put, refuse_writing

if TYPE_CHECKING:
    from maw.retrieval.vectors.store import VectorStore

__all__ = ["export_parquet"]

GROUP = 8192
"""Rows of a row group, which is what a reader holds at a time."""


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
        MAWError: pyarrow is not installed, the folder holds files of another store, or the disk is full.
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
    written = 0
    for number in range(len(store.plan.shards)):
        path = folder / f"{number:05}.parquet"
        if path.is_file():
            _check_same(path, (pq.read_schema(path).metadata or {}).get(b"maw.store"), identity)
            continue
        aside = part_of(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with pq.ParquetWriter(aside, schema, use_dictionary=False) as writer:
                ids, vectors = store.shard_ids(number), store.shard(number)
                for begin in range(0, len(ids), GROUP):
                    flat = np.ascontiguousarray(vectors[begin : begin + GROUP], dtype=np.float32).ravel()
                    column = pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind)
                    writer.write_table(pa.table([pa.array(ids[begin : begin + GROUP]), column], schema=schema))
            put(aside, path)
        except OSError as error:
            refuse_writing(path, error)
        finally:
            aside.unlink(missing_ok=True)
        written += 1
    return written


def _check_same(path: Path, found: bytes | None, wanted: bytes) -> None:
    if found != wanted:
        raise MAWError(f"{path} is there already and not of this store: give another --parquet folder")
