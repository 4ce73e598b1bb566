"""Damaged model folders are refused in a sentence, and an edited one that was sealed is found."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizerFast

from maw.errors import MAWError
from maw.hf.folders import CHECKSUMS, seal_model_folder
from maw.retrieval.models import load_encoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "river", "mill", "text"]
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder as Sentence Transformers saves an encoder."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **sizes)).save_pretrained(folder / "host")
    BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder / "host")
    modules = [Transformer(str(folder / "host")), Pooling(8), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder / "model"), create_model_card=False)
    return folder / "model"


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "model")


def load(folder):
    return load_encoder(str(folder), device=torch.device("cpu"))


def edit(path, change):
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(change(whole) or whole))


def beyond(folder):
    edit(folder / "tokenizer.json", lambda whole: whole["model"]["vocab"].update(river=len(WORDS) + 7))


def pickle_only(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def other_layers(folder):
    edit(folder / "config.json", lambda whole: whole.update(num_hidden_layers=10**9))


def nan(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["embeddings.LayerNorm.weight"][0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})


def pooled_by(mode):
    return lambda folder: edit(folder / "1_Pooling" / "config.json", lambda whole: whole.update(pooling_mode=mode))


def of_type(kind):
    return lambda folder: edit(folder / "config.json", lambda whole: whole.update(model_type=kind))


def with_module(kind):
    return lambda folder: edit(folder / "modules.json", lambda whole: whole[1].update(type=kind))


DAMAGES = {
    "deep": (lambda folder: (folder / "config.json").write_text(DEEP), r"config\.json is damaged.* inside one"),
    "deep in a module": (lambda folder: (folder / "1_Pooling" / "config.json").write_text(DEEP), "inside one another"),
    "deep tokenizer": (lambda folder: (folder / "tokenizer.json").write_text(DEEP), "inside one another"),
    "no object": (lambda folder: (folder / "tokenizer_config.json").write_text("7"), "wanted an object, got 7"),
    "a key twice": (lambda folder: (folder / "config.json").write_text('{"a": 1, "a": 2}'), "comes twice"),
    "modules": (lambda folder: (folder / "modules.json").write_text('{"idx": 0}'), r"modules\.json is damaged"),
    "modules of numbers": (lambda folder: (folder / "modules.json").write_text("[1]"), "wanted an object for each"),
    "no modules": (lambda folder: (folder / "modules.json").unlink(), r"modules\.json is missing"),
    "type in pooling": (pooled_by([[1]]), "cannot be loaded|cannot encode"),
    "type in config": (of_type(["bert"]), "cannot be loaded"),
    "a module of another name": (with_module("sentence_transformers.Noling"), "cannot be loaded"),
    "many layers": (other_layers, "num_hidden_layers is 1000000000, more than its weights have"),
    "tokens beyond the embedding": (beyond, "'river' the number 16, but the embedding has rows for 0 to 8"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer: wanted tokenizer.json"),
    "pickle": (pickle_only, r"only as a pickle \(pytorch_model\.bin\).*wanted model\.safetensors"),
    "nan": (nan, "not finite|NaN"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_in_a_sentence(folder, damage):
    change, words = DAMAGES[damage]
    change(folder)
    with pytest.raises(MAWError, match=words) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


EDITS = {
    "config.json": lambda whole: whole.update(layer_norm_eps=1e-3),
    "tokenizer.json": lambda whole: whole["model"]["vocab"].update(river=7, mill=6),
    "tokenizer_config.json": lambda whole: whole.update(do_lower_case=False),
    "1_Pooling/config.json": lambda whole: whole.update(pooling_mode="cls"),
    "sentence_bert_config.json": lambda whole: whole.update(do_lower_case=True),
    "modules.json": lambda whole: whole[:2],
}


@pytest.mark.parametrize("name", [*EDITS, "model.safetensors"])
def test_a_sealed_folder_that_was_edited_is_refused(folder, name):
    before = load(folder).encode("a river", convert_to_tensor=True)
    seal_model_folder(folder)
    (folder / "README.md").write_text("a card may be edited")
    assert torch.equal(load(folder).encode("a river", convert_to_tensor=True), before)
    if name == "model.safetensors":
        data = bytearray((folder / name).read_bytes())
        data[-3] ^= 64
        (folder / name).write_bytes(data)
    else:
        edit(folder / name, EDITS[name])
    with pytest.raises(MAWError, match=f"{name} is damaged: .* If the change is meant, delete .*{CHECKSUMS}"):
        load(folder)
    (folder / CHECKSUMS).unlink()
    load(folder)


def test_a_sealed_folder_without_one_of_its_files_is_refused(folder):
    seal_model_folder(folder)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(MAWError, match=r"tokenizer_config\.json cannot be read: No such file"):
        load(folder)
