"""Controls in MAW's place: each is the host at its start, and does what it says once it is moved."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask

from maw import DepthAttention, MAWConfig, MAWError
from maw.controls import CONTROLS, make_control
from maw.hf.masks import with_added
from maw.views import frame_views

B, H, KEY_HEADS, S, C = 2, 6, 2, 7, 5
SCALING = 0.4


def control(mechanism, heads=H, channels=C, **settings):
    return make_control(MAWConfig(mechanism=mechanism, **settings), heads, channels, scaling=SCALING)


def inputs(key_heads=KEY_HEADS, dtype=torch.float64):
    return (
        torch.randn(B, H, S, C, dtype=dtype),
        torch.randn(B, key_heads, S, C, dtype=dtype),
        torch.randn(B, key_heads, S, C, dtype=dtype),
    )


def transformed(layer, query, key, value, mask=None):
    """The query that the host's attention gets."""
    return layer(query, key, value, mask, attend=lambda query: query)


def added(layer, query, key, value, mask=None):
    """What the host adds to its logits."""
    return layer(query, key, value, mask, attend=lambda _, added: added)


def stirred(layer):
    for parameter in layer.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, dtype=parameter.dtype)
    return layer


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mechanism", ["ia3-key", "linear-gate"])
def test_a_control_with_parameters_starts_as_the_host_bit_for_bit(mechanism, training):
    layer, given = control(mechanism, depth=3).train(training), inputs(dtype=torch.float32)
    assert torch.equal(transformed(layer, *given), given[0])


@pytest.mark.parametrize("mechanism", CONTROLS)
def test_the_hosts_attention_runs_under_the_callers_autocast_and_gets_its_dtype(mechanism):
    query, key, value = inputs(dtype=torch.bfloat16)
    seen = []

    def attend(query, *, added=None):
        seen.append((torch.is_autocast_enabled("cpu"), query.dtype, None if added is None else added.dtype))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        control(mechanism).train()(query, key, value, attend=attend)
    extra = torch.bfloat16 if mechanism == "logit-dropout" else None
    assert seen == [(True, torch.bfloat16, extra)]


@pytest.mark.parametrize("mechanism", ["ia3-key", "linear-gate"])
def test_gradients_reach_every_parameter_and_the_query(mechanism):
    layer, (query, key, value) = stirred(control(mechanism, depth=3).double()), inputs()
    query.requires_grad_()
    mask = torch.ones(B, S, dtype=torch.bool)
    mask[1, 4:] = False

    def run(query, *parameters):
        named = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
        call = (query, key, value, mask)
        return torch.func.functional_call(layer, named, call, {"attend": lambda query: query})

    assert torch.autograd.gradcheck(run, (query, *layer.parameters()))


# IA3


def test_ia3_scales_keys():
    layer, (query, key, value) = stirred(control("ia3-key").double()), inputs(key_heads=H)
    assert sum(parameter.numel() for parameter in layer.parameters()) == H * C
    expected = F.scaled_dot_product_attention(query, key * layer.factor, value)
    actual = layer(query, key, value, attend=lambda query: F.scaled_dot_product_attention(query, key, value))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


# The linear gate


@pytest.mark.parametrize("depth", [1, 5, 64, 128])
@pytest.mark.parametrize(("heads", "channels"), [(12, 32), (12, 64), (3, 8), (2, 3), (1, 2)])
def test_the_linear_gate_has_maws_parameters(heads, channels, depth):
    layer = control("linear-gate", heads, channels, depth=depth)
    maw = DepthAttention(MAWConfig(depth=depth), frame_views(heads, channels, depth, scaling=1.0))
    own, wanted = (sum(parameter.numel() for parameter in module.parameters()) for module in (layer, maw))
    assert abs(own - wanted) <= (2 * heads * channels + 1) / 2, "no whole number of inner channels comes closer"
    if (heads, depth) == (12, 64):
        assert abs(own / wanted - 1) < 1e-3


def test_counting_parameters_draws_no_random_numbers_of_the_caller():
    """The inner layer is drawn, once; MAW's selector, which is only counted, is not."""
    torch.manual_seed(0)
    layer = control("linear-gate", depth=3)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    torch.nn.Linear(H * C, layer.down.out_features), torch.nn.Linear(layer.down.out_features, H * C)
    assert torch.equal(torch.get_rng_state(), after)


def test_the_linear_gate_multiplies_by_a_linear_function_of_the_state():
    layer, (query, key, value) = stirred(control("linear-gate", depth=3).double()), inputs()
    mask = torch.ones(B, S, dtype=torch.bool)
    mask[1, 4:] = False
    actual = transformed(layer, query, key, value, mask)
    for text, tokens in ((0, S), (1, 4)):
        state = query[text, :, :tokens].mean(1).flatten()
        gate = 1 + layer.up.weight @ (layer.down.weight @ state + layer.down.bias) + layer.up.bias
        torch.testing.assert_close(actual[text], query[text] * gate.view(H, 1, C), rtol=0, atol=1e-12)
    padded = query.clone()
    padded[1, :, 4:] = 99.0
    torch.testing.assert_close(transformed(layer, padded, key, value, mask)[1, :, :4], actual[1, :, :4])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_linear_gate_takes_queries_of_another_type_than_its_parameters(dtype):
    assert transformed(control("linear-gate", depth=3), *inputs(dtype=dtype)).dtype == dtype


# Dropout on logits


@pytest.mark.parametrize("settings", [{"training": False, "p": 0.3}, {"training": True, "p": 0.0}], ids=str)
def test_logit_dropout_is_the_host_in_evaluation_and_at_zero(settings):
    layer, given = control("logit-dropout", logit_dropout=settings["p"]).train(settings["training"]), inputs()
    state = torch.get_rng_state()
    assert transformed(layer, *given) is given[0]  # and `attend` gets nothing to add
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(layer.parameters())


@pytest.mark.parametrize("p", [0.013, 0.3])
def test_noise_of_logit_dropout_has_the_stated_mean_and_variance(p):
    """Also that it is dropout: each logit is lost or grows by the same factor, whatever head and pair."""
    layer, (query, key, value) = control("logit-dropout", logit_dropout=p).train(), inputs()
    logit = SCALING * query @ key.repeat_interleave(H // KEY_HEADS, dim=1).mT
    times = 4000
    share = torch.stack([added(layer, query, key, value) / logit for _ in range(times)])
    lost = torch.isclose(share, torch.tensor(-1.0, dtype=share.dtype))
    torch.testing.assert_close(share[~lost], torch.full_like(share[~lost], p / (1 - p)), rtol=1e-6, atol=1e-9)
    count = share.numel()
    torch.testing.assert_close(lost.double().mean().item(), p, rtol=0, atol=5 * (p * (1 - p) / count) ** 0.5)
    torch.testing.assert_close(share.square().mean().item(), p / (1 - p), rtol=0.02, atol=0)
    each = lost.double().mean(0)
    assert (each - p).abs().max() < 6 * (p * (1 - p) / times) ** 0.5, "every pair alike"


def test_attention_with_logit_dropout_and_its_gradient_are_those_of_dropout():
    layer, (query, key, value) = control("logit-dropout", logit_dropout=0.3).train(), inputs(key_heads=H)
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]

    def attend(query, *, added):
        return ((SCALING * query @ key.mT + added).softmax(-1) @ value).square().sum()

    torch.manual_seed(3)
    actual = torch.autograd.grad(layer(query, key, value, attend=attend), leaves)
    torch.manual_seed(3)
    dropped = F.dropout(SCALING * query @ key.mT, 0.3)
    assert (dropped == 0).any()
    expected = torch.autograd.grad((dropped.softmax(-1) @ value).square().sum(), leaves)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_in_16_bits_kept_logits_grow_by_what_they_should():
    """A factor of 1.013 is three roundings of bfloat16 away from 1; taken as a difference there it would be noise."""
    query, key, value = inputs(dtype=torch.bfloat16)
    layer = control("logit-dropout", logit_dropout=0.013).train()
    logit = SCALING * query.float() @ key.float().repeat_interleave(H // KEY_HEADS, dim=1).mT
    share = added(layer, query, key, value).float() / logit
    kept = share > -0.5
    torch.testing.assert_close(share[kept], torch.full_like(share[kept], 0.013 / 0.987), rtol=2**-8, atol=0)


# Something added through the mask


FLOOR = torch.finfo(torch.float32).min


@pytest.mark.parametrize("form", ["boolean", "additive", "infinite", "one row"])
def test_masked_pairs_stay_masked_whatever_is_added(form):
    allowed = torch.ones(B, 1, S, S, dtype=torch.bool).tril()
    allowed[1, :, :, 5:] = False
    if form == "one row":
        allowed = allowed[:, :, -1:]
    given = allowed
    if form in ("additive", "infinite"):
        given = torch.zeros(allowed.shape).masked_fill(~allowed, FLOOR if form == "additive" else -torch.inf)
    extra = 100 * torch.randn(B, H, S, S)
    found = with_added(given, extra)
    assert found.shape == extra.shape
    assert torch.isfinite(found).all()
    everywhere = allowed.expand_as(extra)
    assert torch.equal(found[everywhere], extra[everywhere])
    attention = (torch.randn(B, H, S, S) + found).softmax(-1)
    assert (attention[~everywhere] == 0).all()
    expected = F.scaled_dot_product_attention(*(one := torch.randn(3, B, H, S, C)), given)
    none = F.scaled_dot_product_attention(*one, with_added(given, torch.zeros_like(extra)))
    torch.testing.assert_close(none, expected)


def test_without_a_mask_what_is_added_is_the_mask():
    extra = torch.randn(B, H, S, S)
    assert with_added(None, extra) is extra


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_wide_mask_stays_finite_where_it_is_rounded(dtype):
    """Under autocast the mask is float32 and attention rounds it to the queries' type."""
    mask = torch.tensor([0.0, FLOOR]).expand(B, 1, S, 2)
    found = with_added(mask, torch.randn(B, H, S, 2).to(dtype)).to(dtype)
    assert torch.isfinite(found).all()
    assert (found[..., 1] == torch.finfo(dtype).min).all()


def test_nothing_can_be_added_to_a_block_mask():
    mask = create_block_mask(lambda b, h, i, j: i >= j, B, None, 128, 128, device="cpu")
    with pytest.raises(MAWError, match=r"flex attention: use attn_implementation='sdpa'"):
        with_added(mask, torch.zeros(B, H, 128, 128))


def test_an_unknown_control_is_named():
    with pytest.raises(MAWError, match=r"ia3-key, linear-gate, logit-dropout, got mechanism='maw'"):
        control("maw")
