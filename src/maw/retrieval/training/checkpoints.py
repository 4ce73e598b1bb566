"""Checkpoints that are whole or do not count, and what must be the same for a training to go on from one.

A checkpoint is a folder of many files, written one after the other, by several processes. The last thing written is a
marker that lists the others with their sizes and checksums: a folder without it, or with a file that is not so, was
left by a process that was killed, or damaged, and is passed over. The first thing removed is the marker.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maw.errors import MAWError
from maw.io.atomic import Checked, bring_to_disk, remove_parts, write_json, write_text
from maw.io.checked import check_file, checksum
from maw.io.json import read_json, read_sealed

__all__ = [
    "check_identity",
    "checkpoint",
    "is_whole",
    "last_checkpoint",
    "log_entry",
    "mark_whole",
    "remove_checkpoint",
    "remove_checkpoints",
    "shorten_log",
    "step_of",
]

MARKER = "whole.json"
IDENTITY = "training.json"
STATE = "trainer_state.json"


def checkpoint(folder: Path, step: int) -> Path:
    """Where the checkpoint after this step is."""
    return folder / f"checkpoint-{step}"


def step_of(path: Path) -> int:
    """The step after which a checkpoint was made.

    >>> step_of(Path("training/checkpoint-20"))
    20
    """
    return int(path.name.rpartition("-")[2])


def mark_whole(path: Path, processes: int) -> None:
    """Say that this checkpoint is all there, once all processes have written their part.

    Raises:
        MAWError: the random state of a process is missing.
    """
    states = ["rng_state.pth"] if processes == 1 else [f"rng_state_{process}.pth" for process in range(processes)]
    if missing := [name for name in states if not (path / name).is_file()]:
        raise MAWError(
            f"{path} lacks {', '.join(missing)}: with several machines the training's folder must be one they share"
        )
    files: dict[str, Checked] = {}
    for file in _files(path):
        bring_to_disk(file)
        files[file.relative_to(path).as_posix()] = {"bytes": file.stat().st_size, "sha256": checksum(file)}
    write_json(path / MARKER, files)


def is_whole(path: Path) -> bool:
    """Whether the marker is there and every file it lists is as it was written; so is the best checkpoint it names."""
    try:
        for name, wanted in read_sealed(path / MARKER).items():
            check_file(path / name, wanted, "")
        best = read_json(path / STATE).get("best_global_step") if (path / STATE).is_file() else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, MAWError):  # a marker can be damaged too
        return False
    return best is None or checkpoint(path.parent, best) == path or is_whole(checkpoint(path.parent, best))


def last_checkpoint(folder: Path) -> Path | None:
    """The latest whole checkpoint of a training's folder; None where there is none."""
    named = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    return next(filter(is_whole, sorted(named, key=step_of, reverse=True)), None)


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint; one that is deleted in part counts as none."""
    (path / MARKER).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def remove_checkpoints(folder: Path, keep: Iterable[Path | None] = ()) -> None:
    """Delete the checkpoints of a training that are not to be kept; its logs stay."""
    names = {path.name for path in keep if path is not None}
    for path in folder.glob("checkpoint-*"):
        if path.name not in names:
            remove_checkpoint(path)


def check_identity(folder: Path, identity: Mapping[str, Any], resumed: Path | None) -> None:
    """Keep what a training is, or raise where a checkpoint there belongs to another.

    Args:
        folder: the training's folder.
        identity: what decides the weights it ends with; plain JSON.
        resumed: the checkpoint it is to go on from, None for a new training.

    Raises:
        MAWError: the checkpoint belongs to a training that differs; the message says in what.
    """
    remove_parts(folder)
    file = folder / IDENTITY
    own = json.loads(json.dumps(identity))
    if resumed is None:
        write_json(file, own)
        return
    started = read_sealed(file, f"Delete {folder} to start anew") if file.exists() else {}
    names = sorted(name for name in own.keys() | started.keys() if own.get(name) != started.get(name))
    if names:
        shown = "; ".join(f"{name} {_short(started.get(name))}, now {_short(own.get(name))}" for name in names)
        raise MAWError(
            f"{folder} holds a training that was stopped at step {step_of(resumed)} and was started with other "
            f"settings ({shown}): give the same to go on with it, or delete the folder to start anew"
        )


def log_entry(line: str) -> dict[str, Any] | None:
    """A line of a training's log; None for one that is no entry, as when a process is killed while it writes."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = entry.get("step") if isinstance(entry, dict) else None
    return entry if isinstance(step, int | float) and not isinstance(step, bool) else None


def shorten_log(log_file: Path, step: int | None, processes: int) -> list[str]:
    """Forget what was logged after a checkpoint, and return each process's checksum of the data up to there.

    Args:
        log_file: one JSON object a line.
        step: the checkpoint's; None forgets everything.
        processes: how many checksums there are.
    """
    kept, data = [], [""] * processes
    lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines() if log_file.is_file() else []
    for line in lines:
        entry = log_entry(line)
        if entry is not None and step is not None and entry["step"] <= step and "train_runtime" not in entry:
            kept.append(line + "\n")
            found = entry.get("data", data)
            data = found if isinstance(found, list) and len(found) == processes else data
    if lines:
        write_text(log_file, "".join(kept))
    return data


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != MARKER)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
