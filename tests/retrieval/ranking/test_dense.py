from __future__ import annotations

import pytest
import torch
from toys import WORDS, encoder

from maw.errors import MAWError
from maw.retrieval.data.text_writer import build_store
from maw.retrieval.ranking import dense
from maw.retrieval.ranking.dense import dense_runs, encode
from maw.retrieval.ranking.runs import ranked

DOCUMENTS = {f"d{i * 7 % 23}": f"{WORDS[i % 10]} " * (i % 5 + 1) + f"of {i // 2}" for i in range(23)}
QUERIES = {"dev": {"q1": "a river"}, "test": {f"t{i}": f"about {word}" for i, word in enumerate(WORDS)}}


@pytest.fixture(scope="module")
def model():
    return encoder()


@pytest.mark.parametrize("kept", ["memory", "disk"])
@pytest.mark.parametrize("block", [1, 7, 23, 1000])
def test_a_run_does_not_depend_on_blocks_nor_on_where_the_texts_are(model, tmp_path, monkeypatch, kept, block):
    expected = dense_runs(model, DOCUMENTS, QUERIES, k=9)
    monkeypatch.setattr(dense, "BLOCK", block)
    documents = DOCUMENTS
    if kept == "disk":
        documents = build_store(tmp_path / "texts", iter(DOCUMENTS.items()), {}, pytest.fail)
    runs = dense_runs(model, documents, QUERIES, k=9)
    assert {split: list(run) for split, run in runs.items()} == {split: list(texts) for split, texts in QUERIES.items()}
    for split, run in runs.items():
        assert ranked(run) == ranked(expected[split])
        for query, found in run.items():
            assert found == pytest.approx(expected[split][query], abs=1e-6)


def test_documents_are_encoded_once_and_given_up(model, monkeypatch):
    asked = []

    def noting(model, texts, kind, **options):
        asked.append((kind, len(texts)))
        return encode(model, texts, kind, **options)

    monkeypatch.setattr(dense, "encode", noting)
    monkeypatch.setattr(dense, "BLOCK", 10)
    dense_runs(model, DOCUMENTS, QUERIES)
    assert asked == [("query", 11), ("document", 10), ("document", 10), ("document", 3)]


def test_a_vector_that_is_not_finite_is_named_by_its_place(monkeypatch):
    broken = encoder()
    order = sorted(DOCUMENTS, reverse=True)
    ends = [DOCUMENTS[name].rpartition(" ")[2] for name in order]
    number, place = next((number, ends.index(number)) for number in ends if ends.index(number) > 4)
    with torch.no_grad():
        token = broken.tokenizer(number)["input_ids"][1]
        broken[0].model.embeddings.word_embeddings.weight[token] = float("nan")
    monkeypatch.setattr(dense, "BLOCK", 4)
    with pytest.raises(MAWError, match=f"the model's vector of document {place} is not finite"):
        dense_runs(broken, DOCUMENTS, QUERIES)
