"""What commands print: plain in a pipe, JSON alone where it is asked for, progress, and plans that change nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from maw import progress
from maw.cli import main

SMALL = ["--batch-size", "3", "--epochs", "1", "--max-length", "16", "--device", "cpu"]
HARD = ["--hard-negatives", "1"]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"_id": f"d{n}", "text": f"about {n} rivers"}) + "\n" for n in range(40)))
    return path


def given(tiny_model, toy_data):
    return ["--dataset", f"beir:{toy_data}", "--model", str(tiny_model)]


def run_in_a_pipe(words, capfdbinary, monkeypatch):
    code = "import sys; from maw import cli, progress; progress.EVERY = 0.0; sys.exit(cli.main(sys.argv[1:]))"
    run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, timeout=300, check=False)
    return run.returncode, run.stdout, run.stderr


def run_into_files(words, capfdbinary, monkeypatch):
    """In this process, which has imported everything."""
    monkeypatch.setattr(progress, "EVERY", 0.0)
    return main(words), *capfdbinary.readouterr()


@pytest.mark.parametrize("run", [run_into_files, pytest.param(run_in_a_pipe, marks=pytest.mark.slow)])
def test_off_the_terminal_all_is_plain_and_json_is_alone(tiny_model, toy_data, tmp_path, capfdbinary, monkeypatch, run):
    words = ["benchmark", *given(tiny_model, toy_data), *SMALL, *HARD, "--variants", "bm25,maw-lora", "--json"]
    status, out, err = run([*words, "--output", str(tmp_path / "out")], capfdbinary, monkeypatch)
    assert status == 0, err[-3000:].decode()
    for raw in (out, err):
        assert b"\x1b" not in raw
        assert b"\r" not in raw
    results = json.loads(out)
    assert {"verdict", "rows", "comparisons", "dataset", "output"} <= results.keys()
    assert {row["variant"] for row in results["rows"]} == {"bm25", "untuned", "dense-lora", "maw-lora"}
    said = err.decode()
    assert "estimated time: " in said
    for what, total in {
        "BM25: reading documents": 20,
        "BM25: indexing": 20,
        "BM25: searching": 6,
        "negatives: queries": 10,
        "training steps": 4,
        "encoding documents": 20,
        "encoding queries": 6,
    }.items():
        assert re.search(rf"^{what}: \d+ of {total}, [\d.,]+/s, [\d.]+ (s|min|h) left$", said, re.MULTILINE), what


def test_without_json_people_get_the_table_on_standard_output(tiny_model, toy_data, tmp_path, capsys):
    words = ["benchmark", *given(tiny_model, toy_data), *SMALL, "--variants", "bm25"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "bm25" in out
    assert "\x1b" not in out
    assert "\r" not in out
    assert not out.lstrip().startswith("{")


def plan_of(words, capsys):
    """What a dry run says in JSON, and that it says so to people too."""
    assert main([*words, "--dry-run"]) == 0
    assert re.search(r"Nothing was (done|trained|encoded)$", capsys.readouterr().out, re.MULTILINE)
    assert main([*words, "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["plan"]


def test_dry_runs_say_what_how_long_and_where_and_write_nothing(tiny_model, toy_data, corpus, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    data = given(tiny_model, toy_data)
    out = str(tmp_path / "out")
    plan = plan_of(["benchmark", *data, *SMALL, "--variants", "maw-full", "--output", out], capsys)
    assert plan["runs"] == ["untuned", "dense-full-seed0", "maw-full-seed0"]
    assert plan["output"] == out
    plan = plan_of(["train", "--variant", "maw-lora", *data, *SMALL, "--output", out], capsys)
    assert (plan["pairs"], plan["steps"], plan["model"], plan["training"]) == (10, 4, out, f"{out}.training")
    assert 0 < plan["trainable_parameters"] < plan["total_parameters"]
    words = ["encode", str(tiny_model), str(corpus), "--output", out, "--shard-size", "15", "--device", "cpu"]
    plan = plan_of(words, capsys)
    assert (plan["documents"], plan["width"], plan["shards"], plan["bytes"]) == (40, 48, 3, 40 * 48 * 2)
    assert plan["seconds"] >= 0
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("drop", [[], ["--drop-own"]])
def test_training_drops_a_querys_own_document_where_it_is_asked_to(tiny_model, toy_data, tmp_path, capsys, drop):
    words = ["train", "--variant", "maw-lora", *given(tiny_model, toy_data), *SMALL, "--output", str(tmp_path / "x")]
    assert main([*words, *drop, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["drop_own"] is bool(drop)


def test_negatives_from_files_at_a_distance(tiny_model, toy_data, tmp_path, capsys):
    files = [tmp_path / "one.tsv", tmp_path / "two.tsv"]
    for first, file in zip((0, 5), files, strict=True):
        file.write_text("".join(f"q{n}\td{n + 10}\n" for n in range(first, first + 5)))
    options = ["--negatives", "given", "--negative-files", *map(str, files), *SMALL, *HARD]
    drawn = []
    for number, margin in enumerate(("0", "2")):  # no similarity is two whole scores below another
        output = ["--output", str(tmp_path / f"model{number}"), "--negative-margin", margin, "--json"]
        assert main(["train", "--variant", "dense-lora", *given(tiny_model, toy_data), *options, *output]) == 0
        drawn.append(json.loads(capsys.readouterr().out)["drawn_negatives"])
    assert drawn[0] < drawn[1] == 10
    assert '"two.tsv"' in (tmp_path / "model0" / "README.md").read_text()
    output = ["--output", str(tmp_path / "results"), "--variants", "dense-full"]
    words = ["benchmark", *given(tiny_model, toy_data), *options, *output]
    assert main(words) == 0
    training = json.loads((tmp_path / "results" / "results.json").read_text())["settings"]["training"]
    assert training["negative_files"] == [str(file) for file in files]
    assert main([*words, "--dry-run"]) == 0, "it can be gone on with"
    capsys.readouterr()
    files[0].write_text("q0\td12\n")
    assert main([*words, "--dry-run"]) == 2
    assert "holds a benchmark with other negatives: give the same" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "wanted the names of files, got none"),
        (["nowhere"], "wanted the file nowhere, but it is not there"),
    ],
)
def test_files_of_negatives_that_are_not_there_are_refused_at_once(tmp_path, capsys, files, message):
    words = ["train", "--variant", "dense-lora", "--output", str(tmp_path / "x"), *HARD, "--negatives", "given"]
    assert main([*words, "--negative-files", *files]) == 2
    assert f"--negative-files: {message}" in capsys.readouterr().err


def test_a_dry_run_refuses_what_the_run_would(tiny_model, toy_data, tmp_path, capsys):
    words = [
        "train",
        "--variant",
        "maw-lora",
        *given(tiny_model, toy_data),
        "--output",
        str(tmp_path / "x"),
        "--dry-run",
    ]
    assert main([*words, "--device", "cpu", "--batch-size", "11"]) == 2
    assert "fewer than one batch of 11: lower --batch-size" in capsys.readouterr().err
    assert main([*words, *SMALL, "--variant", "bm25"]) == 2
    assert "bm25 is not trained" in capsys.readouterr().err


def test_train_encode_search_evaluate_and_data_in_json(tiny_model, toy_data, corpus, tmp_path, capsys):
    def result(*words):
        assert main([*map(str, words), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    data = given(tiny_model, toy_data)
    trained = result("train", "--variant", "dense-lora", *data, *SMALL, "--output", tmp_path / "model")
    assert (trained["steps"], trained["model"]) == (4, str(tmp_path / "model"))
    place = ("--device", "cpu")
    encoded = result("encode", tiny_model, corpus, "--output", tmp_path / "vectors", *place)
    assert (encoded["documents"], encoded["complete"]) == (40, True)
    found = result("search", tiny_model, tmp_path / "vectors", "rivers", "--k", 3, "--corpus", corpus, *place)
    assert len(found["hits"]) == 3
    assert found["hits"][0].keys() == {"document", "score", "text"}
    queries = tmp_path / "queries.tsv"
    queries.write_text("1\trivers\n")
    run = tmp_path / "run.trec"
    ran = result("search", tiny_model, tmp_path / "vectors", "--queries", queries, "--run", run, *place)
    assert (ran["queries"], ran["run"]) == (1, str(run))
    measured = result("evaluate", tiny_model, "--dataset", f"beir:{toy_data}", *place)
    assert measured["split"] == "test"
    assert measured["measures"].keys() == {"nDCG@10", "MRR@10", "R@100", "R@1000", "AP"}
    report = result("data", f"beir:{toy_data}")
    assert report == measured["data"]
    assert report["dev"] == {"split": "dev", "reported": False}


def test_encoding_and_searching_say_how_far_they_are(tiny_model, corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    store = str(tmp_path / "vectors")
    assert main(["encode", str(tiny_model), str(corpus), "--output", store, "--device", "cpu"]) == 0
    said = capsys.readouterr().err
    assert re.search(r"^reading corpus.jsonl: documents: 40, [\d.,]+/s$", said, re.MULTILINE)
    assert re.search(r"^encoding: 40 of 40, [\d.,]+/s, 0 s left$", said, re.MULTILINE)
    assert main(["search", str(tiny_model), store, "rivers", "--device", "cpu"]) == 0
    said = capsys.readouterr().err
    assert re.search(rf"^checking {store}: files: 3 of 3, ", said, re.MULTILINE)
    assert re.search(r"^searching documents: 40 of 40, ", said, re.MULTILINE)
