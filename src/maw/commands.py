"""What each command of the command line does; heavy libraries are imported here, not in `maw.cli`."""

from __future__ import annotations

import logging
import re
import shlex
import time
import warnings
from collections.abc import Sequence
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from maw.cli import (
    BenchmarkCommand,
    EvaluateCommand,
    InspectCommand,
    ReportCommand,
    TrainCommand,
)
from maw.errors import MAWError
from maw.progress import duration
from maw.vector_options import EncodeCommand, SearchCommand

if TYPE_CHECKING:
    from maw.benchmark.plan import Benchmark

__all__ = ["execute"]


@singledispatch
def execute(command: Any, words: Sequence[str]) -> int:
    """Do one command; returns the exit status."""
    raise MAWError(f"no such command: {type(command).__name__}")


@execute.register
def _(command: BenchmarkCommand, words: Sequence[str]) -> int:
    console = _console()
    quiet_libraries()
    from maw.retrieval.processes import processes

    if processes() > 1:
        raise MAWError(f"maw benchmark works in one process, got {processes()}: start it without torchrun")
    from maw.benchmark.plan import estimate_seconds
    from maw.benchmark.results import results_table
    from maw.benchmark.runner import Runner
    from maw.retrieval.data.datasets import render_report

    benchmark = _benchmark(command)
    start = time.monotonic()
    with console.status("reading the data and the encoder"):
        runner = Runner(benchmark, command=shlex.join(words), show_progress=console.is_terminal)
        pending = runner.pending()
        seconds = estimate_seconds(benchmark, pending, runner.dataset, runner.encoder)
    console.print(render_report(runner.dataset), highlight=False, markup=False)
    if benchmark.preset == "quick":
        console.print(
            "[bold]preset quick[/]: a small part of the data, few steps: enough to see it work; --full uses all"
        )
    names = ", ".join(run.name for run in pending) or "nothing: every run is finished"
    console.print(f"to do on {runner.device}: {names}", highlight=False)
    console.print(f"estimated time: {duration(seconds)}; results go to {benchmark.output}", highlight=False)
    if command.dry_run:
        return 0
    done = len(runner.runs) - len(pending)

    def announce(run: Any) -> None:
        nonlocal done
        done += 1
        passed = duration(time.monotonic() - start)
        console.print(
            f"[{done}/{len(runner.runs)}] {run.name}: {run.variant.text} (after {passed})",
            highlight=False,
            markup=False,
        )

    results = runner.go(announce)
    console.print(results_table(results["rows"], ["nDCG@10", "MRR@10", "R@100"]))
    console.print(results["verdict"], highlight=False, markup=False)
    console.print(f"everything is in {benchmark.output}; look at {benchmark.output / 'report.html'}", highlight=False)
    console.print(f"took {duration(time.monotonic() - start)}", highlight=False)
    return 0


def _benchmark(command: BenchmarkCommand) -> Benchmark:
    from maw.benchmark.plan import DEFAULT, LORA_LEARNING_RATE, Benchmark

    dataset = _dataset_name(command) or "pydocs"
    preset = "quick" if dataset == "pydocs" and not command.full else "full"
    kind, _, what = dataset.partition(":")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", dataset if not what else what if kind == "ir" else Path(what).name)
    names = DEFAULT if command.variants is None else tuple(part.strip() for part in command.variants.split(","))
    return Benchmark(
        dataset=dataset,
        drop_own=command.drop_own,
        model=command.model,
        variants=names,
        seeds=command.seeds,
        preset=preset,
        output=command.output or Path("maw-results") / f"{name}-{preset}",
        device=command.device,
        maw=command.maw.values(),
        training=command.training.values(),
        lora_learning_rate=command.training.lora_learning_rate or LORA_LEARNING_RATE,
    )


@execute.register
def _(command: TrainCommand, words: Sequence[str]) -> int:
    quiet_libraries()
    from maw.benchmark.plan import LORA_LEARNING_RATE
    from maw.benchmark.tuning import save_model, tune
    from maw.benchmark.variants import VARIANTS
    from maw.collapse import Finding
    from maw.retrieval.data.datasets import load_dataset, render_report
    from maw.retrieval.models import choose_own_device, load_encoder
    from maw.retrieval.processes import first_process_first, leave, process_index
    from maw.retrieval.training.settings import TrainingSettings

    first = process_index() == 0
    console = _console(quiet=not first)
    device = choose_own_device(command.device)
    with first_process_first(device):  # what is wrong is said once, and what is prepared is prepared once
        if command.variant not in VARIANTS:
            raise MAWError(f"variant must be among {', '.join(VARIANTS)}, got {command.variant!r}")
        if command.output.exists() and (not command.output.is_dir() or any(command.output.iterdir())):
            raise MAWError(f"{command.output} exists already: give another --output, nothing is overwritten")
        variant = VARIANTS[command.variant]
        given: dict[str, Any] = {**command.training.values(), "seed": command.seed}
        if variant.tuning == "lora":
            given["learning_rate"] = command.training.lora_learning_rate or LORA_LEARNING_RATE
        settings = TrainingSettings(**given)
        dataset = load_dataset(_dataset_name(command) or "pydocs")
        console.print(render_report(dataset), highlight=False, markup=False)
        model = load_encoder(command.model, device=device, max_length=settings.max_length)
    work = command.output.with_name(f"{command.output.name}.training")
    tuned = tune(model, variant, command.maw.values(), dataset, settings, work, show_progress=console.is_terminal)
    if first:
        save_model(tuned, command.output, base=command.model, dataset=dataset, metrics={})
    findings = tuned.outcome["findings"]
    for name, value in tuned.outcome.items():
        if name not in ("selector", "findings"):
            console.print(f"{name}: {value}", highlight=False)
    for finding in findings:
        console.print(f"{finding['level']}: {Finding(**finding)}", highlight=False, markup=False)
    console.print(f"model: {command.output}; checkpoints and logs: {work}", highlight=False)
    leave()
    return 0


@execute.register
def _(command: EvaluateCommand, words: Sequence[str]) -> int:
    console = _console()
    from maw.retrieval.data.datasets import load_dataset, render_report
    from maw.retrieval.evaluation.assessment import assess_model, assess_run, write_per_query
    from maw.retrieval.evaluation.measures import split_measures
    from maw.retrieval.ranking.runs import write_run

    name = _dataset_name(command)
    if command.model is not None and command.qrels is not None:
        raise MAWError("--qrels judges a run file: leave out the model, or --qrels (the data set has judgements)")
    wanted: dict[str, Any] = {
        "measures": None if command.measures is None else split_measures(command.measures),
        "relevant_grade": command.relevant_grade,
    }
    dataset = None
    if command.model is not None or name is not None:
        dataset = load_dataset(name or "pydocs", drop_own=command.drop_own or None)
        console.print(render_report(dataset), highlight=False, markup=False)
    if command.model is not None and dataset is not None:
        quiet_libraries()
        from maw.retrieval.models import choose_device, load_encoder

        split = command.split or dataset.default_split
        dataset.evaluation_split(split)
        model = load_encoder(command.model, device=choose_device(command.device), max_length=command.max_length)
        found = assess_model(model, dataset, split, show_progress=console.is_terminal, **wanted)
        if command.run is not None:
            write_run(command.run, found.run, "maw", layout=command.run_format)
    elif command.run is not None:
        wanted |= {"dataset": dataset, "split": command.split, "drop_own": command.drop_own}
        found = assess_run(command.run, qrels=command.qrels, ties=command.ties, **wanted)
    else:
        raise MAWError("wanted a model to evaluate, or a run file: maw evaluate MODEL, or maw evaluate --run FILE")
    if command.per_query is not None:
        write_per_query(command.per_query, found.evaluation)
    for measure, value in found.evaluation.means.items():
        console.print(f"{measure:8} {value:.5f}", highlight=False, markup=False)
    for note in found.notes:
        console.print(note, highlight=False, markup=False)
    return 0


def _dataset_name(command: BenchmarkCommand | TrainCommand | EvaluateCommand) -> str | None:
    """What --dataset or --msmarco names; None where neither is given."""
    if command.msmarco and command.dataset not in (None, "msmarco"):
        raise MAWError(f"--msmarco is --dataset msmarco, but --dataset {command.dataset} is given too: leave one out")
    return "msmarco" if command.msmarco else command.dataset


@execute.register
def _(command: EncodeCommand, words: Sequence[str]) -> int:
    quiet_libraries()
    from maw.vector_commands import encode

    return encode(command, _console())


@execute.register
def _(command: SearchCommand, words: Sequence[str]) -> int:
    quiet_libraries()
    from maw.vector_commands import search

    return search(command, _console())


@execute.register
def _(command: ReportCommand, words: Sequence[str]) -> int:
    from maw.benchmark.report import write_report

    print(write_report(command.folder))
    return 0


@execute.register
def _(command: InspectCommand, words: Sequence[str]) -> int:
    quiet_libraries()
    from maw.display.request import Request, show

    show(Request(**vars(command)), _console())
    return 0


def _console(*, quiet: bool = False) -> Console:
    """The terminal as it is; a file or a pipe gets lines long enough for the table, one that is quiet nothing."""
    console = Console(quiet=quiet)
    return console if console.is_terminal else Console(width=140, quiet=quiet)


def quiet_libraries() -> None:
    """Leave the terminal to our own progress: libraries report errors, not their progress."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
