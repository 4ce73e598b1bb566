"""The study (`benchmarks/study`): its plan, two of its runs on made-up texts, and its tables from the files it left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks" / "study"
RESULTS = ROOT / "docs" / "results" / "study"
OWN = ("plan", "data", "scores", "tables", "training")


@pytest.fixture
def modules():
    """The study's modules by name; nobody else sees them."""
    sys.path.insert(0, str(FOLDER))
    try:
        import plan
        import tables

        yield {"plan": plan, "tables": tables}
    finally:
        sys.path.remove(str(FOLDER))
        for name in OWN:
            sys.modules.pop(name, None)


@pytest.fixture
def plan(modules):
    return modules["plan"]


def finished(plan, run, value):
    return {"name": run.name, "run": asdict(run), "means": {f"{name}/dev": value for name in plan.DOMAINS}}


def test_every_run_has_a_name_of_its_own_and_twins_share_settings(plan):
    tuning = plan.phase("tuning", [])
    done = [finished(plan, run, number) for number, run in enumerate(tuning)]
    runs = [run for name in plan.PHASES for run in plan.phase(name, done)]
    assert len({run.name for run in runs}) == len(runs)
    settings = {}
    for run in plan.phase("main", done):
        if run.variant != "untuned":
            tuned = "lora" if run.variant.endswith("lora") else "full"
            settings.setdefault((run.train, tuned), set()).add((run.learning_rate, run.epochs, run.batch_size))
    assert len(settings) == 2 * len(plan.SETS)
    assert all(len(found) == 1 for found in settings.values())
    assert {run.seed for run in tuning}.isdisjoint(plan.SEEDS)


def test_a_twins_settings_are_the_best_on_dev_and_nothing_else(plan):
    tuning = plan.phase("tuning", [])
    best = next(run for run in tuning if (run.train, run.variant, run.epochs) == ("nq-qed", "dense-lora", 3))
    done = [finished(plan, run, 0.5 + (run == best)) for run in tuning]
    for result in done:
        result["means"] |= {f"{name}/test": 1.0 - result["means"][f"{name}/dev"] for name in plan.DOMAINS}
    found = plan.tuned(done, "nq-qed", "lora")
    assert found == {name: getattr(best, name) for name in ("learning_rate", "epochs", "batch_size")}


def test_a_phase_waits_for_what_it_rests_on(plan):
    with pytest.raises(ValueError, match="empty"):
        plan.phase("main", [])


def test_finished_runs_of_the_study_are_in_its_plan(plan):
    rows = json.loads((RESULTS / "runs.json").read_text(encoding="utf-8"))["runs"]
    names = {run.name for name in plan.PHASES for run in plan.phase(name, rows)}
    left = {row["name"] for row in rows} - names
    assert not left, sorted(left)[:3]


def test_scores_that_were_changed_are_noticed(modules, tmp_path):
    import pyarrow.parquet as pq

    (tmp_path / "runs.json").write_bytes((RESULTS / "runs.json").read_bytes())
    table = pq.read_table(RESULTS / "per_query.parquet")
    pq.write_table(table.take([1, 0, *range(2, len(table))]), tmp_path / "per_query.parquet")
    modules["tables"].read(tmp_path)
    swapped = table.set_column(2, "nDCG@10", table.column(2).take([1, 0, *range(2, len(table))]))
    pq.write_table(swapped, tmp_path / "per_query.parquet")
    with pytest.raises(SystemExit, match="are not those of its checksum"):
        modules["tables"].read(tmp_path)


@pytest.mark.slow
def test_the_tables_are_those_of_the_files(modules):
    rows, scores = modules["tables"].read(RESULTS)
    assert modules["tables"].Study(rows, scores).tables() == (RESULTS / "tables.md").read_text(encoding="utf-8")


def write_domain(folder):
    """Seventy questions about seventy things, in BEIR's layout."""
    (folder / "qrels").mkdir(parents=True)
    things = [
        f"{colour} {thing}" for colour in ("red", "blue", "old", "new", "tall", "cold", "warm") for thing in WORDS
    ]
    with (folder / "corpus.jsonl").open("w") as corpus, (folder / "queries.jsonl").open("w") as queries:
        for number, thing in enumerate(things):
            corpus.write(json.dumps({"_id": f"d{number}", "text": f"This is about a {thing}."}) + "\n")
            queries.write(json.dumps({"_id": f"q{number}", "text": f"what is a {thing}"}) + "\n")
    splits = {"train": range(66), "dev": range(66, 68), "test": range(68, 70)}
    for split, numbers in splits.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"q{number}\td{number}\t1" for number in numbers)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")


WORDS = ("river", "engine", "violin", "glacier", "parliament", "enzyme", "harbour", "theorem", "orchard", "satellite")


@pytest.mark.slow
def test_runs_are_done_once_and_what_is_missing_later(plan, tmp_path):
    write_domain(tmp_path / "data" / "nfcorpus")
    wanted = [
        run
        for run in plan.phase("tuning", [])
        if (run.train, run.epochs, run.batch_size, run.learning_rate) == ("nfcorpus", 1, 64, 2e-4)
    ]
    assert [run.variant for run in wanted] == ["dense-full", "dense-lora"]

    def go(only, output="out", *more):
        command = [
            sys.executable,
            FOLDER,
            "--data",
            tmp_path / "data",
            "--output",
            tmp_path / output,
            "--device",
            "cpu",
        ]
        command += ["--phases", "tuning", "--only", only, *more]
        subprocess.run(list(map(str, command)), check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    go(wanted[0].name)
    first = tmp_path / "out" / "runs" / f"{wanted[0].name}.json"
    result, written = json.loads(first.read_text()), first.stat().st_mtime_ns
    assert result["outcome"]["steps"] == 2
    assert set(result["means"]) == {"nfcorpus/dev", "nfcorpus/test"}
    go(wanted[1].name)
    go("dense-full-s1000-" + wanted[0].name.rpartition("-")[2])
    assert first.stat().st_mtime_ns == written
    assert sorted(path.stem for path in first.parent.glob("*.json")) == sorted(run.name for run in wanted)
    (tmp_path / "earlier").mkdir()
    rows = [json.loads(path.read_text()) for path in first.parent.glob("*.json")]
    (tmp_path / "earlier" / "runs.json").write_text(json.dumps({"environments": [], "runs": rows}))
    go(wanted[0].name, "elsewhere", "--earlier", tmp_path / "earlier")
    assert not list((tmp_path / "elsewhere" / "runs").iterdir())
