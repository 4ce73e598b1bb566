"""What attention and its layers refuse, and what of the strange is right: no text, one token, one depth."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from maw import MAWConfig, MAWError, functional, reference
from maw.module import DepthAttention
from maw.views import Views, frame_views

BATCH, HEADS, TOKENS, CHANNELS, DEPTH = 2, 3, 5, 4, 7
FORMS = [functional.depth_attention, reference.depth_attention]


def draw(batch=BATCH, tokens=TOKENS, depth=DEPTH, dtype=torch.float64):
    shapes = dict.fromkeys(("query", "key", "value"), (batch, HEADS, tokens, CHANNELS))
    shapes |= dict.fromkeys(("query_views", "key_views"), (HEADS, depth, CHANNELS))
    drawn = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
    return drawn | {"depth_weight": torch.full((batch, depth), 1 / max(depth, 1), dtype=dtype)}


def refused(arguments, words, form):
    with pytest.raises(MAWError, match=words):
        form(**arguments)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("key", lambda x: x.float(), r"key must have the type of query, torch.float64, got torch.float32: convert"),
        ("value", lambda x: x.bfloat16(), "value must have the type of query, torch.float64, got torch.bfloat16"),
        ("query", lambda x: x.bfloat16(), "key must have the type of query, torch.bfloat16, got torch.float64"),
        ("query", lambda x: x.long(), r"query must be a tensor of a floating type, got torch.int64: .*query.float\(\)"),
        ("key", lambda x: x.int(), "key must be a tensor of a floating type, got torch.int32"),
        ("depth_weight", lambda x: x.bool(), "depth_weight must be a tensor of a floating type, got torch.bool"),
        ("query_views", lambda x: x.tolist(), "query_views must be a tensor of a floating type, got list"),
        ("value", lambda x: None, "value must be a tensor of a floating type, got NoneType"),
        *(
            (name, lambda x: x.to("meta"), f"{name} must be on the device of query, cpu, got meta: move one of them")
            for name in ("key", "value", "query_views", "key_views", "depth_weight")
        ),
        ("key", lambda x: x[:, :, :0], "value must have shape"),
        ("query_views", lambda x: x[:, :0], "key_views must have the shape of query_views"),
    ],
)
def test_types_and_devices(form, name, change, words):
    arguments = draw()
    arguments[name] = change(arguments[name])
    refused(arguments, words, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(BATCH, TOKENS), r"mask must be boolean of shape \(B=2, K=5\).*got torch.float32 .*mask.bool\(\)"),
        (torch.ones(BATCH, TOKENS, dtype=torch.long), r"got torch.int64 of shape \(2, 5\)"),
        (torch.ones(BATCH, 1, 1, TOKENS, dtype=torch.bool), r"got torch.bool of shape \(2, 1, 1, 5\)"),
        (torch.ones(BATCH, TOKENS + 1, dtype=torch.bool), r"got torch.bool of shape \(2, 6\)"),
        (torch.ones(1, TOKENS, dtype=torch.bool), r"got torch.bool of shape \(1, 5\)"),
        (
            torch.ones(BATCH, TOKENS, dtype=torch.bool, device="meta"),
            "mask must be on the device of query, cpu, got meta",
        ),
        (torch.tensor([[True] * TOKENS, [False] * TOKENS]), "mask: row 1 has no real key.*drop the empty text"),
    ],
)
def test_masks(form, mask, words):
    refused(draw() | {"mask": mask}, words, form)
    layer = DepthAttention(MAWConfig(depth=DEPTH), frame_views(HEADS, CHANNELS, DEPTH, scaling=0.5)).double()
    tensors = [draw()[name] for name in ("query", "key", "value")]
    for training in (False, True):
        with pytest.raises(MAWError, match=words):
            layer.train(training)(*tensors, mask)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_to_attend_to_no_head_and_no_depth(form):
    refused(draw(tokens=0), "key has no tokens to attend to, got .*: drop the empty texts", form)
    refused(draw(depth=0), r"must be at least 1, .* \(3, 0, 4\)", form)
    no_channels = {name: tensor[..., :0] for name, tensor in draw().items() if name != "depth_weight"}
    refused(draw() | no_channels, r"H, D and C must be at least 1, got views of shape \(3, 7, 0\)", form)


@pytest.mark.parametrize("form", FORMS)
def test_no_text_and_no_query_give_nothing(form):
    assert form(**draw(batch=0), mask=torch.ones(0, TOKENS, dtype=torch.bool)).shape == (0, HEADS, TOKENS, CHANNELS)
    arguments = draw()
    arguments["query"] = arguments["query"][:, :, :0]
    assert form(**arguments).shape == (BATCH, HEADS, 0, CHANNELS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_nan_in_one_text_does_not_reach_another(form, name):
    arguments = draw()
    expected = form(**arguments)
    arguments[name][0, 0, 0, 0] = torch.nan
    output = form(**arguments)
    assert torch.equal(output[1], expected[1])
    assert not torch.equal(output[0], expected[0])


def test_types_may_differ_under_autocast():
    """As where a host normalises queries and keys, in float32, and not values; autocast makes one type of them."""
    arguments = draw(dtype=torch.float32)
    expected = functional.depth_attention(**arguments)
    arguments["value"] = arguments["value"].bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(functional.depth_attention(**arguments).float(), expected, rtol=0, atol=0.05)


# One layer


def make_layer(depth=DEPTH, **settings):
    return DepthAttention(MAWConfig(depth=depth, **settings), frame_views(HEADS, CHANNELS, depth, scaling=0.5))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda q, k, v: (q[:, :2], k, v), r"query must have shape \(B, H=3, Q, C=4\), got \(2, 2, 5, 4\)"),
        (lambda q, k, v: (q[..., :3], k[..., :3], v), r"query must have shape \(B, H=3, Q, C=4\), got \(2, 3, 5, 3\)"),
        (lambda q, k, v: (q, k[:, :2], v[:, :2]), r"Hkv a divisor of H=3 .* got \(2, 2, 5, 4\)"),
        (lambda q, k, v: (q[:, :, :1], k, v), r"as many keys as queries, got \(2, 3, 5, 4\)"),
        (lambda q, k, v: (q, k[:1], v[:1]), r"key must have shape \(B=2, Hkv, K, C=4\), got \(1, 3, 5, 4\)"),
        (lambda q, k, v: (q, k, v[:, :1]), r"value must have shape \(B=2, Hkv=3, K=5, C\), got \(2, 1, 5, 4\)"),
        (lambda q, k, v: (q[0], k[0], v[0]), r"query must have shape \(B, H, Q, C\), got \(3, 5, 4\)"),
        (lambda q, k, v: (q.long(), k, v), "query must be a tensor of a floating type, got torch.int64"),
        (lambda q, k, v: (q.bfloat16(), k, v), "key must have the type of query, torch.bfloat16, got torch.float32"),
        (lambda q, k, v: (q, k.to("meta"), v), "key must be on the device of query, cpu, got meta"),
        (lambda q, k, v: [x.to("meta") for x in (q, k, v)], "query must be on the device of the layer, cpu, got meta"),
        (lambda q, k, v: [x[:, :, :0] for x in (q, k, v)], "key has no tokens to attend to"),
    ],
)
def test_a_layer_names_what_does_not_fit(training, change, words):
    tensors = [draw(dtype=torch.float32)[name] for name in ("query", "key", "value")]
    with pytest.raises(MAWError, match=words):
        make_layer().train(training)(*change(*tensors))


@pytest.mark.parametrize("settings", [{}, {"selection": "uniform"}, {"estimator": "exact"}, {"group_size": 1}])
@pytest.mark.parametrize("tokens", [TOKENS, 200])
def test_a_batch_of_no_text_trains_nothing_and_counts_nothing(settings, tokens):
    layer = make_layer(auxiliary_weight=1.0, **settings)
    tensors = [draw(0, tokens, dtype=torch.float32)[name].requires_grad_() for name in ("query", "key", "value")]
    output = layer(*tensors, torch.ones(0, tokens, dtype=torch.bool))
    assert output.shape == (0, HEADS, tokens, CHANNELS)
    output.sum().backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in layer.parameters())
    assert layer.collect() == {}
    assert layer.gradient_scale.texts == 0


@pytest.mark.parametrize("settings", [{}, {"selection": "uniform"}, {"selection": "hard"}, {"estimator": "exact"}])
@pytest.mark.parametrize("tokens", [1, TOKENS])
def test_one_depth_is_the_host_and_has_nothing_to_choose(settings, tokens):
    layer = make_layer(depth=1, auxiliary_weight=1.0, kl_weight=0.1, entropy_weight=0.1, **settings)
    tensors = [draw(tokens=tokens, dtype=torch.float32)[name] for name in ("query", "key", "value")]
    for training in (True, False):
        output = layer.train(training)(*tensors)
        expected = F.scaled_dot_product_attention(*tensors, scale=0.5)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
    layer.train()(*tensors).square().sum().backward()
    if "selection" not in settings or settings["selection"] == "hard":
        assert (layer.selector.policy_network[-1].weight.grad == 0).all()
    collected = layer.collect()
    assert all(statistic.isfinite().all() for statistic in collected.values())
    assert float(collected.get("policy_entropy", 0.0)) == 0.0


@pytest.mark.parametrize("estimator", ["sampled", "exact"])
def test_texts_of_one_token_have_no_entropy(estimator):
    layer = make_layer(auxiliary_weight=1.0, estimator=estimator)
    tensors = [draw(tokens=1, dtype=torch.float32)[name].requires_grad_() for name in ("query", "key", "value")]
    output = layer(*tensors)
    torch.testing.assert_close(output, tensors[2])  # all attention on the one key
    output.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    collected = layer.collect()
    assert float(collected["reward"]) == 0.0
    assert float(collected["zero_spread"]) == 1.0


@pytest.mark.parametrize("name", ["query_views", "key_views", "constant"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_views_that_are_not_finite_are_refused_where_they_are_given(name, bad):
    views = frame_views(HEADS, CHANNELS, 3, scaling=0.5)
    damaged = getattr(views, name).clone()
    damaged[1, 2, 0] = bad
    with pytest.raises(MAWError, match=f"{name} of a MAW layer holds NaN or infinity.*earlier checkpoint"):
        DepthAttention(MAWConfig(depth=3), Views(**(views._asdict() | {name: damaged})))


def test_weights_that_are_not_finite_are_refused_where_they_are_loaded():
    layer, other = make_layer(depth=3), torch.nn.ModuleDict({"inside": make_layer(depth=3)})
    with torch.no_grad():
        layer.selector.value_network[0].bias[1] = torch.nan
    with pytest.raises(MAWError, match=r"selector\.value_network\.0\.bias of a MAW layer holds NaN"):
        make_layer(depth=3).load_state_dict(layer.state_dict())
    with pytest.raises(MAWError, match=r"selector\.value_network\.0\.bias of a MAW layer holds NaN"):
        other.load_state_dict({f"inside.{name}": tensor for name, tensor in layer.state_dict().items()})


def test_too_many_depths_are_refused_before_anything_is_made():
    with pytest.raises(MAWError, match=r"depth must be at most 4096, got 1000000000: .* 64 is the default"):
        MAWConfig(depth=10**9)
