from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import maw.module
from maw import MAWConfig, MAWError, grpo, reference
from maw.auxiliary import GradientScale, add_gradient, scale_gradient
from maw.module import DepthAttention
from maw.records import KEPT
from maw.rewards import entropy_reward
from maw.views import frame_views, ones_views, spectral_views

BATCH, HEADS, TOKENS, CHANNELS, DEPTH = 6, 3, 7, 5, 11
SCALING = 0.37
# weights that are noisy enough to see it, texts on their own, and a reward that leads
PLAIN = {"depth": DEPTH, "tau": 10.0, "noise": 1.0, "depth_baseline": False, "auxiliary_weight": 1.0, "kl_weight": 0.0}


def make_layer(*, dtype=torch.float64, views=None, scaling=SCALING, **settings):
    settings = {**PLAIN, **settings}
    if views is None:
        views = frame_views(HEADS, CHANNELS, settings["depth"], scaling=scaling)
    torch.manual_seed(11)
    return DepthAttention(MAWConfig(**settings), views, scaling=scaling).to(dtype)


def draw(*, batch=BATCH, tokens=TOKENS, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, batch, HEADS, tokens, CHANNELS, generator=generator, dtype=torch.float64).to(dtype).unbind()


def draw_mask():
    return torch.arange(TOKENS) < torch.tensor([7, 4, 6, 1, 5, 2])[:, None]


def host(query, key, value, mask=None):
    attention_mask = None if mask is None else mask[:, None, None, :]
    return F.scaled_dot_product_attention(query, key, value, attention_mask, scale=SCALING)


def stir_policy(layer, size=1.0):
    """A policy that has left the uniform start, the same for equal layers."""
    generator = torch.Generator().manual_seed(5)
    last = layer.selector.policy_network[-1]
    with torch.no_grad():
        last.weight.copy_(size * torch.randn(last.weight.shape, generator=generator))
        last.bias.copy_(size * torch.randn(last.bias.shape, generator=generator))
    return layer


def gradients(layer):
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in layer.named_parameters()
    }


def assert_same_gradients(actual, expected, *, factor=1.0, atol=1e-11):
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, factor * expected[name], rtol=1e-9, atol=atol, msg=f"gradient of {name}")


# Forward


@pytest.mark.parametrize("depth", [3, CHANNELS, 11, 64])
@pytest.mark.parametrize("kind", ["frame", "spectral"])
@pytest.mark.parametrize("selection", ["gumbel", "softmax", "uniform"])
@pytest.mark.parametrize("tau", [0.5, 5.0])
def test_evaluation_starts_as_the_host(depth, kind, selection, tau):
    views = frame_views(HEADS, CHANNELS, depth, scaling=SCALING)
    if kind == "spectral":
        views = spectral_views(*torch.randn(2, HEADS, CHANNELS, 23), depth, scaling=SCALING)
    layer = make_layer(views=views, depth=depth, selection=selection, tau=tau).eval()
    query, key, value = draw()
    mask = draw_mask()
    torch.testing.assert_close(layer(query, key, value), host(query, key, value), rtol=0, atol=2e-6)
    torch.testing.assert_close(layer(query, key, value, mask), host(query, key, value, mask), rtol=0, atol=2e-6)


def test_uniform_selection_starts_as_the_host_in_training_too():
    layer = make_layer(selection="uniform").train()
    query, key, value = draw()
    torch.testing.assert_close(layer(query, key, value), host(query, key, value), rtol=0, atol=2e-6)
    assert layer.collect() == {}


def test_what_is_not_trained_is_no_parameter():
    """So nothing that switches all parameters on (an adapter, a merge) trains it, and none is unused."""
    names = {name for name, _ in make_layer(selection="uniform").named_parameters()}
    assert names == {"query_views", "key_views"}
    fixed = make_layer(train_views=False)
    fixed.requires_grad_(True)
    assert all(name.startswith("selector.") for name, _ in fixed.named_parameters())
    assert {"query_views", "key_views"} <= set(fixed.state_dict())


def test_default_scaling_is_berts():
    layer = DepthAttention(MAWConfig(depth=DEPTH), frame_views(HEADS, CHANNELS, DEPTH, scaling=CHANNELS**-0.5))
    assert layer.scaling == pytest.approx(CHANNELS**-0.5)
    assert layer.scale == pytest.approx(CHANNELS**-0.5 * DEPTH * CHANNELS**2)


@pytest.mark.parametrize("depth", [3, 11])
@pytest.mark.parametrize("scale", [None, 2.5])
def test_output_is_the_references_with_the_policys_weights(depth, scale):
    layer = stir_policy(make_layer(depth=depth, scale=scale, tau=2.0)).eval()
    query, key, value = draw()
    mask = draw_mask()
    state = torch.stack([query[b, :, : mask[b].sum()].mean(dim=1).flatten() for b in range(BATCH)])
    expected = reference.depth_attention(
        query,
        key,
        value,
        layer.query_views,
        layer.key_views,
        (layer.selector.policy(state) / 2.0).softmax(dim=-1),
        constant=layer.constant,
        mask=mask,
        scale=SCALING * depth * CHANNELS**2 if scale is None else scale,
    )
    torch.testing.assert_close(layer(query, key, value, mask), expected, rtol=0, atol=1e-12)


def test_literal_recipe_is_the_references():
    config = MAWConfig.recipe("literal", depth=DEPTH)
    layer = DepthAttention(config, ones_views(HEADS, CHANNELS, DEPTH), scaling=SCALING).double().eval()
    query, key, value = draw()
    ones = torch.ones(HEADS, DEPTH, CHANNELS, dtype=torch.float64)
    weight = torch.full((BATCH, DEPTH), 1 / DEPTH, dtype=torch.float64)
    expected = reference.depth_attention(query, key, value, ones, ones, weight)
    torch.testing.assert_close(layer(query, key, value), expected, rtol=0, atol=1e-12)
    assert not layer.query_views.requires_grad
    assert not layer.key_views.requires_grad


def test_the_hosts_own_attention_gets_the_transformed_query_alone():
    layer = stir_policy(make_layer()).eval()
    query, key, value = draw()
    returned = layer(query, key, value, attend=lambda transformed: (host(transformed, key, value), "extra"))
    torch.testing.assert_close(returned[0], layer(query, key, value), rtol=0, atol=1e-12)
    assert returned[1] == "extra"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_tokens_have_no_influence_bit_for_bit(dtype):
    layer = stir_policy(make_layer(dtype=dtype)).eval()
    query, key, value = draw(dtype=dtype)
    mask = draw_mask()
    expected = layer(query, key, value, mask)
    hidden = ~mask[:, None, :, None]
    dirty = [torch.where(hidden, torch.full_like(x, sign * 1e15), x) for x, sign in ((query, 1), (key, -1), (value, 1))]
    real = mask[:, None, :, None].expand_as(expected)
    assert torch.equal(layer(*dirty, mask)[real], expected[real])


@pytest.mark.parametrize("selection", ["gumbel", "softmax", "hard"])
def test_padding_and_other_texts_have_no_influence(selection):
    layer = stir_policy(make_layer(selection=selection)).eval()
    query, key, value = draw()
    mask = draw_mask()
    together = layer(query, key, value, mask)
    for b in range(BATCH):
        own = [x[b : b + 1, :, : int(mask[b].sum())] for x in (query, key, value)]
        torch.testing.assert_close(layer(*own)[0], together[b, :, : int(mask[b].sum())], rtol=0, atol=1e-12)


def test_padding_has_no_influence_on_the_auxiliary_gradient():
    results = []
    for fill in (0.0, 1e6):
        layer = stir_policy(make_layer(estimator="exact", selection="softmax"))
        mask = draw_mask()
        query, key, value = (torch.where(mask[:, None, :, None], x, fill) for x in draw())
        (layer(query, key, value, mask) * 0).sum().backward()
        results.append(gradients(layer))
        assert all(total.isfinite().all() for total in layer.collect().values())
    assert_same_gradients(*results, atol=0)


def test_depth_of_views_must_be_the_configured_one():
    with pytest.raises(MAWError, match="configured depth 5, got 7"):
        DepthAttention(MAWConfig(depth=5), frame_views(HEADS, CHANNELS, 7, scaling=SCALING))


@pytest.mark.parametrize("training", [False, True])
def test_a_text_without_a_real_token_is_an_error(training):
    mask = draw_mask()
    mask[2] = False
    with pytest.raises(MAWError, match="mask: row 2"):
        make_layer().train(training)(*draw(), mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [False, True])
def test_a_layer_in_low_precision_runs(dtype, training):
    layer = make_layer(dtype=dtype).train(training)
    output = layer(*draw(dtype=dtype), draw_mask())
    assert output.dtype == dtype
    output.float().sum().backward()


@pytest.mark.parametrize("training", [False, True])
def test_autocast_runs_and_keeps_the_reward_in_float32(training):
    layer = make_layer(dtype=torch.float32).train(training)
    query, key, value = draw(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(query.bfloat16(), key.bfloat16(), value.bfloat16(), draw_mask())
    assert output.dtype == torch.bfloat16
    if training:
        output.float().sum().backward()
        assert layer.collect()["reward"].dtype == torch.float32


def test_state_dict_round_trip_keeps_the_constant():
    layer = stir_policy(make_layer(depth=3)).eval()
    other = make_layer(depth=3, views=other_views(3)).eval()
    assert "constant" in layer.state_dict()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(*draw()), other(*draw()))


def other_views(depth):
    views = frame_views(HEADS, CHANNELS, depth, scaling=SCALING, seed=9)
    return views._replace(constant=torch.zeros_like(views.constant))


def test_constant_is_never_trained():
    layer = make_layer(depth=3)
    layer(*draw()).sum().backward()
    assert not layer.constant.requires_grad
    assert "constant" not in dict(layer.named_parameters())


# The auxiliary loss


@pytest.mark.parametrize("estimator", ["sampled", "exact"])
@pytest.mark.parametrize("selection", ["gumbel", "softmax", "hard"])
@pytest.mark.parametrize("group_size", [1, 8])
def test_a_step_moves_policy_and_value_through_the_grpo_loss_alone(estimator, selection, group_size):
    layer = make_layer(estimator=estimator, selection=selection, group_size=group_size)
    (layer(*draw(), draw_mask()) * 0).sum().backward()
    assert layer.selector.policy_network[-1].weight.grad.abs().max() > 1e-6
    assert layer.selector.value_network[-1].weight.grad.abs().max() > 1e-6
    # the reward is no function of the views, and the task's gradient was multiplied by 0
    assert layer.query_views.grad.abs().max() == 0
    assert layer.key_views.grad.abs().max() == 0


def test_auxiliary_weight_zero_leaves_the_task_alone():
    layer = make_layer(auxiliary_weight=0.0)
    (layer(*draw(), draw_mask()) * 0).sum().backward()
    for name, gradient in gradients(layer).items():
        assert gradient.abs().max() == 0, name


def test_value_weight_zero_leaves_the_value_network_alone():
    layer = make_layer(value_weight=0.0)
    (layer(*draw()) * 0).sum().backward()
    assert layer.selector.policy_network[-1].weight.grad.abs().max() > 0
    assert layer.selector.value_network[-1].weight.grad.abs().max() == 0


def test_the_task_reaches_policy_views_and_query():
    layer = make_layer(auxiliary_weight=0.0)
    query, key, value = (x.requires_grad_() for x in draw())
    layer(query, key, value).square().sum().backward()
    for tensor in (query, key, value, layer.query_views, layer.key_views, layer.selector.policy_network[-1].weight):
        assert tensor.grad.abs().max() > 0
    assert layer.selector.value_network[-1].weight.grad.abs().max() == 0


@pytest.mark.parametrize("estimator", ["sampled", "exact"])
def test_the_grpo_loss_does_not_reach_the_encoder(estimator):
    layer = stir_policy(make_layer(estimator=estimator))
    query, key, value = (x.requires_grad_() for x in draw())
    (layer(query, key, value, draw_mask()) * 0).sum().backward()
    for tensor in (query, key, value):
        assert tensor.grad is None or tensor.grad.abs().max() == 0


def test_the_auxiliary_gradient_leaves_the_tasks_gradient_alone():
    results = []
    for weight in (0.0, 1.0):
        layer = stir_policy(make_layer(auxiliary_weight=weight))
        query, key, value = (x.requires_grad_() for x in draw())
        torch.manual_seed(2)
        output = layer(query, key, value)
        output.square().sum().backward()
        results.append((output.detach(), query.grad, key.grad, value.grad, layer.query_views.grad))
    for with_auxiliary, without in zip(*results, strict=True):
        assert torch.equal(with_auxiliary, without)


@pytest.mark.parametrize("depth_baseline", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_exact_gradient_is_that_of_the_written_loss(masked, depth_baseline):
    settings = {"estimator": "exact", "auxiliary_weight": 0.7, "value_weight": 0.4, "kl_weight": 0.3}
    settings["depth_baseline"] = depth_baseline
    layer = stir_policy(make_layer(**settings, entropy_weight=0.2))
    query, key, value = draw()
    mask = draw_mask() if masked else None
    (layer(query, key, value, mask) * 0).sum().backward()
    actual = gradients(layer)

    layer.zero_grad()
    tokens = torch.ones(BATCH, TOKENS, dtype=torch.bool) if mask is None else mask
    state = torch.stack([query[b, :, : tokens[b].sum()].mean(dim=1).flatten() for b in range(BATCH)])
    arms = torch.arange(DEPTH).expand(BATCH, DEPTH)
    reward = entropy_reward(query, key, layer.query_views, layer.key_views, arms, scale=layer.scale, mask=mask).detach()
    log_policy = layer.selector.policy(state).log_softmax(dim=-1)
    policy = log_policy.exp()
    expected_reward = (policy * reward).sum(dim=-1)
    entropy = -(policy * log_policy).sum(dim=-1)
    others = (reward.sum(dim=0) - reward) / (BATCH - 1)
    worth = reward - others if depth_baseline else reward
    loss = -(policy * worth).sum(dim=-1) + 0.4 * (layer.selector.value(state) - expected_reward.detach()).square()
    loss = loss + 0.3 * (math.log(DEPTH) - entropy) - 0.2 * entropy
    (0.7 * loss.mean()).backward()
    assert_same_gradients(actual, gradients(layer))


def exact_step(layer, batches, *, loss_scale=1.0, root=True):
    """Gradients of one training loss whose value does not depend on the outputs."""
    layer.zero_grad()
    layer.gradient_scale.texts = 0
    loss = sum((layer(*batch) * 0).sum() for batch in batches)
    if root:
        loss = scale_gradient(loss, [layer.gradient_scale])
    (loss * loss_scale).backward()
    return gradients(layer)


@pytest.mark.parametrize("loss_scale", [65536.0, 0.25])
def test_loss_scaling_and_accumulation_apply_to_both_losses(loss_scale):
    layer = stir_policy(make_layer(estimator="exact"))
    plain = exact_step(layer, [draw()])
    assert plain["selector.policy_network.2.weight"].abs().max() > 0
    assert_same_gradients(exact_step(layer, [draw()], loss_scale=loss_scale), plain, factor=loss_scale)


@pytest.mark.parametrize("sizes", [[6], [3, 3], [4, 2], [1, 2, 3]])
def test_splitting_the_batch_changes_nothing(sizes):
    layer = stir_policy(make_layer(estimator="exact"))
    batches = list(zip(*(x.split(sizes) for x in (*draw(), draw_mask())), strict=True))
    assert_same_gradients(exact_step(layer, batches), exact_step(layer, [(*draw(), draw_mask())]))


def test_without_a_root_the_auxiliary_loss_is_the_mean_over_its_texts():
    layer = stir_policy(make_layer(estimator="exact"))
    assert_same_gradients(exact_step(layer, [draw()], root=False), exact_step(layer, [draw()]))


def test_texts_of_a_checkpointed_layer_are_counted_once():
    layer = make_layer()
    query, key, value = (x.requires_grad_() for x in draw())
    for reentrant in (True, False):
        layer.gradient_scale.texts = 0
        output = checkpoint(layer, query, key, value, use_reentrant=reentrant)
        assert layer.gradient_scale.texts == BATCH
        output.sum().backward()
        assert layer.gradient_scale.texts == BATCH


@pytest.mark.parametrize("estimator", ["sampled", "exact"])
@pytest.mark.parametrize("selection", ["gumbel", "hard"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_gradients(estimator, selection, reentrant):
    layer = stir_policy(make_layer(estimator=estimator, selection=selection))
    projection = torch.nn.Linear(CHANNELS, CHANNELS).double()

    def block(query, key, value):
        return projection(layer(query, key, value, draw_mask()))

    results = []
    for checkpointed in (False, True):
        layer.zero_grad()
        layer.gradient_scale.texts = 0
        query, key, value = (x.requires_grad_() for x in draw())
        torch.manual_seed(8)
        if checkpointed:
            output = checkpoint(block, query, key, value, use_reentrant=reentrant)
        else:
            output = block(query, key, value)
        scale_gradient(output.square().mean(), [layer.gradient_scale]).backward()
        results.append(gradients(layer) | {"query": query.grad, "key": key.grad, "value": value.grad})
        results[-1] |= {"after": torch.rand(3)}
    assert_same_gradients(*results)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_records_and_keeps_what_a_plain_forward_does(reentrant):
    results = []
    for checkpointed in (False, True):
        layer = stir_policy(make_layer(updates=3))
        assert layer.replay_loss() is None
        query, key, value = (x.requires_grad_() for x in draw())
        torch.manual_seed(8)
        output = checkpoint(layer, query, key, value, use_reentrant=reentrant) if checkpointed else layer(*draw())
        output.square().sum().backward()
        results.append((len(layer.rollouts), layer.collect()))
    (plain_rollouts, plain), (rollouts, collected) = results
    for name, expected in plain.items():
        torch.testing.assert_close(collected[name], expected, rtol=0, atol=1e-12)
    assert rollouts == plain_rollouts == 1


def test_add_gradient_returns_its_input_and_passes_gradients_through():
    x = torch.randn(3, requires_grad=True)
    p = torch.ones((), requires_grad=True)
    scale = GradientScale()
    scale.per_text = torch.tensor(0.4)
    y = add_gradient(x, 3 * p, scale, own_texts=2)
    assert torch.equal(y, x)
    (y * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0, 3.0]
    assert p.grad.item() == pytest.approx(3 * 0.4)


def test_accumulated_losses_weigh_their_own_texts():
    layer = stir_policy(make_layer(estimator="exact"))
    first, second = draw(batch=4, seed=1), draw(batch=2, seed=2)
    expected = [exact_step(layer, [batch])["selector.policy_network.2.weight"] for batch in (first, second)]
    layer.zero_grad()
    roots = []
    for batch in (first, second):
        layer.gradient_scale.texts = 0
        roots.append(scale_gradient((layer(*batch) * 0).sum(), [layer.gradient_scale]))
    for root in roots:
        (root / 2).backward()
    actual = layer.selector.policy_network[-1].weight.grad
    torch.testing.assert_close(actual, (expected[0] + expected[1]) / 2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reentrant", [None, True, False])
def test_the_scale_holds_for_one_backward_pass(reentrant):
    layer = stir_policy(make_layer(estimator="exact"))
    expected = exact_step(layer, [draw()], root=False)
    query, key, value = (x.requires_grad_() for x in draw())
    output = layer(query, key, value)
    if reentrant is not None:
        output = checkpoint(layer, query, key, value, use_reentrant=reentrant)
    (1000 * scale_gradient((output * 0).sum(), [layer.gradient_scale])).backward()
    assert layer.gradient_scale.per_text is None
    assert_same_gradients(exact_step(layer, [draw()], root=False), expected)


# Records


def test_evaluation_records_nothing_and_draws_nothing():
    layer = stir_policy(make_layer(updates=2)).eval()
    assert layer.replay_loss() is None
    before = torch.get_rng_state()
    layer(*draw(), draw_mask())
    assert torch.equal(torch.get_rng_state(), before)
    assert layer.collect() == {}
    assert layer.rollouts == []
    assert layer.gradient_scale.texts == 0


@pytest.mark.parametrize("sizes", [[5, 1], [1, 2, 3]])
def test_collect_describes_all_texts_however_they_were_split_and_forgets(sizes):
    layer = stir_policy(make_layer(estimator="exact"))
    layer(*draw(), draw_mask())
    together = layer.collect()
    assert layer.collect() == {}
    for batch in zip(*(x.split(sizes) for x in (*draw(), draw_mask())), strict=True):
        layer(*batch)
    for name, statistic in layer.collect().items():
        torch.testing.assert_close(statistic, together[name], rtol=0, atol=1e-12, msg=name)
        assert not statistic.requires_grad
    assert {name for name, statistic in together.items() if statistic.ndim} == {"depth_usage", "weight_usage"}
    assert together["depth_usage"].shape == together["weight_usage"].shape == (DEPTH,)


def test_a_replay_counts_its_texts_again_under_the_policy_of_that_time():
    layer = make_layer(updates=2)
    assert layer.replay_loss() is None
    layer(*draw())
    assert layer.collect()["policy_entropy"] == pytest.approx(1.0)
    layer(*draw(batch=2))
    stir_policy(layer)
    layer.replay_loss()
    first, second, third = layer.records
    assert [len(record.reward) for record in (first, second, third)] == [2, 6, 2]
    entropy = [grpo.policy_entropy(record.logits) / math.log(DEPTH) for record in (first, second, third)]
    expected = torch.cat(entropy).mean()
    assert float(layer.collect()["policy_entropy"]) == pytest.approx(float(expected))
    assert expected < 0.95


def test_a_layer_keeps_its_latest_forwards():
    layer = make_layer(group_size=1)
    for seed in range(KEPT + 3):
        layer(*draw(batch=1, tokens=1, seed=seed))
    assert len(layer.records) == KEPT
    state = draw(batch=1, tokens=1, seed=3)[0]
    torch.testing.assert_close(layer.records[0].value, layer.selector.value(state.flatten(1)).detach())


def test_recorded_values_at_the_uniform_start():
    layer = make_layer(group_size=8)
    layer(*draw())
    record = layer.collect()
    assert record["policy_entropy"] == pytest.approx(1.0)
    assert record["kl"] == pytest.approx(0.0, abs=1e-12)
    assert record["k3"] == pytest.approx(0.0, abs=1e-12)
    assert record["clip_share"] == 0
    assert record["depths_alive"] == 1
    assert record["depth_information"] == pytest.approx(0.0, abs=1e-12)
    assert record["weight_information"] == pytest.approx(0.0, abs=1e-12)
    assert -1 <= record["reward"] < 0
    torch.testing.assert_close(record["depth_usage"], torch.full((DEPTH,), 1 / DEPTH, dtype=torch.float64))


@pytest.mark.parametrize("tau", [0.25, 4.0])
def test_weights_share_with_the_text_what_their_temperature_leaves_them(tau):
    layer = make_layer(tau=tau)
    torch.nn.init.normal_(layer.selector.policy_network[-1].weight, std=3.0)
    layer(*draw())
    logits = layer.records[0].record().logits
    weight = torch.exp(logits / tau) / torch.exp(logits / tau).sum(dim=-1, keepdim=True)
    mean = weight.mean(dim=0)
    record = layer.collect()
    expected = (weight * (weight / mean).log()).sum(dim=-1).mean()
    assert float(record["weight_information"]) == pytest.approx(float(expected), rel=1e-9)
    assert (record["weight_information"] > record["depth_information"]) == (tau < 1)
    torch.testing.assert_close(record["weight_usage"], mean)


def test_hard_weights_share_with_the_text_which_depth_is_the_largest():
    layer = stir_policy(make_layer(selection="hard"))
    layer(*draw())
    chosen = layer.records[0].record().logits.argmax(dim=-1)
    record = layer.collect()
    share = torch.bincount(chosen, minlength=DEPTH) / len(chosen)
    torch.testing.assert_close(record["weight_usage"], share.double())
    assert float(record["weight_information"]) == pytest.approx(float(torch.special.entr(share).sum()), abs=1e-6)


def test_a_group_of_one_has_no_spread_to_record():
    layer = make_layer(group_size=1)
    layer(*draw()).sum().backward()
    assert not {"reward_spread", "zero_spread"} & set(layer.collect())


def test_groups_are_replayed_in_the_precision_they_were_sampled_in():
    """The ratio is 1 when nothing has changed meanwhile, whatever autocast the training loop is in."""
    layer = make_layer(dtype=torch.float32, updates=2, auxiliary_weight=1.0, value_weight=0.0)
    torch.nn.init.normal_(layer.selector.policy_network[-1].weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer.replay_loss()
        layer(*draw(dtype=torch.float32))
        assert float(layer.replay_loss().detach().abs()) < 1e-6  # at ratio 1 advantages average to zero


def test_records_of_a_collapsed_policy_are_finite():
    layer = make_layer(dtype=torch.float32)
    with torch.no_grad():
        layer.selector.policy_network[-1].bias[4] = 300.0
    layer(*draw(dtype=torch.float32)).sum().backward()
    record = layer.collect()
    assert [name for name, mean in record.items() if not mean.isfinite().all()] == []
    assert record["policy_entropy"] == 0
    assert record["zero_spread"] == 1
    assert record["depth_information"] == 0
    assert record["depths_alive"] == pytest.approx(1 / DEPTH)


def test_recorded_reward_of_the_exact_estimator_is_the_policys():
    layer = stir_policy(make_layer(estimator="exact"), size=3.0)
    query, key, value = draw()
    arms = torch.arange(DEPTH).expand(BATCH, DEPTH)
    reward = entropy_reward(query, key, layer.query_views, layer.key_views, arms, scale=layer.scale)
    policy = layer.selector.policy(query.mean(dim=2).flatten(1)).softmax(dim=-1)
    layer(query, key, value)
    assert float(layer.collect()["reward"]) == pytest.approx(float((policy * reward).sum(dim=-1).mean().detach()))


def test_a_layer_can_be_copied_after_a_backward():
    layer = stir_policy(make_layer(updates=2))
    scale_gradient(layer(*draw()).square().sum(), [layer.gradient_scale]).backward()
    twin = copy.deepcopy(layer)
    assert torch.equal(layer.eval()(*draw()), twin.eval()(*draw()))
    twin.gradient_scale.texts = 0
    assert layer.gradient_scale.texts == BATCH


# Several updates a sample


def test_replayed_groups_have_a_ratio_that_is_clipped():
    layer = make_layer(updates=2, clip=0.1)
    optimizer = torch.optim.SGD(layer.selector.parameters(), lr=5.0)
    assert layer.replay_loss() is None
    (layer(*draw()) * 0).sum().backward()
    assert layer.collect()["clip_share"] == 0
    ((_, rollout),) = layer.rollouts
    assert not any(tensor.requires_grad for tensor in rollout)
    optimizer.step()

    log_policy = layer.selector.policy(rollout.state).log_softmax(dim=-1)
    ratio = (log_policy.gather(-1, rollout.depth_index) - rollout.log_probability).exp()
    assert (ratio - 1).abs().max() > 0.1
    layer.zero_grad()
    loss = layer.replay_loss()
    assert loss.ndim == 0
    loss.backward()
    assert layer.selector.value_network[-1].weight.grad.abs().max() > 0
    record = layer.collect()
    assert 0 < record["clip_share"] <= 1
    assert record["kl"] > 0
    assert layer.replay_loss() is None


@pytest.mark.parametrize("updates", [1, 2, 4])
def test_a_group_serves_as_many_updates_as_configured(updates):
    layer = make_layer(updates=updates)
    assert layer.replay_loss() is None
    (layer(*draw()) * 0).sum().backward()
    served = 1
    while layer.replay_loss() is not None:
        served += 1
    assert served == updates


def test_a_training_that_never_replays_keeps_no_groups():
    layer = make_layer(updates=3)
    layer(*draw())
    assert layer.rollouts is None
    assert layer.replay_loss() is None


def test_replay_loss_before_any_step_is_the_first_loss_again():
    layer = stir_policy(make_layer(updates=2))
    assert layer.replay_loss() is None
    (layer(*draw()) * 0).sum().backward()
    first = gradients(layer)
    layer.zero_grad()
    layer.replay_loss().backward()
    again = gradients(layer)
    for name in first:
        if name.startswith("selector"):
            torch.testing.assert_close(again[name], first[name], rtol=1e-9, atol=1e-12)


# The selector learns


@pytest.mark.parametrize(
    "settings",
    [
        {"advantage": "std"},
        {"advantage": "none"},
        {"advantage": "leave-one-out"},
        {"group_size": 1},
        {"estimator": "exact"},
    ],
    ids=["std", "none", "leave-one-out", "value baseline", "exact"],
)
def test_the_policy_finds_the_depth_that_is_rewarded(monkeypatch, settings):
    planted = 7
    asked = []

    def reward(query, key, query_views, key_views, depth_index, **others):
        asked.append(query.requires_grad or torch.is_grad_enabled())
        return (depth_index == planted).to(query.dtype)

    monkeypatch.setattr(maw.module, "entropy_reward", reward)
    layer = make_layer(auxiliary_weight=0.003, **settings)
    optimizer = torch.optim.Adam(layer.selector.parameters(), lr=1e-2)
    for step in range(200):
        optimizer.zero_grad()
        (layer(*draw(batch=16, tokens=3, seed=step)) * 0).sum().backward()
        optimizer.step()
    query = draw(batch=16, tokens=3, seed=999)[0]
    policy = layer.selector.policy(query.mean(dim=2).flatten(1)).softmax(dim=-1)
    assert policy[:, planted].min() > 0.9
    assert len(asked) == 200
    assert not any(asked)


def test_the_policy_finds_the_depth_that_suits_the_text(monkeypatch):
    # two kinds of texts, each with its own best depth: only a policy that reads the state can win
    def reward(query, key, query_views, key_views, depth_index, **others):
        wanted = torch.where(query.mean(dim=(1, 2, 3)) > 0, 2, 9)
        return (depth_index == wanted[:, None]).to(query.dtype)

    monkeypatch.setattr(maw.module, "entropy_reward", reward)
    layer = make_layer()
    optimizer = torch.optim.Adam(layer.selector.parameters(), lr=1e-2)
    sign = torch.tensor([1.0, -1.0]).double().repeat(8)[:, None, None, None]
    for step in range(200):
        optimizer.zero_grad()
        query, key, value = draw(batch=16, tokens=3, seed=step)
        (layer(query + sign, key, value) * 0).sum().backward()
        optimizer.step()
    policy = layer.selector.policy((draw(batch=16, tokens=3, seed=999)[0] + sign).mean(dim=2).flatten(1)).softmax(-1)
    assert policy[0::2, 2].mean() > 0.8
    assert policy[1::2, 9].mean() > 0.8
