"""Weights are loaded whole or not at all: what a folder lacks, what fits nowhere in the model and what is no number."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from families import HOSTS, build
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from toys import encoder
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertModel,
)

import maw
from maw.hf.folders import seal_model_folder
from maw.hf.loading import checked_loading
from maw.retrieval.models import choose_device, load_encoder

CPU = choose_device("cpu")
TEXTS = ["meaning of glacier", "what an orchard is"]
TINY = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 31, "vocab_size": 61}
QUERY = "encoder.layer.1.attention.self.query.weight"


@functools.cache
def saved(kind: str) -> Path:
    """A folder of each kind that this package and Sentence Transformers write, to copy."""
    path = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, path)
    model = encoder(None if kind == "plain" else maw.MAWConfig(depth=5))
    if kind in ("adapter", "merged"):
        model.add_adapter(maw.lora_config(model))
    if kind == "merged":
        maw.merge_lora(model)
    model.save_pretrained(str(path), create_model_card=False)
    return path


def folder(path: Path, kind: str) -> Path:
    return shutil.copytree(saved(kind), path)


def key(weights, end: str) -> str:
    """The one tensor of a host or of an adapter whose name ends so."""
    (found,) = [name for name in weights if name.endswith(end)]
    return found


def change(path: Path, how, file: str = "model.safetensors") -> None:
    """Read the tensors, change the dictionary, write it in place."""
    weights = load_file(path / file)
    how(weights)
    save_file(weights, path / file, metadata={"format": "pt"})


def edit(path: Path, **changes) -> None:
    """Change values of config.json."""
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def maw_command(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "maw", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


def without(end: str):
    return lambda weights: weights.pop(key(weights, end))


def beside(end: str, other: str):
    """Once more, under a name that differs."""

    def how(weights):
        name = key(weights, end)
        weights[name.replace(end, other)] = weights[name].clone()

    return how


def replaced(end: str, how):
    return lambda weights: weights.update({(name := key(weights, end)): how(weights[name]).contiguous()})


# What stops a folder


DAMAGES = {
    "missing": (without("layer.1.output.dense.bias"), r"lacks 1 tensor.*layer\.1\.output\.dense\.bias"),
    "all missing": (
        lambda weights: [weights.pop(name) for name in list(weights) if ".maw." not in name],
        r"lacks \d\d tensors.*embeddings",
    ),
    "unused": (
        beside("layer.1.output.dense.bias", "layer.2.output.dense.bias"),
        r"1 tensor .*no place.*layer\.2\.output\.dense\.bias",
    ),
    "shape": (
        replaced("layer.1.output.dense.bias", lambda tensor: tensor[1:]),
        r"layer\.1\.output\.dense\.bias.*\(47,\).*\(48,\)",
    ),
    "transposed": (
        replaced("layer.1.intermediate.dense.weight", lambda tensor: tensor.T),
        r"layer\.1\.intermediate\.dense\.weight.*\(48, 64\).*\(64, 48\)",
    ),
    "integers": (
        replaced("layer.1.output.dense.bias", lambda tensor: (tensor * 100).to(torch.int64)),
        r"layer\.1\.output\.dense\.bias.*whole numbers.*I64",
    ),
    "nan": (
        replaced("layer.1.output.dense.bias", lambda tensor: tensor.index_fill(0, torch.tensor([3]), torch.nan)),
        r"layer\.1\.output\.dense\.bias.*NaN or infinity",
    ),
    "infinity": (
        replaced("word_embeddings.weight", lambda tensor: tensor.index_fill(0, torch.tensor([3]), -torch.inf)),
        r"word_embeddings\.weight.*NaN or infinity",
    ),
}


@pytest.mark.parametrize(
    ("kind", "damage"),
    [(kind, damage) for kind in ("plain", "full") for damage in DAMAGES] + [("adapter", "missing")],
)
def test_a_damaged_tensor_is_an_error_that_names_it(tmp_path, kind, damage):
    how, message = DAMAGES[damage]
    change(folder(tmp_path / "model", kind), how)
    with pytest.raises(maw.MAWError, match=message):
        load_encoder(str(tmp_path / "model"), device=CPU)
    if kind != "plain":
        with pytest.raises(maw.MAWError, match=message):
            AutoModel.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (without("layer.1.attention.self.query.lora_B.default.weight"), r"lacks 1 tensor.*lora_B"),
        (beside("layer.1.attention.self.query.lora_B.default.weight", "x.lora_B.weight"), r"1 tensor.*lora_B"),
        (
            replaced("layer.1.attention.self.query.lora_A.default.weight", lambda t: t[1:]),
            r"lora_A.*\(15, 48\).*\(16, 48\)",
        ),
    ],
    ids=["missing", "unused", "shape"],
)
def test_a_damaged_adapter_is_an_error(tmp_path, how, message):
    change(folder(tmp_path / "model", "adapter"), how)
    with pytest.raises(maw.MAWError, match=message):
        load_encoder(str(tmp_path / "model"), device=CPU)


@pytest.mark.parametrize("damage", ["missing", "unused", "nan", "base"])
def test_pefts_own_folder_is_checked_with_its_base(tmp_path, damage):
    model = folder(tmp_path / "base", "plain")
    adapted = SentenceTransformer(str(model), device="cpu")
    adapted.add_adapter(maw.lora_config(adapted))
    adapted.save_pretrained(str(tmp_path / "adapted"), create_model_card=False)
    weights = "adapter_model.safetensors"
    assert (tmp_path / "adapted" / weights).exists()
    load_encoder(str(tmp_path / "adapted"), device=CPU)
    name = "layer.1.attention.self.query.lora_B.weight"
    if damage == "missing":
        change(tmp_path / "adapted", without(name), weights)
    elif damage == "unused":
        change(tmp_path / "adapted", beside(name, "layer.4.attention.self.query.lora_B.weight"), weights)
    elif damage == "nan":
        change(tmp_path / "adapted", replaced(name, lambda tensor: tensor + torch.nan), weights)
    else:
        change(model, without("layer.1.output.dense.bias"))
    with pytest.raises(maw.MAWError, match=r"lora_B|output\.dense\.bias"):
        load_encoder(str(tmp_path / "adapted"), device=CPU)


def test_a_shard_that_lacks_a_tensor_is_an_error(tmp_path):
    model = encoder(maw.MAWConfig(depth=5))
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    model[0].model.save_pretrained(tmp_path / "model", max_shard_size="50KB")
    (tmp_path / "model" / "model.safetensors").unlink(missing_ok=True)
    index = tmp_path / "model" / "model.safetensors.index.json"
    vectors = load_encoder(str(tmp_path / "model"), device=CPU).encode(TEXTS)
    assert np.array_equal(vectors, model.encode(TEXTS))
    listed = json.loads(index.read_text())
    name = key(listed["weight_map"], "layer.1.output.dense.bias")
    change(tmp_path / "model", lambda weights: weights.pop(name), listed["weight_map"].pop(name))
    index.write_text(json.dumps(listed))
    with pytest.raises(maw.MAWError, match=r"lacks 1 tensor.*layer\.1\.output\.dense\.bias"):
        load_encoder(str(tmp_path / "model"), device=CPU)


@pytest.mark.parametrize("kind", ["plain", "full"])
@pytest.mark.parametrize("model_type", ["distilbert", "mpnet", "roberta"])
def test_another_model_type_is_an_error(tmp_path, kind, model_type):
    path = folder(tmp_path / "model", kind)
    config = json.loads((path / "config.json").read_text())
    (config["backbone"] if kind == "full" else config)["model_type"] = model_type
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(maw.MAWError, match=r"lacks|model_type"):
        load_encoder(str(path), device=CPU)


def test_a_dense_layer_is_checked_too(tmp_path):
    from sentence_transformers.sentence_transformer.modules import Dense

    model = encoder()
    model.append(Dense(48, 6))
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    dense = next((tmp_path / "model").glob("*Dense")).relative_to(tmp_path / "model")
    for how in (
        without("linear.bias"),
        replaced("linear.bias", lambda tensor: tensor[1:]),
        replaced("linear.bias", lambda tensor: tensor * torch.nan),
        replaced("linear.bias", lambda tensor: tensor.to(torch.int32)),
    ):
        weights = load_file(tmp_path / "model" / dense / "model.safetensors")
        change(tmp_path / "model" / dense, how)
        with pytest.raises(maw.MAWError, match=r"linear\.bias"):
            load_encoder(str(tmp_path / "model"), device=CPU)
        save_file(weights, tmp_path / "model" / dense / "model.safetensors")
    assert load_encoder(str(tmp_path / "model"), device=CPU).encode(TEXTS).shape == (2, 6)


# What is common in folders, and harmless


def test_what_is_common_in_folders_is_harmless(tmp_path, caplog):
    """The head of a masked-LM, no pooler, and an old index buffer; the packaged encoder has the last one."""
    model = encoder()
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    expected = model.encode(TEXTS)
    masked = BertForMaskedLM(model[0].model.config)
    masked.bert.load_state_dict(model[0].model.state_dict(), strict=False)
    masked.save_pretrained(tmp_path / "model")
    change(
        tmp_path / "model", lambda weights: weights.update({"bert.embeddings.position_ids": torch.arange(512)[None]})
    )
    names = list(load_file(tmp_path / "model" / "model.safetensors"))
    assert any(name.startswith("cls.predictions") for name in names)
    assert not [name for name in names if "pooler" in name]
    assert np.array_equal(load_encoder(str(tmp_path / "model"), device=CPU).encode(TEXTS), expected)
    assert load_encoder("packaged", device=CPU).get_embedding_dimension() == 384


def test_a_missing_pooler_is_harmless(tmp_path):
    model = encoder(maw.MAWConfig(depth=5))
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    for end in ("pooler.dense.weight", "pooler.dense.bias"):
        change(tmp_path / "model", without(end))
    vectors = load_encoder(str(tmp_path / "model"), device=CPU).encode(TEXTS)
    assert np.array_equal(vectors, model.encode(TEXTS))


def test_a_missing_pooler_that_makes_the_vectors_is_an_error(tmp_path):
    from sentence_transformers.sentence_transformer.modules import Transformer

    path = folder(tmp_path / "model", "plain")
    output = {"text": {"method": "forward", "method_output_name": "pooler_output"}}
    module = Transformer(str(path), modality_config=output, module_output_name="sentence_embedding")
    model = SentenceTransformer(modules=[module], device="cpu")
    model.save_pretrained(str(tmp_path / "pooler"), create_model_card=False)
    assert np.array_equal(load_encoder(str(tmp_path / "pooler"), device=CPU).encode(TEXTS), model.encode(TEXTS))
    change(tmp_path / "pooler", without("pooler.dense.bias"))
    with pytest.raises(maw.MAWError, match=r"vectors of the pooler.*pooler\.dense\.bias"):
        load_encoder(str(tmp_path / "pooler"), device=CPU)


def test_a_type_asked_for_at_loading_is_harmless(tmp_path):
    path = folder(tmp_path / "model", "full")
    loaded = AutoModel.from_pretrained(path, dtype=torch.bfloat16)
    assert loaded.backbone.encoder.layer[0].output.dense.weight.dtype == torch.bfloat16


def test_loading_leaves_transformers_as_it_was(tmp_path):
    from transformers import PreTrainedModel

    before = PreTrainedModel.__dict__["from_pretrained"]
    load_encoder(str(folder(tmp_path / "model", "plain")), device=CPU)
    assert PreTrainedModel.__dict__["from_pretrained"] is before
    BertModel(BertConfig(**TINY)).save_pretrained(tmp_path / "bare")
    model, info = AutoModel.from_pretrained(tmp_path / "bare", output_loading_info=True)
    assert isinstance(model, BertModel)
    assert not info["missing_keys"]


def test_threads_load_at_once_and_leave_transformers_as_it_was(tmp_path):
    from transformers import PreTrainedModel

    before = PreTrainedModel.__dict__["from_pretrained"]
    good, bad = str(folder(tmp_path / "good", "plain")), str(folder(tmp_path / "bad", "plain"))
    change(tmp_path / "bad", DAMAGES["missing"][0])

    def load(place: str) -> str:
        try:
            return type(load_encoder(place, device=CPU)).__name__
        except maw.MAWError:
            return "refused"

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(load, [good, bad] * 4)) == ["SentenceTransformer", "refused"] * 4
    assert PreTrainedModel.__dict__["from_pretrained"] is before
    with checked_loading(), ThreadPoolExecutor(1) as pool:
        assert isinstance(pool.submit(AutoModel.from_pretrained, bad).result(), BertModel), (
            "another thread's own matter"
        )


# As people call it


def test_encode_refuses_random_weights_in_a_new_process(tmp_path):
    change(folder(tmp_path / "model", "plain"), DAMAGES["all missing"][0])
    (tmp_path / "corpus.tsv").write_text("d1\ta river\nd2\tan engine\n")
    run = maw_command("encode", tmp_path / "model", tmp_path / "corpus.tsv", "--output", tmp_path / "vectors")
    assert run.returncode == 2
    assert "lacks" in run.stderr
    assert "embeddings.word_embeddings.weight" in run.stderr
    assert "Traceback" not in run.stderr


# Checksums of what was saved


def swapped(weights):
    first, second = key(weights, QUERY), key(weights, QUERY.replace("query", "key"))
    weights[first], weights[second] = weights[second], weights[first]


CHANGES = {
    "swapped": swapped,
    "transposed": replaced(QUERY, lambda tensor: tensor.T),
    "edited": replaced(QUERY, lambda tensor: tensor.index_fill(0, torch.tensor([1]), 0.5)),
    "another type": replaced(QUERY, lambda tensor: tensor.half()),
    "maw": replaced("maw.query_views", lambda tensor: tensor.flip(1)),
}


@pytest.mark.parametrize(
    ("kind", "how"),
    [("full", how) for how in CHANGES] + [("adapter", "lora"), ("adapter", "maw"), ("merged", "swapped")],
)
def test_a_changed_tensor_is_not_what_was_saved(tmp_path, kind, how):
    path = folder(tmp_path / "model", kind)
    load_encoder(str(path), device=CPU)
    change(
        path,
        {
            **CHANGES,
            "lora": replaced("layer.1.attention.self.query.lora_A.default.weight", lambda tensor: -tensor),
            "maw": replaced("query_views", lambda tensor: tensor.flip(1)) if kind == "full" else last_views_flipped,
        }[how],
    )
    name = {"lora": r"lora_A\.default\.weight", "maw": "query_views"}.get(how, r"query\.weight")
    with pytest.raises(maw.MAWError, match=rf"{name}.* not what was saved"):
        load_encoder(str(path), device=CPU)
    with pytest.raises(maw.MAWError, match="not what was saved"):
        AutoModel.from_pretrained(path)


def last_views_flipped(weights):
    name = [name for name in weights if name.endswith("query_views")][-1]
    weights[name] = weights[name].flip(1).contiguous()


def test_a_changed_tensor_in_a_shard_is_not_what_was_saved(tmp_path):
    path = tmp_path / "model"
    AutoModel.from_pretrained(saved("full")).save_pretrained(path, max_shard_size="50KB")
    AutoModel.from_pretrained(path)
    listed = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
    change(path, CHANGES["transposed"], listed[key(listed, QUERY)])
    with pytest.raises(maw.MAWError, match=r"query\.weight.* not what was saved"):
        AutoModel.from_pretrained(path)


@pytest.mark.parametrize(
    "kind", ["merged", pytest.param("full", marks=pytest.mark.slow), pytest.param("adapter", marks=pytest.mark.slow)]
)
def test_what_is_trained_on_and_saved_again_loads_in_a_new_process(tmp_path, kind):
    """By the ways of Sentence Transformers and Transformers alone; in bfloat16 too."""
    model = SentenceTransformer(str(saved(kind)), device="cpu")
    optimiser = torch.optim.SGD([part for part in model.parameters() if part.requires_grad], lr=0.1)
    tokens = model.tokenizer(TEXTS, padding=True, return_tensors="pt")
    model(dict(tokens))["token_embeddings"][:, :, :5].square().sum().backward()
    optimiser.step()
    model.save_pretrained(str(tmp_path / "whole"), create_model_card=False)
    model[0].model.save_pretrained(tmp_path / "bare", max_shard_size="50KB")
    AutoModel.from_pretrained(tmp_path / "bare", dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    code = "import sys, maw, transformers\nfor name in sys.argv[1:]: transformers.AutoModel.from_pretrained(name)"
    folders = [str(tmp_path / name) for name in ("whole", "bare", "half")]
    run = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    vectors = SentenceTransformer(str(tmp_path / "whole"), device="cpu").encode(TEXTS)
    assert np.array_equal(vectors, model.eval().encode(TEXTS))
    for name in ("whole", "bare", "half"):
        assert json.loads((tmp_path / name / "config.json").read_text())["tensors"]


def test_a_config_alone_carries_no_checksums(tmp_path):
    """Weights that some other program put beside a config are not compared with those that it came with."""
    config = AutoConfig.from_pretrained(saved("full"))
    config.save_pretrained(tmp_path)
    assert "tensors" not in json.loads((tmp_path / "config.json").read_text())
    weights = load_file(saved("full") / "model.safetensors")
    CHANGES["transposed"](weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert isinstance(AutoModel.from_pretrained(tmp_path), maw.MAWModel)


def test_a_sealed_folder_that_is_saved_over_loads(tmp_path):
    path = folder(tmp_path / "model", "full")
    seal_model_folder(path)
    model = SentenceTransformer(str(path), device="cpu")
    torch.nn.init.normal_(model[0].model.backbone.encoder.layer[0].output.dense.weight)
    model.save_pretrained(str(path), create_model_card=False)
    assert np.array_equal(load_encoder(str(path), device=CPU).encode(TEXTS), model.encode(TEXTS))


def test_a_plain_encoder_saved_over_a_folder_with_maw_loads(tmp_path):
    path = folder(tmp_path / "model", "full")
    plain = maw.detach(load_encoder(str(path), device=CPU))
    torch.nn.init.normal_(plain[0].model.encoder.layer[0].output.dense.weight)
    plain.save_pretrained(str(path), create_model_card=False)
    assert np.array_equal(load_encoder(str(path), device=CPU).encode(TEXTS), plain.encode(TEXTS))


@pytest.mark.parametrize("value", [7, ["a"], {"a": 1}], ids=str)
def test_checksums_of_another_kind_are_an_error(tmp_path, value):
    path = folder(tmp_path / "model", "full")
    edit(path, tensors=value)
    with pytest.raises(maw.MAWError, match="checksums"):
        load_encoder(str(path), device=CPU)


# Other families, and the hub


@pytest.mark.parametrize("name", HOSTS)
def test_of_a_model_with_a_head_the_encoder_is_loaded(name, tmp_path):
    config = build(name).config
    try:
        model = AutoModelForMaskedLM.from_config(config)
    except ValueError:  # a decoder
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    with checked_loading() as loaded:
        encoder = AutoModel.from_pretrained(tmp_path)
    assert [found for found, _ in loaded] == [encoder]
    change(tmp_path, lambda weights: weights.pop(max(key for key in weights if ".1." in key)))
    with checked_loading(), pytest.raises(maw.MAWError, match="lacks 1 tensor"):
        AutoModel.from_pretrained(tmp_path)


def test_a_class_that_reads_other_names_is_an_error(tmp_path):
    """Transformers takes any folder of DPR for one with an encoder of questions, and fills that with random numbers."""
    transformers.DPRContextEncoder(transformers.DPRConfig(**TINY)).save_pretrained(tmp_path)
    with checked_loading(), pytest.raises(maw.MAWError, match=r"lacks \d+ tensors.*question_encoder"):
        AutoModel.from_pretrained(tmp_path)


HUB = """
import maw
from maw.retrieval.models import choose_device, load_encoder
for name in ("someone/good", "someone/lacks", "someone/swapped", "someone/integers"):
    try:
        print(name, load_encoder(name, device=choose_device("cpu")).encode("a river").shape)
    except maw.MAWError as error:
        print(name, error)
"""


@pytest.mark.slow
def test_what_was_fetched_from_the_hub_is_checked(tmp_path):
    """As it lies in the cache of huggingface_hub, without a network."""
    for name, kind in (("good", "full"), ("lacks", "plain"), ("swapped", "full"), ("integers", "plain")):
        commit = "0123456789" * 4
        place = tmp_path / f"models--someone--{name}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(commit)
        path = folder(place / "snapshots" / commit, kind)
        if name != "good":
            change(path, {"lacks": DAMAGES["missing"][0], "swapped": swapped, "integers": DAMAGES["integers"][0]}[name])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", HUB], capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    good, lacks, changed, integers = run.stdout.splitlines()
    assert good == "someone/good (48,)"
    assert "lacks 1 tensor" in lacks
    assert "not what was saved" in changed
    assert "whole numbers" in integers
