"""A disk that is really full: a small file system in memory, into which every command writes until there is no room."""

from __future__ import annotations

import json
import re
import subprocess

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from toys import WORDS, encoder

from maw.cli import main
from maw.errors import MAWError
from maw.io.failures import refused_as_full, saying_that_the_disk_is_full
from maw.retrieval.data.text_writer import build_store


@pytest.fixture
def disk(tmp_path, request):
    """A folder with room for so many bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("this user may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder") / "model"
    encoder().save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "toy"
    (folder / "qrels").mkdir(parents=True)
    for name in ("corpus", "queries"):
        rows = [{"_id": f"{name[0]}{i}", "text": f"about a {WORDS[i % len(WORDS)]} {i}"} for i in range(2000)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split, ids in (("train", range(40)), ("test", range(40, 500))):
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\tc{i}\t1" for i in ids)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def words(command, disk, model, data):
    device, source = ["--device", "cpu"], ["--model", model, "--dataset", f"beir:{data}"]
    short = [*source, *device, "--epochs", "1", "--batch-size", "20", "--output", disk / "m"]
    return {
        "encode": ["encode", model, data / "corpus.jsonl", "--output", disk / "store", *device],
        "evaluate": ["evaluate", model, *source[2:], "--run", disk / "run.trec", *device],
        "train": ["train", "--variant", "maw-lora", *short],
        "full": ["train", "--variant", "dense-full", *short],
        "benchmark": ["benchmark", "--variants", "untuned", *source, "--output", disk / "o", *device],
    }[command]


@pytest.mark.parametrize(
    ("command", "disk"),
    [
        ("encode", "40k"),
        ("evaluate", "40k"),
        ("train", "16k"),
        ("train", "200k"),
        ("full", "3m"),
        ("full", "12m"),
        pytest.param("full", "22m", marks=pytest.mark.slow),
        ("benchmark", "24k"),
        pytest.param("benchmark", "120k", marks=pytest.mark.slow),
    ],
    indirect=["disk"],
)
def test_a_command_says_where_there_was_no_room(command, disk, model, data, capsys):
    assert main([str(word) for word in words(command, disk, model, data)]) == 2
    said = capsys.readouterr().err
    line = next(line for line in said.splitlines() if line.startswith("maw: "))
    assert str(disk) in line
    assert re.search("No space left on device|could not write all|has room for", line)
    assert not list(disk.rglob("*.part"))


@pytest.mark.parametrize("disk", ["200k"], indirect=True)
def test_a_store_of_texts_says_it(disk):
    many = ((str(i), "") for i in range(20_000))
    with pytest.raises(MAWError, match=f"cannot write the store {disk}/s: No space left on device"):
        build_store(disk / "s", many, {}, None)


@pytest.mark.parametrize("disk", ["200k"], indirect=True)
def test_what_every_library_raises_is_known(disk):
    big = torch.zeros(1_000_000)
    ways = {
        "torch": lambda path: torch.save(big, path),
        "torch, small tensors": lambda path: torch.save({i: torch.zeros(10) for i in range(3000)}, path),
        "torch, before 1.6": lambda path: torch.save(big, path, _use_new_zipfile_serialization=False),
        "safetensors": lambda path: save_file({"a": big}, path),
        "numpy": lambda path: np.save(path, big.numpy()),
        "pyarrow": write_parquet,
    }
    for name, write in ways.items():
        path = disk / "file.npy"
        said = f"{path} could not be written: .*free some"
        with pytest.raises(MAWError, match=said), saying_that_the_disk_is_full(path):
            write(path)
        path.unlink(missing_ok=True)
        with pytest.raises(Exception) as raised:  # noqa: PT011
            write(path)
        assert refused_as_full(raised.value), name
        path.unlink(missing_ok=True)


def write_parquet(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": np.random.default_rng(0).random(100_000)}), path)


def test_a_damaged_file_is_no_full_disk(tmp_path):
    torch.save(torch.zeros(100_000), tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:200_000])
    with pytest.raises(Exception) as raised:  # noqa: PT011
        torch.load(tmp_path / "a.pt")
    assert "inline_container" in str(raised.value) or "Reader" in str(raised.value)
    assert refused_as_full(raised.value) is None
