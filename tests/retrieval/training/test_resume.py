"""A training that is killed, again and again, ends with the bytes of one that never was.

Real processes, really killed: at random steps, and while files are written, renamed and removed.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import random
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from toys import encoder, toy

import maw
from maw.hf.attach import maw_layers
from maw.retrieval.processes import leave
from maw.retrieval.training import fine_tuning
from maw.retrieval.training.checkpoints import (
    is_whole,
    last_checkpoint,
    mark_whole,
    remove_checkpoint,
    shorten_log,
    step_of,
)
from maw.retrieval.training.fine_tuning import train
from maw.retrieval.training.settings import TrainingSettings

SETTINGS = TrainingSettings(
    epochs=3, batch_size=2, max_length=16, dev_documents=5, learning_rate=1e-3, save_steps=2, seed=5
)
STEPS = 12  # 8 pairs, 2 a batch, 3 epochs
STATE = {".safetensors", ".pt", ".pth"}  # weights, samples, optimiser, schedule, random states
KINDS = {
    "full": ({"updates": 2, "group_size": 4}, {}, False),
    "two": ({"updates": 2, "group_size": 4}, {"batch_size": 1}, False),
    "lora": ({"layers": "all", "updates": 3}, {"mini_batch_size": 1, "gradient_checkpointing": True}, True),
}


def build(kind: str):
    config, settings, lora = KINDS[kind]
    torch.manual_seed(0)
    model = encoder(maw.MAWConfig(depth=8, **config))
    if lora:
        model.add_adapter(maw.lora_config(model))
    assert any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
    return model, TrainingSettings(**{**SETTINGS.__dict__, **settings})


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_step(step: int) -> None:
    from maw.retrieval.training.trainer import Trainer

    plain = Trainer.training_step

    def training_step(self, *arguments, **options):
        if self.state.global_step + 1 == step:
            die()
        return plain(self, *arguments, **options)

    Trainer.training_step = training_step


def die_at_evaluation(_: int) -> None:
    from maw.retrieval.evaluation.development import DevEvaluator

    DevEvaluator.__call__ = lambda *_, **__: die()


def die_at_file_event(number: int) -> None:
    """At the n-th time that something in a checkpoint or a log is opened to be written, renamed, or removed."""
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        changes = event in {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}
        changes |= event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wax"
        if changes and any(name in str(arguments[0]) for name in ("checkpoint-", "log.jsonl", "training.json")):
            seen += 1
            if seen == number:
                die()

    sys.addaudithook(hook)


def log_every_five_steps() -> None:
    """So that entries are means over steps before and after a stop; a short training would log every step."""
    schedule = fine_tuning._schedule

    def every_five(arguments, *others):
        schedule(arguments, *others)
        arguments.logging_steps = 5

    fine_tuning._schedule = every_five


def work(folder: str, kind: str, death: tuple | None, place: dict[str, str] | None = None) -> None:
    torch.set_num_threads(1)
    os.environ |= place or {}
    rank = int(os.environ.get("RANK", "0"))
    (Path(folder) / f"started{rank}").open("a").write("x")
    model, settings = build(kind)
    log_every_five_steps()
    seen = (Path(folder) / f"seen{rank}.jsonl").open("a")
    from maw.retrieval.training.trainer import Trainer

    plain = Trainer.training_step

    def noting(self, model, inputs, *arguments, **options):
        ids = [inputs[name].tolist() for name in sorted(inputs) if name.endswith("input_ids")]
        seen.write(json.dumps([self.state.global_step + 1, ids]) + "\n")
        seen.flush()
        return plain(self, model, inputs, *arguments, **options)

    Trainer.training_step = noting
    if death is not None:
        {"step": die_at_step, "file": die_at_file_event, "evaluation": die_at_evaluation}[death[0]](death[1])
    outcome = train(model, toy(), Path(folder) / "training", settings)
    save_file(model.state_dict(), Path(folder) / f"model{rank}.safetensors")
    (Path(folder) / f"outcome{rank}.json").write_text(json.dumps(outcome))
    leave()


CONTEXT = multiprocessing.get_context("forkserver")
# imported once for all
CONTEXT.set_forkserver_preload(["maw.retrieval.training.fine_tuning", "peft", "torch.utils.tensorboard"])


def run(folder: Path, kind: str, death: tuple | None = None) -> int:
    """The exit code of a process that trains there."""
    process = CONTEXT.Process(target=work, args=(str(folder), kind, death))
    process.start()
    process.join(120)
    return process.exitcode


def run_two(folder: Path, kind: str, deaths: dict[int, tuple]) -> list[int]:
    """The exit codes of two processes that train there together; where one is killed, so is the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    there = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    both = []
    for rank in range(2):
        place = there | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        both.append(CONTEXT.Process(target=work, args=(str(folder), kind, deaths.get(rank), place)))
        both[-1].start()
    multiprocessing.connection.wait([process.sentinel for process in both], 120)
    for process in both:
        process.join(0 if deaths else 120)
        if process.exitcode is None:
            process.kill()
            process.join()
    return [process.exitcode for process in both]


def ended(folder: Path, rank: int = 0) -> dict:
    """What must be the same: weights, log, the texts of each step, and what the outcome says."""
    log = [json.loads(line) for line in (folder / "training" / "log.jsonl").read_text().splitlines()]
    timing = {"train_runtime", "runtime", "samples_per_second", "steps_per_second"}
    log = [{name: value for name, value in entry.items() if name not in timing} for entry in log]
    seen: dict[int, list] = {}
    for line in (folder / f"seen{rank}.jsonl").read_text().splitlines():
        step, ids = json.loads(line)
        assert seen.setdefault(step, ids) == ids, f"step {step} was repeated with other texts"
    outcome = json.loads((folder / f"outcome{rank}.json").read_text())
    del outcome["resumed"]
    last = folder / "training" / f"checkpoint-{STEPS}"
    return {
        "weights": (folder / f"model{rank}.safetensors").read_bytes(),  # the best, perhaps of the first epoch
        "last": {file.name: file.read_bytes() for file in sorted(last.iterdir()) if file.suffix in STATE},
        "log": [entry for entry in log if "train_loss" not in entry],
        "seen": seen,
        "outcome": outcome,
        "left": sorted(path.name for path in (folder / "training").glob("checkpoint-*")),
    }


@pytest.fixture(scope="module", params=[pytest.param("full", marks=pytest.mark.slow), "lora"])
def uninterrupted(request, tmp_path_factory):
    """The kind of a training, how it ended, and its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    assert run(folder, request.param) == 0
    return request.param, ended(folder), folder


def test_steps_that_are_logged_and_saved(uninterrupted):
    _, end, folder = uninterrupted
    assert [entry["step"] for entry in end["log"] if "loss" in entry] == [2, 4, 5, 6, 8, 10, 12], "where it saves, too"
    assert [entry["step"] for entry in end["log"] if "dev_nDCG@10" in entry] == [4, 8, 12]
    assert sorted(end["seen"]) == list(range(1, STEPS + 1))
    assert len({json.dumps(ids) for ids in end["seen"].values()}) == STEPS
    best = max((entry["dev_nDCG@10"], -entry["step"]) for entry in end["log"] if "dev_nDCG@10" in entry)
    assert set(end["left"]) == {"checkpoint-12", f"checkpoint-{-best[1]}"}
    assert step_of(last_checkpoint(folder / "training")) == STEPS
    names = ("model.safetensors", "maw_samples_0.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
    assert end["last"].keys() == set(names)


def test_killed_again_and_again_it_ends_with_the_same_bytes(uninterrupted, tmp_path):
    """Between an epoch's last step and its checkpoint, while it writes, and at a step."""
    kind, expected, _ = uninterrupted
    draw = random.Random(kind)
    deaths = [("evaluation", 0), ("file", draw.randint(5, 25)), ("step", draw.randint(8, STEPS))]
    for death in deaths:
        assert run(tmp_path, kind, death) == -signal.SIGKILL
    assert run(tmp_path, kind) == 0
    assert (tmp_path / "started0").read_text() == "xxxx"
    assert_same(ended(tmp_path), expected)


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param([{1: ("step", 7)}], id="once"),
        pytest.param([{1: ("step", 4)}, {0: ("file", 25)}, {0: ("step", 9)}], id="often"),
    ],
)
@pytest.mark.slow
def test_two_processes_killed_and_started_again_end_with_the_same_bytes(tmp_path, rounds):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    assert run_two(tmp_path / "whole", "two", {}) == [0, 0]
    expected, expected_too = (ended(tmp_path / "whole", rank) for rank in range(2))
    assert expected["weights"] == expected_too["weights"]
    assert expected["outcome"]["seeds"]["training"] == [5, 5 + 1_000_003]
    for epoch in range(3):
        seen = [end["seen"][4 * epoch + step] for end in (expected, expected_too) for step in range(1, 5)]
        assert len({json.dumps(ids) for ids in seen}) == 8, "together they see every pair once an epoch"
    for deaths in rounds:
        codes = run_two(tmp_path / "killed", "two", deaths)
        (dying,) = deaths
        assert codes[dying] == -signal.SIGKILL
        assert codes[1 - dying] in (-signal.SIGKILL, 1)  # 1: it noticed that the other was gone before it was killed
    assert run_two(tmp_path / "killed", "two", {}) == [0, 0]
    for rank, end in enumerate((expected, expected_too)):
        assert_same(ended(tmp_path / "killed", rank), end)


def assert_same(end: dict, expected: dict) -> None:
    for name in ("seen", "log", "outcome", "left"):
        assert end[name] == expected[name], name
    assert end["weights"] == expected["weights"]
    assert end["last"].keys() == expected["last"].keys()
    assert [name for name, content in end["last"].items() if content != expected["last"][name]] == []


FILE_EVENTS = 240
"""More than one training makes."""


@pytest.mark.slow
@pytest.mark.parametrize("uninterrupted", ["full", "lora"], indirect=True)
def test_killed_at_any_file_event_it_ends_with_the_same_bytes(uninterrupted, tmp_path):
    kind, expected, _ = uninterrupted
    kills = 0
    for number in range(1 + list(KINDS).index(kind), FILE_EVENTS, 3):
        folder = tmp_path / str(number)
        folder.mkdir()
        code = run(folder, kind, ("file", number))
        assert code in (0, -signal.SIGKILL)
        if code != 0:
            kills += 1
            assert run(folder, kind) == 0
        assert_same(ended(folder), expected)
        if code == 0:
            break
    assert 40 < kills < FILE_EVENTS // 3, "all through a whole training"


@pytest.mark.slow
@pytest.mark.parametrize("uninterrupted", ["full"], indirect=True)
def test_killed_from_outside_at_any_time_it_ends_with_the_same_bytes(uninterrupted, tmp_path):
    kind, expected, _ = uninterrupted
    draw, kills = random.Random(7), 0
    while kills < 12:
        process = CONTEXT.Process(target=work, args=(str(tmp_path), kind, None))
        process.start()
        process.join(draw.uniform(0.3, 2.0))
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
    assert kills > 0
    assert run(tmp_path, kind) == 0
    assert_same(ended(tmp_path), expected)


# What a checkpoint is


def test_a_checkpoint_counts_when_all_of_it_is_there(tmp_path):
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}" / "inner").mkdir(parents=True)
        for name in ("rng_state.pth", "model.safetensors", "inner/config.json"):
            (tmp_path / f"checkpoint-{step}" / name).write_bytes(b"content")
    two, ten = tmp_path / "checkpoint-2", tmp_path / "checkpoint-10"
    assert last_checkpoint(tmp_path) is None
    mark_whole(two, processes=1)
    assert last_checkpoint(tmp_path) == two
    mark_whole(ten, processes=1)
    assert last_checkpoint(tmp_path) == ten
    for other in (b"half", b"Content", b""):
        (ten / "model.safetensors").write_bytes(other)
        assert last_checkpoint(tmp_path) == two
    (ten / "model.safetensors").write_bytes(b"content")
    assert last_checkpoint(tmp_path) == ten
    for marker in ("[]", '{"model.safetensors": 7}', '{"model.safetensors": {}}'):
        (ten / "whole.json").write_text(marker)
        assert last_checkpoint(tmp_path) == two
    (two / "inner" / "config.json").unlink()
    assert not is_whole(two)
    remove_checkpoint(two)
    assert not two.exists()
    with pytest.raises(maw.MAWError, match=r"lacks rng_state_0.pth, rng_state_1.pth: with several machines"):
        mark_whole(ten, processes=2)


@pytest.mark.parametrize("whole", ["[]", "7", "[" * 100_000, '{"files": {"model.safetensors": {"bytes": "7"}}}', "{"])
def test_a_checkpoint_with_a_damaged_marker_is_none(tmp_path, whole):
    path = tmp_path / "checkpoint-2"
    path.mkdir()
    (path / "rng_state.pth").write_bytes(b"content")
    mark_whole(path, processes=1)
    (path / "whole.json").write_text(whole)
    assert last_checkpoint(tmp_path) is None


def test_a_checkpoint_whose_best_one_is_missing_is_none(tmp_path):
    for step in (2, 3):
        path = tmp_path / f"checkpoint-{step}"
        path.mkdir()
        (path / "rng_state.pth").write_bytes(b"content")
        (path / "trainer_state.json").write_text('{"best_global_step": 2}')
        mark_whole(path, processes=1)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    (tmp_path / "checkpoint-2" / "rng_state.pth").unlink()
    assert last_checkpoint(tmp_path) is None, "its weights would be those of the last step, and not the best"


def test_lines_of_a_log_that_are_no_entries_are_forgotten(tmp_path):
    log = tmp_path / "log.jsonl"
    lines = ["null", "[" * 100_000, '{"step": null}', '{"step": "1"}', '{"step": 1, "data": ["x"]}', '{"st']
    log.write_text("\n".join(lines))
    assert shorten_log(log, 1, 1) == ["x"]
    assert log.read_text() == '{"step": 1, "data": ["x"]}\n'


def test_what_a_killed_process_left_is_tidied_up(uninterrupted, tmp_path):
    kind, expected, folder = uninterrupted
    left = tmp_path / "training"
    shutil.copytree(folder / "training", left)
    shutil.copytree(left / "checkpoint-12", left / "checkpoint-10")  # whole: its removal had not begun
    shutil.copytree(left / "checkpoint-12", left / "checkpoint-14")
    (left / "checkpoint-14" / "optimizer.pt").write_bytes(b"half")
    model, settings = build(kind)
    assert train(model, toy(), left, settings)["resumed"]
    assert sorted(path.name for path in left.glob("checkpoint-*")) == expected["left"]


def test_another_training_in_the_folder_is_refused(uninterrupted):
    kind, _, folder = uninterrupted
    model, settings = build(kind)
    other = TrainingSettings(**{**settings.__dict__, "learning_rate": 2e-3})
    with pytest.raises(maw.MAWError, match=r"stopped at step 12 and was started with other settings \(settings"):
        train(model, toy(), folder / "training", other)
    model, settings = build(kind)
    with torch.no_grad():
        maw_layers(model)[0].query_views[0, 0, 0] += 1
    with pytest.raises(maw.MAWError, match=r"\(encoder .*\): give the same to go on with it, or delete the folder"):
        train(model, toy(), folder / "training", settings)
    model, settings = build(kind)
    model[1].pooling_mode = "cls"  # the same weights give other vectors
    with pytest.raises(maw.MAWError, match=r"other settings \(encoder [^;]*\): give the same"):
        train(model, toy(), folder / "training", settings)
