"""What `maw encode` and `maw search` take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from maw.options import JSON, Device

__all__ = ["EncodeCommand", "SearchCommand"]


@dataclass(frozen=True)
class EncodeCommand:
    """Encode a corpus into a folder of vectors, or what is missing of it.

    The same command goes on where one was stopped. Under torchrun every process takes its share of the shards.
    """

    model: Annotated[str, tyro.conf.Positional]
    """packaged, a model folder, or a hub name."""
    corpus: Annotated[Path, tyro.conf.Positional]
    """corpus.jsonl (objects with _id, text, perhaps title) or .tsv (id, tab, text), perhaps with .gz."""
    output: Path
    """The folder for the vectors."""
    dtype: Literal["float16", "float32"] = "float16"
    """How vectors are stored."""
    precision: Literal["float32", "bfloat16", "float16"] | None = None
    """How the model is computed; default: the type of its weights. The shorter types are faster on a GPU and rank a
    little differently."""
    max_length: int | None = None
    """Tokens a text is cut to; default: the model's own limit."""
    shard_size: int = 65_536
    """Documents of a shard: what is lost when the command is stopped."""
    batch_size: int | None = None
    """Texts the model takes at a time, at most."""
    batch_tokens: int | None = None
    """Tokens the model takes at a time, at most."""
    workers: int | None = None
    """Processes that tokenise; default: none on a CPU, as many as cores less two beside a GPU."""
    dry_run: bool = False
    """Print the plan, its cost and its folder, and stop."""
    json: JSON = False
    """Print the outcome as JSON, all else to standard error."""
    device: Device = "auto"
    engine: Literal["local", "ray"] = "local"
    """local, or ray: on the cluster that RAY_ADDRESS names."""
    parquet: Path | None = None
    """Also write the vectors as Parquet files into this folder."""


@dataclass(frozen=True)
class SearchCommand:
    """Search a folder of vectors for one query, or for a file of queries."""

    model: Annotated[str, tyro.conf.Positional]
    """The model that made the vectors."""
    vectors: Annotated[Path, tyro.conf.Positional]
    """A folder that `maw encode` wrote."""
    query: Annotated[str | None, tyro.conf.Positional] = None
    """What to search for."""
    queries: Path | None = None
    """Instead of one query: queries.jsonl (objects with _id, text) or .tsv (id, tab, text)."""
    run: Path | None = None
    """Where the results of --queries go, as a TREC run file."""
    k: int | None = None
    """Documents a query; default: 10 for one query, 1,000 for a file."""
    corpus: Path | None = None
    """Show the texts found for one query, from the corpus that was encoded."""
    drop_own: bool = False
    """Leave out a document with the query's own id, as ArguAna asks."""
    skip_checksums: bool = False
    """Compare only the sizes of the vectors' files, not their contents, before searching."""
    json: JSON = False
    """Print what one query finds as JSON."""
    device: Device = "auto"
