from __future__ import annotations

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from maw import MAWError
from maw.selector import Selector, depth_weights, token_mean

BATCH, HEADS, TOKENS, CHANNELS, DEPTH = 2, 3, 7, 5, 11
MODES = ["gumbel", "softmax", "hard", "uniform"]


def draw_logits(batch=BATCH):
    return torch.randn(batch, DEPTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


@pytest.mark.parametrize("mode", ["gumbel", "softmax"])
@pytest.mark.parametrize("tau", [0.5, 1.0, 5.0])
def test_evaluation_is_the_noise_free_limit_with_the_same_tau(mode, tau):
    logits = draw_logits()
    weight = depth_weights(logits, selection=mode, tau=tau, training=False)
    torch.testing.assert_close(weight, (logits / tau).softmax(dim=-1), rtol=0, atol=1e-15)
    assert torch.equal(weight, depth_weights(logits, selection=mode, tau=tau, training=False))


def test_softmax_has_no_noise_in_training():
    logits = draw_logits()
    training = depth_weights(logits, selection="softmax", tau=3.0, training=True)
    assert torch.equal(training, depth_weights(logits, selection="softmax", tau=3.0, training=False))


@pytest.mark.parametrize("training", [False, True])
def test_uniform(training):
    weight = depth_weights(draw_logits(), selection="uniform", tau=3.0, training=training)
    assert torch.equal(weight, torch.full((BATCH, DEPTH), 1 / DEPTH, dtype=torch.float64))


@given(st.sampled_from(MODES), st.booleans(), st.floats(0.1, 50), st.integers(0, 999))
def test_rows_sum_to_one(mode, training, tau, seed):
    logits = torch.randn(BATCH, DEPTH, generator=torch.Generator().manual_seed(seed)) * 5
    weight = depth_weights(logits, selection=mode, tau=tau, training=training)
    assert weight.shape == (BATCH, DEPTH)
    assert weight.min() >= -1e-6
    torch.testing.assert_close(weight.sum(dim=-1), torch.ones(BATCH))


def test_hard_takes_the_largest_logit_in_evaluation():
    logits = draw_logits()
    weight = depth_weights(logits, selection="hard", tau=3.0, training=False)
    expected = torch.nn.functional.one_hot(logits.argmax(dim=-1), DEPTH).double()
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-15)


def test_hard_has_the_soft_weights_gradient_in_evaluation():
    probe = torch.arange(float(DEPTH), dtype=torch.float64)
    gradients = []
    for mode in ("hard", "softmax"):
        logits = draw_logits().requires_grad_()
        weight = depth_weights(logits, selection=mode, tau=3.0, training=False)
        gradients.append(torch.autograd.grad((weight * probe).sum(), logits)[0])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-14)
    assert gradients[0].abs().max() > 0.1


def test_hard_has_the_soft_weights_gradient_in_training():
    probe = torch.arange(float(DEPTH), dtype=torch.float64)
    results = []
    for mode in ("hard", "gumbel"):
        torch.manual_seed(3)
        logits = draw_logits().requires_grad_()
        weight = depth_weights(logits, selection=mode, tau=3.0, training=True)
        results.append((weight.detach(), torch.autograd.grad((weight * probe).sum(), logits)[0]))
    (hard, hard_gradient), (soft, soft_gradient) = results
    assert torch.equal(hard.argmax(dim=-1), soft.argmax(dim=-1))
    one_hot = torch.nn.functional.one_hot(soft.argmax(dim=-1), DEPTH).double()
    torch.testing.assert_close(hard, one_hot, rtol=0, atol=1e-15)
    torch.testing.assert_close(hard_gradient, soft_gradient, rtol=0, atol=1e-14)


@pytest.mark.parametrize("mode", ["gumbel", "hard"])
@pytest.mark.parametrize("tau", [0.5, 5.0])
def test_the_noisy_choice_follows_the_policy(mode, tau):
    samples = 20_000
    logits = draw_logits(1)
    weight = depth_weights(logits.expand(samples, -1), selection=mode, tau=tau, training=True)
    counts = weight.argmax(dim=-1).bincount(minlength=DEPTH).numpy()
    expected = logits[0].softmax(dim=-1).numpy() * samples
    assert expected.min() > 5
    # the temperature sharpens weights, it does not change which depth wins
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize("noise", [1.0, 0.1])
def test_noise_is_gumbel_before_the_temperature(noise):
    tau = 5.0
    logits = draw_logits(1)
    settings = {"selection": "gumbel", "tau": tau, "training": True, "noise": noise}
    log_weight = depth_weights(logits.expand(20_000, -1), **settings).log()
    # the difference of two Gumbel variables is logistic
    drawn = tau * (log_weight[:, 2] - log_weight[:, 7]) - (logits[0, 2] - logits[0, 7])
    assert scipy.stats.kstest(drawn.numpy() / noise, "logistic").pvalue > 1e-3


@pytest.mark.parametrize("mode", ["gumbel", "hard"])
def test_the_factor_on_the_noise_is_no_factor_on_the_gradient(mode):
    gradients = []
    for noise in (1.0, 0.25):
        torch.manual_seed(5)
        logits = (noise * draw_logits()).requires_grad_()
        weight = depth_weights(logits, selection=mode, tau=3.0 * noise, training=True, noise=noise)
        gradients.append(noise * torch.autograd.grad(weight[:, 0].sum(), logits)[0])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-14)


@pytest.mark.parametrize("mode", ["gumbel", "hard"])
def test_seeds_repeat_and_texts_draw_their_own_noise(mode):
    logits = torch.zeros(97, DEPTH)
    weights = []
    for seed in (4, 4, 5):
        torch.manual_seed(seed)
        weights.append(depth_weights(logits, selection=mode, tau=1.0, training=True))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert len(weights[0].argmax(dim=-1).unique()) > DEPTH // 2


@pytest.mark.parametrize("mode", ["gumbel", "softmax"])
def test_zero_initialised_policy_is_exactly_uniform(mode):
    selector = Selector(HEADS * CHANNELS, DEPTH)
    logits = selector.policy(torch.randn(BATCH, HEADS * CHANNELS) * 100)
    assert torch.equal(logits, torch.zeros(BATCH, DEPTH))
    weight = depth_weights(logits, selection=mode, tau=5.0, training=False)
    assert (weight == weight[0, 0]).all()
    torch.testing.assert_close(weight, torch.full((BATCH, DEPTH), 1 / DEPTH), rtol=1e-7, atol=0)


def test_networks_have_the_sizes_of_method_section_4():
    size = HEADS * CHANNELS
    selector = Selector(size, DEPTH)

    def shapes(network):
        return [tuple(parameter.shape) for parameter in network.parameters() if parameter.ndim == 2]

    assert shapes(selector.policy_network) == [(2 * size, size), (DEPTH, 2 * size)]
    assert shapes(selector.value_network) == [(size, size), (1, size)]
    assert selector.value(torch.randn(BATCH, size)).shape == (BATCH,)
    assert selector.policy(torch.randn(BATCH, size)).shape == (BATCH, DEPTH)


def test_policy_can_leave_the_uniform_start():
    selector = Selector(4, DEPTH)
    selector.policy(torch.randn(BATCH, 4))[:, 3].sum().backward()
    assert selector.policy_network[-1].weight.grad.abs().max() > 0


def test_token_mean_puts_heads_side_by_side():
    query = torch.randn(BATCH, HEADS, TOKENS, CHANNELS, dtype=torch.float64)
    mask = torch.arange(TOKENS) < torch.tensor([4, 6])[:, None]
    state, plain = token_mean(query, mask), token_mean(query)
    assert state.shape == plain.shape == (BATCH, HEADS * CHANNELS)
    for b, count in enumerate((4, 6)):
        for h in range(HEADS):
            own = slice(h * CHANNELS, (h + 1) * CHANNELS)
            torch.testing.assert_close(state[b, own], query[b, h, :count].mean(dim=0), rtol=0, atol=1e-15)
            torch.testing.assert_close(plain[b, own], query[b, h].mean(dim=0), rtol=0, atol=1e-15)


@pytest.mark.parametrize("garbage", [1e30, float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_mean_ignores_masked_tokens_bit_for_bit(garbage, dtype):
    query = torch.randn(BATCH, HEADS, TOKENS, CHANNELS).to(dtype)
    mask = torch.arange(TOKENS) < torch.tensor([4, 6])[:, None]
    expected = token_mean(query, mask)
    query = torch.where(mask[:, None, :, None], query, torch.tensor(garbage, dtype=dtype)).requires_grad_()
    actual = token_mean(query, mask)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)
    (gradient,) = torch.autograd.grad(actual.sum(), query)
    assert (gradient.permute(0, 2, 1, 3)[~mask] == 0).all()


def test_token_mean_of_a_text_without_a_real_token_is_an_error():
    mask = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(MAWError, match="mask: row 1"):
        token_mean(torch.randn(BATCH, HEADS, TOKENS, CHANNELS), mask)


def test_token_mean_of_long_low_precision_texts_accumulates_in_float32():
    query = torch.full((1, 1, 4099, 1), 1.0, dtype=torch.bfloat16)
    assert float(token_mean(query, torch.ones(1, 4099, dtype=torch.bool))) == 1.0
