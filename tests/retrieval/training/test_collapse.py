"""Failures planted in real trainings of at most a hundred steps are named, and healthy trainings have no findings."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import logging
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from toys import SETTINGS, WORDS, columns, encoder, features, toy
from transformers import AttentionInterface

import maw
from maw.collapse import ADVICE, PATIENCE, Watch, selector_findings
from maw.hf.attach import maw_layers
from maw.retrieval.data.dataset import RetrievalDataset
from maw.retrieval.training.fine_tuning import _schedule, train
from maw.retrieval.training.probe import probe
from maw.retrieval.training.settings import TrainingSettings
from maw.retrieval.training.trainer import Trainer
from maw.selector import depth_weights

STEPS = 30
KINDS = ("old", "new", "small", "large", "red", "blue", "cold", "warm", "quiet", "loud", "rare", "plain")


def sentences(steps):
    """Four pairs a step of sentences of different lengths, no dev split."""
    names = [f"{kind} {word}" for kind in KINDS for word in WORDS] * 2
    names = [f"{name} {'again' if i >= len(names) // 2 else ''}" for i, name in enumerate(names)][: 4 * steps]
    documents = {
        f"d{i}": f"This passage explains {'at some length ' * (i % 2)}what a {name} is." for i, name in enumerate(names)
    }
    queries = {f"q{i}": f"meaning of {name}" for i, name in enumerate(names)}
    judged = {f"q{i}": {f"d{i}": 1} for i in range(len(names))}
    return RetrievalDataset.from_parts("sentences", documents, queries, {"train": judged})


def findings(folder, config, plant=None, *, steps=STEPS, packaged=False, **settings):
    """What a training finds, by name and level; every finding was made within its steps and is in its log."""
    model = encoder(config, packaged=packaged)
    if plant is not None:
        plant(model)
    how = dataclasses.replace(SETTINGS, epochs=1, max_length=24, **settings)
    outcome = train(model, sentences(steps), folder, how)
    assert outcome["steps"] == steps <= 100
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [found for line in lines for found in line.get("findings", [])] == outcome["findings"]
    assert all(found["step"] <= steps and found["advice"] == ADVICE[found["name"]] for found in outcome["findings"])
    return {found["name"]: found["level"] for found in outcome["findings"]}


def prefer(*biases):
    """A policy with these logits, whatever the text."""

    def plant(model):
        for layer in maw_layers(model):
            with torch.no_grad():
                layer.selector.policy_network[-1].bias.copy_(torch.tensor(biases))

    return plant


def multiply(name, factor, depths=slice(None)):
    def plant(model):
        for layer in maw_layers(model):
            with torch.no_grad():
                getattr(layer, name)[:, depths] *= factor

    return plant


def both(*plants):
    def plant(model):
        for one in plants:
            one(model)

    return plant


def evaluate_with(**other):
    """Evaluation chooses depth weights by other settings than training."""

    def plant(model):
        for layer in maw_layers(model):

            def weights(state, layer=layer):
                settings = {"selection": layer.config.selection, "tau": layer.config.tau} | other
                return depth_weights(layer._logits(state), training=layer.training, **settings)

            layer.weights = weights

    return plant


def forget_the_mask_in_maw(model):
    for layer in maw_layers(model):
        forward = layer.forward

        def without(query, key, value, mask=None, *, attend=None, apart=False, forward=forward):
            def plain(transformed):
                return F.scaled_dot_product_attention(transformed, key, value).transpose(1, 2), None

            return forward(query, key, value, None, attend=plain)

        layer.forward = without


def plain_attention(module, query, key, value, attention_mask, scaling=None, **options):
    return F.scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2), None


def forget_the_mask_in_the_host(model):
    """A layer without MAW gets an attention function of its own, which nobody gives a mask."""
    AttentionInterface.register("planted", plain_attention)
    layer = model[0].model.get_submodule("backbone.encoder.layer.1.attention.self")
    layer.config = copy.copy(layer.config)
    layer.config._attn_implementation = "planted"


def tokens_without_a_mask(model):
    """A tokenizer that calls padding text."""
    tokenizer = type(model.tokenizer)
    kept = tokenizer.__call__

    class Careless(tokenizer):
        def __call__(self, *arguments, **options):
            found = kept(self, *arguments, **options)
            found["attention_mask"] = torch.ones_like(torch.as_tensor(found["attention_mask"]))
            return found

    model.tokenizer.__class__ = Careless


PLANTED = {
    "reward too heavy": ("policy collapse", {"auxiliary_weight": 10.0, "kl_weight": 0.0, "learning_rate": 0.03}, None),
    "exact gradient too heavy": (
        "policy collapse",
        {"auxiliary_weight": 100.0, "kl_weight": 0.0, "estimator": "exact", "learning_rate": 0.03},
        None,
    ),
    "ratio not clipped, many updates": (
        "policy collapse",
        {
            **{"auxiliary_weight": 10.0, "kl_weight": 0.0, "updates": 4, "clip": 1e6, "learning_rate": 0.03},
            "advantage": "leave-one-out",
        },
        None,
    ),
    "a policy loaded that is sure": ("policy collapse", {}, prefer(30.0, *[0.0] * 7)),
    "nothing learns": ("uniform hedging", {"learning_rate": 1e-9}, None),
    "tied to the uniform policy": ("uniform hedging", {"kl_weight": 1000.0, "auxiliary_weight": 1.0}, None),
    "most depths shut": ("dead depths", {}, prefer(0.0, 0.0, 0.0, *[-20.0] * 5)),
    "most views worthless, and noticed": (
        "dead depths",
        {
            **{"auxiliary_weight": 30.0, "kl_weight": 0.0, "learning_rate": 0.03, "entropy_weight": 0.1},
            **{"train_views": False, "depth_baseline": False},  # no text gains from those views: a common preference
        },
        multiply("key_views", 0.0, slice(3, None)),
    ),
    "the literal recipe": ("constant reward", "literal", None),
    "equal views, groups of eight": ("constant reward", {"views": "ones", "scale": 1.0}, None),
    "key views lost": ("constant reward", {"train_views": False}, multiply("key_views", 0.0)),
    "a scale of nothing": ("constant reward", {"scale": 1e-9}, None),
    "a scale far too large": ("attention-entropy collapse", {"scale": 1e6}, None),
    "views that grew": ("attention-entropy collapse", {}, multiply("query_views", 100.0)),
    "a learning rate far too high": ("attention-entropy collapse", {"learning_rate": 3.0}, None),
    "noise at tau 1": ("train/evaluation gap", {"tau": 1.0, "noise": 1.0, "views": "random"}, None),
    "another tau in evaluation": (
        "train/evaluation gap",
        {"tau": 10.0, "noise": 1.0},
        both(prefer(2.0, 1.0, *[0.0] * 6), evaluate_with(tau=0.05)),
    ),
    "no policy in evaluation": (
        "train/evaluation gap",
        {"tau": 0.5, "noise": 1.0},
        both(prefer(5.0, 5.0, *[0.0] * 6), evaluate_with(selection="uniform")),
    ),
    "no mask in MAW": ("loss of the mask", {}, forget_the_mask_in_maw),
    "no mask in the host": ("loss of the mask", {}, forget_the_mask_in_the_host),
    "a tokenizer without a mask": ("loss of the mask", {}, tokens_without_a_mask),
}


FIRST = {expected: name for name, (expected, _, _) in reversed(PLANTED.items())}
"""Of every finding, one failure that the default suite plants."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if FIRST[expected] == name else pytest.mark.slow)
        for name, (expected, _, _) in PLANTED.items()
    ],
)
def test_a_planted_failure_is_named(name, tmp_path):
    expected, settings, plant = PLANTED[name]
    config = maw.MAWConfig.recipe("literal", depth=8) if settings == "literal" else maw.MAWConfig(depth=8, **settings)
    hedging = expected == "uniform hedging"  # a policy starts uniform: it is judged late
    found = findings(tmp_path, config, plant, steps=PATIENCE + 5 if hedging else STEPS)
    assert expected in found, found
    assert found[expected] == ("note" if hedging else "alarm")


def test_every_name_is_planted_here_or_in_the_benchmark():
    assert {expected for expected, _, _ in PLANTED.values()} | {"below untuned"} == set(ADVICE)
    assert len(PLANTED) >= 20


# Healthy trainings


def choose_by_text(model):
    """A policy that has learnt to choose by the text, and keeps all depths in use."""
    torch.manual_seed(3)
    for layer in maw_layers(model):
        torch.nn.init.normal_(layer.selector.policy_network[-1].weight, std=0.16)


@pytest.mark.parametrize(
    ("config", "plant", "packaged"),
    [
        pytest.param(maw.MAWConfig(depth=8), None, False, id="default"),
        pytest.param(maw.MAWConfig(depth=8), choose_by_text, False, id="chooses by text"),
        pytest.param(
            maw.MAWConfig(depth=64, layers="all", estimator="exact"),
            *(None, False),
            id="exact, all layers",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            maw.MAWConfig(depth=8, group_size=1, advantage="none", updates=2),
            *(None, False),
            id="groups of one",
            marks=pytest.mark.slow,
        ),
        pytest.param(maw.MAWConfig(depth=8, selection="uniform"), None, False, id="uniform", marks=pytest.mark.slow),
        pytest.param(maw.MAWConfig(), None, True, id="packaged", marks=pytest.mark.slow),
        pytest.param(None, None, False, id="dense"),
    ],
)
def test_a_healthy_training_has_no_findings(config, plant, packaged, tmp_path, caplog):
    steps = 12 if packaged else PATIENCE + 5 if plant is not None else STEPS
    with caplog.at_level(logging.INFO, logger="maw.retrieval.training.trainer"):
        assert findings(tmp_path, config, plant, steps=steps, packaged=packaged) == {}
    assert caplog.text == ""


def test_the_default_policy_that_has_hardly_moved_is_a_note_and_no_alarm(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="maw.retrieval.training.trainer"):
        found = findings(tmp_path, maw.MAWConfig(depth=8), steps=PATIENCE + 5)
    assert found == {"uniform hedging": "note"}
    assert caplog.text == ""


# Once, and without a trace


def test_an_alarm_is_one_warning_line_and_survives_a_resumed_training(tmp_path, caplog):
    model = encoder(maw.MAWConfig.recipe("literal", depth=8))
    outcome = train(model, toy(), tmp_path, SETTINGS)
    assert [(found["name"], found["step"], found["layer"]) for found in outcome["findings"]] == [
        ("constant reward", 1, 0)
    ]

    def warned():
        return [record for record in caplog.records if record.name == "maw.retrieval.training.trainer"]

    (line,) = warned()
    assert line.levelno == logging.WARNING
    assert "constant reward in MAW layer 0 at step 1: view vectors differ" in line.getMessage()
    assert "views='auto'" in line.getMessage()
    again = train(encoder(maw.MAWConfig.recipe("literal", depth=8)), toy(), tmp_path, SETTINGS)
    assert again["resumed"]
    assert again["findings"] == outcome["findings"]
    assert warned() == [line]


def test_the_selectors_last_statistics_are_kept_with_the_outcome(tmp_path):
    outcome = train(encoder(maw.MAWConfig(depth=8)), toy(), tmp_path, SETTINGS)
    wanted = {"zero_spread", "clip_share", "kl", "policy_entropy", "depths_alive", "depth_information"}
    assert wanted | {"value_explained_variance", "weight_information"} <= set(outcome["selector"])
    assert train(encoder(), toy(), tmp_path / "dense", SETTINGS)["selector"] is None


@pytest.mark.parametrize("training", [True, False])
def test_a_probe_leaves_no_trace(training):
    model = encoder(maw.MAWConfig(depth=8, updates=2)).train(training)
    layer = maw_layers(model)[0]
    layer.replay_loss()
    model(columns(model)[0])
    model[0].eval()  # modes differ within the model
    modes = [module.training for module in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    before = list(layer.records), list(layer.rollouts), layer.gradient_scale.texts
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    probe(model, ["a river", "an engine with a violin"])
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == modes
    assert len(layer.records) == len(before[0])
    assert all(mine is theirs for mine, theirs in zip(layer.records, before[0], strict=True))
    assert layer.rollouts == before[1]
    assert layer.gradient_scale.texts == before[2]
    assert not layer._forward_pre_hooks
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


def test_the_probes_attention_entropy_is_the_hosts():
    """Freshly attached, MAW's attention is the host's, which eager attention returns."""
    model = encoder(maw.MAWConfig(depth=8))
    texts = ["a river", "an engine with a violin and a glacier"]
    (found,) = probe(model, texts)["attention_entropy"]
    host = encoder()
    host[0].model.set_attn_implementation("eager")
    inputs = features(host, texts)
    with torch.no_grad():
        attention = host[0].model(**inputs, output_attentions=True).attentions[0]
    mask = inputs["attention_mask"]
    rows = torch.special.entr(attention).sum(-1).mean(1) * mask
    expected = (rows.sum(-1) / mask.sum(-1) / mask.sum(-1).log()).mean()
    assert found == pytest.approx(float(expected), abs=1e-5)


def test_a_long_training_is_probed_less_often():
    trainer, probed = SimpleNamespace(probed=None, state=SimpleNamespace(global_step=0)), []
    for trainer.state.global_step in range(1, 2001):
        if Trainer._probe_is_due(trainer):
            trainer.probed = trainer.state.global_step
            probed.append(trainer.probed)
    assert probed[:4] == [1, 27, 59, 99]
    assert len(probed) < 16
    assert all(after - before <= 25 + before / 4 + 1 for before, after in itertools.pairwise(probed))


# What is judged


def statistics(**changes):
    healthy = {"policy_entropy": 0.7, "depth_information": 0.2, "zero_spread": 0.0, "reward": -0.5}
    return {**healthy, "depth_usage": [1 / 8] * 8, **changes}


def test_a_policy_that_is_sure_but_differs_from_text_to_text_has_not_collapsed():
    sure = statistics(policy_entropy=0.02, depth_information=1.6, zero_spread=0.95)
    assert selector_findings(sure, step=99) == []
    same = sure | {"depth_usage": [0.97, 0.03, *[0.0] * 6]}
    assert [found.name for found in selector_findings(same, step=99)] == ["policy collapse"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"weight_information": 0.02}, []),
        ({"weight_information": 0.004}, ["uniform hedging"]),
        ({"weight_information": 0.004, "weight_usage": [0.22] * 3 + [0.068] * 5}, ["uniform hedging"]),
        ({"weight_information": 0.02, "weight_usage": [0.31] * 3 + [0.014] * 5}, ["dead depths"]),
        ({"weight_information": 0.02, "weight_usage": [0.97, 0.03, *[0.0] * 6]}, ["policy collapse"]),
    ],
    ids=["look at the text", "hedge", "all alive", "three alive", "one for all"],
)
def test_weights_that_are_sharper_than_the_policy_are_what_is_judged(changes, expected):
    """At a low temperature a policy next to uniform has weights that are not."""
    calm = statistics(policy_entropy=0.999, depth_information=0.0004, **changes)
    found = selector_findings(calm, step=99)
    assert [finding.name for finding in found] == expected
    assert all("mean depth weight" in finding.seen for finding in found if finding.level == "alarm")


@pytest.mark.parametrize(("steps", "first"), [(0, 50), (120, 50), (399, 100), (1360, 340)])
def test_hedging_is_judged_when_a_quarter_of_the_training_is_over(steps, first):
    calm, watch = statistics(policy_entropy=0.999, depth_information=0.0004), Watch()
    named = [step for step in range(1, 400) if watch.selectors(step, [calm], steps=steps)]
    assert named == [first]
    assert f"from step {first} on" in watch.found["uniform hedging", 0].threshold


def test_a_single_depth_and_no_statistics_have_no_findings():
    assert selector_findings(statistics(depth_usage=[1.0], policy_entropy=0.0), step=99) == []
    assert selector_findings({}, step=99) == []


def test_one_odd_batch_is_no_finding_and_a_finding_is_kept_once():
    watch = Watch()
    for step in range(1, 40):
        odd = {"zero_spread": 1.0} if step == 20 else {}
        assert watch.selectors(step, [statistics(**odd)]) == []
    few = statistics(depth_usage=[0.4, 0.3, 0.3, *[0.0] * 5])
    new = [(step, found.name) for step in range(40, 60) for found in watch.selectors(step, [few])]
    assert len(new) == 1
    assert new[0][1] == "dead depths"
    assert 40 < new[0][0] < 50
    assert [found.name for found in watch.found.values()] == ["dead depths"]


@pytest.mark.parametrize(("batches", "every"), [(7, 1), (80, 8), (100_000, 10)])
def test_the_watch_looks_every_tenth_step_at_least(batches, every):
    arguments = SimpleNamespace()
    _schedule(arguments, TrainingSettings(epochs=2, batch_size=4), batches)
    assert arguments.logging_steps == every
