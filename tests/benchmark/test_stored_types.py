"""A benchmark from a folder in bfloat16, with prompts: its rows are what `maw evaluate` says of the saved models."""

from __future__ import annotations

import json

import pytest
from sentence_transformers import SentenceTransformer

from maw.cli import main
from maw.hf.weights import set_weights_type, weights_type
from maw.retrieval.models import choose_device, load_encoder

PROMPTS = ["--query-prompt", "query: ", "--document-prompt", "passage: "]
SMALL = ["--batch-size", "5", "--epochs", "1", "--max-length", "16", "--device", "cpu", "--maw-depth-dim", "8"]


@pytest.fixture(scope="module")
def folder(tiny_model, toy_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("half")
    model = load_encoder(str(tiny_model), device=choose_device("cpu"))
    set_weights_type(model, "bfloat16")
    model.save_pretrained(str(folder / "base"), create_model_card=False)
    words = ["benchmark", "--dataset", f"beir:{toy_data}", "--model", str(folder / "base"), "--variants", "maw-full"]
    assert main([*words, "--output", str(folder / "results"), *SMALL, *PROMPTS]) == 0
    return folder


@pytest.mark.slow
def test_rows_are_what_evaluate_says_of_the_saved_models(folder, toy_data, capsys):
    results = json.loads((folder / "results" / "results.json").read_text())
    capsys.readouterr()
    for name in ("dense-full", "maw-full"):
        saved = folder / "results" / "models" / f"{name}-seed0"
        assert weights_type(SentenceTransformer(str(saved), device="cpu")) == "bfloat16"
        words = ["evaluate", str(saved), "--dataset", f"beir:{toy_data}", "--device", "cpu", "--max-length", "16"]
        assert main([*words, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert any("computed in bfloat16" in note for note in said["notes"])
        state = json.loads((folder / "results" / "state" / f"{name}-seed0.json").read_text())
        assert state["metrics"]["test"] == said["measures"]
        assert state["dtype"] == {"loaded": "bfloat16", "trained": "float32", "saved": "bfloat16"}
        assert state["prompts"] == {"query": "query: ", "document": "passage: "}
    assert results


def test_a_benchmark_with_other_prompts_is_refused(folder, toy_data, capsys):
    words = ["benchmark", "--dataset", f"beir:{toy_data}", "--model", str(folder / "base"), "--variants", "maw-full"]
    assert main([*words, "--output", str(folder / "results"), *SMALL]) == 2
    assert "a benchmark with other" in capsys.readouterr().err
