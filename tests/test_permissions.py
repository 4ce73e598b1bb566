"""What this user may not read or write is said so, with its name, also where root runs the tests."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

import pytest
from toys import WORDS, encoder

from maw.cli import main

CHILD = """
import contextlib, io, json, os, sys
from maw.cli import main
found = []
for path, mode, words in json.load(sys.stdin):
    before = os.stat(path).st_mode
    os.chmod(path, mode)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            status = main(words)
    except BaseException as error:
        status, text = 1, repr(error)
        said.write(text)
    finally:
        os.chmod(path, before)
    found.append((status, said.getvalue()))
print(json.dumps(found))
"""


def obey_permissions():
    """Take away what lets root read and write everything (CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH)."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


def run(tries, home):
    """Status and message of every command while a file or folder has other permissions."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps([[str(path), mode, [str(word) for word in words]] for path, mode, words in tries]),
        preexec_fn=obey_permissions,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=home,
        env={**os.environ, "MAW_CACHE": str(home / "cache")},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that everybody may enter, with an encoder, data, a store, a run, a benchmark and a home."""
    base = tmp_path_factory.mktemp("place")
    encoder().save_pretrained(str(base / "model"), create_model_card=False)
    data = base / "data"
    (data / "qrels").mkdir(parents=True)
    for name in ("corpus", "queries"):
        rows = [{"_id": f"{name[0]}{i}", "text": f"about a {WORDS[i % len(WORDS)]} {i}"} for i in range(40)]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split, ids in (("train", range(30)), ("test", range(30, 40))):
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\tc{i}\t1" for i in ids)]
        (data / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    source = ["--dataset", f"beir:{data}"]
    for words in (
        ["encode", base / "model", data / "corpus.jsonl", "--output", base / "store"],
        ["evaluate", base / "model", *source, "--run", base / "run.trec"],
        ["benchmark", "--variants", "bm25", "--output", base / "out", "--model", base / "model", *source],
    ):
        assert main([*map(str, words), "--device", "cpu"]) == 0
    (base / "home").mkdir()
    return base


def commands(base, name):
    """What is done with each kind of file."""
    data, model, device = f"beir:{base / 'data'}", base / "model", ["--device", "cpu"]
    source = ["--model", model, *device, "--dataset", data]
    return {
        "data": ["data", data],
        "encode": ["encode", model, base / "data" / "corpus.jsonl", "--output", base / "home" / name, *device],
        "search": ["search", model, base / "store", "what", "--corpus", base / "data" / "corpus.jsonl", *device],
        "run": ["evaluate", "--run", base / "run.trec", "--qrels", base / "data" / "qrels" / "test.tsv"],
        "report": ["report", base / "out"],
        "benchmark": ["benchmark", "--variants", "bm25", *source, "--output", base / "out"],
        "to": ["evaluate", model, *source[2:], "--run", base / "run.trec"],
        "train": ["train", "--variant", "dense-full", *source, "--batch-size", "10", "--output", base / "trained"],
    }


FORBIDDEN = [
    ("data/corpus.jsonl", "data"),
    ("data/qrels", "data"),
    ("data/qrels/test.tsv", "run"),
    ("data/corpus.jsonl", "encode"),
    ("data/corpus.jsonl", "search"),
    ("run.trec", "run"),
    ("model", "encode"),
    ("model/config.json", "encode"),
    ("model/modules.json", "encode"),
    ("model/model.safetensors", "encode"),
    ("model/tokenizer.json", "encode"),
    ("store", "search"),
    ("store/manifest.json", "search"),
    ("store/shards/00000.npy", "search"),
    ("out/results.json", "report"),
    ("out/benchmark.json", "benchmark"),
]


@pytest.mark.slow
def test_what_may_not_be_read_is_named(place):
    tries = [
        (place / name, 0, commands(place, str(number))[command]) for number, (name, command) in enumerate(FORBIDDEN)
    ]
    wrong = {
        case: (status, said)
        for case, (path, *_), (status, said) in zip(FORBIDDEN, tries, run(tries, place / "home"), strict=True)
        if status != 2 or str(path) not in said or "may not" not in said or "damaged" in said or "elete" in said
    }
    assert not wrong, "\n".join(f"{key}: {value}" for key, value in wrong.items())


@pytest.mark.slow
def test_what_may_not_be_written_is_named_and_stays(place):
    before = (place / "run.trec").read_bytes()
    cases = {
        "to": ("run.trec", 0o444, "run.trec"),
        "report": ("out", 0o555, "out/report.html"),
        "train": (".", 0o555, "trained"),
        "benchmark": ("out", 0o555, "out"),
    }
    tries = [(place / path, mode, commands(place, "")[command]) for command, (path, mode, _) in cases.items()]
    wrong = {
        command: (status, said)
        for (command, (*_, name)), (status, said) in zip(cases.items(), run(tries, place / "home"), strict=True)
        if status != 2 or str(place / name) not in said or "may not" not in said
    }
    assert not wrong, "\n".join(f"{key}: {value}" for key, value in wrong.items())
    assert (place / "run.trec").read_bytes() == before
