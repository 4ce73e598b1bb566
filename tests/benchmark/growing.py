"""A small real benchmark, grown: its own runs, perturbed by a seed, under other variants and seeds, in the real files.

The runner then finds every run finished and writes the results, the kept texts and the report as it always does.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maw.benchmark import report
from maw.benchmark.plan import Benchmark, PlannedRun, planned_runs
from maw.benchmark.runner import Runner
from maw.benchmark.variants import VARIANTS, Variant
from maw.io.json import sealed
from maw.retrieval.ranking.runs import Run, read_run, write_run

STEPS = 50
"""Lines of a grown training log: a training writes about so many."""
DOCUMENTS = 30
"""Documents of a ranking that are kept."""


def make_data(folder: Path, words: list[str], queries: int) -> Path:
    """A BEIR folder with two test splits, whose passages are long enough to be cut."""
    rng = random.Random(0)
    (folder / "qrels").mkdir(parents=True)
    pairs = [(first, second) for first in words for second in words if first != second]
    rng.shuffle(pairs)
    sizes = {"train": 20, "dev": 6, "test": queries, "held": queries // 3}
    documents, asked, start = [], [], 0
    for split, size in sizes.items():
        lines = ["query-id\tcorpus-id\tscore"]
        for number in range(start, start + size):
            first, second = pairs[number]
            text = " ".join(rng.choices(words, k=60))
            documents.append({"_id": f"d{number}", "title": f"The {first} and the {second}", "text": f"{text}."})
            asked.append({"_id": f"q{number}", "text": f"what has the {first} of the {second}"})
            lines.append(f"q{number}\td{number}\t1")
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
        start += size
    for name, rows in (("corpus", documents), ("queries", asked)):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return folder


@contextmanager
def report_at_the_end() -> Iterator[None]:
    """The report is made of the finished benchmark alone: on a toy, one after every run takes longer than the runs."""
    write = report.write_report

    def write_finished(folder: Path) -> Path:
        finished = json.loads((folder / "results.json").read_text())["finished"]
        return write(folder) if finished else folder / "report.html"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_report", write_finished)
        yield


def real_benchmark(model: Path, data: Path, output: Path) -> Benchmark:
    """Four runs, one of each kind: bm25, untuned, dense-full and maw-full."""
    benchmark = Benchmark(
        dataset=f"beir:{data}",
        model=str(model),
        variants=("bm25", "maw-full"),
        preset="full",
        output=output,
        device="cpu",
        maw={"layers": "all", "depth": 16, "learning_rate": 0.03},  # twins share their dropout
        training={"batch_size": 5, "epochs": 2, "max_length": 24},
    )
    with report_at_the_end():
        Runner(benchmark, command="maw benchmark --variants bm25,maw-full").go()
    return benchmark


def grow(benchmark: Benchmark, output: Path, variants: int, seeds: int) -> Path:
    """The same benchmark with so many variants and seeds, and its report."""
    shutil.copytree(benchmark.output, output, ignore=shutil.ignore_patterns("models", "training"))
    names = tuple(VARIANTS)[:variants]
    grown = replace(benchmark, variants=names, seeds=seeds, output=output)
    runner = Runner(grown, command=f"maw benchmark --variants {','.join(names)} --seeds {seeds}")
    kept = {
        (source, split): {
            query: dict(list(found.items())[:DOCUMENTS])
            for query, found in read_run(output / "runs" / f"{source}-{split}.trec").items()
        }
        for source in ("dense-full-seed0", "maw-full-seed0")
        for split in runner.splits
    }
    for run in planned_runs(grown):
        if not (output / "state" / f"{run.name}.json").is_file():
            _perturbed(runner, run, kept)
    runner.go()
    return output


def _perturbed(runner: Runner, run: PlannedRun, kept: dict[tuple[str, str], Run]) -> None:
    """Write the files of a run that was never made, from those of the one most like it."""
    folder, rng = runner.folder, random.Random(run.name)
    source = "maw-full-seed0" if _has_policy(run.variant) else "dense-full-seed0"
    state = json.loads((folder / "state" / f"{source}.json").read_text())
    state |= {"variant": run.variant.name, "seed": run.seed, "seconds": state["seconds"] * rng.uniform(0.9, 1.1)}
    for split in runner.splits:
        ranking = {
            query: {document: score + rng.gauss(0, 0.03) for document, score in found.items()}
            for query, found in kept[source, split].items()
        }
        evaluation = runner._evaluate(split, ranking)
        state["metrics"][split], state["per_query"][split] = evaluation.means, evaluation.per_query
        write_run(folder / "runs" / f"{run.name}-{split}.trec", ranking, run.name)
    usage = state["depth_usage"]
    for kind in ("query", "document") if usage else ():
        usage[kind] = [_shares(layer, rng) for layer in usage[kind]]
    (folder / "state" / f"{run.name}.json").write_text(json.dumps(sealed(state | {"files": {}})))
    lines = [json.loads(line) for line in (folder / "logs" / f"{source}.jsonl").read_text().splitlines()]
    grown = [_line(lines[step * len(lines) // STEPS], step + 1, rng) for step in range(STEPS)]
    (folder / "logs" / f"{run.name}.jsonl").write_text("\n".join(json.dumps(line) for line in grown) + "\n")


def _has_policy(variant: Variant) -> bool:
    return variant.recipe is not None and not {"mechanism", "selection"} & set(variant.changes)


def _line(line: dict[str, Any], step: int, rng: random.Random) -> dict[str, Any]:
    numbers = {name: value * rng.uniform(0.9, 1.1) for name, value in line.items() if isinstance(value, float)}
    usage = {"weight_usage": [_shares(layer, rng) for layer in line["weight_usage"]]} if "weight_usage" in line else {}
    return {**line, **numbers, **usage, "step": step}


def _shares(shares: list[float], rng: random.Random) -> list[float]:
    moved = [share * rng.lognormvariate(0, 1) for share in shares]
    return [round(share / sum(moved), 6) for share in moved]
