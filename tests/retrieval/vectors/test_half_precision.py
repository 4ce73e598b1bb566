"""A store says in which type the model was computed, and is searched in it: weights in half precision included."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from toys import WORDS, encoder

from maw.cli import main
from maw.hf.weights import HALF, set_weights_type, weights_type
from maw.retrieval.models import choose_device, load_encoder
from maw.retrieval.ranking.dense import encode
from maw.retrieval.vectors.corpus_encoding import EncodingSettings, encode_corpus
from maw.retrieval.vectors.store import VectorStore
from maw.retrieval.vectors.store_search import search_store

TEXTS = {f"d{place}": f"what a {word} is, and a {WORDS[place - 1]}" for place, word in enumerate(WORDS)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus, and the tiny encoder stored in every type."""
    folder = tmp_path_factory.mktemp("half")
    rows = [json.dumps({"_id": name, "text": text}) for name, text in TEXTS.items()]
    (folder / "corpus.jsonl").write_text("\n".join(rows) + "\n")
    for kind in ("float32", *HALF):
        model = encoder()
        set_weights_type(model, kind)
        model.save_pretrained(str(folder / kind), create_model_card=False)
    return folder


def load(folder):
    return load_encoder(str(folder), device=choose_device("cpu"))


@pytest.mark.parametrize(
    ("kind", "asked", "wanted"),
    [
        ("float32", None, "float32"),
        ("bfloat16", None, "bfloat16"),
        ("float16", None, "float16"),
        ("bfloat16", "float32", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float32", "bfloat16", "bfloat16"),
        ("float16", "bfloat16", "bfloat16"),
    ],
)
def test_the_manifest_says_what_was_computed_and_the_store_is_searched_so(folder, tmp_path, kind, asked, wanted):
    encode_corpus(load(folder / kind), folder / "corpus.jsonl", tmp_path / "store", EncodingSettings("float32", asked))
    store = VectorStore(tmp_path / "store")
    assert store.plan.settings["precision"] == wanted
    plain = load(folder / kind)
    if asked == "float32":
        set_weights_type(plain, "float32")
    if asked in (None, "float32", kind):  # without autocast: the vectors of the model as it is called
        assert np.allclose(store[0 : len(store)], encode(plain, list(TEXTS.values()), "document").numpy(), atol=1e-6)
    model = load(folder / kind)
    ((_, hits),) = search_store(model, store, {"q": TEXTS["d3"]}, 3)
    assert hits[0].document == "d3"
    assert weights_type(model) == (kind if asked in (None, kind) else "float32")


@pytest.mark.parametrize("kind", HALF)
def test_vectors_of_half_precision_models_have_unit_length_in_float32(folder, kind):
    length = encode(load(folder / kind), list(TEXTS.values()), "document").norm(dim=1)
    assert torch.allclose(length, torch.ones_like(length), atol=1e-6)


def test_by_command(folder, tmp_path, capsys):
    model, corpus, store = str(folder / "bfloat16"), str(folder / "corpus.jsonl"), str(tmp_path / "store")
    assert main(["encode", model, corpus, "--output", store, "--device", "cpu"]) == 0
    assert json.loads((tmp_path / "store" / "manifest.json").read_text())["settings"]["precision"] == "bfloat16"
    capsys.readouterr()
    assert main(["search", model, store, TEXTS["d4"], "--device", "cpu", "--k", "1"]) == 0
    assert "d4" in capsys.readouterr().out
