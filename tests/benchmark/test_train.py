"""`maw train` as typed, in one process and in two, by every launcher."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
from sentence_transformers import SentenceTransformer

from maw.cli import main

SMALL = ["--batch-size", "3", "--epochs", "1", "--max-length", "16", "--device", "cpu"]
MORE = ["--mini-batch-size", "2", "--save-every", "1", "--hard-negatives", "1", "--negatives", "model", "--seed", "3"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2", "-m", "maw"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--num_processes=2", "--num_machines=1", "--main_process_port"]


def arguments(tiny_model, toy_data, output, *more):
    given = ["train", "--variant", "maw-lora", "--dataset", f"beir:{toy_data}", "--model", str(tiny_model)]
    return [*given, "--output", str(output), "--maw-depth-dim", "8", *SMALL, *more]


def environment(**more):
    return {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", **more}


def in_two_processes(words, launcher=TORCHRUN):
    command = [sys.executable, *launcher, *words]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(("processes", "parallel"), [(None, "true"), ("1", "true"), ("2", "false")])
def test_one_process_tokenises_on_all_cores(tiny_model, toy_data, tmp_path, monkeypatch, processes, parallel):
    found = []
    monkeypatch.setattr("maw.commands.execute", lambda *_: found.append(os.environ["TOKENIZERS_PARALLELISM"]) or 0)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "")  # put back afterwards
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("WORLD_SIZE", processes)
    assert main(arguments(tiny_model, toy_data, tmp_path / "model")) == 0
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert main(arguments(tiny_model, toy_data, tmp_path / "model")) == 0
    assert found == [parallel, "false"], "who says it is heard"


@pytest.mark.slow
def test_two_processes_train_one_model_and_one_of_them_speaks(tiny_model, toy_data, tmp_path):
    run = in_two_processes(arguments(tiny_model, toy_data, tmp_path / "model", *MORE))
    assert run.returncode == 0, run.stderr[-3000:]
    for line in (r"^processes: 2$", r"^steps: 2$", r"^model: .*", r"train: 10 queries"):
        assert len(re.findall(line, run.stdout, flags=re.MULTILINE)) == 1, run.stdout
    assert "'training': [3, 1000006]" in run.stdout
    assert "'negatives': 3" in run.stdout
    assert SentenceTransformer(str(tmp_path / "model"), device="cpu").encode("a river").shape == (48,)
    card = (tmp_path / "model" / "README.md").read_text()
    assert '"processes": 2' in card
    assert '"mini_batch_size": 2' in card
    log = [json.loads(line) for line in (tmp_path / "model.training" / "log.jsonl").read_text().splitlines()]
    assert [len(entry["data"]) for entry in log if "loss" in entry] == [2, 2]


@pytest.mark.slow
def test_what_is_wrong_is_said_once_by_two_processes(tiny_model, toy_data, tmp_path):
    run = in_two_processes(arguments(tiny_model, toy_data, tmp_path / "model", "--mini-batch-size", "0"))
    assert run.returncode != 0
    assert len(re.findall(r"^maw: --mini-batch-size must be at least 1, got 0$", run.stderr, flags=re.MULTILINE)) == 1
    assert not (tmp_path / "model").exists()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def run_by_mpi(words):
    """Two processes as mpirun of Open MPI starts them."""
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    started = []
    for rank in ("0", "1"):
        mpi = {"RANK": rank, "SIZE": "2", "LOCAL_RANK": rank, "LOCAL_SIZE": "2"}
        place = there | {f"OMPI_COMM_WORLD_{name}": value for name, value in mpi.items()}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "maw", *words],
                env=environment(**place),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    ends = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], ends[0][1][-3000:] + ends[1][1][-3000:]
    return ends[0][0]


@pytest.mark.slow
def test_every_launcher_trains_the_same_model(tiny_model, toy_data, tmp_path):
    launchers = {"torchrun": TORCHRUN, "accelerate": [*ACCELERATE, free_port(), "--multi_gpu", "-m", "maw"]}
    outputs = {}
    for name, launcher in launchers.items():
        run = in_two_processes(arguments(tiny_model, toy_data, tmp_path / name), launcher)
        assert run.returncode == 0, run.stderr[-3000:]
        outputs[name] = run.stdout
    outputs["mpi"] = run_by_mpi(arguments(tiny_model, toy_data, tmp_path / "mpi"))
    for out in outputs.values():
        assert len(re.findall(r"^processes: 2$", out, flags=re.MULTILINE)) == 1, out
    names = sorted(file.relative_to(tmp_path / "mpi") for file in (tmp_path / "mpi").rglob("*.safetensors"))
    assert names
    for name in names:
        first, *others = ((tmp_path / launcher / name).read_bytes() for launcher in outputs)
        assert all(other == first for other in others), name


@pytest.mark.slow
def test_accelerate_that_starts_one_process_of_several_is_refused(tiny_model, toy_data, tmp_path):
    launcher = [*ACCELERATE, free_port(), "--cpu", "-m", "maw"]
    run = in_two_processes(arguments(tiny_model, toy_data, tmp_path / "model"), launcher)
    assert run.returncode != 0
    assert "maw: accelerate launch was asked for several processes and started one" in run.stderr
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "more", [["--gradient-checkpointing", *MORE], ["--negatives", "bm25", "--hard-negatives", "2"]]
)
def test_large_batches_checkpointing_and_negatives_work_together(tiny_model, toy_data, tmp_path, capsys, more):
    assert main(arguments(tiny_model, toy_data, tmp_path / "model", *more)) == 0
    out = capsys.readouterr().out
    assert "processes: 1" in out
    assert "steps: 4" in out
    assert (tmp_path / "model" / "README.md").is_file()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--mini-batch-size", "4"], "--mini-batch-size must be at most the batch size 3, got 4"),
        (["--hard-negatives", "-1"], "--hard-negatives must be 0 or more"),
        (["--save-every", "0"], "--save-every must be at least 1"),
        (["--hard-negatives", "2", "--negatives", "given"], "negatives"),
    ],
)
def test_bad_settings_are_a_message_and_status_2(tiny_model, toy_data, tmp_path, capsys, more, words):
    assert main(arguments(tiny_model, toy_data, tmp_path / "model", *more)) == 2
    assert words in capsys.readouterr().err


def test_a_benchmark_in_two_processes_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["benchmark"]) == 2
    assert "maw benchmark works in one process, got 2" in capsys.readouterr().err


def comparing_by(tiny_model, folder, similarity):
    """The tiny model without its module Normalize, as one that compares by this similarity."""
    shutil.copytree(tiny_model, folder)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([one for one in modules if "Normalize" not in one["type"]]))
    config = folder / "config_sentence_transformers.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "similarity_fn_name": similarity}))
    return folder


def test_the_similarity_that_is_trained_and_its_scale_are_said(tiny_model, toy_data, tmp_path, capsys):
    model = comparing_by(tiny_model, tmp_path / "dot", "dot")
    assert main(arguments(model, toy_data, tmp_path / "model", "--dry-run")) == 0
    assert "similarity: dot, in the loss times 1\n" in capsys.readouterr().out
    assert main(arguments(model, toy_data, tmp_path / "model", "--similarity-scale", "0.5")) == 0
    said = capsys.readouterr().out
    assert "similarity: dot\n" in said
    assert "similarity_scale: 0.5\n" in said
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Trained to compare vectors by dot product (in the loss times 0.5): compare by it." in card
    assert '"similarity_scale": 0.5' in card
    assert SentenceTransformer(str(tmp_path / "model"), device="cpu").similarity_fn_name == "dot"


def test_a_model_that_compares_by_a_distance_is_refused_before_data_are_read(tiny_model, tmp_path, capsys):
    model = comparing_by(tiny_model, tmp_path / "far", "euclidean")
    assert main(arguments(model, tmp_path / "no data", tmp_path / "model")) == 2
    error = capsys.readouterr().err
    assert "got one that compares by euclidean" in error
    assert "no data" not in error
