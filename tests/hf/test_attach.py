"""MAW in real encoders: exact start, masks, padding, detach, refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CamembertConfig,
    CamembertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

import maw
from maw.hf import in_place
from maw.hf.attach import maw_layers
from maw.hf.attention import maw_attention
from maw.hf.masks import key_mask

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 31, "vocab_size": 61}
FAMILIES = {
    "bert": (BertModel, BertConfig(**SIZES)),
    "roberta": (RobertaModel, RobertaConfig(**SIZES)),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig(**SIZES)),
    "camembert": (CamembertModel, CamembertConfig(**SIZES)),
    "electra": (ElectraModel, ElectraConfig(**SIZES, embedding_size=24)),
    "distilbert": (DistilBertModel, DistilBertConfig(vocab_size=61, dim=24, n_layers=3, n_heads=3, hidden_dim=31)),
}
TOKENS = torch.tensor([[5, 6, 7, 8, 9], [11, 12, 13, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def build(name: str, attention: str = "sdpa"):
    family, config = FAMILIES[name]
    torch.manual_seed(0)
    config = copy.deepcopy(config)
    config._attn_implementation = attention
    config.initializer_range = 0.5  # the default of .02 gives attention that is uniform whatever MAW does
    return family(config).eval()


def stir(model) -> None:
    """Move every MAW parameter, so that MAW does something."""
    generator = torch.Generator().manual_seed(1)
    for layer in maw_layers(model):
        for parameter in layer.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)


def hidden(model, tokens=TOKENS, mask=MASK):
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=mask).last_hidden_state


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("depth", [5, 8, 11])
def test_attaching_changes_nothing_until_training_does(name, attention, depth):
    model = build(name, attention)
    before = hidden(model)
    attachment = maw.attach(model, maw.MAWConfig(layers="all", depth=depth))
    torch.testing.assert_close(hidden(attachment.model), before, atol=1e-5, rtol=0)
    stir(attachment.model)
    assert not torch.allclose(hidden(attachment.model), before, atol=1e-3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_padding_and_company_change_nothing(name, attention):
    model = maw.attach(build(name, attention), maw.MAWConfig(layers="all", depth=5)).model.double()
    stir(model)
    together = hidden(model)
    alone = hidden(model, TOKENS[1:, :3], MASK[1:, :3])
    torch.testing.assert_close(together[1:, :3], alone, atol=1e-12, rtol=0)
    no_mask = model(input_ids=TOKENS[1:, :3]).last_hidden_state
    torch.testing.assert_close(no_mask, alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_detach_restores_the_host_bit_for_bit(name):
    model = build(name)
    before, weights = hidden(model), copy.deepcopy(model.state_dict())
    wrapped = maw.attach(model, maw.MAWConfig(layers=[0, -1], depth=5)).model
    stir(wrapped)
    host = maw.detach(wrapped)
    assert host is model
    assert torch.equal(hidden(host), before)
    assert list(host.state_dict()) == list(weights)
    assert all(torch.equal(host.state_dict()[key], weights[key]) for key in weights)
    assert "save_pretrained" not in vars(host)


def test_only_the_named_layers_are_changed_and_the_report_names_them():
    attachment = maw.attach(build("bert"), maw.MAWConfig(layers=[-1, 0], depth=5))
    assert [layer.index for layer in attachment.layers] == [0, 2]
    assert "encoder.layer.2.attention.self" in str(attachment)
    assert "8 channels, depth 5, spectral views" in str(attachment)
    config = attachment.model.backbone.config
    own = [layer.attention.self.config for layer in attachment.model.backbone.encoder.layer]
    assert [one is config for one in own] == [False, True, False]
    assert config._attn_implementation == "sdpa"
    assert attachment.parameters == sum(p.numel() for layer in maw_layers(attachment.model) for p in layer.parameters())


def test_one_layer_equals_the_reference_computed_from_its_own_tensors():
    model = maw.attach(build("bert"), maw.MAWConfig(layers=[1], depth=5)).model.double()
    stir(model)
    layer = maw_layers(model)[0]
    seen = {}
    layer.register_forward_hook(lambda module, inputs, output: seen.update(inputs=inputs, output=output))
    hidden(model)
    query, key, value, mask = seen["inputs"]
    from maw.selector import token_mean

    expected = maw.reference.depth_attention(
        query,
        key,
        value,
        layer.query_views,
        layer.key_views,
        layer.weights(token_mean(query, mask)),
        constant=layer.constant,
        mask=mask,
        scale=layer.scale,
    )
    torch.testing.assert_close(seen["output"][0].transpose(1, 2), expected, atol=1e-6, rtol=1e-5)


def test_output_attentions_gives_as_many_maps_and_they_are_maws():
    model = build("bert", "eager")
    plain = model(input_ids=TOKENS, attention_mask=MASK, output_attentions=True).attentions
    wrapped = maw.attach(model, maw.MAWConfig(layers=[1], depth=5)).model
    stir(wrapped)
    changed = wrapped(input_ids=TOKENS, attention_mask=MASK, output_attentions=True).attentions
    assert len(changed) == len(plain) == 3
    assert torch.equal(changed[0], plain[0])
    assert not torch.allclose(changed[1], plain[1], atol=1e-3)


def test_the_hosts_attention_may_be_switched_after_attaching():
    model = maw.attach(build("bert", "sdpa"), maw.MAWConfig(layers="all", depth=5)).model
    stir(model)
    before = hidden(model)
    model.set_attn_implementation("eager")
    assert model.backbone.config._attn_implementation == "eager"
    torch.testing.assert_close(hidden(model), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    def gradients(checkpointing: bool):
        model = maw.attach(build("bert"), maw.MAWConfig(layers="all", depth=5, auxiliary_weight=1.0)).model
        stir(model)
        model.train()
        if checkpointing:
            model._set_gradient_checkpointing(
                True, lambda f, *a, **k: torch.utils.checkpoint.checkpoint(f, *a, use_reentrant=reentrant, **k)
            )
        torch.manual_seed(3)
        embeddings = model.get_input_embeddings()(TOKENS).detach().requires_grad_()
        model(inputs_embeds=embeddings, attention_mask=MASK).last_hidden_state.square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    assert any("policy_network" in name for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_deepcopy_after_a_step_is_independent():
    model = maw.attach(build("bert"), maw.MAWConfig(depth=5)).model.train()
    model(input_ids=TOKENS, attention_mask=MASK).last_hidden_state.sum().backward()
    twin = copy.deepcopy(model).eval()
    before = hidden(twin)
    stir(model)
    assert torch.equal(hidden(twin), before)
    assert twin.backbone.encoder.layer[0].attention.self.maw_host_config is twin.backbone.config


def test_attaching_is_repeatable_and_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    models = []
    for seed in (5, 5):
        model = build("bert")
        torch.manual_seed(seed)
        models.append(maw.attach(model, maw.MAWConfig(depth=11)).model)
        assert torch.equal(torch.rand(1), expected)
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[key], second[key]) for key in first)


# Refusals


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: AlbertModel(AlbertConfig(**SIZES, embedding_size=8)), "shares one attention module"),
        (lambda: BertForMaskedLM(BertConfig(**SIZES)), "task head"),
        (lambda: BertModel(BertConfig(**SIZES, is_decoder=True)), "decoder"),
        (lambda: torch.nn.Linear(2, 2), "Transformers encoder"),
    ],
)
def test_a_host_that_cannot_carry_maw_is_refused_with_the_reason(model, words):
    with pytest.raises(maw.MAWError, match=words):
        maw.attach(model())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": [3]}, "3 layers, -3 to 2 are possible, got 3"),
        ({"layers": [-4]}, "got -4"),
        ({"layers": [2, -1]}, "layer 2 is named twice"),
        ({"num_heads": 8}, "num_heads is 8 but the encoder has 3 heads"),
    ],
)
def test_settings_that_do_not_fit_the_encoder(settings, words):
    model = build("bert")
    before = hidden(model)
    with pytest.raises(maw.MAWError, match=words):
        maw.attach(model, maw.MAWConfig(depth=5, **settings))
    assert not maw_layers(model)
    assert torch.equal(hidden(model), before)


def test_attaching_twice_and_detaching_nothing_are_errors():
    model = build("bert")
    with pytest.raises(maw.MAWError, match="nothing to detach"):
        maw.detach(model)
    attachment = maw.attach(model, maw.MAWConfig(depth=5))
    for twice in (model, attachment.model):
        with pytest.raises(maw.MAWError, match="carries MAW already"):
            maw.attach(twice)


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"])
def test_flash_attention_is_refused_with_the_reason_before_and_after(name):
    model = build("bert")
    model.config._attn_implementation = name
    with pytest.raises(maw.MAWError, match=r"several texts flattened .* attn_implementation='sdpa'"):
        maw.attach(model)
    assert not maw_layers(model)
    model = build("bert")
    wrapped = maw.attach(model, maw.MAWConfig(depth=5)).model
    model.config._attn_implementation = name
    layer = model.encoder.layer[0].attention.self
    query, key, value = torch.randn(3, 1, 3, 5, 8)
    with pytest.raises(maw.MAWError, match=f"is set to '{name}' .*flattened"):
        maw_attention(layer, query, key, value, None, scaling=layer.scaling)
    model.config._attn_implementation = "sdpa"
    hidden(wrapped)


def test_the_bare_host_refuses_to_be_saved_without_maw(tmp_path):
    model = build("bert")
    maw.attach(model, maw.MAWConfig(depth=5))
    with pytest.raises(maw.MAWError, match=r"attachment\.model\.save_pretrained"):
        model.save_pretrained(tmp_path / "host")
    maw.detach(model)
    model.save_pretrained(tmp_path / "host")


def test_views_fall_back_to_frames_by_rule_and_say_so():
    model = build("bert")
    weight = model.encoder.layer[0].attention.self.query.weight.data
    weight[1] = weight[0]
    attachment = maw.attach(model, maw.MAWConfig(depth=5))
    assert attachment.layers[0].views == "frame"
    maw.detach(model)
    with pytest.raises(maw.MAWError, match="condition number"):
        maw.attach(model, maw.MAWConfig(depth=5, views="spectral"))


# The token mask behind the host's masks


def additive(allowed, least):
    return torch.zeros(allowed.shape, dtype=least.dtype).masked_fill(~allowed, least)


def test_key_mask_reads_every_form():
    token = torch.tensor([[False, True, True, False], [True, True, True, True]])
    bidirectional = token[:, None, None, :].expand(2, 1, 4, 4)
    i, j = torch.arange(4)[:, None], torch.arange(4)
    causal, window = bidirectional & (j <= i), bidirectional & (j <= i) & (i - j < 2)
    assert key_mask(None, 2, 4) is None
    for allowed in (bidirectional, causal, window, bidirectional[:, :, :1]):
        for mask in (
            allowed,
            additive(allowed, torch.tensor(torch.finfo(torch.float32).min)),
            additive(allowed, torch.tensor(float("-inf"))),
            additive(allowed, torch.tensor(torch.finfo(torch.float16).min, dtype=torch.float16)),
        ):
            assert torch.equal(key_mask(mask, 2, 4), token)
    assert torch.equal(key_mask(causal[:1], 2, 4), token[:1].expand(2, -1))
    for mask in (token, bidirectional[..., :3], bidirectional[:, :, :2], bidirectional.expand(2, 1, 4, 4)[:, :, :, :2]):
        with pytest.raises(maw.MAWError, match="the attention mask must have shape"):
            key_mask(mask, 2, 4)


def test_key_mask_evaluates_a_block_mask_on_its_diagonal_alone():
    token = torch.rand(2, 5) < 0.6
    pairs = []

    def causal(text, head, i, j):
        pairs.append(torch.broadcast_tensors(text, i, j))
        return (j <= i) & token[text, j]

    block_mask = create_block_mask(causal, 2, None, 5, 5, device="cpu")
    pairs.clear()
    assert torch.equal(key_mask(block_mask, 2, 5), token)
    [(text, i, j)] = pairs
    assert text.shape == (2, 5)
    assert torch.equal(i, j)


def test_layers_are_found_once_and_again_where_they_moved(monkeypatch):
    """An adapter puts a copy in a layer's place, detaching takes it away, attaching puts another there."""
    walks, plain = [], in_place.maw_layers
    monkeypatch.setattr(in_place, "maw_layers", lambda model: walks.append(model) or plain(model))
    host, layers = build("bert"), in_place.LayersInPlace()
    assert [layers(host), layers(host)] == [[], []]
    assert len(walks) == 1, "nothing to find is known, too"
    maw.attach(host, maw.MAWConfig(depth=8, layers="all"))
    first = layers(host)
    assert first == plain(host) != []
    assert layers(host) == first
    assert len(walks) == 2
    parent = next(module for module in host.modules() if getattr(module, "maw", None) is first[0])
    parent.maw = copy.deepcopy(first[0])
    assert layers(host) == [parent.maw, *first[1:]]
    other = copy.deepcopy(host)
    assert layers(other) == plain(other) != layers(host)
    maw.detach(host)
    assert layers(host) == []
