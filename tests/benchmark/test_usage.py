from __future__ import annotations

import json

import pytest
import torch

from maw.benchmark import usage
from maw.benchmark.usage import depth_usage
from maw.config import MAWConfig
from maw.hf.attach import attach, maw_layers
from maw.inspection import inspect
from maw.retrieval.data.loading import load_dataset
from maw.retrieval.models import choose_device, load_encoder


@pytest.fixture
def parts(tiny_model, toy_data):
    return load_encoder(str(tiny_model), device=choose_device("cpu"), max_length=16), load_dataset(f"beir:{toy_data}")


def test_it_is_the_mean_weights_of_queries_and_of_documents(parts):
    model, dataset = parts
    attach(model, MAWConfig(layers="all", depth=5, tau=3.0))  # at which weights are not the policy
    for layer in maw_layers(model):
        torch.nn.init.normal_(layer.selector.policy_network[-1].weight, std=2.0)
    model.eval()
    found = depth_usage(model, dataset, ["test"])
    assert found["layers"] == [0, 1]
    assert found["texts"] == {"query": 6, "document": 20}
    asked = [dataset.queries[query] for query in dataset.judgements("test")]
    for kind, texts in (("query", asked), ("document", list(dataset.documents.values()))):
        for layer in (0, 1):
            seen = torch.stack([text.depth_weight for text in inspect(model, texts, layer=layer).texts]).mean(dim=0)
            torch.testing.assert_close(torch.tensor(found[kind][layer]), seen, atol=2e-6, rtol=0)
    assert found["query"] != found["document"]
    assert all(not layer._forward_pre_hooks and not layer.records for layer in maw_layers(model))


def test_of_many_texts_some_are_looked_at(parts, monkeypatch):
    model, dataset = parts
    attach(model, MAWConfig(depth=5))
    monkeypatch.setattr(usage, "TEXTS", 7)
    assert depth_usage(model, dataset, ["test"])["texts"] == {"query": 6, "document": 7}


@pytest.mark.parametrize(
    "config", [None, MAWConfig(depth=5, selection="uniform"), MAWConfig(depth=5, mechanism="ia3-key")]
)
def test_without_a_policy_there_is_none(parts, config):
    model, dataset = parts
    if config is not None:
        attach(model, config)
    assert depth_usage(model, dataset, ["test"]) is None


def test_a_benchmark_keeps_it(small_benchmark):
    results = json.loads((small_benchmark.output / "results.json").read_text())
    (one,) = results["depth_usage"]
    assert (one["variant"], one["seed"], one["layers"]) == ("maw-full", 0, [0, 1])
    assert one["texts"] == {"query": 160, "document": 173}, "every second one of 320 and 346"
    for kind in ("query", "document"):
        assert [sum(layer) for layer in one[kind]] == pytest.approx([1, 1], abs=1e-4)
