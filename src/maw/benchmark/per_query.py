"""Values of every query: `per_query.parquet` as matrices, and a variant and its twin query by query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from maw.errors import MAWError

__all__ = ["MOST", "Pair", "PerQuery", "Values", "pair", "read_per_query"]

MOST = 5
"""Queries that gained most and queries that lost most, so many of each."""

SEEDS = 3
"""Seeds at most whose rankings a comparison shows: each is a run file to read."""

_KEYS = ("variant", "seed", "split", "query_id")


@dataclass(frozen=True)
class Values:
    """One variant on one split.

    Attributes:
        queries: the query ids of the split in ascending order, the same for all its variants.
        seeds: the seeds of the rows below; (None,) for a variant without training.
        metrics: metric -> values, (seeds, queries); NaN where there is none.
    """

    queries: NDArray[np.str_]
    seeds: tuple[int | None, ...]
    metrics: Mapping[str, NDArray[np.float64]]


PerQuery: TypeAlias = dict[tuple[str, str], Values]
"""(variant, split) -> values."""


@dataclass(frozen=True)
class Pair:
    """A variant and its twin on the same queries and seeds: ids (Q,), seeds, and both systems' values (S, Q)."""

    queries: NDArray[np.str_]
    seeds: tuple[int | None, ...]
    variant: NDArray[np.float64]
    baseline: NDArray[np.float64]

    @property
    def before(self) -> NDArray[np.float64]:
        """The twin's values, means over seeds, (Q,)."""
        return self.baseline.mean(axis=0)

    @property
    def after(self) -> NDArray[np.float64]:
        """The variant's values, means over seeds, (Q,)."""
        return self.variant.mean(axis=0)

    def moved(self, most: int = MOST) -> tuple[list[int], list[int]]:
        """The places of the queries that gained most and of those that lost most, the largest move first.

        Queries that did not move are in neither; of equal moves the one with the smaller id comes first.

        >>> values = np.array([[0.5, 1.0, 0.2, 0.0]]), np.array([[0.5, 0.1, 0.4, 0.9]])
        >>> Pair(np.array(["a", "b", "c", "d"]), (0,), *values).moved()
        ([1], [3, 2])
        """
        difference = np.round(self.after - self.before, 12)
        order = np.argsort(difference, kind="stable")
        lost = [int(place) for place in order[:most] if difference[place] < 0]
        order = np.argsort(-difference, kind="stable")
        return [int(place) for place in order[:most] if difference[place] > 0], lost

    def typical_rows(self, places: list[int], most: int = SEEDS) -> list[int]:
        """For each of these queries the row whose difference lies nearest to the mean over seeds.

        At most `most` different rows, those that lie nearest for all the queries together.

        >>> values = np.array([[0.5, 0.0], [0.9, 1.0], [0.1, 0.2]]), np.zeros((3, 2))
        >>> Pair(np.array(["a", "b"]), (0, 1, 2), *values).typical_rows([0, 1])
        [0, 2]
        """
        difference = (self.variant - self.baseline)[:, places]
        apart = np.abs(difference - difference.mean(axis=0))
        rows = np.sort(np.argsort(apart.sum(axis=1), kind="stable")[:most])
        return rows[apart[rows].argmin(axis=0)].tolist()


def pair(values: PerQuery, variant: str, baseline: str, split: str, metric: str) -> Pair | None:
    """Two variants on the seeds that both have and the queries that have a value everywhere; None without any."""
    first, second = values.get((variant, split)), values.get((baseline, split))
    if first is None or second is None or metric not in first.metrics or metric not in second.metrics:
        return None
    seeds = tuple(seed for seed in first.seeds if seed in second.seeds)
    if not seeds:
        return None
    rows = [[one.metrics[metric][one.seeds.index(seed)] for seed in seeds] for one in (first, second)]
    both = np.array(rows)  # (2, S, Q)
    there = ~np.isnan(both).any(axis=(0, 1))
    return Pair(first.queries[there], seeds, both[0][:, there], both[1][:, there]) if there.any() else None


def read_per_query(path: Path) -> PerQuery:
    """Read `per_query.parquet`.

    Raises:
        MAWError: the file is missing, is no Parquet file, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise MAWError(f"per-query values need {path.name}, got {str(path.parent)!r} without one")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise MAWError(f"{path.name} must be a Parquet file, got {error}") from None
    if lacking := [name for name in _KEYS if name not in table.column_names]:
        raise MAWError(f"{path.name} must have the columns {', '.join(_KEYS)}, got none named {', '.join(lacking)}")
    columns = {name: table[name].combine_chunks().dictionary_encode() for name in _KEYS}
    codes = {name: column.indices.fill_null(-1).to_numpy() for name, column in columns.items()}
    names = {name: column.dictionary.to_pylist() for name, column in columns.items()}
    metrics = {
        name: table[name].to_numpy().astype(np.float64)
        for name in table.column_names
        if name not in _KEYS and (pa.types.is_floating(kind := table[name].type) or pa.types.is_integer(kind))
    }
    found: PerQuery = {}
    for split, split_name in enumerate(names["split"]):
        of_split = np.flatnonzero(codes["split"] == split)
        used = np.unique(codes["query_id"][of_split])
        used = used[np.argsort(np.array([names["query_id"][code] for code in used]), kind="stable")]
        place = np.full(len(names["query_id"]) + 1, -1)
        place[used] = np.arange(len(used))
        queries = np.array([names["query_id"][code] for code in used])
        for variant, variant_name in enumerate(names["variant"]):
            rows = of_split[codes["variant"][of_split] == variant]
            if len(rows):
                which = codes["seed"][rows], place[codes["query_id"][rows]]
                found[variant_name, split_name] = _values(queries, which, names["seed"], metrics, rows)
    return found


def _values(
    queries: NDArray[Any], which: tuple[Any, Any], seeds: list[Any], metrics: dict[str, Any], rows: Any
) -> Values:
    codes = sorted(set(which[0].tolist()), key=lambda code: -1 if code < 0 else seeds[code])
    line = {code: number for number, code in enumerate(codes)}
    of_row = np.array([line[code] for code in which[0].tolist()])
    made = {}
    for name, values in metrics.items():
        matrix = np.full((len(codes), len(queries)), np.nan)
        matrix[of_row, which[1]] = values[rows]
        if not np.isnan(matrix).all():
            made[name] = matrix
    return Values(queries, tuple(None if code < 0 else int(seeds[code]) for code in codes), made)
