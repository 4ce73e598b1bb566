"""Every script in examples/ runs, on real text, at a small size."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


@pytest.fixture
def run(capfd, pydocs_read_once):
    """Call an example's `main` and return what it printed; `NAME ARGUMENT...` as on the command line."""

    def call(name, *arguments):
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        example = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(example)
        example.main([str(argument) for argument in arguments])
        return capfd.readouterr().out

    return call


def small_folder(folder):
    """A few docstrings and functions of the standard library, written in BEIR's layout."""
    import json

    from maw.retrieval.data.loading import load_dataset

    data = load_dataset("pydocs").subset(train_pairs=16, documents=40, test_queries=4, dev_queries=4)
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", data.documents), ("queries", data.queries)):
        lines = (json.dumps({"_id": identity, "text": text}) + "\n" for identity, text in texts.items())
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    for split in data.splits:
        rows = [f"{q}\t{d}\t{grade}\n" for q, found in data.judgements(split).items() for d, grade in found.items()]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    return folder


SMALL = ("--epochs", 1, "--batch-size", 8, "--max-length", 24)


def test_fine_tune(run, tmp_path):
    printed = run("fine_tune", small_folder(tmp_path / "data"), "--output", tmp_path / "model", *SMALL)
    assert "MAW in encoder.layer.0" in printed
    assert re.search(r"nDCG@10 +untuned \.?\d\S+ +tuned \d", printed)
    assert (tmp_path / "model" / "modules.json").is_file()


@pytest.mark.slow
@pytest.mark.skipif("MAW_DATA" not in os.environ, reason="MAW_DATA is not set: it has nfcorpus/")
def test_fine_tune_on_a_published_collection(run, tmp_path):
    folder = Path(os.environ["MAW_DATA"]) / "nfcorpus"
    printed = run("fine_tune", folder, "--output", tmp_path / "model", "--small", "--dense", *SMALL)
    assert "nDCG@10" in printed
    assert "MAW in" not in printed


def test_modernbert(run, tmp_path):
    printed = run("modernbert", "--made-up", "--output", tmp_path / "model")
    assert "made up" in printed
    assert "frame views" in printed
    from_host, loaded = (float(value) for value in re.findall(r"difference\D*: (\S+)", printed))
    assert from_host < 1e-5
    assert loaded == 0


def test_modernbert_from_a_folder(run, tmp_path):
    run("modernbert", "--made-up", "--output", tmp_path / "model")
    printed = run("modernbert", "--model", tmp_path / "made-up", "--output", tmp_path / "other")
    assert "frame views" in printed


def test_existing_script(run, tmp_path):
    printed = run(
        "existing_script", "--output", tmp_path / "model", "--pairs", 16, "--batch-size", 8, "--max-length", 24
    )
    assert "(1, 384)" in printed


def test_vector_database(run, tmp_path):
    printed = run("vector_database", "--output", tmp_path, "--documents", 40)
    assert "5 of 5 hits are the same" in printed


def test_own_reward(run, tmp_path):
    printed = run("own_reward", "--output", tmp_path / "model", "--texts", 20, "--steps", 40)
    alike, policy, best = (float(value) for value in re.findall(r" (0\.\d+)", printed))
    assert alike + 0.02 < policy <= best


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_examples_are_short_and_say_how_they_are_called(script):
    text = script.read_text(encoding="utf-8")
    assert f"python examples/{script.name}" in text.partition('"""\n\nimport')[0]
    assert len(text.splitlines()) <= 90
    assert f"def test_{script.stem}(" in Path(__file__).read_text(encoding="utf-8"), "no test runs it"


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_examples_are_programs(script):
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
