"""The finished runs of a benchmark's output folder, `state/NAME.json`, whichever command asked for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maw.benchmark.plan import PlannedRun
from maw.benchmark.variants import VARIANTS
from maw.errors import MAWError
from maw.io.checked import checksum
from maw.io.json import field, read_sealed

__all__ = ["PER_QUERY", "check_runs", "finished_runs", "kept_files", "read_states", "said_of_earlier", "state_file"]

PER_QUERY = "per_query.parquet"


def state_file(folder: Path, run: PlannedRun) -> Path:
    """The file that a run leaves when it is finished."""
    return folder / "state" / f"{run.name}.json"


def finished_runs(folder: Path) -> list[PlannedRun]:
    """Every finished run, in the order in which runs are planned: the untrained rows, then seed by seed.

    Raises:
        MAWError: a file is of no run that this version knows.
    """
    found = [_run_of(file) for file in (folder / "state").glob("[!.]*.json")]
    places = {name: place for place, name in enumerate(VARIANTS)}
    return sorted(found, key=lambda run: (-1 if run.seed is None else run.seed, places[run.variant.name]))


def read_states(folder: Path, runs: Sequence[PlannedRun]) -> list[dict[str, Any]]:
    """What these runs found.

    Raises:
        MAWError: a file is damaged, or is of another run.
    """
    found = []
    for run in runs:
        path = state_file(folder, run)
        remedy = "Move it elsewhere and give the same command again: this run alone is made anew"
        state = read_sealed(path, remedy)
        for name, wanted in (("seconds", float), ("environment", dict), ("metrics", dict), ("per_query", dict)):
            field(state, name, wanted, path, remedy)
        field(state["environment"], "device", str, path, remedy)
        if (state.get("variant"), state.get("seed")) != (run.variant.name, run.seed):
            raise MAWError(f"{path} is damaged: it is of another run than its name says. {remedy}")
        found.append(state)
    return found


def kept_files(folder: Path, states: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The checksums of what a report reads beside `results.json`: values of queries, and the logs of finished runs."""
    logs = {
        name: digest
        for state in states
        for name, digest in state.get("files", {}).items()
        if name.startswith("logs/") and (folder / name).is_file()
    }
    return {PER_QUERY: checksum(folder / PER_QUERY), **logs}


def check_runs(folder: Path, states: Sequence[dict[str, Any]]) -> None:
    """Check the rankings of finished runs; a file that was removed is left out.

    Raises:
        MAWError: one is not as it was written.
    """
    for state in states:
        for name, digest in state.get("files", {}).items():
            path = folder / name
            if name.startswith("runs/") and path.exists() and (not path.is_file() or checksum(path) != digest):
                state_of = PlannedRun(VARIANTS[state["variant"]], state["seed"])
                raise MAWError(
                    f"{path} is damaged: it is not as it was written. Delete {state_file(folder, state_of)} and give "
                    "the same command again: this run alone is made anew"
                )


def said_of_earlier(runs: Sequence[PlannedRun]) -> str:
    """The line for people about finished runs that the command did not ask for.

    >>> said_of_earlier([PlannedRun(VARIANTS["bm25"], None), PlannedRun(VARIANTS["maw-full"], 3)])
    'finished earlier in this folder, not asked for now, and kept in the results: bm25, maw-full-seed3'
    """
    names = ", ".join(run.name for run in runs)
    return f"finished earlier in this folder, not asked for now, and kept in the results: {names}"


def _run_of(file: Path) -> PlannedRun:
    name, _, seed = file.stem.partition("-seed")
    variant = VARIANTS.get(name)
    if variant is None or (not seed.isdecimal() if variant.kind == "tuned" else file.stem != name):
        raise MAWError(
            f"{file} must be named after a run of {', '.join(VARIANTS)}, got {file.stem!r}: go on with the version of "
            "maw that made it, or move the file elsewhere"
        )
    return PlannedRun(variant, int(seed) if seed else None)
