"""The finished runs of a benchmark's output folder, `state/NAME.json`, whichever command asked for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maw.benchmark.plan import PlannedRun
from maw.benchmark.variants import VARIANTS
from maw.errors import MAWError

__all__ = ["finished_runs", "read_states", "said_of_earlier", "state_file"]


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
    """What these runs found."""
    return [json.loads(state_file(folder, run).read_text(encoding="utf-8")) for run in runs]


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
