"""`MAWModel` is transparent: settings, parts and outputs are the host's, both ways, before and after saving."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
from families import HOSTS, MASK, TOKENS, attach, build, stir
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    AdaptiveLayerLoss,
    DenoisingAutoEncoderLoss,
    MultipleNegativesRankingLoss,
)
from toys import encoder
from transformers import AutoConfig, AutoModel

import maw
from maw.hf.attach import maw_layers
from maw.hf.configuration import MAWModelConfig

EVERY = list(HOSTS)
SOME = ["bert", "distilbert", "mpnet", "modernbert", "gemma3_text"]
OTHERS = {"_name_or_path", "architectures", "model_type", "transformers_version"}
DROPOUT = {"bert": "hidden_dropout_prob", "distilbert": "dropout", "mpnet": "hidden_dropout_prob"}


def saved(model, folder):
    model.save_pretrained(folder)
    return AutoModel.from_pretrained(folder)


def settings_of(config, names):
    return {name: getattr(config, name) for name in names}


def names_in(config):
    """Every setting that can be read, under every name that the family has for it; not where it was loaded from."""
    return (vars(config).keys() | type(config).attribute_map.keys()) - OTHERS


# Settings


@pytest.mark.parametrize("name", EVERY)
def test_every_setting_of_the_host_is_read_before_and_after_saving(name, tmp_path):
    host = build(name)
    bare = saved(host, tmp_path / "host").config
    names = names_in(host.config)
    assert {"pad_token_id", "_attn_implementation_internal"} <= names
    expected = copy.deepcopy(settings_of(host.config, names))
    model = attach(host)
    assert settings_of(model.config, names) == expected
    assert settings_of(saved(model, tmp_path / "maw").config, names_in(bare)) == settings_of(bare, names_in(bare))
    assert attach(AutoModel.from_pretrained(tmp_path / "host")).config.model_type == "maw"
    for absent in ("no_such_setting", "__no_such_setting__"):
        assert not hasattr(model.config, absent)


@pytest.mark.parametrize("name", SOME)
def test_a_setting_is_set_in_the_host_and_saved_once(name, tmp_path):
    model = attach(build(name, "eager"))
    config, host = model.config, model.backbone.config
    assert config.backbone is host
    values = {"output_hidden_states": True, "pad_token_id": 3, "return_dict": False, "output_attentions": True}
    for key, value in {**values, "num_labels": 5, "chosen_by_a_user": "yes"}.items():
        setattr(config, key, value)
        assert getattr(host, key) == getattr(config, key) == value
    host.pad_token_id = 4
    del config.chosen_by_a_user
    assert config.pad_token_id == 4
    assert not hasattr(host, "chosen_by_a_user")
    assert vars(config).keys() <= {"adapter", "architectures", "backbone", "maw", "transformers_version"}
    config.return_dict = True
    loaded = saved(model, tmp_path).config
    written = json.loads((tmp_path / "config.json").read_text())
    held = {"adapter", "architectures", "backbone", "maw", "model_type", "transformers_version"}
    assert written.keys() - {"auto_map", "tensors"} == held, "a value in two places goes stale in one of them"
    assert not {"_name_or_path", "transformers_version"} & written["backbone"].keys()
    assert (loaded.pad_token_id, loaded.output_hidden_states, loaded.num_labels) == (4, True, 5)
    assert loaded.output_attentions


@pytest.mark.parametrize("name", DROPOUT)
def test_settings_given_at_loading_reach_the_host(name, tmp_path):
    model = attach(build(name))
    model.save_pretrained(tmp_path)
    given = {DROPOUT[name]: 0.25, "output_hidden_states": True}
    loaded = AutoModel.from_pretrained(tmp_path, **given)
    rates = {part.p for part in loaded.embeddings.modules() if isinstance(part, torch.nn.Dropout)}
    assert rates == {0.25}
    assert len(loaded(input_ids=TOKENS, attention_mask=MASK).hidden_states) == 3
    setattr(model.config, DROPOUT[name], 0.25)  # as in a host, this is for the next loading
    again = saved(model, tmp_path)
    assert getattr(again.backbone.config, DROPOUT[name]) == 0.25
    assert {part.p for part in again.embeddings.modules() if isinstance(part, torch.nn.Dropout)} == {0.25}


def test_what_the_host_does_not_know_is_refused_as_the_host_refuses_it(tmp_path):
    for part in (build("bert"), attach(build("bert"))):
        part.save_pretrained(tmp_path)
        with pytest.raises(TypeError, match="no_such_setting"):
            AutoModel.from_pretrained(tmp_path, no_such_setting=1)
        with pytest.raises(Exception, match="hidden_size"):
            AutoModel.from_pretrained(tmp_path, hidden_size="wide")
        with pytest.raises(Exception, match="output_attentions"):
            AutoModel.from_pretrained(tmp_path, output_attentions=True, attn_implementation="sdpa")
    with pytest.raises(maw.MAWError, match="no_such_setting"):
        AutoModel.from_pretrained(tmp_path, maw={"no_such_setting": 1})


def test_maws_own_settings_are_changed_one_by_one_at_loading(tmp_path):
    attach(build("bert"), depth=7).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, maw={"noise": 0.0})
    assert loaded.config.maw_config == maw.MAWConfig(layers="all", depth=7, tau=10.0, noise=0.0, kl_weight=1.0)
    assert maw_layers(loaded)[0].config.noise == 0.0


def test_a_folder_with_settings_beside_the_host_is_read_as_the_user_meant_it(tmp_path):
    """Folders of before had values of the wrapper's own at the top of the file, and users edited them there."""
    attach(build("bert")).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    edited = {**json.loads(path.read_text()), "hidden_dropout_prob": 0.5, "dtype": "float32"}
    path.write_text(json.dumps(edited))
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.hidden_dropout_prob, config.backbone.hidden_dropout_prob) == (0.5, 0.5)
    assert config.dtype is torch.float32


def test_configs_are_copied_pickled_and_compared_whole():
    config = attach(build("bert")).config
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config
        twin.hidden_size = 48
        assert config.hidden_size == 24
        assert twin != config
    assert MAWModelConfig(**config.to_dict()).hidden_size == 24


def test_a_copied_model_has_settings_of_its_own():
    model = attach(build("bert"))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.config.output_hidden_states = True
        assert twin.backbone.config.output_hidden_states
        assert len(twin(input_ids=TOKENS, attention_mask=MASK).hidden_states) == 3
    assert not model.config.output_hidden_states


# Outputs


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("asked", ["by config", "by call"])
def test_outputs_are_the_hosts(name, asked, tmp_path):
    host = build(name, "eager", initializer_range=0.1)
    wanted = {"output_hidden_states": True, "output_attentions": True}
    expected = host(input_ids=TOKENS, attention_mask=MASK, **wanted)
    model = attach(host)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    for changed in (model, loaded):
        changed.eval()
        if asked == "by config":
            changed.config.output_hidden_states = changed.config.output_attentions = True
        actual = changed(input_ids=TOKENS, attention_mask=MASK, **(wanted if asked == "by call" else {}))
        assert list(actual) == list(expected)
        for key in ("hidden_states", "attentions"):
            assert len(actual[key]) == len(expected[key])
            for tensor, target in zip(actual[key], expected[key], strict=True):
                real = (slice(None), slice(None), slice(0, 4)) if key == "attentions" else (slice(None), slice(0, 4))
                torch.testing.assert_close(tensor[real], target[real], atol=1e-5, rtol=1e-5)
        assert isinstance(changed(input_ids=TOKENS, attention_mask=MASK, return_dict=False), tuple)


@pytest.mark.parametrize("name", ["bert", "mpnet"])
def test_a_maw_layers_attentions_are_those_that_made_its_output(name):
    """Rows sum to one over the real tokens, and attention times value is what the layer gave."""
    model = stir(attach(build(name, "eager"), layers=[-1]))
    seen = []
    [layer] = maw_layers(model)
    layer.register_forward_hook(lambda module, inputs, output: seen.append((inputs[2], output[0])))
    attention = model(input_ids=TOKENS, attention_mask=MASK, output_attentions=True).attentions[-1]
    [(value, output)] = seen
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones_like(attention[..., 0]))
    assert (attention[1, :, :, 4:] == 0).all()
    output = output if output.shape == value.shape else output.transpose(1, 2)
    torch.testing.assert_close(attention @ value, output, atol=1e-5, rtol=1e-5)


READ_IN_A_NEW_PROCESS = """
import json, sys, torch, maw
from transformers import AutoModel
inputs = torch.load("inputs.pt")
read = {}
for folder, attention, dropout, part in json.loads(sys.argv[1]):
    model = AutoModel.from_pretrained(folder, attn_implementation=attention, output_hidden_states=True).eval()
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=attention == "eager")
    again = AutoModel.from_pretrained(folder, **{dropout: 0.25})
    rates = {module.p for module in again.embeddings.modules() if isinstance(module, torch.nn.Dropout)}
    read[folder] = (dict(outputs), rates, [name for name, _ in getattr(model, part).named_parameters()])
torch.save(read, "read.pt")
"""


def test_settings_outputs_and_parts_are_the_hosts_in_a_new_process(tmp_path):
    """BERT and ModernBERT, SDPA and eager: what the model gives before it is saved, a new process gives after."""
    cases, expected = [], {}
    for name, dropout, part in (
        ("bert", "hidden_dropout_prob", "encoder"),
        ("modernbert", "embedding_dropout", "layers"),
    ):
        for attention in ("sdpa", "eager"):
            model = stir(attach(build(name, attention, initializer_range=0.1)))
            model.config.output_hidden_states = True
            with torch.no_grad():
                outputs = model(input_ids=TOKENS, attention_mask=MASK, output_attentions=attention == "eager")
            folder = f"{name}-{attention}"
            expected[folder] = (outputs, [key for key, _ in getattr(model, part).named_parameters()])
            model.config.output_hidden_states = False
            model.save_pretrained(tmp_path / folder)
            cases.append((folder, attention, dropout, part))
    torch.save({"input_ids": TOKENS, "attention_mask": MASK}, tmp_path / "inputs.pt")
    subprocess.run([sys.executable, "-c", READ_IN_A_NEW_PROCESS, json.dumps(cases)], check=True, cwd=tmp_path)
    for folder, (actual, rates, parts) in torch.load(tmp_path / "read.pt").items():
        outputs, expected_parts = expected[folder]
        assert list(actual) == list(outputs)
        assert len(actual["hidden_states"]) == 3
        assert ("attentions" in actual) == folder.endswith("eager")
        torch.testing.assert_close(actual, dict(outputs), atol=1e-6, rtol=1e-6)
        assert rates == {0.25}
        assert parts == expected_parts


# Parts


@pytest.mark.parametrize("name", EVERY)
def test_parts_of_the_host_are_read_and_set_through_the_model(name):
    model = attach(build(name))
    host, keys = model.backbone, set(model.state_dict())
    parts = dict(host.named_children())
    assert len(parts) >= 2
    for part, module in parts.items():
        assert getattr(model, part) is module
        setattr(model, part, module)
        assert getattr(host, part) is module
    assert set(model.state_dict()) == keys
    assert model.get_submodule("backbone") is host
    assert model._no_split_modules == host._no_split_modules
    assert model.supports_gradient_checkpointing == host.supports_gradient_checkpointing
    with pytest.raises(AttributeError, match="no_such_part"):
        model.no_such_part  # noqa: B018
    model.note = "the user's own"
    assert not hasattr(host, "note")


def test_a_part_can_be_taken_out_as_from_the_host(tmp_path):
    model = attach(build("bert"))
    model.pooler = None
    assert model.backbone.pooler is None
    assert model(input_ids=TOKENS).pooler_output is None
    model = attach(build("bert"))
    model.encoder.layer = model.encoder.layer[1:]
    model.config.num_hidden_layers = 1
    assert len(maw_layers(saved(model, tmp_path))) == 1


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("size", [67, 50])
def test_the_vocabulary_is_resized_as_in_the_host(name, size, tmp_path):
    host = build(name)
    model = attach(copy.deepcopy(host))
    torch.manual_seed(0)
    host.resize_token_embeddings(size)
    torch.manual_seed(0)
    model.resize_token_embeddings(size)
    assert model.config.vocab_size == model.backbone.config.vocab_size == size
    assert torch.equal(model.get_input_embeddings().weight, host.get_input_embeddings().weight)
    loaded = saved(model, tmp_path)
    assert loaded.config.vocab_size == size
    assert torch.equal(loaded.get_input_embeddings().weight, host.get_input_embeddings().weight)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_:FutureWarning")
@pytest.mark.parametrize("kind", ["activation", "gradient"])
@pytest.mark.parametrize("name", EVERY)
def test_checkpointing_is_switched_as_in_the_host(name, kind):
    model = attach(build(name))
    enable = getattr(model, f"{kind}_checkpointing_enable", None)
    if enable is None:
        pytest.skip("this Transformers has no such name")
    if not model.backbone.supports_gradient_checkpointing:
        with pytest.raises(ValueError, match="does not support"):
            enable()
        return
    enable()
    assert model.is_gradient_checkpointing
    assert model.backbone.is_gradient_checkpointing
    getattr(model, f"{kind}_checkpointing_disable")()
    assert not model.backbone.is_gradient_checkpointing


@pytest.mark.parametrize("name", SOME)
def test_attention_is_chosen_as_in_the_host(name, caplog):
    host = build(name)
    model = attach(copy.deepcopy(host))
    for choice in ("eager", "sdpa", {"": "eager"}, {"backbone": "sdpa"}):
        model.set_attn_implementation(choice)
        host.set_attn_implementation(choice.get("", choice.get("backbone")) if isinstance(choice, dict) else choice)
        expected = host.config._attn_implementation
        assert model.config._attn_implementation == model.backbone.config._attn_implementation == expected
        model(input_ids=TOKENS, attention_mask=MASK)


@pytest.mark.parametrize("name", SOME)
def test_types_devices_and_sizes(name, tmp_path):
    host = build(name)
    plain, words = host.num_parameters(), host.num_parameters(exclude_embeddings=True)
    model = attach(host)
    added = sum(p.numel() for layer in maw_layers(model) for p in layer.parameters())
    assert (model.num_parameters() - plain, model.num_parameters(exclude_embeddings=True) - words) == (added, added)
    model.save_pretrained(tmp_path)
    for device_map in ("cpu", "auto", {"": "cpu"}):
        loaded = AutoModel.from_pretrained(tmp_path, device_map=device_map)
        assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    for dtype in ("bfloat16", torch.float16):
        loaded = AutoModel.from_pretrained(tmp_path, dtype=dtype)
        expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        assert loaded.dtype == loaded.config.dtype == loaded.backbone.config.dtype == expected
        assert {p.dtype for layer in maw_layers(loaded) for p in layer.parameters()} == {torch.float32}
    loaded.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path, dtype="auto").dtype == torch.float16


# In Sentence Transformers


def test_config_kwargs_of_a_sentence_transformer_reach_the_host(tmp_path):
    encoder(maw.MAWConfig(depth=5)).save(str(tmp_path))
    loaded = SentenceTransformer(
        str(tmp_path), device="cpu", config_kwargs={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.3}
    )
    host = loaded[0].model
    assert {part.p for part in host.modules() if isinstance(part, torch.nn.Dropout)} >= {0.0}
    assert host.embeddings.dropout.p == 0.0
    assert host.encoder.layer[0].attention.self.dropout.p == 0.3


def test_a_loss_that_asks_for_hidden_states_gets_them():
    plain, model = encoder(), encoder(maw.MAWConfig(depth=5))
    values = []
    for part in (plain, model):
        part.eval()
        loss = AdaptiveLayerLoss(part, MultipleNegativesRankingLoss(part), n_layers_per_step=-1, kl_div_weight=1)
        features = [dict(part.tokenizer(["a river", "an engine"], padding=True, return_tensors="pt")) for _ in "qd"]
        values.append(loss(features, None))
    torch.testing.assert_close(values[1], values[0])
    values[1].backward()
    assert not model[0].model.config.output_hidden_states


def test_a_decoder_tied_before_attaching_stays_tied(tmp_path, caplog):
    """Sentence Transformers ties by the names of parameters, which MAW changes: afterwards it ties none, and warns."""
    encoder().save(str(tmp_path))
    model = SentenceTransformer(str(tmp_path), device="cpu")
    loss = DenoisingAutoEncoderLoss(model, tie_encoder_decoder=True)
    maw.attach(model, maw.MAWConfig(depth=5))
    assert model[0].model.embeddings.word_embeddings.weight is loss.decoder.get_input_embeddings().weight
    assert "No encoder weights were tied" not in caplog.text
    DenoisingAutoEncoderLoss(model, tie_encoder_decoder=True)
    assert "No encoder weights were tied" in caplog.text
