"""Two processes: the gradients are those of one process on the whole batch, and the weights stay together."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import toys
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from torch.nn.parallel import DistributedDataParallel
from toys import columns, encoder, note_depth_weights

import maw
from maw import grpo
from maw.hf.attach import maw_layers
from maw.retrieval.training.batches import TrainingTexts
from maw.retrieval.training.losses import AuxiliaryLoss, contrastive_loss
from maw.retrieval.training.relevance import Relevance

PROCESSES = 2
# baselines of depths compare the texts of one process alone, and a low temperature magnifies roundings
ALONE = {"depth": 8, "selection": "softmax", "tau": 10.0, "kl_weight": 1.0, "depth_baseline": False}
EXACT = {**ALONE, "auxiliary_weight": 10.0, "estimator": "exact"}
REPLAYED = {**ALONE, "auxiliary_weight": 0.1, "group_size": 4, "updates": 2}


class PairLoss(torch.nn.Module):
    """A mean over pairs: 1 - cosine."""

    def __init__(self, model, **options) -> None:
        super().__init__()
        self.model = model

    def calculate_loss(self, reps, labels=None, *, with_backward=False):
        queries, documents = (torch.cat(column) for column in reps)
        loss = (1 - torch.cosine_similarity(queries, documents)).mean()
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss

    def forward(self, features, labels=None):
        return self.calculate_loss([[self.model(dict(feature))["sentence_embedding"]] for feature in features])


class CachedPairLoss(PairLoss, CachedLossMixin):
    mini_batch_size = 1

    def forward(self, features, labels=None):
        return self.forward_cached(features, labels)


def contrastive(model):
    """Every text of all processes is a candidate."""
    return contrastive_loss(model, scale=20.0, gather=dist.is_initialized())


def cached_contrastive(model):
    return contrastive_loss(model, scale=20.0, mini_batch_size=1, gather=dist.is_initialized())


def relevance():
    """Documents that are relevant to a query of the same process and to one of the other."""
    data = toys.toy()
    names = [(f"q{number}", f"d{number}") for number in range(4)]
    judged = {"q0": {"d1": 1, "d3": 1}, "q1": {"d2": 1}, "q3": {"d0": 1}}
    return Relevance(TrainingTexts(data.queries, data.documents, names), judged)


def masked(model):
    return contrastive_loss(model, scale=20.0, gather=dist.is_initialized(), relevance=relevance())


def cached_masked(model):
    gather = dist.is_initialized()
    return contrastive_loss(model, scale=20.0, mini_batch_size=1, gather=gather, relevance=relevance())


# What is trained, by which loss, and how often before the gradients are looked at.
CASES = {
    "exact": (EXACT, {}),
    "all layers": ({**EXACT, "layers": "all"}, {}),
    "no auxiliary loss": ({**EXACT, "auxiliary_weight": 0.0}, {}),
    "uniform": ({"depth": 8, "selection": "uniform"}, {}),
    "fixed views": ({**EXACT, "train_views": False}, {}),
    "lora": (EXACT, {"lora": True}),
    "uniform lora": ({"depth": 8, "selection": "uniform"}, {"lora": True}),
    "accumulated": (EXACT, {"losses": 2}),
    "checkpointed": (EXACT, {"checkpointing": True}),
    "cached": (EXACT, {"loss": CachedPairLoss}),
    "cached and checkpointed": (EXACT, {"loss": CachedPairLoss, "checkpointing": True}),
    # unused parameters looked for, as Sentence Transformers' trainer sets it
    "unused looked for, lora": (EXACT, {"lora": True, "find_unused": True}),
    "gathered, no MAW": (None, {"loss": contrastive, "find_unused": True}),
    "gathered": (EXACT, {"loss": contrastive, "find_unused": True}),
    "gathered, lora, checkpointed": (EXACT, {"loss": contrastive, "lora": True, "checkpointing": True}),
    "gathered, cached, no MAW": (None, {"loss": cached_contrastive, "find_unused": True}),
    "gathered, cached": (EXACT, {"loss": cached_contrastive, "find_unused": True}),
    "gathered, cached, checkpointed": (EXACT, {"loss": cached_contrastive, "checkpointing": True}),
    "masked": (EXACT, {"loss": masked, "find_unused": True}),
    "masked, cached": (EXACT, {"loss": cached_masked, "find_unused": True}),
    "masked, no MAW": (None, {"loss": masked, "find_unused": True}),
    "replayed": (REPLAYED, {"steps": 2, "find_unused": True}),
    "replayed, cached": (REPLAYED, {"steps": 2, "loss": cached_contrastive, "find_unused": True}),
}


def build(settings, *, lora=False, checkpointing=False):
    model = encoder(None if settings is None else maw.MAWConfig(**settings))
    getattr(model[0].model, "backbone", model[0].model).pooler.requires_grad_(False)  # of no use to mean pooling
    if lora:
        model.add_adapter(maw.lora_config(model))
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "policy_network" in name or "lora_B" in name:  # off their zeros, so that everything gets a gradient
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    if checkpointing:
        model[0].model._set_gradient_checkpointing(
            True, lambda f, *a, **k: torch.utils.checkpoint.checkpoint(f, *a, use_reentrant=False, **k)
        )
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def gradients(settings, *, loss=PairLoss, losses=1, steps=1, rank=None, find_unused=False, **options):
    """Of every trainable parameter at the last step; `rank` takes its share of the texts, None takes all."""
    model = build(settings, **options)
    batch, labels = columns(model), torch.from_numpy(relevance().ids)
    seen = model
    if rank is not None:
        labels = labels.chunk(PROCESSES)[rank]
        batch = [{name: value.chunk(PROCESSES)[rank] for name, value in column.items()} for column in batch]
        seen = DistributedDataParallel(model, find_unused_parameters=find_unused)
    task = loss(model)
    for part in (task, getattr(task, "loss", task)):  # as the trainer does once it has wrapped the model
        part.model = seen
    auxiliary = AuxiliaryLoss(task, seen).train()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for step in range(steps):
        if step > 0:
            optimiser.step()
            optimiser.zero_grad()
        for index in range(losses):
            if rank is not None:
                seen.require_backward_grad_sync = index == losses - 1
            (auxiliary(batch, labels) / losses).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, gradient in found.items() if gradient is None] == []
    return found


def steps_with_noise(rank):
    """Three steps of a recipe that is noisy and learns; what was drawn, and where the weights ended."""
    settings = {"tau": 10.0, "noise": 1.0, "kl_weight": 1.0, "auxiliary_weight": 10.0}
    model = encoder(maw.MAWConfig(depth=8, **settings)).train()
    model[0].model.backbone.pooler.requires_grad_(False)
    wrapped = DistributedDataParallel(model)
    loss = AuxiliaryLoss(PairLoss(wrapped), wrapped).train()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    torch.manual_seed(rank)
    (layer,) = maw_layers(model)
    drawn = note_depth_weights(layer)
    batch = [{name: value.chunk(PROCESSES)[rank] for name, value in column.items()} for column in columns(model)]
    start = copy.deepcopy(model.state_dict())
    for _ in range(3):
        optimiser.zero_grad()
        loss(batch, None).backward()
        optimiser.step()
    return start, [weight for _, weight in drawn], model.state_dict()


def likeliest(logits, group_size):
    """Instead of a sampled group, so that it does not depend on how texts are split."""
    return logits.topk(group_size, dim=-1).indices


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
    found, sample_group = {}, grpo.sample_group
    grpo.sample_group = likeliest
    for name, (settings, options) in CASES.items():
        found[name] = gradients(settings, rank=rank, **options)
    grpo.sample_group = sample_group
    torch.save((found, steps_with_noise(rank)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    multiprocessing.set_forkserver_preload(["maw.retrieval.training.fine_tuning"])  # imported once for both
    torch.multiprocessing.start_processes(work, (str(folder),), nprocs=PROCESSES, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_one_process_on_all_texts(processes, name, monkeypatch):
    settings, options = CASES[name]
    monkeypatch.setattr(grpo, "sample_group", likeliest)
    expected = gradients(settings, **options)
    for found, _ in processes:
        actual = found[name]
        assert actual.keys() == expected.keys()
        for parameter, gradient in expected.items():
            torch.testing.assert_close(actual[parameter], gradient, atol=2e-6, rtol=1e-4, msg=parameter)


def test_processes_draw_their_own_noise_and_end_with_the_same_weights(processes):
    (start, drawn, end), (_, drawn_too, end_too) = (noisy for _, noisy in processes)
    assert len(drawn) == len(drawn_too) == 6
    assert not any(torch.allclose(one, other, atol=1e-3) for one, other in zip(drawn, drawn_too, strict=True))
    assert end.keys() == end_too.keys()
    assert all(torch.equal(end[name], end_too[name]) for name in end)
    moved = [name for name in end if not torch.equal(end[name], start[name])]
    assert any("policy_network" in name for name in moved)
    assert any("query_views" in name for name in moved)


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={PROCESSES}"]
WORKER = Path(__file__).with_name("train_in_processes.py")


def launch(folder: Path, settings: dict) -> list[dict]:
    paths = os.pathsep.join([str(Path(toys.__file__).parent), *sys.path])
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, *TORCHRUN, str(WORKER), str(folder), json.dumps(settings)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(PROCESSES)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{}, {"lora": True}, {"gradient_checkpointing": True}, {"selection": "uniform"}],
    ids=["full", "lora", "checkpointing", "uniform"],
)
def test_training_ends_with_the_same_weights_everywhere(tmp_path, settings):
    first, second = launch(tmp_path, settings)
    assert first["weights"] == second["weights"] != first["start"]
    assert first["start"] == second["start"]
    assert first["outcome"] == second["outcome"]
    assert first["outcome"]["steps"] == 3, "8 pairs, 2 processes, 4 a batch, 3 epochs"
    if settings.get("selection") != "uniform":
        assert first["drawn"] != second["drawn"], "each process has noise of its own"
    assert sorted(first["texts"] + second["texts"]) == sorted(set(first["texts"] + second["texts"]))
    log = [json.loads(line) for line in (tmp_path / "training" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == [1, 2, 3], "one process writes"
