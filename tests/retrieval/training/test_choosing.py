"""Which split chooses checkpoints: by its name, in training as in what is reported."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import toys
from toys import SETTINGS, encoder

from maw.benchmark.plan import evaluation_splits
from maw.errors import MAWError
from maw.retrieval.data.dataset import RetrievalDataset
from maw.retrieval.data.loading import load_dataset
from maw.retrieval.data.report import render_report
from maw.retrieval.evaluation import development
from maw.retrieval.evaluation.assessment import assess_model
from maw.retrieval.evaluation.development import DevEvaluator
from maw.retrieval.evaluation.measures import evaluate
from maw.retrieval.training.fine_tuning import train


def renamed(**names):
    """The toy task with other names of its splits."""
    data = toys.toy()
    return replace(data, qrels={names.get(split, split): judged for split, judged in data.qrels.items()})


@pytest.mark.parametrize(
    ("names", "chooses", "reported"),
    [
        ({}, "dev", ("test",)),
        ({"dev": "valid"}, "valid", ("test",)),
        ({"dev": "dev/small"}, "dev/small", ("dev/small", "test")),
        ({"dev": "dev.small", "test": "dev"}, "dev", ("dev.small",)),
        ({"dev": "devices"}, None, ("devices", "test")),
        ({"dev": "dl19"}, None, ("dl19", "test")),
    ],
)
def test_which_split_chooses_and_which_are_reported(names, chooses, reported):
    data = renamed(**names)
    assert data.dev_split == chooses
    assert data.reported_splits == reported
    assert evaluation_splits(data) == list(reported)
    both = chooses in reported
    assert data.report()["dev"] == (None if chooses is None else {"split": chooses, "reported": both})
    assert ("AND is reported" in render_report(data)) == both
    assert ("a training keeps its last epoch" in render_report(data)) == (chooses is None)


def test_no_split_that_chooses_is_refused_by_the_evaluator():
    with pytest.raises(MAWError, match="wanted a split that chooses checkpoints, such as dev: it has none"):
        DevEvaluator(renamed(dev="dl19"), 5, 0)


def argumentative():
    """Queries that are documents, as in ArguAna, so that each finds itself first."""
    documents = toys.toy().documents
    chosen = {f"d{number}": {f"d{number + 1}": 1} for number in range(8)}
    splits = {"train": dict(list(chosen.items())[:4]), "dev": dict(list(chosen.items())[4:]), "test": {"d9": {"d0": 1}}}
    return RetrievalDataset.from_parts("argued", documents, dict(documents), splits, drop_own=True)


def test_checkpoints_are_chosen_by_the_metric_that_is_reported():
    data, model = argumentative(), encoder()
    chosen = DevEvaluator(data, len(data.documents), 0)(model)["dev_nDCG@10"]
    assert chosen == assess_model(model, data, "dev").evaluation.means["nDCG@10"]
    found = DevEvaluator(replace(data, drop_own=False), len(data.documents), 0)(model)["dev_nDCG@10"]
    assert found < chosen, "each query finds itself first"


def test_a_query_whose_own_document_is_dropped_still_has_all_ranks(monkeypatch):
    data = argumentative()
    monkeypatch.setattr(development, "DEPTH", 5)
    depths = []
    monkeypatch.setattr(
        development, "evaluate", lambda judged, run, _: depths.extend(map(len, run.values())) or evaluate(judged, run)
    )
    DevEvaluator(data, len(data.documents), 0)(encoder())
    assert depths == [5] * 4


def test_a_training_that_drops_own_documents_is_another(tmp_path):
    train(encoder(), argumentative(), tmp_path, SETTINGS)
    with pytest.raises(MAWError, match=r"other settings \(drop_own true, now false\)"):
        train(encoder(), replace(argumentative(), drop_own=False), tmp_path, SETTINGS)


@pytest.fixture
def marco(tmp_path, monkeypatch):
    """Real queries and passages in MS MARCO's layout: train and dev.small from the pool's dev, and dl19."""
    root = os.environ.get("MAW_DATA")
    if not root or not (Path(root) / "msmarco-passage-pool").is_dir():
        pytest.skip("MAW_DATA has no msmarco-passage-pool: name the folder that holds it")
    monkeypatch.setenv("MAW_CACHE", str(tmp_path / "cache"))
    pool = load_dataset(f"beir:{Path(root) / 'msmarco-passage-pool'}")
    dev = list(pool.qrels["dev"].items())
    splits = {"train": dict(dev[:8]), "dev.small": dict(dev[8:12]), "dl19": dict(list(pool.qrels["dl19"].items())[:2])}
    (folder := tmp_path / "marco").mkdir()
    named = {document for judged in splits.values() for row in judged.values() for document in row}
    lines = {"collection": [f"{name}\t{pool.documents[name]}" for name in sorted(named)]}
    for split, judged in splits.items():
        lines[f"queries.{split}"] = [f"{query}\t{pool.queries[query]}" for query in judged]
        lines[f"qrels.{split}"] = [
            f"{query} 0 {name} {grade}" for query, row in judged.items() for name, grade in row.items()
        ]
    for name, rows in lines.items():
        (folder / f"{name}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def test_dev_small_chooses_the_best_epoch_of_ms_marco_and_says_so(marco, tmp_path):
    data = load_dataset(f"msmarco:{marco}")
    assert "dev.small chooses checkpoints AND is reported" in render_report(data)
    settings = replace(SETTINGS, positives_per_query=1)
    outcome = train(encoder(), data, tmp_path / "training", settings)
    log = [json.loads(line) for line in (tmp_path / "training" / "log.jsonl").read_text().splitlines()]
    measured = [entry["dev_nDCG@10"] for entry in log if "dev_nDCG@10" in entry]
    assert len(measured) == settings.epochs
    assert outcome["dev_nDCG@10"] == max(measured)
    (marco / "qrels.dl19.tsv").rename(marco / "qrels.dev.tsv")  # queries of one's own keep dev.small apart
    (marco / "queries.dl19.tsv").rename(marco / "queries.dev.tsv")
    data = load_dataset(f"msmarco:{marco}")
    assert (data.dev_split, data.reported_splits) == ("dev", ("dev.small",))
    assert "  dev chooses checkpoints\n" in render_report(data) + "\n"
