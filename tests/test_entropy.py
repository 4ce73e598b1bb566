from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maw import MAWError, entropy, reference
from maw.entropy import normalised_slice_entropy, slice_entropy
from maw.rewards import entropy_reward
from maw.views import frame_views

BATCH, HEADS, GROUP, QUERIES, KEYS = 2, 3, 5, 7, 11


def draw(spread=1.0, queries=QUERIES, keys=KEYS, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(BATCH, HEADS, GROUP, queries, generator=generator, dtype=torch.float64)
    t = torch.randn(BATCH, HEADS, GROUP, keys, generator=generator, dtype=torch.float64)
    return (u * spread).to(dtype), t.to(dtype)


def draw_mask():
    mask = torch.ones(BATCH, KEYS, dtype=torch.bool)
    mask[0, 4:] = False
    mask[1, [0, 7]] = False
    return mask


def direct(u, t, mask=None, scale=1.0):
    """-sum_j p_j log p_j of softmax over real keys, the whole (.., Q, K) block at once."""
    logit = scale * u[..., None] * t[..., None, :]
    if mask is not None:
        logit = logit.masked_fill(~mask[:, None, None, None, :], float("-inf"))
    log_p = logit.log_softmax(dim=-1)
    return -(log_p.exp() * log_p.masked_fill(log_p.isneginf(), 0.0)).sum(dim=-1)


@pytest.mark.parametrize("mask", [None, draw_mask()], ids=["no mask", "mask"])
@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0, 30.0, 300.0])
def test_equals_the_direct_form_in_float64(mask, spread):
    u, t = draw(spread)
    actual = slice_entropy(u, t, mask, scale=1.7)
    assert actual.shape == (BATCH, HEADS, GROUP, QUERIES)
    torch.testing.assert_close(actual, direct(u, t, mask, 1.7), rtol=0, atol=1e-11)


@pytest.mark.parametrize("mask", [None, draw_mask()], ids=["no mask", "mask"])
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_gradients_equal_the_direct_forms(mask, spread):
    probe = torch.randn(BATCH, HEADS, GROUP, QUERIES, dtype=torch.float64)
    gradients = []
    for function in (slice_entropy, direct):
        u, t = (tensor.requires_grad_() for tensor in draw(spread))
        gradients.append(torch.autograd.grad((function(u, t, mask, scale=1.7) * probe).sum(), (u, t)))
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_keys_far_above_the_real_ones_have_no_influence(sign, dtype):
    # every real logit lies far below 0, where the masked ones might stand: nothing may overflow
    u = torch.full((1, 1, 1, 2), sign, dtype=dtype)
    t = sign * torch.tensor([[[[-1000.0, -1001.0, 5.0, 1e9]]]], dtype=dtype)
    mask = torch.tensor([[True, True, False, False]])
    u.requires_grad_()
    actual = slice_entropy(u, t, mask)
    expected = direct(u.detach(), t[..., :2])
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-3, atol=1e-3)
    (gradient,) = torch.autograd.grad(actual.sum(), u)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_scalars_have_no_influence_bit_for_bit(dtype):
    u, t = draw(30.0, dtype=dtype)
    mask = draw_mask()
    expected = slice_entropy(u, t, mask)
    garbage = torch.where(mask[:, None, None, :], t, torch.randn_like(t) * 1e30)
    garbage[0, 0, 0, -1] = float("inf")
    garbage[0, 1, 0, -1] = float("nan")
    assert torch.equal(slice_entropy(u, garbage, mask), expected)


@pytest.mark.parametrize("function", [slice_entropy, normalised_slice_entropy])
def test_one_real_key_gives_zero_and_no_gradient(function):
    u, t = (tensor.requires_grad_() for tensor in draw(30.0))
    mask = torch.zeros(BATCH, KEYS, dtype=torch.bool)
    mask[0, 3] = mask[1, 0] = True
    result = function(u, t, mask)
    torch.testing.assert_close(result.detach(), torch.zeros(BATCH, HEADS, GROUP, QUERIES).double(), rtol=0, atol=1e-12)
    for gradient in torch.autograd.grad(result.sum(), (u, t)):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_one_key_at_all_gives_zero_and_no_gradient():
    u, t = (tensor.requires_grad_() for tensor in draw(30.0, keys=1))
    result = normalised_slice_entropy(u, t)
    assert (result == 0).all()
    for gradient in torch.autograd.grad(result.sum(), (u, t)):
        assert (gradient == 0).all()


def test_no_real_key_is_an_error():
    u, t = draw()
    mask = draw_mask()
    mask[1] = False
    with pytest.raises(MAWError, match="mask"):
        normalised_slice_entropy(u, t, mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("slope", [1e2, 1e4])
def test_huge_slopes_stay_finite_with_finite_gradients(dtype, slope):
    u, t = (tensor.requires_grad_() for tensor in draw(slope, dtype=dtype))
    result = slice_entropy(u, t, draw_mask())
    assert result.isfinite().all()
    for gradient in torch.autograd.grad(result.sum(), (u, t)):
        assert gradient.isfinite().all()


@given(st.floats(0, 1e4), st.integers(0, 999), st.sampled_from([torch.float32, torch.float64]))
def test_normalised_entropy_lies_between_zero_and_one(spread, seed, dtype):
    u, t = draw(spread, dtype=dtype, seed=seed)
    result = normalised_slice_entropy(u, t, draw_mask())
    rounding = 16 * torch.finfo(dtype).eps
    assert result.min() >= -rounding
    assert result.max() <= 1 + rounding


@pytest.mark.parametrize("spread", [1.0, 100.0, 1e4])
def test_float32_error_is_at_most_twice_the_direct_forms(spread):
    u, t = draw(spread, queries=101, dtype=torch.float32)
    t[..., 1] = t[..., 0] + 1e-5
    truth = direct(u.double(), t.double())
    allowed = 2 * (direct(u, t).double() - truth).abs().max()
    assert (slice_entropy(u, t).double() - truth).abs().max() <= allowed


def test_normalised_by_the_logarithm_of_the_number_of_real_keys():
    u, t = draw()
    mask = draw_mask()
    expected = direct(u, t, mask) / torch.tensor([4.0, 9.0]).double().log()[:, None, None, None]
    torch.testing.assert_close(normalised_slice_entropy(u, t, mask), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(normalised_slice_entropy(u, t), direct(u, t) / math.log(KEYS), rtol=0, atol=1e-12)
    ones = normalised_slice_entropy(u * 0, t, mask)
    torch.testing.assert_close(ones, torch.ones_like(ones), rtol=0, atol=1e-12)


@pytest.mark.parametrize("elements", [1, BATCH * HEADS * GROUP * KEYS * 2, BATCH * HEADS * GROUP * KEYS * 3 + 1])
def test_chunks_do_not_matter(monkeypatch, elements):
    def run():
        u, t = (tensor.requires_grad_() for tensor in draw(3.0))
        result = slice_entropy(u, t, draw_mask())
        return result.detach(), *torch.autograd.grad(result.square().sum(), (u, t))

    whole = run()
    monkeypatch.setattr(entropy, "CHUNK_ELEMENTS", elements)
    for actual, expected in zip(run(), whole, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tracked", [False, True])
def test_memory_is_linear_in_the_sequence(monkeypatch, tensor_recorder, tracked):
    monkeypatch.setattr(entropy, "CHUNK_ELEMENTS", 2**17)
    length = 1021
    u, t = (torch.randn(1, 1, 3, length).requires_grad_(tracked) for _ in range(2))
    with tensor_recorder() as recorder:
        result = slice_entropy(u, t, torch.ones(1, length, dtype=torch.bool))
        if tracked:
            result.sum().backward()
    assert recorder.largest <= 2**17 < 3 * length**2


def test_saved_for_backward_is_linear_in_the_sequence(monkeypatch):
    monkeypatch.setattr(entropy, "CHUNK_ELEMENTS", 2**17)
    length, saved = 1021, {}

    def keep(tensor):
        saved[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    u, t = (torch.randn(1, 1, 3, length).requires_grad_() for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        slice_entropy(u, t)
    assert sum(saved.values()) < length**2


# The reward


def reward_arguments(heads=3, channels=13, depth=5, tokens=17):
    views = frame_views(heads, channels, depth, scaling=1.0)
    return {
        "query": torch.randn(BATCH, heads, tokens, channels, dtype=torch.float64),
        "key": torch.randn(BATCH, heads, tokens, channels, dtype=torch.float64),
        "query_views": views.query_views.double(),
        "key_views": views.key_views.double() + 0.1,
    }


@pytest.mark.parametrize("masked", [False, True])
def test_reward_is_minus_the_mean_entropy_of_one_hot_slices_over_heads_and_real_queries(masked):
    arguments, scale = reward_arguments(), 23.0
    count = [6, 17] if masked else [17, 17]
    mask = (torch.arange(17) < torch.tensor(count)[:, None]) if masked else None
    index = torch.tensor([[4, 0, 4], [1, 2, 3]])
    actual = entropy_reward(**arguments, depth_index=index, scale=scale, mask=mask)
    for b in range(BATCH):
        for position, d in enumerate(index[b].tolist()):
            one_hot = torch.zeros(BATCH, 5, dtype=torch.float64)
            one_hot[:, d] = 1.0
            p = reference.seven_steps(
                value=arguments["key"], **arguments, depth_weight=one_hot, mask=mask, scale=scale
            ).attention[b, :, : count[b], : count[b]]
            row_entropy = -(p * p.log()).sum(dim=-1) / math.log(count[b])
            assert abs(float(actual[b, position]) + float(row_entropy.mean())) < 1e-11


def test_reward_ignores_masked_tokens_bit_for_bit():
    arguments, index = reward_arguments(), torch.arange(5).expand(BATCH, 5)
    mask = torch.arange(17) < torch.tensor([6, 12])[:, None]
    expected = entropy_reward(**arguments, depth_index=index, scale=23.0, mask=mask)
    for name in ("query", "key"):
        arguments[name] = torch.where(mask[:, None, :, None], arguments[name], 1e20)
    assert torch.equal(entropy_reward(**arguments, depth_index=index, scale=23.0, mask=mask), expected)


def test_reward_is_computed_in_float32_under_autocast_and_for_low_precision_inputs():
    arguments = {name: tensor.bfloat16() for name, tensor in reward_arguments().items()}
    index = torch.arange(5).expand(BATCH, 5)
    expected = entropy_reward(**{n: t.double() for n, t in arguments.items()}, depth_index=index, scale=23.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = entropy_reward(**arguments, depth_index=index, scale=23.0)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)


def test_reward_of_a_text_without_a_real_token_is_an_error():
    mask = torch.ones(BATCH, 17, dtype=torch.bool)
    mask[0] = False
    with pytest.raises(MAWError, match="mask"):
        entropy_reward(**reward_arguments(), depth_index=torch.zeros(BATCH, 1, dtype=torch.long), scale=1.0, mask=mask)


def test_the_literal_recipes_reward_is_constant():
    # With views of ones and scale 1 a slice's logits are products of two channel means. A mean over C channels of
    # normal q and k has variance 1/C, so logits are of the order 1/C: attention is uniform whatever the text, and all
    # slices are equal, so no depth is ever better than another and no policy can learn.
    heads, channels, depth, tokens = 12, 32, 11, 67
    ones = torch.ones(heads, depth, channels)
    query, key = torch.randn(2, BATCH, heads, tokens, channels) * 1.5
    arms = torch.arange(depth).expand(BATCH, depth)
    reward = entropy_reward(query, key, ones, ones, arms, scale=1.0)
    assert (reward == reward[:, :1]).all()
    assert (reward + 1).abs().max() < 1e-3
