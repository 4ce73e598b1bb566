"""A random encoder and a toy BEIR folder, small enough for a whole benchmark in seconds."""

from __future__ import annotations

import json

import growing
import pytest
import torch
from transformers import BertModel

from maw.retrieval.models import choose_device, load_encoder

WORDS = [
    "river",
    "engine",
    "violin",
    "glacier",
    "parliament",
    "enzyme",
    "harbour",
    "theorem",
    "orchard",
    "satellite",
    "lantern",
    "compass",
    "mill",
    "quarry",
    "tunnel",
    "vineyard",
    "anvil",
    "beacon",
    "canal",
    "dune",
]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a random two-layer BERT behind the packaged encoder's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    model = load_encoder("packaged", device=choose_device("cpu"))
    torch.manual_seed(0)
    small = model[0].model.config
    small.num_hidden_layers, small.hidden_size, small.intermediate_size, small.initializer_range = 2, 48, 64, 0.2
    model[0].model = BertModel(small).eval()
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory):
    """A BEIR folder: twenty passages, one query each, split 10 / 4 / 6."""
    folder = tmp_path_factory.mktemp("data") / "toy"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{i}", "title": word, "text": f"A passage about a {word}."} for i, word in enumerate(WORDS)]
    queries = [{"_id": f"q{i}", "text": f"what is a {word}"} for i, word in enumerate(WORDS)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    for split, ids in (("train", range(10)), ("dev", range(10, 14)), ("test", range(14, 20))):
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in ids)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def small_benchmark(tiny_model, tmp_path_factory):
    """A finished benchmark: bm25, untuned, dense-full and maw-full with one seed, on two test splits."""
    base = tmp_path_factory.mktemp("small")
    return growing.real_benchmark(tiny_model, growing.make_data(base / "data", WORDS, 240), base / "out")
