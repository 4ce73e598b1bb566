"""The study (`benchmarks/study`): its plan, two of its runs on made-up texts, and its tables from the files it left."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import maw
from maw.module import DepthAttention
from maw.views import frame_views, spectral_views

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks" / "study"
RESULTS = ROOT / "docs" / "results" / "study"
OWN = ("plan", "data", "finer", "scores", "tables", "training")


@pytest.fixture
def modules():
    """The study's modules by name; nobody else sees them."""
    sys.path.insert(0, str(FOLDER))
    try:
        import finer
        import plan
        import tables
        import training

        yield {"plan": plan, "tables": tables, "finer": finer, "training": training}
    finally:
        sys.path.remove(str(FOLDER))
        for name in OWN:
            sys.modules.pop(name, None)


@pytest.fixture
def plan(modules):
    return modules["plan"]


@pytest.fixture
def finer(modules):
    return modules["finer"]


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


def test_the_default_is_the_best_on_dev_of_the_recipes_that_work(plan):
    done = [finished(plan, run, 0.5) for run in plan.phase("tuning", [])]
    usage = {"dead": (0.4, 0.5), "ignorant": (1.0, 0.009), "working": (0.5, 0.01), "better": (1.0, 0.02)}
    named = dict(zip(plan.RECIPES, usage, strict=False))
    value = {"dead": 0.9, "ignorant": 0.8, "working": 0.6, "better": 0.7}
    for run in plan.phase("recipes", done):
        if run.option in named:
            alive, information = usage[named[run.option]]
            layer = {"depths alive by weight": alive, "information of weights, nat": information}
            row = finished(plan, run, value[named[run.option]])
            done.append(row | {"selection": {run.train: {"layers on dev": [layer]}}})
    chosen = {run.option for run in plan.phase("default", done)}
    assert [named[option] for option in chosen] == ["better"]
    hopeless = [row for row in done if named.get(row["run"]["option"]) not in ("working", "better")]
    assert {named[run.option] for run in plan.phase("default", hopeless)} == {"dead"}


@pytest.mark.parametrize("depth", [5, 8, 19])
@pytest.mark.parametrize("weights_per", ["head", "token", "head and token"])
def test_finer_weights_are_those_of_the_sum_over_depths(finer, weights_per, depth):
    torch.manual_seed(0)
    config = maw.MAWConfig(depth=depth, selection="softmax", tau=1.0)
    views = spectral_views(*torch.randn(2, 3, 8, 24, dtype=torch.float64), depth, scaling=0.3, seed=0)
    layer = DepthAttention(config, views, scaling=0.3).double().eval()
    finer.refine(layer, weights_per)
    query, key, value = torch.randn(3, 2, 3, 7, 8, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    found = layer(query, key, value, mask, attend=lambda transformed: transformed)
    torch.testing.assert_close(found, query, rtol=0, atol=1e-6)  # views are made in float32
    torch.nn.init.normal_(layer.selector.policy_network[-1].weight)
    found = layer(query, key, value, mask, attend=lambda transformed: transformed)
    states = query.transpose(1, 2).flatten(2)
    if weights_per == "head":
        states = torch.stack([(row * own[:, None]).sum(0) / own.sum() for row, own in zip(states, mask, strict=True)])
        states = states[:, None].expand(-1, 7, -1)
    for text, head, token in itertools.product(range(2), range(3), range(7)):
        own = slice(0, depth) if weights_per == "token" else slice(head * depth, (head + 1) * depth)
        weight = layer.selector.policy(states[text, token][None])[0, own].softmax(dim=-1)
        form = torch.einsum("d,dc,de->ce", weight, layer.query_views[head], layer.key_views[head])
        form = form * layer.scale / 0.3 / 64
        if layer.constant is not None:
            form = form + layer.constant[head] / 0.3
        expected = query[text, head, token] @ form
        torch.testing.assert_close(found[text, head, token], expected, rtol=1e-9, atol=1e-9)


def test_finer_weights_learn_from_the_training_loss_and_need_a_known_name(finer):
    layer = DepthAttention(maw.MAWConfig(depth=5), frame_views(2, 4, 5, scaling=0.5))
    with pytest.raises(ValueError, match="got 'query'"):
        finer.refine(layer, "query")
    finer.refine(layer, "token")
    layer(*torch.randn(3, 2, 2, 7, 4)).square().sum().backward()
    assert layer.selector.policy_network[-1].weight.grad.abs().max() > 0
    assert layer.collect() == {}


@pytest.mark.slow
@pytest.mark.parametrize("option", ["informed", "informed, retrieval", "weights per token"])
def test_a_run_is_measured_whole(modules, plan, tmp_path, option):
    write_domain(tmp_path / "nfcorpus")
    (tmp_path / "runs").mkdir()
    retrieval = {**plan.OPTIONS["informed"], "reward": "retrieval"}
    run = plan.Run("options", "nfcorpus", "maw-full", 0, 1e-4, 1, 16, maw=plan.OPTIONS.get(option, retrieval))
    asked = argparse.Namespace(model="packaged", data=tmp_path, output=tmp_path, commit="abc")
    modules["training"].do_run(run, asked, torch.device("cpu"))
    rows, scores = modules["tables"].read(tmp_path / "runs")
    assert [row["name"] for row in rows] == [run.name]
    per_text = "per" not in option
    kinds = {"nfcorpus/dev", "nfcorpus/test"} | (
        {f"nfcorpus/test/{kind}" for kind in ("sampled", "fused")} if per_text else set()
    )
    assert set(rows[0]["means"]) == set(scores[run.name]) == kinds
    assert rows[0]["environment"]["commit"] == "abc"
    for kind in ("layers", "layers on dev") if per_text else ():
        (layer,) = rows[0]["selection"]["nfcorpus"][kind]
        assert 0 < layer["information of weights, nat"] == pytest.approx(layer["information of policy, nat"], rel=1e-3)
