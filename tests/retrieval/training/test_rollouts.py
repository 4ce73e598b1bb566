"""The retrieval reward against a slow oracle: each text alone, through the whole model, one depth at a time."""

from __future__ import annotations

import copy
import functools
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo
from families import build
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import nn
from toys import SETTINGS, encoder, features, toy

import maw
from maw import grpo
from maw.hf.attach import carrying_host, maw_layers
from maw.hf.hosts import family_of
from maw.retrieval.training.fine_tuning import _checkpoint_layers, train
from maw.retrieval.training.losses import AuxiliaryLoss
from maw.retrieval.training.rollouts import Rollouts, retrieval_reward

DEPTH, GROUP, SCALE = 5, 3, 20.0
ALONE = {"depth_baseline": False, "kl_weight": 1.0}  # what a text learns is from its own rewards, and they lead
THREE_LAYERS = {
    "bert": {"num_hidden_layers": 3},
    "mpnet": {"num_hidden_layers": 3},
    "modernbert": {"num_hidden_layers": 3, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    "qwen3": {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3},
}


@functools.cache
def _host(name):
    model = encoder()
    model[0].model = build(name, **THREE_LAYERS[name])
    return model


def with_maw(name="bert", layers=(-1,), **settings):
    """A random encoder of three layers without dropout, its views and policies moved off their start; in training."""
    model = copy.deepcopy(_host(name))
    given = {"reward": "retrieval", "depth": DEPTH, "group_size": GROUP, **ALONE, "tau": 1.0, "noise": 1.0, **settings}
    maw.attach(model, maw.MAWConfig(layers=layers if layers == "all" else list(layers), **given))
    generator = torch.Generator().manual_seed(1)
    for layer in maw_layers(model):
        for parameter in layer.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.train()


def batch(*lengths, width, seed=0):
    """Random tokens of the families' vocabulary, padded at the end."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (len(lengths), width), generator=generator)
    mask = torch.tensor([[1] * length + [0] * (width - length) for length in lengths])
    return {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask}


def texts(negatives=0):
    """Four queries, their documents, and hard negatives."""
    given = [batch(5, 2, 4, 3, width=5), batch(7, 4, 6, 1, width=7, seed=1)]
    return given + [batch(6, 6, 2, 7, width=7, seed=2 + number) for number in range(negatives)]


def note_settled(model):
    """For every MAW layer, from now on: the choices and rewards that reach its policy."""
    noted = []
    for layer in maw_layers(model):
        settle, own = layer.settle, []
        layer.settle = lambda choice, reward, settle=settle, own=own: (
            own.append((choice, reward)) or settle(choice, reward)
        )
        noted.append(own)
    return noted


def watched(model, given, kind=MultipleNegativesRankingLoss):
    """One loss: its value, what the model returned for each column, and what was settled."""
    settled, vectors = note_settled(model), []
    loss = AuxiliaryLoss(kind(model, scale=SCALE), model).train()
    model.eval()  # the forwards that the oracle makes first
    handle = model.register_forward_hook(
        lambda module, _, output: vectors.append(output["sentence_embedding"].detach()) if module.training else None
    )
    model.train()
    try:
        value = loss([dict(column) for column in given], None)
    finally:
        handle.remove()
    return SimpleNamespace(loss=value, vectors=vectors, settled=settled)


@torch.no_grad()
def alone(model, column, row, depths):
    """The vector of one text, with all weight on one depth in each MAW layer."""
    layers = maw_layers(model)
    model.eval()
    for layer, depth in zip(layers, depths, strict=True):
        layer.forced = nn.functional.one_hot(depth[None], DEPTH).to(layer.query_views.dtype)
    vector = model({name: value[row : row + 1] for name, value in column.items()})["sentence_embedding"][0]
    for layer in layers:
        layer.forced = None
    model.train()
    return vector


def oracle(model, column, choices, candidates):
    """(B, G): the log-likelihood of each text's partner, from vectors made one by one."""
    rows = []
    for row in range(len(column["input_ids"])):
        own = []
        for member in range(choices[0].depth_index.shape[1]):
            vector = alone(model, column, row, [choice.depth_index[row, member] for choice in choices])
            cosine = torch.stack([torch.cosine_similarity(vector, other, dim=0) for other in candidates])
            own.append((SCALE * cosine).log_softmax(dim=0)[row])
        rows.append(torch.stack(own))
    return torch.stack(rows)


def assert_oracle(model, given, found):
    for place, candidates in ((0, torch.cat(found.vectors[1:])), (1, found.vectors[0])):
        choices = [own[place][0] for own in found.settled]
        expected = oracle(model, given[place], choices, candidates)
        assert expected.std() > 0.01, "the depths matter"
        for own in found.settled:
            torch.testing.assert_close(own[place][1], expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("layers", [(0,), (1,), (-1,), (0, 2), "all"], ids=str)
@pytest.mark.parametrize("host", ["bert", "modernbert", "mpnet", "qwen3"])
def test_the_reward_is_that_of_the_whole_model_with_one_depth_alone(host, layers):
    model, given = with_maw(host, layers), texts()
    found = watched(model, given)
    assert [len(own) for own in found.settled] == [2] * len(maw_layers(model))
    assert_oracle(model, given, found)


@pytest.mark.parametrize("settings", [{"estimator": "exact"}, {"group_size": 1}, {"selection": "hard"}], ids=str)
def test_so_it_is_with_other_ways_to_choose(settings):
    model, given = with_maw("bert", (1,), **settings), texts()
    found = watched(model, given)
    ((choice, _), _) = found.settled[0]
    assert choice.depth_index.shape[1] == {"exact": DEPTH}.get(model[0].model.config.maw_config.estimator) or True
    assert_oracle(model, given, found)


@pytest.mark.parametrize("negatives", [1, 2])
@pytest.mark.parametrize("merged", [True, False], ids=["merged", "apart"])
def test_hard_negatives_are_candidates_of_the_queries_and_learn_nothing(negatives, merged):
    model, given = with_maw("bert", (1,)), texts(negatives)
    if not merged:  # columns that do not have the same entries are encoded one by one
        given[-1]["token_type_ids"] = torch.zeros_like(given[-1]["input_ids"])
    found = watched(model, given)
    together = 2 if merged else 2 + negatives
    assert [len(vectors) for vectors in found.vectors] == [4, *[4 * (1 + negatives) // (together - 1)] * (together - 1)]
    assert [len(reward) for _, reward in found.settled[0]] == [4, 4]
    assert_oracle(model, given, found)


def test_a_sum_of_rewards_is_the_entropy_reward_and_so_much_of_the_other():
    def run(**settings):
        torch.manual_seed(5)
        model = with_maw("bert", (1,), **settings)
        torch.manual_seed(7)
        return [reward for _, reward in watched(model, texts()).settled[0]]

    def entropies():
        torch.manual_seed(5)
        model = with_maw("bert", (1,), reward="entropy")
        torch.manual_seed(7)
        watched(model, texts())
        return [record.reward for record in maw_layers(model)[0].records]

    apart, both = run(), run(reward="sum", retrieval_weight=0.25)
    for retrieval, entropy, whole in zip(apart, entropies(), both, strict=True):
        assert entropy.std() > 0.01
        torch.testing.assert_close(whole, entropy + 0.25 * retrieval, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("layers", "below"), [((-1,), 2), ((1,), 1), ((0,), 0), ((0, 2), 0)], ids=str)
@pytest.mark.parametrize("host", ["bert", "modernbert", "mpnet"])
def test_layers_below_maw_run_once_and_the_others_once_more_for_all_rollouts(host, layers, below):
    model = with_maw(host, layers)
    inside = carrying_host(model, "look at")
    family, runs = family_of(inside), [[], [], []]
    for own, block in zip(runs, inside.get_submodule(family.layers), strict=True):
        attention = block.get_submodule(family.attention)
        attention.get_submodule(family.projections[0]).register_forward_hook(
            lambda _, __, output, own=own: own.append(len(output))
        )
    watched(model, texts())
    assert runs == [[4, 4]] * below + [[4, 4, 4 * GROUP, 4 * GROUP]] * (3 - below)


# What the policy learns


def gradients(model, scale=1.0, seed=3, **options):
    torch.manual_seed(seed)
    found = watched(model, texts(), **options)
    (found.loss * scale).backward()
    return found, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("settings", [{"advantage": "none"}, {"kl_weight": 0.3}, {"estimator": "exact"}], ids=str)
@pytest.mark.parametrize("scale", [1.0, 64.0])
def test_the_policys_gradient_is_that_of_the_grpo_loss_and_nothing_else_changes(settings, scale):
    model = with_maw("bert", (0, 2), auxiliary_weight=3.0, **settings)
    silent = with_maw("bert", (0, 2), auxiliary_weight=0.0, **settings)
    found, with_reward = gradients(model, scale)
    plain, without = gradients(silent, scale)
    assert found.loss.item() == plain.loss.item(), "the training loss is what it was"
    by_hand = {}
    for number, (layer, own) in enumerate(zip(maw_layers(model), found.settled, strict=True)):
        config = layer.config
        state = torch.cat([choice.state for choice, _ in own])
        index, reward = torch.cat([choice.depth_index for choice, _ in own]), torch.cat([one for _, one in own])
        logits, value = layer.selector.policy(state), layer.selector.value(state)
        if config.estimator == "exact":
            policy = logits.softmax(-1)
            expected = (policy * reward).sum(-1)
            loss = -expected + config.value_weight * (value - expected.detach()).square()
        else:
            advantages = grpo.group_advantages(reward, config.advantage)
            chosen = logits.log_softmax(-1).gather(1, index)
            loss = -((chosen - chosen.detach()).exp() * advantages).mean(-1)
            loss = loss + config.value_weight * (value - reward.mean(-1)).square()
        loss = loss + config.kl_weight * grpo.exact_kl(logits, torch.zeros_like(logits))
        parameters = dict(layer.selector.named_parameters())
        grads = torch.autograd.grad(3.0 * loss.mean() * scale, list(parameters.values()))
        by_hand |= {(number, name): grad for name, grad in zip(parameters, grads, strict=True)}
    places = {0: "layer.0.", 1: "layer.2."}
    compared = 0
    for name, gradient in with_reward.items():
        if ".maw.selector." not in name:
            assert torch.equal(gradient, without[name]), name
            continue
        number = next(number for number, place in places.items() if place in name)
        expected = by_hand[number, name.split(".maw.selector.")[1]]
        assert expected.abs().max() > 1e-4 * scale
        own = gradient - without.get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(own, expected, atol=2e-5 * scale, rtol=2e-3, msg=name)
        compared += 1
    assert compared == len(by_hand)


def test_what_happened_is_recorded_once_a_text():
    model = with_maw("bert", (0, 2))
    found = watched(model, texts())
    for layer, own in zip(maw_layers(model), found.settled, strict=True):
        assert [len(record.reward) for record in layer.records] == [4, 4]
        mean = torch.cat([reward for _, reward in own]).mean()
        torch.testing.assert_close(layer.collect()["reward"], mean)


def test_a_policy_that_is_not_trained_stops_nothing():
    model = with_maw("bert", (1,))
    maw_layers(model)[0].selector.requires_grad_(False)
    watched(model, texts()).loss.backward()


def planted(**settings):
    """In the first layer depth 2 attends to the one token of type 1, a text's own word, and all others to the rest,
    which all texts share; what the layer attends to outweighs the residual."""
    settings = {"tau": 1e4, **ALONE, "kl_weight": 0.0, **settings}
    model = encoder(maw.MAWConfig(layers=[0], depth=6, views="ones", scale=1.0, **settings))
    (layer,) = maw_layers(model)
    host = carrying_host(model, "look at")
    attention = host.encoder.layer[0].attention.self
    with torch.no_grad():
        mark = torch.randn(host.config.hidden_size, generator=torch.Generator().manual_seed(0))
        mark -= mark.mean()
        host.embeddings.token_type_embeddings.weight.copy_(torch.stack([-mark, mark]) / 4)
        attention.query.weight.zero_()
        attention.query.bias.fill_(1.0)  # u is 1 for every token
        attention.key.weight.copy_(mark.expand_as(attention.key.weight))
        seen = attention.value.weight @ mark / mark.square().sum()
        attention.value.weight.sub_(seen[:, None] * mark).mul_(30)  # of a word, not of its type
        layer.key_views.fill_(-1.0)
        layer.key_views[:, 2] = 10.0  # so do all depths together, by which the partners are encoded
    return model.eval(), layer


def marked_texts():
    """Queries and documents of five tokens; a query shares with its document the one token of type 1 alone."""
    words, rest = torch.arange(2000, 2004)[:, None], {0: [101, 3000, 3001, 102], 1: [101, 4000, 4001, 4002]}
    given = []
    for column, place in ((0, 1), (1, 3)):
        others = torch.tensor(rest[column]).expand(4, -1)
        ids = torch.cat([others[:, :place], words, others[:, place:]], dim=1)
        kinds = torch.zeros_like(ids)
        kinds[:, place] = 1
        given.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": kinds})
    return given


def mean_policy(model, layer, given):
    """Over all texts of a batch."""
    states = []
    choose = layer._choose
    layer._choose = lambda state: states.append(state.detach()) or choose(state)
    with torch.no_grad():
        for column in given:
            model({**column})
    layer._choose = choose
    return layer.selector.policy(torch.cat(states)).softmax(-1).mean(0).detach()


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"reward": "retrieval"}, True),
        ({"reward": "retrieval", "estimator": "exact"}, True),
        ({"reward": "retrieval", "auxiliary_weight": 0.0}, False),
    ],
    ids=str,
)
def test_the_policy_finds_a_planted_depth(settings, found):
    model, layer = planted(**{"auxiliary_weight": 1.0, **settings})
    given = marked_texts()
    layer.train()  # the rest of the encoder without dropout
    loss = AuxiliaryLoss(MultipleNegativesRankingLoss(model), model)
    optimiser = torch.optim.SGD(layer.selector.parameters(), lr=0.1)
    for _ in range(40):
        optimiser.zero_grad()
        loss([dict(column) for column in given], None).backward()
        optimiser.step()
    policy = mean_policy(model, layer, given)
    assert (policy[2] > 0.9) == found, policy
    if not found:
        torch.testing.assert_close(policy, torch.full((6,), 1 / 6), atol=0.05, rtol=0)


# Everything is put back


def condition(model):
    """All that a rollout changes for a while."""
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
        "forwards": [vars(module).get("forward") for module in model.modules()],
        "layers": [(layer.forced, layer.pending, layer.rollouts) for layer in maw_layers(model)],
    }


class Stumbles(MultipleNegativesRankingLoss):
    """A loss that fails once everything is encoded."""

    def compute_loss_from_embeddings(self, embeddings, labels):
        raise FloatingPointError("on purpose")


@pytest.mark.parametrize("where", ["nowhere", "loss", "forward", "rollout", "settling"])
@pytest.mark.parametrize("host", ["bert", "mpnet"])
def test_the_model_is_left_as_it_was_whatever_fails(host, where):
    model = with_maw(host, (1,))
    blocks = carrying_host(model, "look at").get_submodule("encoder.layer")
    blocks[0].eval()  # not the same mode everywhere
    (layer,) = maw_layers(model)
    before = condition(model)
    kind = Stumbles if where == "loss" else MultipleNegativesRankingLoss
    loss = AuxiliaryLoss(kind(model, scale=SCALE), model)
    condition_of_block = {"forward": True, "rollout": False}

    def stumble(module, _):
        if module.training == condition_of_block.get(where):
            raise FloatingPointError("on purpose")

    handle = blocks[2].register_forward_pre_hook(stumble)
    if where == "settling":
        layer.settle = None  # not callable
    try:
        loss([dict(column) for column in texts()], None)
        failed = False
    except (FloatingPointError, TypeError):
        failed = True
    finally:
        handle.remove()
        vars(layer).pop("settle", None)
    assert failed == (where != "nowhere")
    assert condition(model) == before
    copy.deepcopy(model)  # no graph is left on a module
    loss = AuxiliaryLoss(MultipleNegativesRankingLoss(model, scale=SCALE), model)
    loss([dict(column) for column in texts()], None).backward()


def test_random_numbers_are_those_of_a_training_without_rollouts():
    def state_after(reward):
        model = with_maw("bert", (1,), reward=reward)
        torch.manual_seed(3)
        watched(model, texts())
        return torch.get_rng_state()

    assert torch.equal(state_after("retrieval"), state_after("entropy"))


# What is refused


@pytest.mark.parametrize("mini_batch_size", [2, 4])
def test_losses_with_a_gradient_cache_are_refused(mini_batch_size):
    model = with_maw()
    before = condition(model)
    loss = AuxiliaryLoss(CachedMultipleNegativesRankingLoss(model, mini_batch_size=mini_batch_size), model)
    with pytest.raises(
        maw.MAWError, match=r"encodes each text once.*leave mini_batch_size out, or take reward='entropy'"
    ):
        loss([dict(column) for column in texts()], None).backward()
    assert condition(model) == before


class ByHalves(MultipleNegativesRankingLoss):
    """Encodes each column in two forwards."""

    def forward(self, sentence_features, labels):
        embeddings = [
            torch.cat([
                self.model({name: value[rows] for name, value in column.items()})["sentence_embedding"]
                for rows in (slice(0, 3), slice(3, 4))
            ])
            for column in sentence_features
        ]  # fmt: skip
        return self.compute_loss_from_embeddings(embeddings, labels)


def test_losses_that_cut_columns_are_refused():
    model = with_maw()
    with pytest.raises(maw.MAWError, match=r"all queries of a batch at once.*got forwards of \[3, 1, 3, 1\] texts"):
        AuxiliaryLoss(ByHalves(model), model)(texts(), None)


def test_gradient_checkpointing_is_refused_as_training_switches_it_on():
    model = with_maw()
    _checkpoint_layers(model)
    with pytest.raises(maw.MAWError, match=r"gradient checkpointing in .*switch it off"):
        AuxiliaryLoss(MultipleNegativesRankingLoss(model), model)(texts(), None)


def test_checkpointing_that_nobody_announced_is_refused_in_backward():
    model = with_maw()
    block = carrying_host(model, "look at").encoder.layer[-1]
    forward = block.forward
    block.forward = lambda *args, **kwargs: torch.utils.checkpoint.checkpoint(
        forward, *args, use_reentrant=False, **kwargs
    )
    loss = AuxiliaryLoss(MultipleNegativesRankingLoss(model), model)(texts(), None)
    with pytest.raises(maw.MAWError, match=r"runs it again in backward: switch it off"):
        loss.backward()
    assert maw_layers(model)[0].pending is None


@pytest.mark.parametrize("how", ["in place", "wrapped", "whole"])
def test_compiled_models_are_refused(how):
    torch._dynamo.reset()
    model = with_maw()
    trained = model
    if how == "in place":
        model[0].model.compile(backend="eager")
    elif how == "wrapped":
        model[0].model.backbone = torch.compile(model[0].model.backbone, backend="eager")
    else:
        trained = torch.compile(model, backend="eager")
    with pytest.raises(maw.MAWError, match=r"compile.*or take reward='entropy'"):
        AuxiliaryLoss(MultipleNegativesRankingLoss(trained), trained)(texts(), None)


def test_wrappers_of_several_processes_are_refused():
    model = with_maw()
    wrapped = nn.DataParallel(model)
    with pytest.raises(maw.MAWError, match=r"got a DataParallel.*train in one process"):
        Rollouts(wrapped, maw_layers(model), scale=SCALE)


@pytest.mark.parametrize("reward", ["retrieval", "sum"])
def test_training_without_anybody_who_waits_for_the_reward_is_an_error(reward):
    model = with_maw(reward=reward)
    with pytest.raises(maw.MAWError, match=r"wrap the training loss in maw.retrieval.training.losses.AuxiliaryLoss"):
        MultipleNegativesRankingLoss(model)(texts(), None)
    with torch.no_grad():  # a look at training's weights trains nothing
        model(texts()[0])
    model.eval()
    model(texts()[0])
    assert maw_layers(model)[0].pending is None


def test_a_loss_in_evaluation_or_without_gradient_rolls_nothing_out():
    model = with_maw()
    settled = note_settled(model)
    loss = AuxiliaryLoss(MultipleNegativesRankingLoss(model), model)
    with torch.no_grad():
        loss(texts(), None)
    model.eval()
    loss(texts(), None)
    assert settled == [[]]


# With the rest of the library


def test_lora_trains_the_adapters_copy_of_the_policy():
    model, given = with_maw("bert", (1,), auxiliary_weight=3.0), texts()
    model.add_adapter(maw.lora_config(model, lora_dropout=0.0))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    model.train()
    found = watched(model, given)
    assert_oracle(model, given, found)
    found.loss.backward()
    (layer,) = maw_layers(model)
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.selector.parameters())


@pytest.mark.parametrize(("variant", "hard_negatives"), [("full", 0), ("lora", 1)])
def test_training_runs_logs_and_leaves_nothing_behind(tmp_path, variant, hard_negatives):
    where = {"full": [-1], "lora": [0]}[variant]  # with layers below MAW, whose output is handed on, and without
    model = encoder(maw.MAWConfig(layers=where, depth=8, reward="retrieval"))
    if variant == "lora":
        model.add_adapter(maw.lora_config(model))
    settings = SETTINGS.__class__(**{**vars(SETTINGS), "hard_negatives": hard_negatives})
    outcome = train(model, toy(), tmp_path, settings)
    assert outcome["selector"]["reward"] < 0
    (layer,) = maw_layers(model)
    assert layer.pending is None
    assert not layer.records


def test_mini_batches_are_refused_by_training_too(tmp_path):
    model = encoder(maw.MAWConfig(depth=8, reward="retrieval"))
    settings = SETTINGS.__class__(**{**vars(SETTINGS), "mini_batch_size": 2})
    with pytest.raises(maw.MAWError, match="leave mini_batch_size out"):
        train(model, toy(), tmp_path, settings)


def test_a_prompt_that_pooling_leaves_out_is_left_out_of_rollouts_too():
    model = encoder(maw.MAWConfig(layers=[1], depth=DEPTH, group_size=GROUP, reward="retrieval", tau=1.0)).eval()
    model[1].include_prompt = False
    given = [
        features(model, ["find: a river", "find: an engine"]),
        features(model, ["passage: water", "passage: steam"]),
    ]
    for column in given:
        column["prompt_length"] = torch.tensor([3])
    settled, vectors = note_settled(model), []
    (layer,) = maw_layers(model)
    layer.train()
    handle = model.register_forward_hook(lambda _, __, output: vectors.append(output["sentence_embedding"].detach()))
    AuxiliaryLoss(MultipleNegativesRankingLoss(model, scale=SCALE), model)([dict(column) for column in given], None)
    handle.remove()
    choice, reward = settled[0][0]
    layer.eval()
    for row in range(2):
        layer.forced = nn.functional.one_hot(choice.depth_index[row], DEPTH).float()
        repeated = {n: v if n == "prompt_length" else v[row : row + 1].repeat(GROUP, 1) for n, v in given[0].items()}
        with torch.no_grad():
            found = model(repeated)["sentence_embedding"]
        cosine = nn.functional.normalize(found, dim=-1) @ nn.functional.normalize(vectors[1], dim=-1).T
        torch.testing.assert_close(reward[row], (SCALE * cosine).log_softmax(-1)[:, row], atol=1e-4, rtol=1e-4)


def test_a_reward_by_hand():
    rolled_out = torch.tensor([[[1.0, 0.0], [0.0, 3.0]], [[2.0, 0.0], [0.0, 1.0]]])
    candidates = torch.tensor([[5.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    actual = retrieval_reward(rolled_out, candidates, scale=2.0)
    high = 2 - torch.tensor([2.0, 0.0, 0.0]).logsumexp(0)
    low = 0 - torch.tensor([0.0, 2.0, -2.0]).logsumexp(0)
    other = 0 - torch.tensor([2.0, 0.0, 0.0]).logsumexp(0)
    own = 2 - torch.tensor([0.0, 2.0, -2.0]).logsumexp(0)
    torch.testing.assert_close(actual, torch.stack([torch.stack([high, low]), torch.stack([other, own])]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(retrieval_reward(rolled_out, candidates, scale=2.0), actual)
