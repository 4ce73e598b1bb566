"""Published figures come out on real data (MAW_DATA)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import maw
from maw.retrieval.data.loading import load_dataset
from maw.retrieval.evaluation.measures import evaluate
from maw.retrieval.models import choose_device, load_encoder
from maw.retrieval.ranking.dense import dense_runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("MAW_DATA" not in os.environ, reason="MAW_DATA is not set: name the folder that holds nfcorpus"),
]


def test_minilm_on_nfcorpus_with_maw_freshly_attached():
    """nDCG@10 .31594, the published figure of the plain encoder: attaching MAW changes nothing."""
    dataset = load_dataset(f"beir:{Path(os.environ['MAW_DATA']) / 'nfcorpus'}")
    queries, judged = dataset.evaluation_split("test")
    model = load_encoder("packaged", device=choose_device())
    maw.attach(model, maw.MAWConfig())
    runs = dense_runs(model, dataset.documents, {"test": queries})
    assert evaluate(judged, runs["test"], ["nDCG@10"]).means["nDCG@10"] == pytest.approx(0.31594, abs=0.0005)
