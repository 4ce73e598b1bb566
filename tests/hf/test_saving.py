"""Save, load in a new process, encode: bit-equal; a folder whose MAW weights do not fit is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel

import maw
from maw.hf.attach import maw_layers
from maw.retrieval.models import packaged_encoder

TEXTS = ["a depth slice", "which depths does a text choose, and what does each of them attend to?", "x"]

ENCODE = """
import sys, numpy, maw
from sentence_transformers import SentenceTransformer
out, *folders = sys.argv[1:]
models = [SentenceTransformer(folder, device="cpu") for folder in folders]
numpy.save(out, numpy.stack([model.encode({texts!r}) for model in models]))
"""


def encoder(config: maw.MAWConfig | None = None) -> SentenceTransformer:
    model = SentenceTransformer(str(packaged_encoder()), device="cpu")
    if config is not None:
        maw.attach(model, config)
    return model


def stir(model: torch.nn.Module) -> None:
    """Move every trainable parameter, as training would."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)


def encode_in_a_new_process(out: Path, *folders: Path) -> np.ndarray:
    """The vectors of the model in each folder; they pass through the file `out`."""
    code = ENCODE.format(texts=TEXTS)
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([sys.executable, "-c", code, str(out), *map(str, folders)], check=True, env=environment)
    return np.load(out)


@pytest.fixture(scope="module")
def plain_vectors() -> np.ndarray:
    return encoder().encode(TEXTS)


@pytest.mark.parametrize("layers", [[-1], "all"])
@pytest.mark.parametrize("depth", [5, 32, 48, 64])
def test_attaching_to_the_packaged_encoder_changes_nothing(plain_vectors, layers, depth):
    model = encoder(maw.MAWConfig(layers=layers, depth=depth))
    assert np.abs(model.encode(TEXTS) - plain_vectors).max() <= 1e-6
    maw.detach(model)
    assert np.array_equal(model.encode(TEXTS), plain_vectors)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_two_hundred_pad_tokens_change_nothing(attention):
    """A text alone (no mask, or a mask of ones) and beside padding gives the same vector, with MAW trained."""
    model = encoder(maw.MAWConfig(layers="all", depth=48))
    stir(model)
    model[0].model.set_attn_implementation(attention)
    tokens = model.tokenizer(TEXTS[1], return_tensors="pt")
    length = tokens["input_ids"].shape[1]
    padded = model.tokenizer([TEXTS[1]], padding="max_length", max_length=length + 200, return_tensors="pt")

    def vector(batch):
        with torch.no_grad():
            return model(dict(batch))["sentence_embedding"]

    alone = vector(tokens)
    beside = {name: torch.cat([value, value]) for name, value in padded.items()}
    for batch in (padded, beside):
        assert (vector(batch)[0] - alone[0]).abs().max() <= 1e-6
    other = vector({**padded, "attention_mask": torch.ones_like(padded["attention_mask"])})
    assert (other[0] - alone[0]).abs().max() > 1e-3, "the padding would matter if it were attended to"


@pytest.mark.slow  # a merged model, saved and loaded below, is a full model too
def test_full_model_round_trips(tmp_path):
    model = encoder(maw.MAWConfig(depth=20))
    stir(model)
    expected = model.encode(TEXTS)
    model.save_pretrained(str(tmp_path / "model"))
    assert np.array_equal(encode_in_a_new_process(tmp_path / "vectors.npy", tmp_path / "model")[0], expected)


def test_lora_with_maw_round_trips_in_one_folder_and_merged(tmp_path):
    model = encoder(maw.MAWConfig(depth=64))
    model.add_adapter(maw.lora_config(model))
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or ".maw.modules_to_save." in name for name in trainable)
    assert any(".maw.modules_to_save.default.query_views" in name for name in trainable)
    assert not any("lora_" in name and ".maw." in name for name in trainable)
    stir(model)
    expected = model.encode(TEXTS)
    assert np.abs(expected - encoder().encode(TEXTS)).max() > 1e-3
    model.save_pretrained(str(tmp_path / "lora"))

    maw.merge_lora(model)
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert len(maw_layers(model)) == 1
    merged = model.encode(TEXTS)
    assert np.abs(merged - expected).max() <= 1e-5
    model.save_pretrained(str(tmp_path / "merged"))
    loaded = encode_in_a_new_process(tmp_path / "vectors.npy", tmp_path / "lora", tmp_path / "merged")
    assert np.array_equal(loaded, [expected, merged])
    maw.detach(model)


def test_a_loaded_adapter_can_be_trained_on_and_saved_again(tmp_path):
    model = encoder(maw.MAWConfig(depth=8))
    model.add_adapter(maw.lora_config(model))
    model.save_pretrained(str(tmp_path / "first"))
    again = SentenceTransformer(str(tmp_path / "first"), device="cpu")
    assert again[0].model.active_adapters() == ["default"]
    before = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in again.named_parameters() if p.requires_grad} == before
    stir(again)
    expected = again.encode(TEXTS)
    again.save_pretrained(str(tmp_path / "second"))
    third = SentenceTransformer(str(tmp_path / "second"), device="cpu")
    assert np.array_equal(third.encode(TEXTS), expected)


def test_pefts_own_folder_round_trips_onto_a_model_with_maw(tmp_path):
    from peft import PeftModel, get_peft_model

    def base():
        return encoder(maw.MAWConfig(depth=8))[0].model

    tokens = encoder().tokenizer(TEXTS, padding=True, return_tensors="pt")
    model = base()
    wrapped = get_peft_model(model, maw.lora_config(model))
    stir(wrapped)
    wrapped.eval().save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = wrapped(**tokens).last_hidden_state
        assert torch.equal(loaded(**tokens).last_hidden_state, expected)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(**tokens).last_hidden_state, expected, atol=1e-4, rtol=0)


def test_transformers_loads_the_folder_with_and_without_weights(tmp_path):
    model = encoder(maw.MAWConfig(layers=[0, -1], depth=8))[0].model
    model.save_pretrained(tmp_path / "model")
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert config.maw_config == maw.MAWConfig(layers=[0, -1], depth=8)
    assert config.hidden_size == 384
    loaded, info = AutoModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert isinstance(loaded, maw.MAWModel)
    assert not info["missing_keys"]
    assert loaded.backbone.config._attn_implementation == "sdpa"
    eager = AutoModel.from_pretrained(tmp_path / "model", attn_implementation="eager")
    assert eager.backbone.config._attn_implementation == "eager"
    fresh = maw.MAWModel(config)
    assert float(maw_layers(fresh)[0].selector.policy_network[-1].weight.detach().abs().max()) == 0


@pytest.mark.parametrize("what", ["missing", "unused"])
def test_weights_that_do_not_belong_to_the_config_are_an_error(tmp_path, what):
    model = encoder(maw.MAWConfig(depth=8))
    model.save_pretrained(str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    key = next(key for key in weights if key.endswith("maw.query_views"))
    if what == "missing":
        del weights[key]
    else:
        weights[key.replace("layer.0", "layer.3")] = weights[key].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    wanted = {"missing": "lacks 1 tensor", "unused": "1 tensor of .* has no place"}[what] + r".*query_views"
    with pytest.raises(maw.MAWError, match=wanted):
        SentenceTransformer(str(tmp_path), device="cpu")


def test_weights_that_are_not_finite_are_an_error(tmp_path):
    encoder(maw.MAWConfig(layers=[-1], depth=8)).save_pretrained(str(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    (name,) = [name for name in weights if name.endswith("maw.key_views")]
    weights[name][3, 2, 1] = torch.nan
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for load in (AutoModel.from_pretrained, SentenceTransformer):
        with pytest.raises(maw.MAWError, match=r"key_views of .* holds NaN or infinity.*earlier checkpoint"):
            load(str(tmp_path))


def test_settings_of_another_version_are_an_error(tmp_path):
    encoder(maw.MAWConfig(depth=8)).save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    config["maw"]["colour"] = "red"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(maw.MAWError, match="colour"):
        SentenceTransformer(str(tmp_path), device="cpu")


@pytest.mark.slow
def test_the_model_type_is_known_whichever_is_imported_first(tmp_path):
    encoder(maw.MAWConfig(depth=8)).save_pretrained(str(tmp_path))
    for first, second in (("maw", "transformers"), ("transformers", "maw"), ("sentence_transformers", "maw")):
        code = f"import {first}, {second}; from transformers import AutoModel; "
        code += f"print(type(AutoModel.from_pretrained({str(tmp_path)!r})).__name__)"
        run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert run.stdout.strip() == "MAWModel"


def test_merging_without_an_adapter_is_an_error():
    with pytest.raises(maw.MAWError, match="nothing to merge"):
        maw.merge_lora(encoder())


def test_detaching_under_an_adapter_says_what_to_do():
    model = encoder(maw.MAWConfig(depth=8))
    model.add_adapter(maw.lora_config(model))
    with pytest.raises(maw.MAWError, match="merge"):
        maw.detach(model)


def test_attaching_after_lora_is_refused():
    model = encoder()
    model.add_adapter(maw.lora_config(model))
    with pytest.raises(maw.MAWError, match="attach MAW first"):
        maw.attach(model)
