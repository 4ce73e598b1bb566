"""Training on the real encoder and real text: what is trained, logged, resumed, and stopped."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import pytest
import torch
import transformers
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from toys import SETTINGS, columns, encoder, small_disk, toy

import maw
from maw.errors import MAWError
from maw.hf.attach import carried, maw_layers
from maw.hf.calibration import calibrating
from maw.retrieval.evaluation.development import DevEvaluator
from maw.retrieval.training.checkpoints import last_checkpoint
from maw.retrieval.training.fine_tuning import count_parameters, train
from maw.retrieval.training.losses import AuxiliaryLoss
from maw.retrieval.training.settings import TrainingSettings
from maw.retrieval.training.trainer import Trainer


def policy_gradients(model):
    return [p.grad for layer in maw_layers(model) for p in layer.selector.policy_network.parameters()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    model = encoder(maw.MAWConfig(depth=8, group_size=4), packaged=True)
    start = copy.deepcopy(model.state_dict())
    outcome = train(model, toy(), folder, SETTINGS)
    return model, start, folder, outcome


def test_everything_is_trained_and_the_best_checkpoint_stays(trained):
    model, start, folder, outcome = trained
    assert outcome["steps"] == 4
    assert outcome["pairs"] == 8
    assert not outcome["resumed"]
    assert 0 <= outcome["dev_nDCG@10"] <= 1
    now = model.state_dict()
    for part in ("maw.query_views", "maw.selector.policy_network.2.weight", "maw.selector.value_network.0.weight"):
        name = next(name for name in now if name.endswith(part))
        assert not torch.equal(now[name], start[name]), part
    assert not model.training
    assert list(folder.glob("checkpoint-*"))


def test_the_log_holds_what_the_selectors_did(trained):
    lines = [json.loads(line) for line in (trained[2] / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    for line in steps:
        assert -1 <= line["reward"] <= 0
        assert 0 < line["policy_entropy"] <= 1.000001
        assert 0 <= line["zero_spread"] <= 1
        for (usage,) in (line["depth_usage"], line["weight_usage"]):
            assert len(usage) == 8
            assert sum(usage) == pytest.approx(1, abs=1e-4)
    assert [line["step"] for line in lines if "dev_nDCG@10" in line] == [2, 4]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained[2] / "tensorboard"))
    events.Reload()
    names = {"train/loss", "train/reward", "train/policy_entropy", "train/zero_spread", "train/depths_alive"}
    assert names <= set(events.Tags()["scalars"])


def test_maw_has_its_own_learning_rate(trained):
    from maw.retrieval.training.fine_tuning import _arguments

    arguments = _arguments(trained[0], trained[2], SETTINGS, has_dev=True)
    assert arguments.learning_rate_mapping == {r"\.maw\.": 3e-4}
    assert not arguments.bf16, "there is no GPU here" if not torch.cuda.is_available() else ""


@pytest.mark.parametrize("changes", [{"auxiliary_weight": 100.0}, {"mechanism": "linear-gate"}, None])
def test_gradients_of_encoder_and_maw_are_clipped_apart(tmp_path, monkeypatch, changes):
    """MAW's are larger here than an adapter's: in one norm with them they would shorten its steps."""
    clip, steps = Trainer._clip_grad_norm, []

    def watched(trainer, model):
        own = {id(p) for module in carried(trainer.model) for p in module.parameters()}
        for _, p in trainer.model.named_parameters():
            if p.grad is not None:
                p.grad *= 50 if id(p) in own else 1  # as a low temperature does
        before = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
        norm = clip(trainer, model)
        after = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
        parts = [[name for name in before if (".maw." in name) is inside] for inside in (True, False)]
        norms = [float(torch.stack([before[name].norm() for name in names]).norm()) if names else 0 for names in parts]
        for names, length in zip(parts, norms, strict=True):
            for name in names:
                torch.testing.assert_close(after[name], before[name] * min(1.0, 1 / (length + 1e-6)))
        assert float(norm) == pytest.approx(math.hypot(*norms), rel=1e-4)
        steps.append(norms)
        return norm

    monkeypatch.setattr(Trainer, "_clip_grad_norm", watched)
    config = None if changes is None else maw.MAWConfig(depth=8, group_size=4, **changes)
    model = encoder(config, packaged=config is None)
    model.add_adapter(maw.lora_config(model))
    train(model, toy(), tmp_path, dataclasses.replace(SETTINGS, epochs=1))
    assert len(steps) == 2
    assert changes is None or all(own > host > 0 and own > 1 for own, host in steps)


def test_an_encoder_that_is_not_trained_has_no_gradient_to_clip(tmp_path):
    model = encoder(maw.MAWConfig(depth=8, group_size=4))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = ".maw." in name
    before = copy.deepcopy(model.state_dict())
    train(model, toy(), tmp_path, dataclasses.replace(SETTINGS, epochs=1))
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(".maw." in name for name in moved)


def test_a_version_that_clips_elsewhere_is_refused(tmp_path, monkeypatch):
    monkeypatch.delattr(transformers.Trainer, "_clip_grad_norm")
    with pytest.raises(MAWError, match="clips gradients elsewhere"):
        train(encoder(maw.MAWConfig(depth=8)), toy(), tmp_path, SETTINGS)


@pytest.mark.parametrize("weight", [0.0, 0.003])
def test_the_policy_moves_through_the_grpo_loss_alone(weight):
    """With the task loss switched off only the auxiliary loss is left; without it nothing moves."""
    model = encoder(maw.MAWConfig(depth=8, auxiliary_weight=weight)).train()

    class Nothing(MultipleNegativesRankingLoss):
        def forward(self, *arguments):
            return 0.0 * super().forward(*arguments)

    torch.manual_seed(0)
    AuxiliaryLoss(Nothing(model), model).train()(columns(model), None).backward()
    largest = max(float(gradient.abs().max()) for gradient in policy_gradients(model))
    assert (largest > 0) == (weight > 0)


def test_auxiliary_gradients_do_not_depend_on_loss_scaling_or_on_how_texts_are_split():
    """Baselines of depths compare the texts of a forward, so they would depend on the split."""
    config = maw.MAWConfig(depth=8, estimator="exact", auxiliary_weight=1.0, depth_baseline=False)

    def gradients(scale: float, parts: int):
        model = encoder(config).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0

        class Split(MultipleNegativesRankingLoss):
            def forward(self, features, labels=None):
                vectors = []
                for column in features:
                    rows = [{k: v.chunk(parts)[i] for k, v in column.items()} for i in range(parts)]
                    vectors.append(torch.cat([self.model(row)["sentence_embedding"] for row in rows]))
                return 0.0 * self.compute_loss_from_embeddings(vectors, labels)

        torch.manual_seed(0)
        (scale * AuxiliaryLoss(Split(model), model).train()(columns(model), None)).backward()
        return [gradient / scale for gradient in policy_gradients(model)]

    once = gradients(1.0, 1)
    assert max(float(gradient.abs().max()) for gradient in once) > 0
    for other in (gradients(1024.0, 1), gradients(0.25, 1), gradients(1.0, 2), gradients(8.0, 4)):
        for mine, theirs in zip(other, once, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_samples_can_serve_several_updates(fused):
    model = encoder(maw.MAWConfig(depth=8, updates=3, auxiliary_weight=10.0)).train()
    loss = AuxiliaryLoss(MultipleNegativesRankingLoss(model), model).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    layer = maw_layers(model)[0]
    served = []
    for _ in range(4):
        optimiser.zero_grad()
        loss(columns(model), None).backward()
        served.append((sorted(left for _, left, _ in loss.due), len(loss.fresh)))
        assert layer.rollouts is None, "nothing is kept outside the loss"
        optimiser.step()
    assert served == [([], 2), ([2, 2], 2), ([1, 1, 2, 2], 2), ([1, 1, 2, 2], 2)], "two columns a loss, used up"
    assert float(layer.collect()["clip_share"]) > 0, "the policy has moved since the samples were drawn"


def test_accumulated_losses_replay_the_samples_of_the_step_before():
    """Two losses a step, halved, weigh as their mean, replays included, and their samples wait for the step."""

    def gradients(losses: int):
        model = encoder(maw.MAWConfig(depth=8, updates=2, auxiliary_weight=10.0)).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        loss = AuxiliaryLoss(MultipleNegativesRankingLoss(model), model).train()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        loss(columns(model), None).backward()
        optimiser.step()
        first = [rollout for _, _, rollout in loss.fresh]
        optimiser.zero_grad()
        loss.loss = torch.nn.Module()
        loss.loss.forward = lambda *_: sum(p.sum() for p in model.parameters()) * 0.0
        for number in range(losses):
            (loss(columns(model), None) / losses).backward()
            assert len(loss.due) == len(first) == 2, f"due in loss {number} too"
            assert all(kept is rollout for (_, _, kept), rollout in zip(loss.due, first, strict=True))
        return policy_gradients(model)

    once, twice = gradients(1), gradients(2)
    assert max(float(gradient.abs().max()) for gradient in once) > 1e-4, "the replay has a gradient"
    for one, other in zip(once, twice, strict=True):
        torch.testing.assert_close(other, one, atol=1e-7, rtol=1e-5)


def test_samples_that_no_step_uses_do_not_pile_up(monkeypatch):
    from maw.retrieval.training import losses

    monkeypatch.setattr(losses, "LOSSES_WITHOUT_STEP", 3)
    model = encoder(maw.MAWConfig(depth=8, updates=2)).train()
    loss = AuxiliaryLoss(MultipleNegativesRankingLoss(model), model).train()
    for _ in range(3):
        loss(columns(model), None)
    with pytest.raises(maw.MAWError, match="3 losses went by without one that reached the policy"):
        loss(columns(model), None)
    maw_layers(model)[0].selector.requires_grad_(False)
    model.zero_grad()
    loss = AuxiliaryLoss(MultipleNegativesRankingLoss(model), model).train()
    for _ in range(4):
        loss(columns(model), None)
    assert loss.fresh == [], "a policy that is not trained keeps nothing"


def test_kept_samples_come_back_from_a_file(tmp_path):
    from safetensors.torch import load_file, save_file

    model = encoder(maw.MAWConfig(depth=8, updates=3, layers="all")).train()
    loss = AuxiliaryLoss(MultipleNegativesRankingLoss(model), model).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        loss(columns(model), None).backward()
        optimiser.step()
    save_file(loss.samples(), tmp_path / "samples")
    again = AuxiliaryLoss(MultipleNegativesRankingLoss(model), model).train()
    again.restore_samples(load_file(tmp_path / "samples"))
    assert [kept[:2] for kept in again.due] == [(0, 1), (0, 1), (1, 1), (1, 1), (0, 2), (0, 2), (1, 2), (1, 2)]
    values = []
    for one in (loss, again):
        torch.manual_seed(1)
        values.append(one(columns(model), None))
    assert torch.equal(*values)
    assert [kept[:2] for kept in again.due] == [kept[:2] for kept in loss.due]


@pytest.mark.parametrize("mode", ["eval", "no_grad"])
def test_measuring_the_loss_uses_up_no_samples_and_adds_nothing(mode):
    model = encoder(maw.MAWConfig(depth=8, updates=2, auxiliary_weight=10.0)).train()
    plain = MultipleNegativesRankingLoss(model)
    loss = AuxiliaryLoss(plain, model).train()
    loss(columns(model), None).backward()
    before = list(loss.fresh)
    assert len(before) == 2
    with torch.set_grad_enabled(mode == "eval"):
        model.train(mode != "eval")
        torch.manual_seed(1)
        measured = loss(columns(model), None)
        torch.manual_seed(1)
        assert torch.equal(measured, plain(columns(model), None))
    assert len(loss.fresh) == 2
    assert all(now is then for now, then in zip(loss.fresh, before, strict=True))


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    model = encoder()
    next(model.parameters()).data.fill_(float("nan"))
    with pytest.raises(maw.MAWError, match="loss is nan at step 1"):
        train(model, toy(), tmp_path, SETTINGS)


def test_a_killed_training_goes_on_from_its_checkpoint(trained, tmp_path, monkeypatch):
    """Stopped after the first epoch and started again, it ends with the same weights."""
    from maw.retrieval.training import fine_tuning

    calls = []

    def stop_after_the_first(self, *arguments, **options):
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return {"dev_nDCG@10": 0.5}

    config = maw.MAWConfig(depth=8, group_size=4)
    with monkeypatch.context() as patch:
        patch.setattr(fine_tuning.DevEvaluator, "__call__", stop_after_the_first)
        with pytest.raises(KeyboardInterrupt):
            train(encoder(config), toy(), tmp_path, SETTINGS)
    model = encoder(config)
    outcome = train(model, toy(), tmp_path, SETTINGS)
    assert outcome["resumed"]
    assert outcome["steps"] == 4
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {1, 2, 3, 4} <= {line["step"] for line in log if "loss" in line}


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(100_000, id="tokenizers", marks=pytest.mark.slow),
        pytest.param(3_000_000, id="safetensors", marks=pytest.mark.slow),
        pytest.param(8_000_000, id="torch"),
    ],
)
def test_a_full_disk_is_a_message_and_the_training_goes_on_later(tmp_path, size):
    """Each of the three libraries that write a checkpoint says it in another way."""
    with (
        small_disk(size),
        pytest.raises(MAWError, match=r"checkpoint-2 could not be written: .*free some"),
    ):
        train(encoder(), toy(), tmp_path, SETTINGS)
    assert last_checkpoint(tmp_path) is None
    outcome = train(encoder(), toy(), tmp_path, SETTINGS)
    assert (outcome["steps"], outcome["resumed"]) == (4, False)


def test_evaluation_does_not_change_what_training_draws(tmp_path):
    from dataclasses import replace

    losses = []
    for name in ("dev", "none"):
        data = toy()
        if name == "none":
            data = replace(data, qrels={split: judged for split, judged in data.qrels.items() if split != "dev"})
        outcome = train(encoder(maw.MAWConfig(depth=8)), data, tmp_path / name, SETTINGS)
        assert ("dev_documents" in outcome["seeds"]) == (name == "dev")
        log = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        losses.append([(entry["loss"], entry["reward"]) for entry in log if "loss" in entry])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_lora_trains_the_adapter_and_maw_only(tmp_path):
    model = encoder(maw.MAWConfig(depth=8))
    model.add_adapter(maw.lora_config(model))
    counts = count_parameters(model)
    own = sum(p.numel() for layer in maw_layers(model) for p in layer.parameters())
    rank_pairs = 2 * 3 * 2 * 16 * 48
    assert counts["trainable_parameters"] == own + rank_pairs
    start = copy.deepcopy(model.state_dict())
    train(model, toy(), tmp_path, SETTINGS)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, start[name])}
    assert changed
    assert all("lora_" in name or ".maw.modules_to_save." in name for name in changed)
    assert any("policy_network" in name for name in changed)


def test_too_few_pairs_for_a_batch_and_bad_settings_are_errors(tmp_path):
    with pytest.raises(maw.MAWError, match="8 training pairs, fewer than one batch of 9"):
        train(encoder(), toy(), tmp_path, TrainingSettings(batch_size=9))
    from maw.retrieval.training.fine_tuning import _check_batch

    with pytest.raises(maw.MAWError, match="7 training pairs, fewer than one batch of 4 in each of 2 processes"):
        _check_batch("toy", 7, 4, 2)
    for bad in ({"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}):
        with pytest.raises(maw.MAWError, match=next(iter(bad))):
            TrainingSettings(**bad)


def test_the_dev_evaluator_keeps_every_relevant_document():
    evaluator = DevEvaluator(toy(), size=5, seed=0)
    assert "d8" in evaluator.documents
    assert len(evaluator.documents) == 5
    assert set(evaluator(encoder())) == {"dev_nDCG@10"}


def test_gradient_checkpointing_trains_the_policy_too(tmp_path):
    model = encoder(maw.MAWConfig(depth=8))
    train(model, toy(), tmp_path, TrainingSettings(epochs=1, batch_size=4, max_length=16, gradient_checkpointing=True))
    weight = maw_layers(model)[0].selector.policy_network[-1].weight
    assert float(weight.detach().abs().max()) > 0


@pytest.mark.parametrize("calibrate", [True, False])
def test_training_begins_by_calibrating_if_the_settings_say_so(tmp_path, calibrate):
    models = [encoder(maw.MAWConfig(depth=5, calibrate=calibrate, learning_rate=0.0)) for _ in range(2)]
    models[0].prompts, models[0].default_prompt_name = (
        {"query": "represent this: "},
        "query",
    )  # for documents too
    first = [maw_layers(model)[0].selector.policy_network[0] for model in models]
    texts = toy().queries | toy().documents
    pairs = toy().training_pairs(SETTINGS.positives_per_query, SETTINGS.seed)
    with calibrating(models[1]):
        some = [f"represent this: {texts[name]}" for pair in pairs for name in pair]
        models[1].encode(some, show_progress_bar=False)
    raw = encoder(maw.MAWConfig(depth=5))
    train(models[0], toy(), tmp_path, SETTINGS)
    expected = first[1] if calibrate else maw_layers(raw)[0].selector.policy_network[0]
    torch.testing.assert_close(first[0].weight, expected.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first[0].bias, expected.bias, rtol=1e-5, atol=1e-5)
