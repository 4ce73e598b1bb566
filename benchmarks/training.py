"""What training at size costs, and whether a stopped training ends with the same weights on this device.

    python benchmarks/training.py [--device cuda] [--output FILE.json] [--commit COMMIT]
    torchrun --nproc-per-node 2 benchmarks/training.py --device cuda    # in several processes
    python benchmarks/training.py --device cuda --resume [--deterministic]
    python benchmarks/training.py --device cuda --twins    # what MAW adds to a training's time
    python benchmarks/training.py --device cuda --steps    # and to a step's, and what of it goes to the tokens

The packaged MiniLM on pydocs, trained as `maw train` does it, with the default MAW. First the pairs a second and
the peak memory of one batch size with and without mini-batches, and of a batch that is large, start and evaluation
included; several processes get as many times the pairs. Then (`--resume`, in one process) the same training three
times, once stopped twice by SIGKILL and started again: the weights must be the same bytes. On a CUDA device that needs
kernels that give the same twice: `--deterministic` asks PyTorch for such, and the line "twice, never stopped" says
whether they do. Or (`--twins`) whole trainings with MAW and without in turn, of MiniLM and of an encoder of BERT-base's
size with random weights, start and evaluation included: seconds of each, and the ratio of their medians. Or (`--steps`)
single steps of MiniLM, with tokens made on one core and on all: milliseconds a step, of which for its tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import add_arguments, finish
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertModel

import maw
from maw.benchmark.resources import Cost, measure
from maw.commands import quiet_libraries
from maw.retrieval.data.loading import load_dataset
from maw.retrieval.models import choose_own_device, load_encoder
from maw.retrieval.processes import leave, process_index, processes
from maw.retrieval.training.batches import Collator
from maw.retrieval.training.fine_tuning import train
from maw.retrieval.training.settings import TrainingSettings
from maw.retrieval.training.trainer import Trainer

CASES = {  # pairs a batch of one process, texts a mini-batch, pairs trained on
    "cuda": [(256, None, 8192), (256, 64, 8192), (256, 256, 8192), (4096, 256, 8192)],
    "cpu": [(32, None, 128), (32, 16, 128), (128, 16, 128)],
}


def one_training(
    folder: Path, device: torch.device, settings: TrainingSettings, pairs: int
) -> tuple[SentenceTransformer, Mapping[str, Any], Cost]:
    whole = load_dataset("pydocs")
    pairs = min(pairs, len(whole.training_pairs()))
    data = whole.subset(train_pairs=pairs, documents=2 * pairs, test_queries=10, dev_queries=20)
    model = load_encoder("packaged", device=device, max_length=settings.max_length)
    maw.attach(model, maw.MAWConfig())
    with measure(device) as cost:
        outcome = train(model, data, folder, settings)
    return model, outcome, cost


def speed(device: torch.device) -> list[dict[str, Any]]:
    rows = []
    run = os.environ.get("TORCHELASTIC_RUN_ID", os.getpid())  # of all processes together
    for batch, mini, pairs in CASES[device.type]:
        settings = TrainingSettings(epochs=2, batch_size=batch, mini_batch_size=mini, max_length=64, dev_documents=20)
        folder = Path(tempfile.gettempdir()) / f"maw-training-{run}-{batch}-{mini}"
        _, outcome, cost = one_training(folder, device, settings, pairs * processes())
        rows.append(
            {
                "batch": batch,
                "mini-batch": mini,
                "processes": outcome["processes"],
                "pairs/s": settings.epochs * outcome["pairs"] / cost.seconds,
                "peak MiB": cost.peak_bytes / 2**20,
            }
        )
        if process_index() == 0:
            print(", ".join(f"{name} {value if value is None else round(value)}" for name, value in rows[-1].items()))
            shutil.rmtree(folder)
    return rows


def child(folder: Path, device: torch.device, stop: int, *, deterministic: bool) -> None:
    """One training in a process of its own, which kills itself at a step; prints the checksum of the weights."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    plain = Trainer.training_step

    def training_step(self: Any, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step + 1 == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, *arguments, **options)

    Trainer.training_step = training_step  # ty: ignore[invalid-assignment]
    settings = TrainingSettings(epochs=2, batch_size=16, max_length=64, dev_documents=20, save_steps=3)
    model, _, _ = one_training(folder, device, settings, 128)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    print(digest.hexdigest())


def resume(device: torch.device, *, deterministic: bool) -> dict[str, bool]:
    def run(folder: Path, stop: int = 0) -> str:
        words = [sys.executable, __file__, "--device", str(device), "--child", str(folder), "--stop", str(stop)]
        answer = subprocess.run(
            [*words, *["--deterministic"] * deterministic], stdout=subprocess.PIPE, text=True, check=stop == 0
        )
        return answer.stdout.split()[-1] if stop == 0 else ""

    with tempfile.TemporaryDirectory() as place:
        first, again = (run(Path(place) / name) for name in ("first", "again"))
        stopped = Path(place) / "stopped"
        for stop in (5, 11):
            run(stopped, stop)
        found = {"twice, never stopped": first == again, "stopped and gone on": first == run(stopped)}
    for name, same in found.items():
        print(f"{name}: {'the same bytes' if same else 'OTHER bytes'}", flush=True)
    return found


TWINS = {"MiniLM": (3, 64), "BERT-base, random weights": (2, 64)}
"""Epochs and pairs a batch."""
ROUNDS = 5


def twins(names: Sequence[str], device: torch.device, encoder: str) -> dict[str, dict[str, Any]]:
    """Trainings of encoders as they are and with MAW, in turn; the first of each warms up and does not count."""
    data, found = load_dataset("pydocs"), {}
    for name in names:
        epochs, batch = TWINS[name]
        settings = TrainingSettings(epochs=epochs, batch_size=batch)
        seconds: dict[str, list[float]] = {"dense": [], "MAW": []}
        for turn in range(1 + ROUNDS):
            for kind, kept in seconds.items():
                model = load_encoder(encoder, device=device, max_length=settings.max_length)
                if name != "MiniLM":
                    torch.manual_seed(0)
                    model[0].model = BertModel(BertConfig(vocab_size=len(model.tokenizer))).to(device)
                    model[1] = Pooling(768, pooling_mode="mean").to(device)
                if kind == "MAW":
                    maw.attach(model, maw.MAWConfig())
                with tempfile.TemporaryDirectory() as folder, measure(device) as cost:
                    train(model, data, Path(folder), settings)
                if turn:
                    kept.append(cost.seconds)
                print(f"{name}, {kind}: {cost.seconds:.2f} s{'' if turn else ', to warm up'}", flush=True)
        ratio = statistics.median(seconds["MAW"]) / statistics.median(seconds["dense"])
        found[name] = {"epochs": epochs, "batch": batch, "seconds": seconds, "MAW / dense": ratio}
        print(f"{name}: {ratio:.3f} times the time, {seconds}", flush=True)
    return found


STEPS = {"cuda": (64, 10, 40), "cpu": (8, 2, 6)}
"""Pairs a batch, the step from which time counts, and the one before which it ends."""


def steps(device: torch.device, encoder: str) -> list[dict[str, Any]]:
    """Milliseconds a step and of the collator in it; the first training warms up and does not count."""
    batch, first, last = STEPS[device.type]
    pairs = batch * (last + 2)
    whole = load_dataset("pydocs")
    data = whole.subset(train_pairs=pairs, documents=3 * pairs, test_queries=10, dev_queries=20)
    settings = TrainingSettings(epochs=1, batch_size=batch, dev_documents=20)
    step, collate = Trainer.training_step, Collator.__call__
    marks: dict[int, float] = {}
    collating: list[float] = []

    def timed_step(self: Any, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step in (first, last):
            if device.type == "cuda":
                torch.cuda.synchronize()
            marks[self.state.global_step] = time.perf_counter()
        return step(self, *arguments, **options)

    def timed_collate(self: Any, rows: Any) -> Any:
        start = time.perf_counter()
        found = collate(self, rows)
        collating.append(time.perf_counter() - start)
        return found

    rows: list[dict[str, Any]] = []
    Trainer.training_step, Collator.__call__ = timed_step, timed_collate  # ty: ignore[invalid-assignment]
    try:
        cases = itertools.product(("false", "true"), ("dense", "MAW", "dense", "MAW"))
        for parallel, kind in [("true", "dense"), *cases]:
            os.environ["TOKENIZERS_PARALLELISM"] = parallel
            model = load_encoder(encoder, device=device, max_length=settings.max_length)
            if kind == "MAW":
                maw.attach(model, maw.MAWConfig())
            collating.clear()
            with tempfile.TemporaryDirectory() as folder:
                train(model, data, Path(folder), settings)
            each = 1e3 * (marks[last] - marks[first]) / (last - first)
            tokens = 1e3 * statistics.median(collating)
            rows.append({"tokenised in parallel": parallel, "encoder": kind, "ms a step": each, "of it tokens": tokens})
            where = "on all cores" if parallel == "true" else "on one core"
            print(f"{kind}, tokenised {where}: {each:.1f} ms a step, {tokens:.1f} of them for its tokens", flush=True)
    finally:
        Trainer.training_step, Collator.__call__ = step, collate  # ty: ignore[invalid-assignment]
    return rows[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--twins", nargs="*", choices=tuple(TWINS), help="these encoders; all without a name")
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--model", default="packaged", help="MiniLM's folder, for --twins and --steps")
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--stop", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quiet_libraries()
    device = choose_own_device(arguments.device)
    if arguments.child is not None:
        child(arguments.child, device, arguments.stop, deterministic=arguments.deterministic)
        return
    results: dict[str, Any] = {}
    if arguments.steps:
        results["steps"] = steps(device, arguments.model)
    elif arguments.twins is None:
        results["speed"] = speed(device)
    else:
        results["twins"] = twins(arguments.twins or tuple(TWINS), device, arguments.model)
    if arguments.resume:
        results["resume"] = resume(device, deterministic=arguments.deterministic)
    if process_index() == 0:
        finish(results, device, arguments)
    leave()


if __name__ == "__main__":
    main()
