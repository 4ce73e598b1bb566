from __future__ import annotations

import math

import pytest
import torch

import maw
from maw.errors import MAWError
from maw.functional import depth_attention
from maw.hf.attach import maw_layers
from maw.inspection import inspect
from maw.retrieval.models import choose_device, load_encoder

TEXTS = (
    "The bell in the old harbour rang twice before the fog lifted.",
    "A lamp.",
    "Nine geese crossed the weir at noon.",
)
DEPTH, HEADS = 12, 12


def encoder(**settings):
    """The packaged encoder with MAW that prefers depths by text."""
    model = load_encoder("packaged", device=choose_device("cpu"))
    maw.attach(model, maw.MAWConfig(**{"layers": [1, -1], "depth": DEPTH, "tau": 1.0, **settings}))
    generator = torch.Generator().manual_seed(2)
    for layer in maw_layers(model):
        if hasattr(layer, "selector"):
            weight = layer.selector.policy_network[-1].weight
            weight.data += torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def model():
    return encoder()


@pytest.fixture(scope="module")
def found(model):
    return inspect(model, TEXTS, depths=3)


def captured(model, text):
    """q, k, v and the output of the last MAW layer as the model is used, and the layer."""
    layer, kept = maw_layers(model)[-1], {}

    def keep(_, args, output):
        kept["qkv"] = args[:3]
        kept["output"] = output[0] if isinstance(output, tuple) else output

    hook = layer.register_forward_hook(keep)
    model.encode([text], show_progress_bar=False)
    hook.remove()
    return layer, kept["qkv"], kept["output"]


def test_what_is_shown_gives_the_layers_own_output():
    model = encoder().double()
    _, (_, _, value), output = captured(model, TEXTS[0])
    assert model[0].model.backbone.config._attn_implementation == "sdpa"
    for head in range(HEADS):
        shown = inspect(model, TEXTS[:1], head=head).texts[0].mixed
        torch.testing.assert_close(shown @ value[0, head], output[0, :, head], atol=1e-12, rtol=0)


@torch.no_grad()
def test_a_slice_is_the_attention_at_one_hot_depth_weights(model):
    layer, (query, key, value), _ = captured(model, TEXTS[0])
    for head in (0, 7):
        for piece in inspect(model, TEXTS[:1], head=head, depths=4).texts[0].slices:
            one_hot = torch.nn.functional.one_hot(torch.tensor([piece.depth]), DEPTH).float()
            wanted = depth_attention(query, key, value, layer.query_views, layer.key_views, one_hot, scale=layer.scale)
            torch.testing.assert_close(piece.attention @ value[0, head], wanted[0, head], atol=1e-5, rtol=0)


def test_entropy_is_that_of_the_slices_shown(model):
    text = inspect(model, TEXTS[:1], head=2, depths=DEPTH).texts[0]
    for piece in text.slices:
        rows = torch.special.entr(piece.attention.double()).sum(dim=-1)
        assert piece.entropy == pytest.approx(float(rows.mean()) / math.log(len(text.tokens)), abs=1e-5)
        assert piece.entropy == pytest.approx(float(text.entropy[piece.depth]))


def test_weights_are_those_of_the_layer_and_strongest_come_first(model, found):
    layer, (query, _, _), _ = captured(model, TEXTS[1])
    wanted = layer.weights(query.mean(dim=2).flatten(1))[0]
    text = found.texts[1]
    torch.testing.assert_close(text.depth_weight, wanted.detach())
    assert [piece.depth for piece in text.slices] == wanted.topk(3).indices.tolist()
    assert text.tokens == ("[CLS]", "a", "lamp", ".", "[SEP]")
    assert 1 < text.effective_depths < DEPTH
    assert not text.is_uniform


@torch.no_grad()
def test_alike_is_the_cosine_of_scores_with_centred_rows(model):
    found = inspect(model, TEXTS[:1], head=4)
    layer, (query, key, _), _ = captured(model, TEXTS[0])
    score = torch.einsum("dc,ic,de,je->dij", layer.query_views[4], query[0, 4], layer.key_views[4], key[0, 4])
    flat = (score - score.mean(dim=-1, keepdim=True)).flatten(1).double()
    flat = flat / flat.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(found.alike.double(), flat @ flat.T, atol=1e-5, rtol=0)
    (first, value), *_ = found.neighbours(5)
    others = found.alike[5].clone()
    others[5] = -2
    assert (first, value) == (int(others.argmax()), float(others.max()))


def test_choosers_are_the_texts_of_largest_weight(found):
    weights = [float(text.depth_weight[7]) for text in found.texts]
    order = sorted(range(3), key=lambda place: -weights[place])
    assert found.choosers(7) == [(place, weights[place]) for place in order]
    assert found.shown_depths() == sorted({piece.depth for text in found.texts for piece in text.slices})


def test_a_text_is_seen_the_same_alone_and_among_others(model, found):
    alone = inspect(model, TEXTS[1:2], depths=3).texts[0]
    torch.testing.assert_close(alone.mixed, found.texts[1].mixed)


def test_equal_weights_are_said_and_then_what_makes_most_of_the_logits_comes_first():
    fresh = encoder(selection="uniform", depth=40)
    text = inspect(fresh, TEXTS[:1], depths=40).texts[0]
    assert text.is_uniform
    assert text.effective_depths == pytest.approx(40)
    torch.testing.assert_close(text.mixed, text.host, atol=1e-6, rtol=0)
    shares = [piece.share for piece in text.slices]
    assert shares == sorted(shares, reverse=True)
    assert math.fsum(shares) == pytest.approx(1)


def test_literal_slices_are_all_alike():
    literal = encoder(views="ones", train_views=False, scale=1.0)
    found = inspect(literal, TEXTS[:2])
    torch.testing.assert_close(found.alike, torch.ones(DEPTH, DEPTH), atol=1e-5, rtol=0)


def test_the_model_is_left_as_it_was(model):
    before = model.encode(list(TEXTS))
    model.train()
    model[1].eval()
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    inspect(model, TEXTS[:1])
    with pytest.raises(MAWError):
        inspect(model, ["fine", "\u200b"])
    assert model.training
    assert model[0].model.training
    assert not model[1].training
    assert model.max_seq_length == 256
    assert model[0].model.backbone.config._attn_implementation == "sdpa"
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    assert (model.eval().encode(list(TEXTS)) == before).all()


def test_the_other_layer_and_the_default(model, found):
    assert (found.layer, found.layers) == (5, (1, 5))
    first = inspect(model, TEXTS[:1], layer=-5)
    assert first.layer == 1
    assert (first.texts[0].mixed - found.texts[0].mixed).abs().max() > 0.01


def test_a_long_text_is_cut_where_the_model_cuts_it(model):
    text = inspect(model, ["weir " * 400]).texts[0]
    assert (len(text.tokens), text.whole, text.cut) == (256, 402, True)
    assert text.mixed.shape == (256, 256)
    assert text.difference < 1e-6
    assert not inspect(model, TEXTS[:1]).texts[0].cut


def test_values_for_json_are_the_same(found):
    values = found.to_dict()
    assert values["layer"] == 5
    assert values["texts"][0]["slices"][0]["depth"] == found.texts[0].slices[0].depth
    assert values["texts"][0]["mixed"] == found.texts[0].mixed.tolist()
    assert [one["depth"] for one in values["depths"]] == found.shown_depths()


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        (["a"], {"layer": 3}, "layer 3 has no MAW: of layers 0 to 5 these have it: 1, 5"),
        (["a"], {"layer": 6}, "layer must be -6 to 5, got 6"),
        (["a"], {"head": 12}, "head must be 0 to 11, or mean, got 12"),
        (["a"], {"depths": 0}, "depths must be 1 to 12, got 0"),
        (["a"], {"depths": 13}, "depths must be 1 to 12, got 13"),
        (["a", " \n"], {}, "text 2 is empty"),
        (["\u200b"], {}, "text 1 has no token but the model's own"),
        ([], {}, "wanted a list of texts"),
        ("a text", {}, "wanted a list of texts"),
    ],
)
def test_what_cannot_be_looked_at_is_said(model, texts, settings, message):
    with pytest.raises(MAWError, match=message):
        inspect(model, texts, **settings)


def test_a_model_without_maw_is_said():
    with pytest.raises(MAWError, match=r"no MAW layer.*maw train --variant maw-lora"):
        inspect(load_encoder("packaged", device=choose_device("cpu")), ["a"])


@pytest.mark.slow
def test_twenty_texts_take_under_ten_seconds_of_processor_time(model):
    import time

    start = time.process_time()
    inspect(model, ["weir " * 100] * 20)
    assert time.process_time() - start < 10
