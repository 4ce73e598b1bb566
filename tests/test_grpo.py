from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from maw import grpo
from maw.config import MAWConfig

DEPTH = 7


def draw(batch=3, depth=DEPTH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, depth, generator=generator, dtype=torch.float64)
    return logits, torch.randn(batch, depth, generator=generator, dtype=torch.float64)


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


# Samples


def test_samples_follow_the_policy_and_repeat_with_the_seed():
    logits, _ = draw()
    torch.manual_seed(1)
    index = grpo.sample_group(logits, 20_000)
    assert index.shape == (3, 20_000)
    for b in range(3):
        counts = index[b].bincount(minlength=DEPTH).numpy()
        assert scipy.stats.chisquare(counts, logits[b].softmax(dim=-1).numpy() * 20_000).pvalue > 1e-3
    torch.manual_seed(1)
    assert torch.equal(grpo.sample_group(logits, 20_000), index)


def test_a_group_may_be_larger_than_the_number_of_depths():
    assert grpo.sample_group(torch.zeros(2, 3), 17).shape == (2, 17)


def test_log_probability():
    logits, _ = draw()
    index = torch.tensor([[0, 6], [3, 3], [5, 1]])
    expected = [[math.log(float(logits[b].softmax(dim=-1)[d])) for d in index[b]] for b in range(3)]
    torch.testing.assert_close(grpo.log_probability(logits, index), rows(*expected), rtol=0, atol=1e-14)


# Advantages


def test_advantages_by_hand():
    rewards = rows([1.0, 2.0, 6.0])  # mean 3, deviations -2 -1 3, sample variance (4 + 1 + 9) / 2 = 7
    torch.testing.assert_close(grpo.group_advantages(rewards, "none"), rows([-2.0, -1.0, 3.0]))
    # 1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2
    torch.testing.assert_close(grpo.group_advantages(rewards, "leave-one-out"), rows([-3.0, -1.5, 4.5]))
    deviation = math.sqrt(7.0)
    expected = rows([-2 / deviation, -1 / deviation, 3 / deviation])
    torch.testing.assert_close(grpo.group_advantages(rewards, "std"), expected, rtol=1e-5, atol=0)


def test_each_text_is_its_own_group():
    rewards = rows([1.0, 2.0, 6.0], [100.0, 101.0, 105.0])
    for scaling in ("none", "leave-one-out", "std"):
        advantage = grpo.group_advantages(rewards, scaling)
        torch.testing.assert_close(advantage[0], advantage[1])


@pytest.mark.parametrize("scaling", ["std", "none", "leave-one-out"])
def test_a_group_of_one_has_the_value_as_its_baseline(scaling):
    value = rows(*[[2.0, -1.0]])[0].requires_grad_()
    advantage = grpo.group_advantages(rows([5.0], [3.0]), scaling, value)
    assert advantage.tolist() == [[3.0], [4.0]]
    assert not advantage.requires_grad
    with pytest.raises(ValueError, match="group of one"):
        grpo.group_advantages(rows([5.0]), scaling)


def test_value_is_no_baseline_for_larger_groups():
    rewards = rows([1.0, 2.0, 6.0])
    for scaling in ("none", "leave-one-out", "std"):
        with_value = grpo.group_advantages(rewards, scaling, torch.full((1,), 99.0).double())
        assert torch.equal(with_value, grpo.group_advantages(rewards, scaling))


@pytest.mark.parametrize("scaling", ["std", "none", "leave-one-out"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_spread_gives_no_advantage(scaling, dtype):
    rewards = torch.full((2, 7), 0.1, dtype=dtype)
    rewards[1, 3] = 0.3
    assert grpo.zero_spread(rewards).tolist() == [True, False]
    advantage = grpo.group_advantages(rewards, scaling)
    assert advantage[0].abs().max() < 1e-7
    if scaling == "std":
        assert (advantage[0] == 0).all()
        assert advantage[1].abs().max() > 1


def test_spread_below_rounding_is_not_blown_up():
    rewards = torch.tensor([[0.5, 0.5 + 6e-8, 0.5]])
    assert (grpo.group_advantages(rewards, "std") == 0).all()


@given(st.lists(st.floats(-1, 0), min_size=2, max_size=9))
def test_advantages_are_centred_and_bounded(rewards):
    rewards = rows(rewards)
    for scaling in ("none", "leave-one-out", "std"):
        advantage = grpo.group_advantages(rewards, scaling)
        assert advantage.sum().abs() < 1e-9
        assert advantage.isfinite().all()
    assert grpo.group_advantages(rewards, "std").abs().max() <= math.sqrt(rewards.shape[1])


def test_advantages_carry_no_gradient():
    rewards = rows([1.0, 2.0, 6.0]).requires_grad_()
    assert not any(
        grpo.group_advantages(rewards, scaling).requires_grad for scaling in ("none", "leave-one-out", "std")
    )


# The exact gradient and its sampled estimates


def exact_gradient(logits, rewards):
    """d/dlogits of -sum_d pi_d r_d: -pi_d (r_d - sum_e pi_e r_e)."""
    policy = logits.softmax(dim=-1)
    return -policy * (rewards - (policy * rewards).sum(dim=-1, keepdim=True))


def test_exact_policy_loss_and_its_gradient():
    logits, rewards = draw()
    logits.requires_grad_()
    rewards.requires_grad_()
    loss = grpo.exact_policy_loss(logits, rewards)
    torch.testing.assert_close(loss, -(logits.softmax(dim=-1) * rewards).sum(dim=-1))
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, exact_gradient(logits, rewards).detach(), rtol=0, atol=1e-14)
    assert rewards.grad is None


GROUP, GROUPS = 8, 125_000  # a million samples


@pytest.fixture(scope="module")
def sampled_gradients():
    logits, rewards = draw(batch=1)
    torch.manual_seed(7)
    index = grpo.sample_group(logits.expand(GROUPS, -1), GROUP)
    own = rewards.expand(GROUPS, -1).gather(-1, index)
    gradients = {}
    for scaling in ("none", "leave-one-out", "std"):
        leaf = logits.clone().requires_grad_()
        every = leaf.expand(GROUPS, -1)
        sampled = grpo.log_probability(every, index).detach()
        loss, clipped = grpo.clipped_policy_loss(every, index, grpo.group_advantages(own, scaling), sampled, clip=0.2)
        assert clipped.sum() == 0
        loss.mean().backward()
        gradients[scaling] = leaf.grad[0]
    return gradients, exact_gradient(logits, rewards)[0]


@pytest.mark.parametrize(("scaling", "factor"), [("none", (GROUP - 1) / GROUP), ("leave-one-out", 1.0)])
def test_sampled_gradients_against_the_exact_one(sampled_gradients, scaling, factor):
    gradients, exact = sampled_gradients
    length = float(gradients[scaling] @ exact / (exact @ exact))
    assert abs(length / factor - 1) < 0.01
    assert (gradients[scaling] - factor * exact).norm() / (factor * exact.norm()) < 0.01


def test_std_scaling_points_the_same_way(sampled_gradients):
    gradients, exact = sampled_gradients
    assert torch.nn.functional.cosine_similarity(gradients["std"], exact, dim=0) > 0.99


def test_gradient_of_one_update_is_the_plain_policy_gradient():
    logits, rewards = draw()
    logits.requires_grad_()
    index = torch.tensor([[0, 6], [3, 3], [5, 1]])
    advantage = rewards[:, :2]
    log_probability = grpo.log_probability(logits, index)
    loss, _ = grpo.clipped_policy_loss(logits, index, advantage, log_probability, clip=0.2)
    (actual,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad(-(log_probability * advantage).mean(dim=-1).sum(), logits)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)


# The clipped ratio


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "share"),
    [
        (1.5, 2.0, -2.4, 1.0),  # min(3.0, 1.2 * 2) : already rewarded enough
        (1.5, -2.0, 3.0, 0.0),  # min(-3.0, -2.4) : a worse depth grew likelier, pull it back
        (0.5, 2.0, -1.0, 0.0),  # min(1.0, 1.6) : a better depth grew less likely, pull it back
        (0.5, -2.0, 1.6, 1.0),  # min(-1.0, -1.6) : already punished enough
        (1.1, 2.0, -2.2, 0.0),
        (0.9, -2.0, 1.8, 0.0),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_ratio_by_hand(ratio, advantage, loss, share):
    logits = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[0]])
    before = rows([math.log(0.5 / ratio)])
    actual, clipped = grpo.clipped_policy_loss(logits, index, rows([advantage]), before, clip=0.2)
    torch.testing.assert_close(actual.detach(), rows([loss])[0])
    assert clipped.tolist() == [share]
    (gradient,) = torch.autograd.grad(actual.sum(), logits)
    # d ratio / d logit_0 = ratio * (1 - pi_0)
    expected = 0.0 if share else -ratio * advantage * 0.5
    torch.testing.assert_close(gradient, rows([expected, -expected]), rtol=0, atol=1e-14)


def test_clipped_loss_and_share_are_means_over_the_group():
    logits = torch.zeros(1, 2, dtype=torch.float64)
    index, before = torch.tensor([[0, 1, 0, 1]]), rows([math.log(0.5 / r) for r in (1.5, 1.5, 0.5, 0.9)])
    loss, clipped = grpo.clipped_policy_loss(logits, index, rows([2.0, -2.0, -2.0, 1.0]), before, clip=0.2)
    torch.testing.assert_close(loss, rows([(-2.4 + 3.0 + 1.6 - 0.9) / 4])[0])
    assert clipped.tolist() == [0.5]


# KL, entropy, value


def test_exact_kl_and_entropy_against_scipy():
    logits, other = draw()
    kl, entropy = grpo.exact_kl(logits, other), grpo.policy_entropy(logits)
    for b in range(3):
        policy, reference = logits[b].softmax(dim=-1).numpy(), other[b].softmax(dim=-1).numpy()
        np.testing.assert_allclose(float(kl[b]), scipy.stats.entropy(policy, reference), rtol=1e-12)
        np.testing.assert_allclose(float(entropy[b]), scipy.stats.entropy(policy), rtol=1e-12)


@given(st.integers(0, 999), st.floats(0, 50))
def test_kl_is_not_negative_and_zero_at_equality(seed, spread):
    logits, other = (spread * tensor for tensor in draw(seed=seed))
    assert (grpo.exact_kl(logits, other) >= -1e-12).all()
    assert (grpo.exact_kl(logits, logits) == 0).all()
    # logits are defined up to a constant
    torch.testing.assert_close(grpo.exact_kl(logits, logits + 3.0), torch.zeros(3).double(), rtol=0, atol=1e-12)
    index = grpo.sample_group(logits, 5)
    assert (grpo.k3(logits, other, index) >= 0).all()
    assert (grpo.k3(logits, logits, index) == 0).all()


def test_kl_to_the_uniform_policy_is_the_missing_entropy():
    logits, _ = draw()
    kl = grpo.exact_kl(logits, torch.zeros_like(logits))
    torch.testing.assert_close(kl, math.log(DEPTH) - grpo.policy_entropy(logits), rtol=0, atol=1e-12)


def test_kl_pulls_the_policy_towards_the_reference():
    logits = torch.tensor([[2.0, 0.0, 0.0]], requires_grad=True)
    grpo.exact_kl(logits, torch.zeros(1, 3)).sum().backward()
    assert logits.grad[0, 0] > 0 > logits.grad[0, 1]


def test_k3_estimates_the_exact_kl():
    logits, other = draw()
    index = grpo.sample_group(logits, 200_000)
    exact = grpo.exact_kl(logits, other)
    torch.testing.assert_close(grpo.k3(logits, other, index), exact, rtol=0.02, atol=0)


def test_policy_entropy_of_certain_and_uniform_policies():
    entropy = grpo.policy_entropy(torch.tensor([[0.0, 0.0, 0.0], [0.0, 1000.0, 0.0]]))
    torch.testing.assert_close(entropy, torch.tensor([math.log(3), 0.0]))


def test_value_loss_is_the_squared_error_against_the_groups_mean():
    value = torch.tensor([1.0, -2.0], requires_grad=True)
    rewards = torch.tensor([[0.0, 4.0], [-2.0, -2.0]], requires_grad=True)
    loss = grpo.value_loss(value, rewards)
    assert loss.tolist() == [1.0, 0.0]
    loss.sum().backward()
    assert value.grad.tolist() == [-2.0, 0.0]
    assert rewards.grad is None


# Worked by hand: pi = (1/2, 1/4, 1/4)

QUARTERS = rows([math.log(2.0), 0.0, 0.0])


def test_entropy_and_kl_by_hand():
    # 1/2 log 2 + 2 (1/4 log 4) = 3/2 log 2
    torch.testing.assert_close(grpo.policy_entropy(QUARTERS), rows([1.5 * math.log(2)])[0])
    # against (1/4, 1/2, 1/4): 1/2 log 2 + 1/4 log 1/2 + 0
    other = rows([0.0, math.log(2.0), 0.0])
    torch.testing.assert_close(grpo.exact_kl(QUARTERS, other), rows([0.25 * math.log(2)])[0])
    # against uniform: 1/2 log 3/2 + 1/2 log 3/4 = 1/2 log 9/8
    uniform = torch.zeros(1, 3, dtype=torch.float64)
    torch.testing.assert_close(grpo.exact_kl(QUARTERS, uniform), rows([0.5 * math.log(9 / 8)])[0])


def test_k3_by_hand():
    uniform = torch.zeros(1, 3, dtype=torch.float64)
    # x = (1/3) / (1/2) = 2/3 and (1/3) / (1/4) = 4/3
    expected = ((2 / 3 - 1 - math.log(2 / 3)) + (4 / 3 - 1 - math.log(4 / 3))) / 2
    torch.testing.assert_close(grpo.k3(QUARTERS, uniform, torch.tensor([[0, 2]])), rows([expected])[0])


def test_the_exact_loss_by_hand():
    rewards = rows([4.0, 0.0, -8.0])  # 1/2 * 4 + 1/4 * 0 - 1/4 * 8 = 0
    torch.testing.assert_close(grpo.exact_policy_loss(QUARTERS, rewards), rows([0.0])[0], rtol=0, atol=1e-14)
    leaf = QUARTERS.clone().requires_grad_()
    grpo.exact_policy_loss(leaf, rewards).sum().backward()
    torch.testing.assert_close(leaf.grad, rows([-2.0, 0.0, 2.0]), rtol=0, atol=1e-14)  # -pi (r - 0)


@pytest.mark.parametrize(
    ("advantage", "rewards", "policy"),
    [
        # ratios 2 and 1/2 with clip .2: the first choice's advantage counts 1.2 times, the second's .8 or 1/2 times
        ("none", [1.0, 0.0], -(1.2 * 0.5 - 0.8 * 0.5) / 2),
        ("leave-one-out", [1.0, 0.0], -(1.2 - 0.8) / 2),
        ("std", [1.0, 0.0], -(1.2 - 0.8) / 2 * math.sqrt(0.5)),
        # the first got worse though it grew likelier, the second better though it did not: neither is clipped
        ("none", [0.0, 1.0], -(-2.0 * 0.5 + 0.5 * 0.5) / 2),
        ("leave-one-out", [0.0, 1.0], -(-2.0 + 0.5) / 2),
        ("std", [0.0, 1.0], -(-2.0 + 0.5) / 2 * math.sqrt(0.5)),
        # no spread: nothing to learn
        ("none", [0.3, 0.3], 0.0),
        ("leave-one-out", [0.3, 0.3], 0.0),
        ("std", [0.3, 0.3], 0.0),
    ],
)
def test_the_whole_loss_by_hand(advantage, rewards, policy):
    index = torch.tensor([[0, 1]])
    before = rows([math.log(0.25), math.log(0.5)])  # now 1/2 and 1/4
    weights = {"auxiliary_weight": 0.1, "value_weight": 0.5, "kl_weight": 2.0, "entropy_weight": 3.0}
    value = rows([0.75])[0]
    found = grpo.group_loss(QUARTERS, value, index, rows(rewards), before, advantage=advantage, clip=0.2, **weights)
    squared = (0.75 - sum(rewards) / 2) ** 2
    expected = policy + 0.5 * squared + 2.0 * 0.5 * math.log(9 / 8) - 3.0 * 1.5 * math.log(2)
    torch.testing.assert_close(found.policy_loss, rows([policy])[0], rtol=2e-6, atol=1e-12)
    torch.testing.assert_close(found.loss, rows([0.1 * expected])[0], rtol=2e-6, atol=1e-12)
    assert found.clip_share.tolist() == [1.0 if rewards == [1.0, 0.0] else 0.0]


@pytest.mark.parametrize("advantage", ["none", "leave-one-out", "std"])
def test_the_whole_loss_of_a_group_of_one_by_hand(advantage):
    weights = {"auxiliary_weight": 1.0, "value_weight": 0.5, "kl_weight": 0.0, "entropy_weight": 0.0}
    index, before = torch.tensor([[0]]), rows([math.log(0.25)])
    found = grpo.group_loss(
        QUARTERS, rows([0.25])[0], index, rows([-0.75]), before, advantage=advantage, clip=0.2, **weights
    )
    # ratio 2, advantage -.75 - .25 = -1: not clipped; value (1/4 + 3/4) squared
    assert found.policy_loss.item() == pytest.approx(2.0)
    assert found.loss.item() == pytest.approx(2.0 + 0.5)


def test_baselines_of_depths_by_hand():
    """Depth 0 was drawn three times, depth 2 once: its only sample is its own baseline."""
    index = torch.tensor([[0, 1], [0, 2], [1, 0]])
    found = grpo.depth_baselines(rows([1.0, 10.0], [2.0, 7.0], [20.0, 6.0]), index, 4)
    torch.testing.assert_close(found, rows([4.0, 20.0], [3.5, 7.0], [10.0, 1.5]))


def test_a_reward_that_all_texts_share_teaches_nothing_above_the_baselines_of_depths():
    """Worth of a depth = common part + a text's own: the advantages are those of the own part alone."""
    generator = torch.Generator().manual_seed(0)
    common = 100 * torch.rand(4, generator=generator, dtype=torch.float64)
    own = torch.rand(50, 4, generator=generator, dtype=torch.float64)
    index = torch.arange(4).expand(50, -1)
    weights = {"auxiliary_weight": 1.0, "value_weight": 0.0, "kl_weight": 0.0, "entropy_weight": 0.0, "clip": 0.2}
    start = torch.randn(50, 4, generator=generator, dtype=torch.float64)

    def gradient(reward: torch.Tensor, *, baseline: bool) -> torch.Tensor:
        logits = start.clone().requires_grad_()
        before, value = grpo.log_probability(start, index), torch.zeros(50)
        settings = {"advantage": "none", "depth_baseline": baseline, **weights}
        grpo.group_loss(logits, value, index, reward, before, **settings).loss.sum().backward()
        return logits.grad

    found = gradient(common + own, baseline=True)
    torch.testing.assert_close(found, gradient(own, baseline=True), rtol=0, atol=1e-10)
    assert (found - gradient(common + own, baseline=False)).abs().max() > 1
    # leaving a text out of its baseline is n / (n - 1) times the distance from the mean of all
    worth = (own - own.mean(dim=0)) * 50 / 49
    torch.testing.assert_close(found, gradient(worth, baseline=False), rtol=0, atol=1e-10)


def test_a_group_of_one_has_no_baseline_of_depths():
    weights = {"auxiliary_weight": 1.0, "value_weight": 0.5, "kl_weight": 0.0, "entropy_weight": 0.0, "clip": 0.2}
    index, before = torch.tensor([[0], [0]]), rows([0.0], [0.0])
    reward, value, logits = rows([1.0], [2.0]), rows([0.25, 0.5])[0], QUARTERS.expand(2, -1)
    one, other = (
        grpo.group_loss(logits, value, index, reward, before, advantage="none", depth_baseline=baseline, **weights)
        for baseline in (False, True)
    )
    assert one.loss.equal(other.loss)


# What scaling by the standard deviation does to the direction, all groups enumerated


def expected_update(policy, rewards, scaling, group):
    """E over all groups of 1/G sum_m A_m (e_{d_m} - pi), the mean step of the logits, by enumeration."""
    arms = len(policy)
    index = torch.tensor(list(itertools.combinations_with_replacement(range(arms), group)))  # the order is no matter
    counts = (index[:, :, None] == torch.arange(arms)).sum(dim=1)
    orders = math.lgamma(group + 1) - torch.lgamma(counts.double() + 1).sum(dim=-1)
    probability = (orders + (counts * policy.log()).sum(dim=-1)).exp()
    torch.testing.assert_close(probability.sum(), torch.ones((), dtype=policy.dtype))
    advantages = grpo.group_advantages(rewards[index], scaling)
    step = torch.zeros(len(index), arms, dtype=policy.dtype).scatter_add_(1, index, advantages) / group
    step = step - advantages.mean(dim=-1, keepdim=True) * policy
    return probability @ step


def test_std_raises_an_arm_that_the_exact_gradient_lowers():
    policy = torch.tensor([0.5, 0.45, 0.05], dtype=torch.float64)
    rewards = torch.tensor([0.0, 1.0, 20.0], dtype=torch.float64)
    exact = policy * (rewards - policy @ rewards)
    assert float(exact[1]) == pytest.approx(-0.2025)
    torch.testing.assert_close(expected_update(policy, rewards, "leave-one-out", 8), exact)
    torch.testing.assert_close(expected_update(policy, rewards, "none", 8), 7 / 8 * exact)
    assert float(expected_update(policy, rewards, "std", 8)[1]) == pytest.approx(0.244, abs=5e-4)


@pytest.mark.parametrize("group", [2, 4, 8, 16])
def test_std_goes_to_the_worse_of_two_arms(group):
    """One arm pays 0; the other -1, or 20 with probability .1: its mean is 1.1, and yet its logit falls."""
    # the arm with two outcomes is written as two arms with one logit
    outcome = torch.tensor([0.5, 0.45, 0.05], dtype=torch.float64)
    rewards = torch.tensor([0.0, -1.0, 20.0], dtype=torch.float64)
    better = {
        scaling: float(expected_update(outcome, rewards, scaling, group)[1:].sum())
        for scaling in ("leave-one-out", "std")
    }
    assert better["leave-one-out"] == pytest.approx(0.5 * 0.5 * 1.1)
    assert better["std"] < 0


def test_the_default_scaling_is_the_unbiased():
    assert MAWConfig().advantage == "leave-one-out"
