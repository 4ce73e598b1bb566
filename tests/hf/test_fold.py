"""Folding: the same vectors without MAW, wherever weights are constant; a refusal with the reason elsewhere."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

import maw
from maw.hf.attach import has_maw, maw_layers
from maw.retrieval.models import packaged_encoder

TOKENS = torch.tensor([[5, 6, 7, 8, 9], [11, 12, 13, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
TEXTS = ["a depth slice", "which depths does a text choose, and what does each of them attend to?", "x"]
UNIFORM = {"selection": "uniform"}
CHANNELS = 8

ENCODE_WITHOUT_MAW = f"""
import sys, numpy
sys.modules["maw"] = None  # from here on `import maw` fails
from sentence_transformers import SentenceTransformer
numpy.save(sys.argv[2], SentenceTransformer(sys.argv[1], device="cpu").encode({TEXTS!r}))
"""


def build(kind: str = "bert"):
    torch.manual_seed(0)
    if kind == "distilbert":
        config = DistilBertConfig(vocab_size=61, dim=24, n_layers=2, n_heads=3, hidden_dim=31)
        family = DistilBertModel
    else:
        sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 31}
        config, family = BertConfig(**sizes, vocab_size=61), BertModel
    config.initializer_range = 0.5
    model = family(config).eval()
    for name, parameter in model.named_parameters():  # Transformers starts biases at zero, where they prove nothing
        if name.endswith("bias"):
            parameter.data.normal_(std=0.5)
    return model


def stir(model, size: float = 0.3) -> None:
    """Move every view as training would."""
    generator = torch.Generator().manual_seed(1)
    for layer in maw_layers(model):
        for views in (layer.query_views, layer.key_views):
            views.data += size * torch.randn(views.shape, generator=generator)


def hidden(model):
    with torch.no_grad():
        return model(input_ids=TOKENS, attention_mask=MASK).last_hidden_state


def moved(model, config):
    attachment = maw.attach(model, config)
    before = hidden(attachment.model)
    stir(attachment.model)
    after = hidden(attachment.model)
    assert (after - before).abs().max() > 1e-2, "MAW must do something here"
    return attachment.model, after


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("depth", [5, CHANNELS, 11, 64])
def test_a_folded_encoder_is_a_plain_host_with_the_same_vectors(kind, depth):
    """Below C there is a constant; at and above there is none."""
    host = build(kind)
    names = list(host.state_dict())
    model, expected = moved(host, maw.MAWConfig(layers="all", depth=depth, **UNIFORM))
    assert (maw_layers(model)[0].constant is not None) == (depth < CHANNELS)
    folded = maw.fold(model)
    assert folded is host
    assert not has_maw(folded)
    assert list(folded.state_dict()) == names
    torch.testing.assert_close(hidden(folded), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("depth", [5, CHANNELS, 11])
def test_folding_is_exact_in_float64(depth):
    model, _ = moved(build(), maw.MAWConfig(layers=[0, -1], depth=depth, **UNIFORM))
    model.double()
    expected = hidden(model)
    torch.testing.assert_close(hidden(maw.fold(model)), expected, atol=1e-12, rtol=0)


def test_only_query_projections_of_maw_layers_change():
    host = build()
    before = copy.deepcopy(host.state_dict())
    maw.fold(moved(host, maw.MAWConfig(layers=[1], depth=5, **UNIFORM))[0])
    changed = {name for name, value in host.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"encoder.layer.1.attention.self.query.{part}" for part in ("weight", "bias")}


def test_a_projection_without_bias_folds():
    host = build()
    for layer in host.encoder.layer:
        layer.attention.self.query.bias = None
    model, expected = moved(host, maw.MAWConfig(layers="all", depth=5, **UNIFORM))
    torch.testing.assert_close(hidden(maw.fold(model)), expected, atol=1e-5, rtol=0)


def test_the_hosts_dtype_and_trainability_are_kept():
    host = build().to(torch.bfloat16)
    host.requires_grad_(False)
    maw.fold(moved(host, maw.MAWConfig(depth=5, **UNIFORM))[0])
    query = host.encoder.layer[1].attention.self.query
    assert (query.weight.dtype, query.weight.requires_grad) == (torch.bfloat16, False)


def test_the_literal_recipes_constant_transform_folds():
    config = maw.MAWConfig.recipe("literal", layers="all", depth=5, selection="uniform")
    model = maw.attach(build(), config).model
    expected = hidden(model)
    torch.testing.assert_close(hidden(maw.fold(model)), expected, atol=1e-5, rtol=0)


def encode_where_maw_cannot_be_imported(folder: Path, tmp_path: Path) -> np.ndarray:
    out = tmp_path / "vectors.npy"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", ENCODE_WITHOUT_MAW, str(folder), str(out)]
    subprocess.run(command, check=True, env=environment)
    return np.load(out)


def encode_here(folder: Path, tmp_path: Path) -> np.ndarray:
    loaded = SentenceTransformer(str(folder), device="cpu")
    assert not has_maw(loaded)
    assert "maw" not in (folder / "config.json").read_text().lower()
    return loaded.encode(TEXTS)


@pytest.mark.parametrize(
    "encode", [encode_here, pytest.param(encode_where_maw_cannot_be_imported, marks=pytest.mark.slow)]
)
def test_a_folded_sentence_transformer_needs_no_maw(tmp_path, encode):
    """After LoRA, too, once the adapter is merged."""
    model = SentenceTransformer(str(packaged_encoder()), device="cpu")
    untouched = model.encode(TEXTS)
    maw.attach(model, maw.MAWConfig(layers="all", depth=20, **UNIFORM))
    model.add_adapter(maw.lora_config(model))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.01)
    stir(model, 0.1)
    model.eval()
    expected = model.encode(TEXTS)
    assert np.abs(expected - untouched).max() > 1e-3
    with pytest.raises(maw.MAWError, match="merge_lora"):
        maw.fold(model)
    assert np.array_equal(model.encode(TEXTS), expected)
    maw.merge_lora(model)
    assert maw.fold(model) is model
    assert np.abs(model.encode(TEXTS) - expected).max() <= 1e-5
    model.save_pretrained(str(tmp_path / "folded"), create_model_card=False)
    loaded = encode(tmp_path / "folded", tmp_path)
    assert np.array_equal(loaded, model.encode(TEXTS))


# Refusals


@pytest.mark.parametrize("selection", ["gumbel", "softmax", "hard"])
def test_weights_that_depend_on_the_text_are_refused(selection):
    model, before = moved(build(), maw.MAWConfig(layers="all", depth=5, selection=selection))
    with pytest.raises(maw.MAWError, match=f"got selection='{selection}', whose weights depend on the text"):
        maw.fold(model)
    assert torch.equal(hidden(model), before)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("modernbert", "has rotary positions, which MAW's transform does not commute with"),
        ("qwen3", "has rotary positions and query and key norms, which"),
    ],
)
def test_what_stands_between_projection_and_attention_is_refused_by_name(name, words):
    model = maw.attach(families.build(name), maw.MAWConfig(layers="all", depth=5, **UNIFORM)).model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(maw.MAWError, match=rf"0.*{words}"):
        maw.fold(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", ["mpnet", "roberta", "electra"])
def test_other_hosts_without_positions_in_between_fold(name):
    host = families.build(name)
    model = maw.attach(host, maw.MAWConfig(layers="all", depth=5, **UNIFORM)).model.eval()
    stir(model)
    tokens = torch.randint(5, 40, (2, 7))
    with torch.no_grad():
        before = model(input_ids=tokens).last_hidden_state
        folded = maw.fold(model)
        assert folded is host
        torch.testing.assert_close(folded(input_ids=tokens).last_hidden_state, before, rtol=0, atol=1e-5)


def test_folding_where_there_is_no_maw_is_an_error():
    with pytest.raises(maw.MAWError, match="no MAW in this BertModel: nothing to fold"):
        maw.fold(build())


def test_a_wrapper_around_the_encoder_is_refused():
    from peft import IA3Config, get_peft_model

    model, _ = moved(build(), maw.MAWConfig(layers="all", depth=5, **UNIFORM))
    wrapped = get_peft_model(model, IA3Config(target_modules=["query"], feedforward_modules=[]))
    with pytest.raises(maw.MAWError, match="got a PeftModel around it"):
        maw.fold(wrapped)
    with pytest.raises(maw.MAWError, match="adapter"):
        maw.fold(model)
