"""What a benchmark writes beside its figures (`benchmarks/measuring.py`): the command that repeats them."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def measuring():
    spec = importlib.util.spec_from_file_location("measuring", ROOT / "benchmarks" / "measuring.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("--device cuda --k 10 --faiss", "--device cuda --k 10 --faiss"),
        ("", ""),
        ("--folder /disk/stores/ --corpus=/disk/a/corpus.jsonl", "--folder stores --corpus=corpus.jsonl"),
        ("--folder ../../elsewhere/stores", "--folder stores"),
        ("--folder {root}/build/x --model {root}/../model", "--folder build/x --model model"),
        ("--model owner/name --memory 1000,2000", "--model owner/name --memory 1000,2000"),
        ("--output /disk/x.json --k 10 --commit abc", "--k 10"),
        ("--output=/disk/x.json --out x.json --c abc --k 10", "--k 10"),
        ("--passages 10 20 --", "--passages 10 20 --"),
    ],
)
def test_the_command_is_the_one_that_was_typed_without_places(measuring, typed, expected, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = [f"{ROOT}/benchmarks/search.py", *typed.format(root=ROOT).split()]
    assert measuring.command_line(words) == f"python benchmarks/search.py {expected}".strip()


def test_a_name_with_a_blank_is_quoted(measuring):
    assert measuring.command_line(["search.py", "--folder", "/a/my stores"]).endswith("--folder 'my stores'")


def test_a_folder_that_is_there_is_shown_by_its_name(measuring, tmp_path, monkeypatch):
    (tmp_path / "a" / "stores").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert (
        measuring.command_line(["search.py", "--folder", "a/stores"]) == "python benchmarks/search.py --folder stores"
    )


def test_a_results_file_has_the_command_and_names_no_place(measuring, tmp_path, monkeypatch):
    path = tmp_path / "found.json"
    words = ["benchmarks/corpus.py", "--folder", str(tmp_path), "--passages", "7", "--output", str(path)]
    monkeypatch.setattr(sys, "argv", words)
    measuring.finish({"x": 1}, torch.device("cpu"), argparse.Namespace(output=path, commit="abc"))
    found = json.loads(path.read_text())
    assert found["command"] == f"python benchmarks/corpus.py --folder {tmp_path.name} --passages 7"
    assert found["environment"]["commit"] == "abc"
    assert found["x"] == 1
    assert str(tmp_path.parent) not in path.read_text()
