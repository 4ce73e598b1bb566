"""Prompts stand before every text that training reads, as they do where the model is used."""

from __future__ import annotations

import dataclasses
import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from toys import SETTINGS, encoder, toy

import maw
from maw.benchmark.tuning import save_model, tune
from maw.benchmark.variants import VARIANTS
from maw.cli import main
from maw.hf.attach import maw_layers
from maw.retrieval.identity import set_prompts
from maw.retrieval.models import choose_device, load_encoder
from maw.retrieval.training.fine_tuning import train
from maw.retrieval.training.negatives import NegativeSettings, mine
from maw.retrieval.training.probe import probe
from maw.retrieval.training.rollouts import Rollouts

QUERY, DOCUMENT = "query: ", "passage: "
ONCE = dataclasses.replace(SETTINGS, epochs=1)


@contextmanager
def watched(model):
    """What the encoder is given meanwhile: (in training, the ids of every text without padding)."""
    seen = []

    def note(module, arguments):
        rows = arguments[0].tolist()
        seen.append((module.training, [tuple(token for token in row if token != padding) for row in rows]))

    padding = model.tokenizer.pad_token_id
    handle = model[0].model.get_input_embeddings().register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def ids_of(model, kind, texts):
    """What `model.encode_query` or `encode_document` gives the encoder, for each text."""
    with watched(model) as seen:
        for text in texts:
            getattr(model, f"encode_{kind}")(text, show_progress_bar=False)
    return [row for _, rows in seen for row in rows]


def prompted(config=None, *, pooled=True):
    model = encoder(config)
    set_prompts(model, QUERY, DOCUMENT)
    model.set_pooling_include_prompt(pooled)
    return model


def of_the_data(model):
    data = toy()
    return set(ids_of(model, "query", data.queries.values())), set(ids_of(model, "document", data.documents.values()))


@pytest.mark.parametrize("changes", [{}, {"mini_batch_size": 2}, {"hard_negatives": 1}])
def test_training_reads_what_encode_query_and_encode_document_feed(tmp_path, changes):
    model = prompted()
    queries, documents = of_the_data(model)
    start = tuple(model.tokenizer(QUERY)["input_ids"][:-1])
    assert all(ids[: len(start)] == start for ids in queries)
    with watched(model) as seen:
        train(model, toy(), tmp_path, dataclasses.replace(ONCE, **changes))
    columns = [set(rows) for training, rows in seen if training]
    assert columns
    assert all(rows <= queries or rows <= documents for rows in columns)
    assert {ids for rows in columns for ids in rows} >= set(ids_of(model, "query", ["meaning of river"]))


def test_all_that_training_looks_at_has_prompts(tmp_path):
    """Calibration, rollouts, probes, negatives and dev, in a training with all of them."""
    model = prompted(maw.MAWConfig(depth=4, calibrate=True, reward="retrieval"))
    queries, documents = of_the_data(model)
    with watched(model) as seen:
        train(model, toy(), tmp_path, dataclasses.replace(ONCE, hard_negatives=1, negatives="model"))
    strange = {ids for _, rows in seen for ids in rows} - queries - documents
    assert not strange, model.tokenizer.batch_decode(list(strange)[:3])


@pytest.mark.parametrize("pooled", [True, False])
def test_the_training_forward_makes_the_vectors_of_inference(tmp_path, pooled):
    model = prompted(pooled=pooled)
    kept = []
    handle = model.register_forward_hook(
        lambda module, given, made: (
            kept.append((made["input_ids"], made["sentence_embedding"].detach().clone())) if module.training else None
        )
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    train(model, toy(), tmp_path, dataclasses.replace(ONCE, learning_rate=1e-12, weight_decay=0.0))
    handle.remove()
    texts = toy().queries["q0"], toy().documents["d0"]
    for kind, text in zip(("query", "document"), texts, strict=True):
        (wanted,) = ids_of(model, kind, [text])
        vector = getattr(model, f"encode_{kind}")(text, convert_to_tensor=True)
        found = [
            v for ids, vs in kept for row, v in zip(ids, vs, strict=True) if row.tolist()[: len(wanted)] == [*wanted]
        ]
        assert found
        torch.testing.assert_close(found[0], vector, atol=2e-5, rtol=1e-4)


def test_rollouts_leave_the_prompt_out_where_pooling_does():
    model = prompted(maw.MAWConfig(depth=4, reward="retrieval"), pooled=False).train()
    given = model.preprocess(["a river", "an engine"], prompt=QUERY)
    rollouts = Rollouts(model, maw_layers(model), scale=20.0)
    with rollouts.watching():
        model(dict(given))
        model(dict(given))
    lengths = []
    handle = model[1].register_forward_pre_hook(lambda module, arguments: lengths.append(arguments[0]["prompt_length"]))
    rollouts.losses()
    handle.remove()
    assert lengths == [given["prompt_length"]] * 2


def test_a_probe_reads_queries_and_documents_with_their_prompts():
    model = prompted(maw.MAWConfig(depth=4))
    queries, documents = ["a river"], ["an engine with a violin and a glacier"]
    wanted = {*ids_of(model, "query", queries), *ids_of(model, "document", documents)}
    with watched(model) as seen:
        found = probe(model, queries, documents)
    assert {ids for _, rows in seen for ids in rows} == wanted
    assert found["mask_error"] < 1e-4


def test_negatives_found_with_another_prompt_are_not_used(tmp_path):
    settings = NegativeSettings(source="dense", per_query=1, depth=3)
    for prompt in ("", QUERY):
        model = encoder()
        set_prompts(model, prompt, None)
        with watched(model) as seen:
            mine(toy(), settings, model=model, cache=tmp_path)
        assert seen, "found in the cache of another prompt"
        with watched(model) as seen:
            mine(toy(), settings, model=model, cache=tmp_path)
        assert not seen


def test_prompts_are_saved_said_and_used_again(tmp_path, capsys):
    """`maw train` with prompts: the folder has them, log and card say them, and `encode` uses them."""
    base = encoder()
    base.save_pretrained(str(tmp_path / "base"), create_model_card=False)
    model = load_encoder(str(tmp_path / "base"), device=choose_device("cpu"), max_length=16)
    settings = dataclasses.replace(ONCE, query_prompt=QUERY, document_prompt=DOCUMENT)
    tuned = tune(model, VARIANTS["maw-full"], {"depth": 4}, toy(), settings, tmp_path / "work")
    save_model(tuned, tmp_path / "model", base="base", dataset=toy(), metrics={})
    assert tuned.outcome["prompts"] == {"query": QUERY, "document": DOCUMENT}
    first = json.loads((tmp_path / "work" / "log.jsonl").read_text().splitlines()[0])
    assert first["prompts"] == {"query": QUERY, "document": DOCUMENT}
    card = (tmp_path / "model" / "README.md").read_text()
    assert '"query: " stood before every query' in card
    again = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert np.array_equal(again.encode_query("a river"), again.encode(QUERY + "a river"))
    assert np.array_equal(again.encode_document("a river"), again.encode(DOCUMENT + "a river"))


def test_a_prompt_that_would_be_lost_on_reload_is_kept(tmp_path):
    """Sentence Transformers adds an empty prompt "document" when it loads, which stands before "passage"."""
    model = encoder()
    model.prompts = {"query": QUERY, "passage": DOCUMENT}
    before = model.encode_document("a river")
    train(model, toy(), tmp_path / "work", dataclasses.replace(ONCE, learning_rate=1e-12, weight_decay=0.0))
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    again = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert np.allclose(again.encode_document("a river"), before, atol=1e-5)


def test_a_prompt_that_nothing_uses_is_said(tmp_path, caplog):
    model = encoder()
    model.prompts = {"query": QUERY, "passage": DOCUMENT}
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    load_encoder(str(tmp_path / "model"), device=choose_device("cpu"))
    assert 'documents are encoded without "passage: "' in caplog.text


def test_by_command(tmp_path, capsys):
    encoder().save_pretrained(str(tmp_path / "base"), create_model_card=False)
    words = ["train", "--variant", "dense-full", "--model", str(tmp_path / "base"), "--output", str(tmp_path / "model")]
    given = ["--query-prompt", QUERY, "--document-prompt", DOCUMENT, "--max-length", "16", "--device", "cpu"]
    data = tmp_path / "data"
    (data / "qrels").mkdir(parents=True)
    toys = toy()
    for name, texts in (("queries", toys.queries), ("corpus", toys.documents)):
        rows = [json.dumps({"_id": key, "text": text}) for key, text in texts.items()]
        (data / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    for split in ("train", "test"):
        rows = [f"{query}\t{name}\t1" for query, row in toys.judgements(split).items() for name in row]
        (data / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n")
    assert main([*words, *given, "--dataset", f"beir:{data}", "--batch-size", "4", "--epochs", "1"]) == 0
    assert "prompts: {'query': 'query: ', 'document': 'passage: '}" in capsys.readouterr().out
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert (model.prompts["query"], model.prompts["document"]) == (QUERY, DOCUMENT)
