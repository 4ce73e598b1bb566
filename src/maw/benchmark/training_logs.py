"""Training logs as the benchmark writes them: one JSON object a line, cut short where a training was killed."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from maw.benchmark import formats

__all__ = ["Log", "read_logs", "shares"]


@dataclass
class Log:
    """One training log: the curves by key, and the last depth usage, one row a MAW layer."""

    variant: str
    seed: int | None
    curves: dict[str, dict[float, float]] = field(default_factory=dict)
    usage: list[list[float]] | None = None


def read_logs(folder: Path, without: Collection[str] = ()) -> tuple[list[Log], list[str]]:
    """Read every `VARIANT-seedNUMBER.jsonl` of a folder, but for those named in `without`.

    Returns:
        The logs by variant and seed, and what could not be read, in words.
    """
    logs, notes = [], []
    for path in sorted(folder.glob("*.jsonl")):
        parts = re.fullmatch(r"(?P<variant>.+?)(?:-seed(?P<seed>\d+))?", path.stem, flags=re.DOTALL)
        if parts is None or path.name in without or not path.is_file():
            continue
        log = Log(parts["variant"], int(parts["seed"]) if parts["seed"] else None)
        unread = 0
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                unread += 1
                continue
            if not isinstance(entry, dict) or (step := formats.number(entry.get("step"))) is None:
                unread += 1
                continue
            for name, value in entry.items():
                if (found := formats.number(value)) is not None:  # a step that was repeated after a stop counts once
                    log.curves.setdefault(name, {})[step] = found
            log.usage = shares(entry.get("weight_usage")) or log.usage
        if unread:
            lines = "1 line could not be read and is" if unread == 1 else f"{unread} lines could not be read and are"
            notes.append(f"{path.name}: {lines} left out.")
        logs.append(log)
    return sorted(logs, key=lambda log: (log.variant, -1 if log.seed is None else log.seed)), notes


def shares(found: object) -> list[list[float]] | None:
    """Depth usage as it is written, a list of shares for each layer; None for anything else."""
    layers = found if isinstance(found, list) else []
    whole = [isinstance(layer, list) and layer and len(formats.values(layer)) == len(layer) for layer in layers]
    return layers if layers and all(whole) else None
