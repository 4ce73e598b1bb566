"""Controls as rows of a benchmark and as trained models."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import growing
import pytest
import torch
from sentence_transformers import SentenceTransformer

import maw
from maw.benchmark.plan import Benchmark
from maw.benchmark.variants import LOGIT_DROPOUT, VARIANTS
from maw.cli import main
from maw.controls import CONTROLS
from maw.functional import transform_query
from maw.hf.attach import carried, maw_layers
from maw.options import MAWOptions
from maw.retrieval.models import choose_device, load_encoder
from maw.selector import depth_weights

SMALL = ["--batch-size", "5", "--epochs", "1", "--max-length", "16", "--device", "cpu", "--maw-depth-dim", "8"]
NAMES = ",".join(CONTROLS)
DEFAULT = maw.MAWConfig()


@pytest.fixture(scope="module")
def finished(tiny_model, toy_data, tmp_path_factory):
    output = tmp_path_factory.mktemp("controls") / "toy"
    given = ["--dataset", f"beir:{toy_data}", "--model", str(tiny_model), "--output", str(output)]
    with growing.report_at_the_end():
        assert main(["benchmark", *given, *SMALL, "--variants", f"{NAMES},maw-full"]) == 0
    return output


def test_controls_are_rows_beside_their_dense_twin(finished):
    results = json.loads((finished / "results.json").read_text())
    rows = {row["variant"]: row for row in results["rows"]}
    assert set(rows) == {"untuned", "dense-full", "maw-full", *CONTROLS}
    assert {(one["variant"], one["baseline"]) for one in results["comparisons"]} == {
        (name, "dense-full") for name in ("maw-full", *CONTROLS)
    }
    trained = {name: row["trainable_parameters"] for name, row in rows.items()}
    heads, channels = 12, 4
    assert trained["logit-dropout"] == trained["dense-full"]
    assert trained["ia3-key"] == trained["dense-full"] + heads * channels
    assert abs(trained["linear-gate"] - trained["maw-full"]) <= heads * channels
    for name in CONTROLS:
        assert rows[name]["selector"] is None
        assert rows[name]["seeds"]["maw"] == 0
        assert not [found for found in rows[name]["findings"] if found["name"] != "below untuned"]
        assert name in (finished / "report.html").read_text()


@pytest.mark.parametrize("mechanism", CONTROLS)
def test_their_models_load_with_their_settings(finished, mechanism):
    model = SentenceTransformer(str(finished / "models" / f"{mechanism}-seed0"), device="cpu")
    (layer,) = carried(model)
    assert type(layer) is CONTROLS[mechanism]
    assert not maw_layers(model)
    assert layer.config.logit_dropout == (
        0.1 if mechanism != "logit-dropout" else VARIANTS[mechanism].changes["logit_dropout"]
    )
    assert mechanism in (finished / "models" / f"{mechanism}-seed0" / "README.md").read_text()


@pytest.mark.parametrize("mechanism", CONTROLS)
def test_a_control_is_trained_by_its_name_at_maws_learning_rate(tiny_model, toy_data, tmp_path, mechanism):
    given = ["--dataset", f"beir:{toy_data}", "--model", str(tiny_model), "--output", str(tmp_path / "model")]
    settings = ["--maw-settings", json.dumps({"learning_rate": 0.5})]
    assert main(["train", "--variant", mechanism, *given, *SMALL, *settings]) == 0
    (layer,) = carried(SentenceTransformer(str(tmp_path / "model"), device="cpu"))
    assert layer.config.mechanism == mechanism
    started = {"ia3-key": lambda own: own.factor - 1, "linear-gate": lambda own: own.up.bias}
    if mechanism in started:
        assert started[mechanism](layer).abs().max() > 0.01, "two steps of 5e-5 would not go so far"


def test_the_literal_recipe_keeps_its_layer_unless_one_is_named():
    assert VARIANTS["literal"].maw_config(MAWOptions().values()).layers == (-1,)
    assert VARIANTS["literal"].maw_config(MAWOptions(maw_layers="0,2").values()).layers == (0, 2)
    assert VARIANTS["maw-full"].maw_config(MAWOptions().values()) == maw.MAWConfig()
    given = (MAWOptions(), MAWOptions(maw_layers="0"), MAWOptions(maw_layers="-1"))
    folders = [Benchmark(maw=options.values()).identity() for options in given]
    assert [one["literal_layers"] for one in folders] == [[-1], [0], [-1]], "a folder holds one of them"


def test_other_ways_to_name_a_control_that_do_not_exist_are_refused(tiny_model, toy_data, tmp_path, capsys):
    given = ["--dataset", f"beir:{toy_data}", "--model", str(tiny_model), "--output", str(tmp_path / "model")]
    assert main(["train", "--variant", "ia3", *given, *SMALL]) == 2
    assert "ia3-key, linear-gate, logit-dropout, got 'ia3'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "tau", "noise", "share"),
    [
        (0, DEFAULT.tau, DEFAULT.noise, LOGIT_DROPOUT),
        (-1, DEFAULT.tau, DEFAULT.noise, 0.00015),
        (-1, 5.0, 1.0, 0.013),
        (-1, 10.0, 1.0, 0.0026),
    ],
)
def test_logit_dropout_is_matched_to_the_noise_of_depths_on_real_text(place, tau, noise, share):
    """The variance of depth noise on a logit, less the mean over keys, over the mean square logit is p / (1 - p)."""
    file = Path(os.environ.get("MAW_DATA", "")) / "msmarco-passage-pool" / "corpus.jsonl"
    if "MAW_DATA" not in os.environ or not file.is_file():
        pytest.skip("MAW_DATA has no msmarco-passage-pool: name the folder that holds it")
    lines = file.read_text(encoding="utf-8").splitlines()[::1500][:24]
    model = load_encoder("packaged", device=choose_device("cpu"), max_length=128)
    maw.attach(model, replace(DEFAULT, layers=[place]))
    (layer,) = maw_layers(model)
    seen = []
    layer.register_forward_pre_hook(lambda _, given, __: seen.append(given), with_kwargs=True)
    variance = square = 0.0
    with torch.no_grad():
        for line in lines:  # one at a time: no padding
            model.encode([json.loads(line)["text"]])
            query, key = seen.pop()[:2]
            logit = layer.scaling * query @ key.mT
            zeros = torch.zeros(8, layer.config.depth)
            weight = depth_weights(zeros, selection="gumbel", tau=tau, training=True, noise=noise)
            noisy = transform_query(
                query.expand(8, -1, -1, -1), layer.query_views, layer.key_views, weight, scale=layer.scale
            )
            added = noisy @ key.mT - logit
            variance += float((added - added.mean(dim=-1, keepdim=True)).square().mean(dim=0).sum())
            square += float(logit.square().sum())
    assert variance / square == pytest.approx(share / (1 - share), rel=0.1)
