"""The study: does MAW help, against dense twins that were tuned first and against controls?

    python benchmarks/study --data FOLDER --output FOLDER [--model FOLDER] [--workers 5] [--minutes 9] [--phases main]

Runs go to `--workers` processes for each GPU (one on a CPU). A finished run is a JSON file and a file of every query's
score; the same command goes on with what is missing, so the study can be stopped at any time. With `--earlier
docs/results/study` it goes on with the runs of another place. `tables.py` makes tables.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import plan
import torch
from choosing import Unfinished


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds the BEIR folders")
    parser.add_argument("--model", default="packaged")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1, help="for each GPU")
    parser.add_argument("--minutes", type=float, default=1e6, help="start no run that would probably end later")
    parser.add_argument("--phases", default=",".join(plan.PHASES), help="the most urgent first")
    parser.add_argument("--only", default="", help="runs whose names contain this")
    parser.add_argument("--earlier", type=Path, help="a folder that tables.py wrote: its runs are finished, too")
    parser.add_argument("--commit")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def results(folder: Path, earlier: Path | None = None) -> list[dict[str, Any]]:
    """All runs that are done, those of an earlier study too; one that failed has `failed` and nothing measured."""
    before = [] if earlier is None else json.loads((earlier / "runs.json").read_text(encoding="utf-8"))["runs"]
    own = [path for kind in ("*.json", "*.failed") for path in sorted((folder / "runs").glob(kind))]
    return list({row["name"]: row for row in [*before, *(json.loads(path.read_text()) for path in own)]}.values())


def main() -> None:
    asked = arguments()
    (asked.output / "runs").mkdir(parents=True, exist_ok=True)
    if asked.worker is not None:
        work(asked)
        return
    wanted = asked.phases.split(",")
    for name in wanted:
        if name not in plan.PHASES:
            raise SystemExit(f"phases are {', '.join(plan.PHASES)}, got {name!r}")
        if not plan.RESTS_ON[name] & set(wanted):
            try:
                plan.phase(name, results(asked.output, asked.earlier), strict=True)
            except Unfinished as error:
                raise SystemExit(f"{name} cannot be planned: {error}") from None
    shutil.rmtree(asked.output / "claims", ignore_errors=True)  # of processes that are gone
    (asked.output / "claims").mkdir()
    until, gpus = time.time() + 60 * asked.minutes, max(1, torch.cuda.device_count()) if asked.device == "cuda" else 1
    count = gpus * asked.workers
    threads = str(max(1, (os.cpu_count() or 1) // count))
    running = []
    for number in range(count):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "RAYON_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "true",
        }
        if asked.device == "cuda":
            environment["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
        command = [sys.executable, *sys.argv, "--worker", str(number), "--until", str(until)]
        log = (asked.output / f"worker{number}.log").open("a")
        running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    ended = [process.wait() for process in running]
    found = results(asked.output, asked.earlier)
    print(dict(collections.Counter(result["run"]["phase"] for result in found)))
    failed = sorted(path.stem for path in (asked.output / "runs").glob("*.failed"))
    if failed:
        raise SystemExit(f"{len(failed)} runs failed, such as {failed[0]}: see its file")
    if any(ended):
        raise SystemExit(f"{sum(map(bool, ended))} of {len(ended)} processes ended with an error: see worker*.log")


def work(asked: argparse.Namespace) -> None:
    """Take runs until none is left or there is no time for one."""
    from training import do_run, quiet

    quiet()
    device = torch.device(asked.device)
    longest: dict[tuple[Any, ...], float] = collections.defaultdict(float)
    for row in results(asked.output, asked.earlier):
        if "seconds" in row:
            kind = _kind(row["run"])
            longest[kind] = max(longest[kind], sum(row["seconds"].values()))
    wanted = asked.phases.split(",")
    too_long: set[str] = set()
    while time.time() < asked.until:
        taken, open_phases = next_run(asked, wanted, too_long)
        if taken is None:
            if not open_phases:
                return
            time.sleep(0.5)
            continue
        kind = _kind(asdict(taken))
        if time.time() + (longest[kind] or 60.0) > asked.until:
            (asked.output / "claims" / taken.name).unlink(missing_ok=True)
            too_long.add(taken.name)  # a shorter one may still fit
            continue
        start = time.time()
        try:
            do_run(taken, asked, device)
        except Exception:
            what = {"name": taken.name, "run": asdict(taken), "failed": traceback.format_exc()}
            (asked.output / "runs" / f"{taken.name}.failed").write_text(json.dumps(what, indent=1))
        longest[kind] = max(longest[kind], time.time() - start)


def _kind(run: Mapping[str, Any]) -> tuple[Any, ...]:
    """Runs that take about as long."""
    return run["train"], run["epochs"], run["batch_size"], run["variant"].startswith("maw")


def next_run(asked: argparse.Namespace, wanted: list[str], too_long: set[str]) -> tuple[plan.Run | None, bool]:
    """Claim the first run that nobody has; without one, whether others are doing runs that more may follow.

    Args:
        asked: the command's arguments.
        wanted: phases, each after those that it rests on.
        too_long: names of runs for which there is no time left.
    """
    done = results(asked.output, asked.earlier)
    names = {result["name"] for result in done}
    unfinished: set[str] = set()
    others_at_work = False
    for name in wanted:
        if unfinished & plan.RESTS_ON[name]:
            unfinished.add(name)
            continue
        missing = [run for run in plan.phase(name, done) if run.name not in names and asked.only in run.name]
        for run in missing:
            if run.name in too_long:
                continue
            try:
                (asked.output / "claims" / run.name).touch(exist_ok=False)
            except FileExistsError:
                others_at_work = True
                continue
            return run, True
        if missing:
            unfinished.add(name)
    return None, others_at_work


if __name__ == "__main__":
    main()
