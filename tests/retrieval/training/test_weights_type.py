"""Weights stored in half precision are trained in float32 and saved in the type that was asked for."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from toys import encoder, toy
from transformers import ModernBertConfig, ModernBertModel

import maw
from maw.benchmark.tuning import save_model, tune
from maw.benchmark.variants import VARIANTS
from maw.errors import MAWError
from maw.hf.weights import HALF, set_weights_type, weights_type
from maw.retrieval.models import choose_device, load_encoder
from maw.retrieval.training.losses import AuxiliaryLoss
from maw.retrieval.training.settings import TrainingSettings

SLOW = {"epochs": 2, "batch_size": 4, "max_length": 16, "dev_documents": 5, "learning_rate": 1e-5}
AGAIN = """
import sys, numpy, maw
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
numpy.save(sys.argv[2], SentenceTransformer(sys.argv[1], device="cpu").encode(["a river", "two engines"]))
"""


def stored(folder, kind):
    """A folder of the tiny encoder in this type."""
    model = encoder()
    set_weights_type(model, kind)
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


def trained(folder, base, variant="dense-full", **settings):
    model = load_encoder(str(base), device=choose_device("cpu"), max_length=16)
    maw_settings = {"depth": 8} if variant.startswith("maw") else {}
    tuned = tune(model, VARIANTS[variant], maw_settings, toy(), TrainingSettings(**SLOW, **settings), folder / "work")
    save_model(tuned, folder / "model", base=str(base), dataset=toy(), metrics={})
    return tuned


def moved(base, folder):
    """The share of the layers' weights that training moved."""
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model" / "model.safetensors")
    pairs = [(before[name], after[name]) for name in before if "layer." in name or "layers." in name]
    same = sum(int((old.float() == new.float()).sum()) for old, new in pairs)
    return 1 - same / sum(old.numel() for old, _ in pairs)


@pytest.mark.parametrize("kind", HALF)
def test_half_precision_weights_move_as_those_of_float32_do(tmp_path, kind):
    base = stored(tmp_path / "base", kind)
    tuned = trained(tmp_path, base, dtype="float32")
    assert moved(base, tmp_path) > 0.9
    assert tuned.outcome["dtype"] == {"loaded": kind, "trained": "float32", "saved": "float32"}


@pytest.mark.parametrize(
    ("variant", "kind", "asked"),
    [
        ("dense-lora", "bfloat16", None),
        pytest.param("maw-lora", "float16", None, marks=pytest.mark.slow),
        ("maw-full", "float32", "bfloat16"),
    ],
)
def test_the_saved_type_is_the_loaded_one_or_the_one_asked_for(tmp_path, variant, kind, asked):
    base = stored(tmp_path / "base", kind)
    tuned = trained(tmp_path, base, variant, dtype=asked)
    wanted = asked or kind
    assert weights_type(tuned.model) == wanted
    weights = load_file(tmp_path / "model" / "model.safetensors")
    own = {name for name in weights if ".maw." in name or "lora_" in name}
    assert {weights[name].dtype for name in own} <= {torch.float32}
    assert {value.dtype for name, value in weights.items() if name not in own} == {getattr(torch, wanted)}
    assert f"trained in float32 and saved in {wanted}" in (tmp_path / "model" / "README.md").read_text()
    again = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert weights_type(again) == wanted
    texts = ["a river", "two engines"]
    assert np.array_equal(again.encode(texts), tuned.model.encode(texts))
    if variant == "maw-lora":
        command = [sys.executable, "-c", AGAIN, str(tmp_path / "model"), str(tmp_path / "found.npy")]
        subprocess.run(command, check=True, capture_output=True)
        assert np.array_equal(np.load(tmp_path / "found.npy"), tuned.model.encode(texts))


def test_modernbert_too(tmp_path):
    config = ModernBertConfig(
        vocab_size=30522,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=0,
        **dict.fromkeys(("bos_token_id", "cls_token_id"), 101),
        **dict.fromkeys(("eos_token_id", "sep_token_id"), 102),
    )
    model = encoder()
    model[0].model = ModernBertModel(config)
    set_weights_type(model, "bfloat16")
    model.save_pretrained(str(tmp_path / "base"), create_model_card=False)
    trained(tmp_path, tmp_path / "base", dtype="float32")
    assert moved(tmp_path / "base", tmp_path) > 0.9


def test_too_large_for_float16_is_an_error():
    model = encoder()
    with torch.no_grad():
        model[0].model.embeddings.word_embeddings.weight[0, 0] = 1e6
    with pytest.raises(MAWError, match=r"1 number of .*word_embeddings.weight is too large for float16"):
        set_weights_type(model, "float16")
    assert weights_type(model) == "float32"


def test_an_adapter_beside_maw_has_the_type_that_peft_gives_it(tmp_path):
    from peft import LoraConfig, get_peft_model

    host = encoder()[0].model.to(torch.bfloat16)
    wrapped = get_peft_model(host, LoraConfig(target_modules=["query", "key", "value"]))
    by_peft = {str(p.dtype) for name, p in wrapped.named_parameters() if "lora_" in name}
    model = load_encoder(str(stored(tmp_path / "base", "bfloat16")), device=choose_device("cpu"))
    maw.attach(model, maw.MAWConfig(depth=8))
    model.add_adapter(maw.lora_config(model))
    own = {str(p.dtype) for name, p in model.named_parameters() if "lora_" in name}
    assert own == by_peft == {"torch.float32"}
    model.save_pretrained(str(tmp_path / "adapted"))
    again = SentenceTransformer(str(tmp_path / "adapted"), device="cpu")
    assert {str(p.dtype) for name, p in again.named_parameters() if "lora_" in name} == by_peft
    assert torch.equal(again.encode("a river", convert_to_tensor=True), model.encode("a river", convert_to_tensor=True))


def test_a_loss_of_ours_around_half_precision_weights_warns(caplog):
    model = encoder(maw.MAWConfig(depth=8))
    AuxiliaryLoss(MultipleNegativesRankingLoss(model), model)
    assert not caplog.records
    set_weights_type(model, "bfloat16")
    AuxiliaryLoss(MultipleNegativesRankingLoss(model), model)
    assert "weights in bfloat16 are about to be trained in that type" in caplog.text
