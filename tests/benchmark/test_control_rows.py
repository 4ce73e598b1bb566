"""Controls as rows of a benchmark and as trained models."""

from __future__ import annotations

import json

import pytest
from sentence_transformers import SentenceTransformer

from maw.benchmark.variants import VARIANTS
from maw.cli import main
from maw.controls import CONTROLS
from maw.hf.attach import carried, maw_layers

SMALL = ["--batch-size", "5", "--epochs", "1", "--max-length", "16", "--device", "cpu", "--maw-depth-dim", "8"]
NAMES = ",".join(CONTROLS)


@pytest.fixture(scope="module")
def finished(tiny_model, toy_data, tmp_path_factory):
    output = tmp_path_factory.mktemp("controls") / "toy"
    given = ["--dataset", f"beir:{toy_data}", "--model", str(tiny_model), "--output", str(output)]
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


def test_other_ways_to_name_a_control_that_do_not_exist_are_refused(tiny_model, toy_data, tmp_path, capsys):
    given = ["--dataset", f"beir:{toy_data}", "--model", str(tiny_model), "--output", str(tmp_path / "model")]
    assert main(["train", "--variant", "ia3", *given, *SMALL]) == 2
    assert "ia3-key, linear-gate, logit-dropout, got 'ia3'" in capsys.readouterr().err
