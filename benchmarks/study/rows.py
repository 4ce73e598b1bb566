"""The study's finished runs as files: a line a run, its settings and its scores' checksum, and every query's score."""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["Row", "Scores", "read", "read_all", "write"]

Row = Mapping[str, Any]
Scores = Mapping[str, Mapping[str, np.ndarray]]
"""Run -> split -> one value a query."""

SHARED = ("environment", "maw")
"""What many runs have in common is written once; a row has its place in the list."""


def read_all(folders: Sequence[Path]) -> tuple[list[Row], Scores]:
    """The runs of several folders; one that is in two of them must be the same in both."""
    rows: dict[str, Row] = {}
    scores: dict[str, Mapping[str, np.ndarray]] = {}
    for folder in folders:
        some, their_scores = read(folder)
        for row in some:
            known = rows.get(row["name"], row)
            if known["scores"] != row["scores"]:
                raise SystemExit(f"{row['name']} has other scores in {folder} than in a folder before")
            rows[row["name"]] = known
        scores |= their_scores
    return list(rows.values()), scores


def read(folder: Path) -> tuple[list[Row], Scores]:
    """Rows of the runs and their scores; scores that do not have their checksum are an error."""
    rows: list[Row]
    scores: dict[str, dict[str, np.ndarray]] = collections.defaultdict(dict)
    if (folder / "runs.json").is_file():
        whole = json.loads((folder / "runs.json").read_text(encoding="utf-8"))
        rows = [{**row, **{name: whole[name][row[name]] for name in SHARED if name in row}} for row in whole["runs"]]
        for part in pq.read_table(folder / "per_query.parquet").to_pylist():
            scores[part["run"]][part["split"]] = np.array(part["nDCG@10"], dtype=np.float32)
    else:
        rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
        for row in rows:
            with np.load(folder / f"{row['name']}.npz") as file:
                scores[row["name"]] = {name.replace("|", "/"): file[name] for name in file.files}
    for row in rows:
        digest = hashlib.sha256()
        for split, values in sorted(scores[row["name"]].items()):
            digest.update(split.encode() + values.tobytes())
        if digest.hexdigest() != row["scores"]:
            raise SystemExit(f"the scores of {row['name']} are not those of its checksum")
    return rows, dict(scores)


def write(folder: Path, rows: Sequence[Row], scores: Scores) -> None:
    """`runs.json` and `per_query.parquet`."""
    folder.mkdir(parents=True, exist_ok=True)
    shared: dict[str, list[Any]] = {name: [] for name in SHARED}
    lines = []
    for row in rows:
        kept = dict(row)
        for name, values in shared.items():
            if name in kept:
                if kept[name] not in values:
                    values.append(kept[name])
                kept[name] = values.index(kept[name])
        lines.append(json.dumps(_rounded(kept)))
    heads = "".join(f'"{name}": {json.dumps(values)},\n' for name, values in shared.items())
    whole = "{" + heads + '"runs": [\n' + ",\n".join(lines) + "\n]}\n"
    (folder / "runs.json").write_text(whole, encoding="utf-8")
    parts = [(run, split, values) for run, splits in scores.items() for split, values in splits.items()]
    run, split, values = zip(*parts, strict=True)
    table = pa.table({"run": run, "split": split, "nDCG@10": pa.array(values, type=pa.list_(pa.float32()))})
    path = folder / "per_query.parquet"
    pq.write_table(table, path, compression="zstd", compression_level=19, use_dictionary=["run", "split"])


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 8)
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value
