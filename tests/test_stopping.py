"""A command that is told to stop says so in a line, leaves nothing half-written and no process behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from toys import WORDS, encoder

SAID = {signal.SIGTERM: (143, "maw: terminated; "), signal.SIGINT: (130, "maw: interrupted; ")}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder") / "model"
    encoder().save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A BEIR folder, whose corpus is long enough to be stopped in."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    (folder / "qrels").mkdir(parents=True)
    names = range(20_000)
    texts = {"corpus": "a passage that tells of a {} by the sea", "queries": "what is a {}"}
    for name, text in texts.items():
        rows = [{"_id": f"{name[0]}{i}", "text": text.format(WORDS[i % len(WORDS)]) + f" {i}"} for i in names]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split, ids in (("train", range(64)), ("test", range(64, 70))):
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\tc{i}\t1" for i in ids)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def stop(words, begun, number, *, patience=240, all_at_once=False):
    """Start a command, send it a signal once it has written what `begun` finds, and see it end."""
    command = [sys.executable, "-m", "maw", *map(str, words)]
    own = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, **own) as process:
        until = time.monotonic() + patience
        while not begun() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        assert begun(), process.poll()
        children = psutil.Process(process.pid).children(recursive=True)
        (os.killpg if all_at_once else os.kill)(process.pid, number)
        out, err = process.communicate(timeout=120)
    status, line = SAID[number]
    assert process.returncode == status, err
    assert [one for one in err.splitlines() if not one.startswith("encoding:")][-1].startswith(line), err
    assert "Traceback" not in out + err
    assert err.count("maw: ") == 1
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    return gone


def grown(logs):
    """Whether a training has logged a step."""
    return any(log.stat().st_size for log in logs)


def parts(folder):
    return list(folder.rglob("*.part*"))


@pytest.mark.parametrize(
    ("number", "all_at_once"),
    [
        pytest.param(signal.SIGINT, True, marks=pytest.mark.slow),
        (signal.SIGTERM, False),
        pytest.param(signal.SIGTERM, True, marks=pytest.mark.slow),
    ],
)
def test_encode(model, data, tmp_path, number, all_at_once):
    store = tmp_path / "store"
    given = ["encode", model, data / "corpus.jsonl", "--output", store, "--device", "cpu"]
    given += ["--workers", "2", "--shard-size", "200"]
    children = stop(given, lambda: list((store / "shards").glob("*.json")), number, all_at_once=all_at_once)
    assert len(children) >= 2, "the processes that tokenise"
    assert not parts(store)
    assert not (store / "manifest.json").exists()


@pytest.mark.slow
def test_train(model, data, tmp_path):
    given = [
        "train",
        "--variant",
        "maw-lora",
        "--output",
        tmp_path / "model",
        "--model",
        model,
        "--dataset",
        f"beir:{data}",
    ]
    given += ["--device", "cpu", "--epochs", "500", "--batch-size", "4"]
    log = tmp_path / "model.training" / "log.jsonl"
    stop(given, lambda: list((tmp_path / "model.training").glob("*.jsonl")) or log.exists(), signal.SIGTERM)
    assert not parts(tmp_path)
    assert not (tmp_path / "model").exists()


LOST = """
import signal, sys, time, weakref
from maw.stopping import Terminated, terminable

class Thing:
    pass

def put_away(_):
    print("inside", flush=True)
    time.sleep(0.2)

try:
    with terminable():
        for _ in range(100):
            thing = Thing()
            reference = weakref.ref(thing, put_away)
            del thing
            time.sleep(0.2)
except KeyboardInterrupt as error:
    sys.exit(143 if isinstance(error, Terminated) else 130)
"""


@pytest.mark.parametrize("number", SAID)
def test_what_python_drops_is_sent_again(number):
    with subprocess.Popen([sys.executable, "-c", LOST], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"inside\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (SAID[number][0], b"")


@pytest.mark.slow
def test_benchmark(model, data, tmp_path):
    given = ["benchmark", "--output", tmp_path / "out", "--model", model, "--dataset", f"beir:{data}"]
    given += ["--device", "cpu", "--epochs", "500", "--batch-size", "4", "--variants", "dense-full"]
    stop(given, lambda: grown((tmp_path / "out" / "logs").glob("*.jsonl")), signal.SIGTERM)
    assert not parts(tmp_path)
    assert not json.loads((tmp_path / "out" / "results.json").read_text())["finished"], "untuned is"


@pytest.mark.slow
@pytest.mark.parametrize("number", SAID)
def test_encode_by_ray(model, data, tmp_path, number):
    pytest.importorskip("ray")
    store = tmp_path / "store"
    given = ["encode", model, data / "corpus.jsonl", "--output", store, "--device", "cpu"]
    given += ["--engine", "ray", "--shard-size", "200"]
    assert stop(given, lambda: list((store / "shards").glob("*.json")), number)
    assert not parts(store)


def test_a_signal_that_is_ignored_stays_ignored(data):
    code = "import signal, sys\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nfrom maw.cli import main\n"
    code += "sys.exit(main(['data', sys.argv[1]]) or signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN)"
    assert subprocess.run([sys.executable, "-c", code, f"beir:{data}"], check=False).returncode == 0
