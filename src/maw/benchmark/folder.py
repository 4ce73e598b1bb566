"""What a benchmark's output folder holds, as far as it can be read: a run that was stopped has less of everything.

`results.json` is what makes a folder one of ours: without it, or with another version's, there is no report. A folder
whose benchmark was stopped before its first result has `benchmark.json` alone, and then counts as one without rows.
Everything else may be missing or damaged, and is then left out with a note.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maw.benchmark import formats, moved
from maw.benchmark.depths import Usage
from maw.benchmark.per_query import PerQuery, read_per_query
from maw.benchmark.states import PER_QUERY
from maw.benchmark.training_logs import Log, read_logs, shares
from maw.errors import MAWError
from maw.io.checked import checksum
from maw.io.json import SEAL, check_seal, read_json, read_sealed

__all__ = ["SCHEMA", "Folder", "read_folder"]

SCHEMA = 1
REMEDY = "Run `maw benchmark` on this folder again to write it anew"


@dataclass(frozen=True)
class Folder:
    """Everything the report is made of.

    Attributes:
        results: `results.json`, checked.
        logs: the training logs, by variant and seed.
        values: per-query values; empty where there are none.
        moved: (variant, baseline, split, metric) -> what `moved.json` has of this comparison.
        documents: document id -> the beginning of its text, of those that are shown.
        usage: depth usage by kind of input, as measured after training.
        notes: what could not be read, in words.
    """

    results: dict[str, Any]
    logs: list[Log]
    values: PerQuery
    moved: dict[tuple[str, str, str, str], dict[str, Any]]
    documents: dict[str, str]
    usage: list[Usage]
    notes: list[str]


def read_folder(folder: Path) -> Folder:
    """Read an output folder of `maw benchmark`.

    Raises:
        MAWError: the folder is missing, or its `results.json` is not what `maw benchmark` writes.
    """
    results = _read_results(folder)
    changed = _changed(folder, results.get("files"))
    logs, notes = read_logs(folder / "logs", [Path(name).name for name in changed])
    notes += [f"{Path(name).name} {why}: it is left out." for name, why in changed.items() if name.startswith("logs/")]
    values: PerQuery = {}
    if results["rows"]:
        try:
            if PER_QUERY in changed and (folder / PER_QUERY).is_file():
                raise MAWError(f"{PER_QUERY} {changed[PER_QUERY]}")
            values = read_per_query(folder / "per_query.parquet")
        except MAWError as error:
            notes.append(f"{error}: intervals of the metrics and the comparison query by query are left out.")
    kept, documents, problem = _read_moved(folder / moved.FILE)
    if problem and results["comparisons"]:
        notes.append(problem)
    usage = _read_usage(results.get("depth_usage"))
    return Folder(results, logs, values, kept, documents, usage, notes)


def _changed(folder: Path, files: object) -> dict[str, str]:
    """Which files are not those that the results were written with, and why."""
    found = {}
    for name, digest in files.items() if isinstance(files, dict) else ():
        path = folder / name
        if not path.is_file():
            found[name] = "is missing"
        elif checksum(path) != digest:
            found[name] = "was changed after the results were written"
    return found


# results.json


def _read_results(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise MAWError(
            f"a report needs a benchmark's output folder, got {str(folder)!r}, which is no folder: check --output"
        )
    path = folder / "results.json"
    if not path.is_file():
        if (folder / "benchmark.json").is_file():
            return _without_rows(folder / "benchmark.json")
        raise MAWError(
            f"a report needs results.json, got {str(folder)!r} without one: name a folder `maw benchmark` wrote"
        )
    results = read_json(path, REMEDY)
    if not isinstance(results, dict) or "schema" not in results:
        raise _not_ours(path, "an object with `schema`", results)
    if results["schema"] != SCHEMA or isinstance(results["schema"], bool):
        raise MAWError(
            f"{str(path)!r} must have schema {SCHEMA}, got {results['schema']!r}: make the report with the version of "
            "maw that wrote the results"
        )
    results = check_seal(results, path, f'If the change is meant, take the line with "{SEAL}" out. Else {REMEDY}')
    for name in ("dataset", "model", "settings", "maw", "environment", "data"):
        if not isinstance(results.get(name) or {}, dict):
            raise _not_ours(path, f"an object as `{name}`", results[name])
        results[name] = results.get(name) or {}
    results["maw"] = results["maw"] or results["settings"].pop("maw", None) or {}
    for name, words in (("rows", ("variant",)), ("comparisons", ("variant", "baseline", "metric"))):
        entries = results.get(name, [] if name == "comparisons" else None)
        if not isinstance(entries, list):
            raise _not_ours(path, f"a list as `{name}`", entries)
        results[name] = entries
        for place, entry in enumerate(entries):
            if not isinstance(entry, dict) or not all(isinstance(entry.get(word), str) for word in words):
                raise _not_ours(path, f"{' and '.join(words)} as words in {name}[{place}]", entry)
            if not isinstance(entry.setdefault("metrics", {}), dict):
                raise _not_ours(path, f"an object as `metrics` in {name}[{place}]", entry["metrics"])
    return results


def _without_rows(marker: Path) -> dict[str, Any]:
    """The results of a benchmark that was stopped before its first one."""
    started = read_sealed(marker, REMEDY)
    data, maw = started.get("data"), started.get("maw")
    return {
        "schema": SCHEMA,
        "finished": False,
        "started": started.get("started"),
        "command": started.get("command"),
        "preset": started.get("preset"),
        "dataset": {"name": started.get("dataset")},
        "model": {"name": started.get("model"), "fingerprint": started.get("encoder")},
        "settings": {name: started[name] for name in ("training", "lora_learning_rate", "device") if name in started},
        "maw": maw if isinstance(maw, dict) else {},
        "data": data if isinstance(data, dict) else {},
        "environment": {},
        "rows": [],
        "comparisons": [],
    }


def _not_ours(path: Path, wanted: str, got: object) -> MAWError:
    shown = repr(got)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    return MAWError(f"{str(path)!r} needs {wanted}, got {shown}: name a folder that `maw benchmark` wrote")


# What is kept for the report


def _read_usage(found: object) -> list[Usage]:
    """Depth usage by kind of input; entries of another form are left out."""
    usage = []
    for entry in found if isinstance(found, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("variant"), str):
            continue
        layers, seed = entry.get("layers"), formats.number(entry.get("seed"))
        rows = {kind: shares(entry.get(kind)) or [] for kind in ("query", "document")}
        places = formats.values(layers) if isinstance(layers, list) else []
        if any(len(of_kind) != len(places) for of_kind in rows.values()):
            continue
        number = None if seed is None else int(seed)
        usage += [
            Usage(entry["variant"], number, int(layer), kind, row)
            for kind, of_kind in rows.items()
            for layer, row in zip(places, of_kind, strict=True)
        ]
    return usage


def _read_moved(path: Path) -> tuple[dict[tuple[str, str, str, str], dict[str, Any]], dict[str, str], str | None]:
    """What `moved.json` has, and otherwise why there is nothing of it."""
    without = "query ids are shown without their texts."
    if not path.is_file():
        finished = "a benchmark writes it when it is finished; an older one does when its command is given again"
        return {}, {}, f"There is no {path.name} ({finished}): {without}"
    try:
        whole = read_sealed(path, "Run `maw benchmark` on this folder again")
        if whole["schema"] != moved.SCHEMA:
            return {}, {}, f"{path.name} has schema {whole['schema']!r}, wanted {moved.SCHEMA}: {without}"
        kept = {(one["variant"], one["baseline"], one["split"], one["metric"]): one for one in whole["comparisons"]}
        for one in kept.values():
            for query in one["queries"]:
                moved.check_entry(query)
        documents = {str(name): str(text) for name, text in whole["documents"].items()}
    except MAWError as error:
        return {}, {}, f"{error}. Until then {without}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, {}, f"{path.name} could not be read ({type(error).__name__}: {error}): {without}"
    return kept, documents, None
