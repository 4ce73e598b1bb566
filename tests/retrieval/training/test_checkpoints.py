"""Through the trainer: the best weights come back, MAW included, and checkpointed layers train as plain ones do."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from toys import SETTINGS, encoder, toy

import maw
from maw.hf.attach import maw_layers
from maw.retrieval.training import fine_tuning
from maw.retrieval.training.fine_tuning import train
from maw.retrieval.training.losses import AuxiliaryLoss


def adapted(*, lora: bool):
    model = encoder(maw.MAWConfig(depth=8))
    if lora:
        model.add_adapter(maw.lora_config(model))
    return model


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "lora", [pytest.param(False, id="full", marks=pytest.mark.slow), pytest.param(True, id="lora")]
)
def test_training_ends_with_the_weights_that_were_best(tmp_path, monkeypatch, lora):
    """The first epoch is made the best of two."""
    seen = []

    def first_is_best(self, model, *arguments, **options):
        seen.append(snapshot(model))
        return {"dev_nDCG@10": 1.0 / len(seen)}

    monkeypatch.setattr(fine_tuning.DevEvaluator, "__call__", first_is_best)
    model = adapted(lora=lora)
    start = snapshot(model)
    outcome = train(model, toy(), tmp_path, SETTINGS)
    best, last = seen
    end = model.state_dict()
    assert outcome["dev_nDCG@10"] == 1.0
    assert [name for name in end if not torch.equal(end[name], best[name])] == []
    for part in ("query_views", "policy_network.2.weight", "value_network.0.weight", *(["lora_A"] * lora)):
        names = [name for name in end if part in name and ".original_module." not in name]
        assert names
        for name in names:
            assert not torch.equal(end[name], start[name]), f"{name} was trained in the first epoch"
            assert not torch.equal(end[name], last[name]), f"{name} was trained in the second"
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not lora or all("lora_" in name or ".maw." in name for name in trainable)


def test_a_best_checkpoint_that_does_not_load_is_an_error(tmp_path, monkeypatch):
    def fail(self, checkpoint):
        raise OSError("damaged")

    monkeypatch.setattr(fine_tuning.Trainer, "_load_from_checkpoint", fail)
    with pytest.raises(OSError, match="damaged"):
        train(encoder(maw.MAWConfig(depth=8)), toy(), tmp_path, SETTINGS)


# Gradient checkpointing, as the trainer's own arguments switch it on


def trained(folder, *, reentrant=None, cached=False, lora=False):
    """Weights before and after two steps without dropout; forwards that were counted, and that were run."""
    model = adapted(lora=lora)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    data = toy()
    pairs = {"anchor": list(data.queries.values())[:8], "positive": list(data.documents.values())[:8]}
    loss = (
        CachedMultipleNegativesRankingLoss(model, mini_batch_size=2) if cached else MultipleNegativesRankingLoss(model)
    )
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_train_epochs=1,
        learning_rate=1e-3,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=reentrant is not None,
        gradient_checkpointing_kwargs=None if reentrant is None else {"use_reentrant": reentrant},
        dataloader_pin_memory=False,
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_dict(pairs), loss=AuxiliaryLoss(loss, model)
    )
    start, (layer,), calls = snapshot(model), maw_layers(model), []
    layer.register_forward_pre_hook(lambda module, arguments: calls.append(module))
    trainer.train()
    return start, snapshot(model), (len(layer.records), len(calls))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.parametrize(  # test_cached.py and test_distributed.py have more of it, without a trainer
    ("kind", "reentrant"),
    [
        ("cached", False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("full", False), ("full", True), ("cached", True), ("lora", False), ("lora", True))
        ),
    ],
)
def test_checkpointed_layers_train_as_plain_ones_do(tmp_path, kind, reentrant):
    options = {"cached": kind == "cached", "lora": kind == "lora"}
    _, expected, (counted, calls) = trained(tmp_path, **options)
    start, actual, (counted_too, calls_too) = trained(tmp_path, reentrant=reentrant, **options)
    assert counted_too == counted > 0
    assert calls_too == calls + (counted if kind == "cached" else calls), "each pass with gradients runs again"
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, atol=2e-5, rtol=0, msg=name)
    moved = [name for name in actual if not torch.equal(actual[name], start[name])]
    for part in ("query_views", "policy_network.2", "value_network.0"):
        assert any(part in name for name in moved), part
