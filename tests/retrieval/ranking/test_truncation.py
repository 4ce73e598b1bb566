"""Who is told that texts are cut: a count that a plain tokenizer confirms."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoTokenizer

from maw.cli import main
from maw.retrieval.models import load_encoder, packaged_encoder
from maw.retrieval.ranking import truncation
from maw.retrieval.ranking.truncation import count_truncated, dataset_truncation


@pytest.fixture
def encoder():
    return load_encoder("packaged", device=torch.device("cpu"), max_length=6)


TEXTS = ["a b", "a b c d", "a b c d e", "a " * 40]


def test_the_count_is_the_tokenizers(encoder):
    lengths = [len(ids) for ids in AutoTokenizer.from_pretrained(packaged_encoder())(TEXTS)["input_ids"]]
    found = count_truncated(encoder, TEXTS, "document", len(TEXTS))
    assert (found.truncated, found.longest) == (sum(length > 6 for length in lengths), max(lengths))
    assert 0 < found.truncated < len(TEXTS)


def test_prompts_take_room(encoder):
    before = count_truncated(encoder, TEXTS, "query", len(TEXTS))
    encoder.prompts = {"query": "a a ", "document": ""}
    found = count_truncated(encoder, TEXTS, "query", len(TEXTS))
    assert found.longest == before.longest + 2
    assert found.truncated > before.truncated
    assert count_truncated(encoder, TEXTS, "document", len(TEXTS)).longest == before.longest


def test_of_many_texts_some_at_even_distances_are_looked_at(encoder, monkeypatch):
    monkeypatch.setattr(truncation, "SAMPLE", 10)
    documents = {str(number): "a " * (30 if number < 20 else 1) for number in range(40)}
    _, found = dataset_truncation(encoder, {"q": "a"}, documents)
    assert (found.texts, found.looked_at, found.truncated) == (40, 10, 5)
    assert str(found) == "documents: 5 of 10 looked at (50.0 %) are cut at 6 tokens, the longest has 32"


def test_the_tokenizer_cuts_again_afterwards(encoder):
    before = encoder.encode(TEXTS)
    count_truncated(encoder, TEXTS, "document", len(TEXTS))
    assert (encoder.encode(TEXTS) == before).all()


def test_commands_say_it(tmp_path, capsys):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"_id": str(n), "title": "", "text": t}) + "\n" for n, t in enumerate(TEXTS)))
    assert main(["encode", "packaged", str(corpus), "--output", str(tmp_path / "store"), "--max-length", "6"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "documents: 2 of 4 (50.0 %) are cut at 6 tokens, the longest has 42" in said
