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

from maw.cli import (
    BenchmarkCommand,
    DataCommand,
    EvaluateCommand,
    InspectCommand,
    ReportCommand,
    TrainCommand,
)
from maw.errors import MAWError
from maw.io.escaping import visible
from maw.output import Output, speaking
from maw.progress import duration
from maw.vector_options import EncodeCommand, SearchCommand

if TYPE_CHECKING:
    from maw.benchmark.plan import Benchmark
    from maw.benchmark.runner import Runner

__all__ = ["execute"]


@singledispatch
def execute(command: Any, words: Sequence[str]) -> int:
    """Do one command; returns the exit status."""
    raise MAWError(f"no such command: {type(command).__name__}")


@execute.register
def _(command: BenchmarkCommand, words: Sequence[str]) -> int:
    quiet_libraries()
    from maw.retrieval.processes import processes

    if processes() > 1:
        raise MAWError(f"maw benchmark works in one process, got {processes()}: start it without torchrun")
    from maw.benchmark.results import results_table
    from maw.benchmark.runner import Runner

    benchmark = _benchmark(command)
    start = time.monotonic()
    with speaking(as_json=command.json) as out:
        out.say("reading the data and the encoder")
        runner = Runner(benchmark, command=shlex.join(words))
        _say_plan(runner, out, dry_run=command.dry_run)
        if command.dry_run:
            return 0
        done = len(runner.runs) - len(runner.pending())

        def announce(run: Any) -> None:
            nonlocal done
            done += 1
            passed = duration(time.monotonic() - start)
            out.say(f"[{done}/{len(runner.runs)}] {run.name}: {run.variant.text} (after {passed})")

        results = runner.go(announce)
        if not command.json:
            out.console.print(results_table(results["rows"], ["nDCG@10", "MRR@10", "R@100"]))
        out.say(results["verdict"])
        out.say(f"everything is in {benchmark.output}; look at {benchmark.output / 'report.html'}")
        out.say(f"took {duration(time.monotonic() - start)}")
        settings, made = ("preset", "dataset", "model", "settings"), ("earlier", "rows", "comparisons", "verdict")
        kept = (*settings, *made, "environment", "seconds")
        out.result({"output": benchmark.output, **{name: results[name] for name in kept}})
    return 0


def _say_plan(runner: Runner, out: Output, *, dry_run: bool) -> None:
    """What is to do, for how long, and where it goes."""
    from maw.benchmark.plan import estimate_seconds
    from maw.benchmark.states import said_of_earlier
    from maw.retrieval.data.report import render_report

    benchmark, pending = runner.benchmark, runner.pending()
    seconds = estimate_seconds(benchmark, pending, runner.dataset, runner.encoder)
    out.say(render_report(runner.dataset))
    for count in runner.truncation:
        out.say(str(count))
    if benchmark.preset == "quick":
        out.say("preset quick: a small part of the data, few steps: enough to see it work; --full uses all")
    names = ", ".join(run.name for run in pending) or "nothing: every run is finished"
    out.say(f"to do on {runner.device}: {names}")
    if earlier := runner.earlier():
        out.say(said_of_earlier(earlier))
    out.say(f"estimated time: {duration(seconds)}; results go to {benchmark.output}")
    if dry_run:
        weights = sum(4 * parameter.numel() for parameter in runner.encoder.parameters())
        kept = sum(run.variant.kind == "tuned" for run in pending) * weights
        out.say(f"keeps about {kept / 2**20:,.0f} MiB of models there. Nothing was done")
        plan = {
            "preset": benchmark.preset,
            "device": str(runner.device),
            "runs": [run.name for run in pending],
            "finished": [run.name for run in runner.runs if run not in pending],
            "earlier": [run.name for run in earlier],
            "splits": runner.splits,
            "seconds": round(seconds, 1),
            "bytes": kept,
            "output": benchmark.output,
        }
        out.result({"plan": plan, "data": runner.dataset.report()})


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
    from maw.train_command import train

    return train(command, _dataset_name(command) or "pydocs")


@execute.register
def _(command: EvaluateCommand, words: Sequence[str]) -> int:
    from maw.retrieval.data.loading import load_dataset
    from maw.retrieval.data.report import render_report
    from maw.retrieval.evaluation.assessment import assess_model, assess_run, write_per_query
    from maw.retrieval.ranking.runs import check_run_ids, write_run

    name = _dataset_name(command)
    if command.model is not None and command.qrels is not None:
        raise MAWError("--qrels judges a run file: leave out the model, or --qrels (the data set has judgements)")
    wanted = _measures(command)
    with speaking(as_json=command.json) as out:
        dataset = model = None
        if command.model is not None:
            quiet_libraries()
            from maw.retrieval.models import choose_device, load_encoder

            model = load_encoder(command.model, device=choose_device(command.device), max_length=command.max_length)
        if command.model is not None or name is not None:
            dataset = load_dataset(name or "pydocs", drop_own=command.drop_own or None, strict=command.strict)
            out.say(render_report(dataset))
        split = command.split
        if model is not None and dataset is not None:
            split = split or dataset.default_split
            queries, _ = dataset.evaluation_split(split)
            if command.run is not None:
                check_run_ids(queries, dataset.documents)
            found = assess_model(model, dataset, split, **wanted)
            if command.run is not None:
                write_run(command.run, found.run, "maw", layout=command.run_format)
        elif command.run is not None:
            wanted |= {"dataset": dataset, "split": split, "drop_own": command.drop_own}
            found = assess_run(command.run, qrels=command.qrels, ties=command.ties, **wanted)
        else:
            raise MAWError("wanted a model to evaluate, or a run file: maw evaluate MODEL, or maw evaluate --run FILE")
        if command.per_query is not None:
            write_per_query(command.per_query, found.evaluation)
        for measure, value in found.evaluation.means.items():
            out.say(f"{measure:8} {value:.5f}")
        for note in found.notes:
            out.say(note)
        given = {"model": command.model, "run": command.run, "qrels": command.qrels, "split": split}
        data = None if dataset is None else dataset.report()
        out.result({**given, "measures": found.evaluation.means, "notes": found.notes, "data": data})
    return 0


def _measures(command: EvaluateCommand) -> dict[str, Any]:
    """What to measure; all of it, and the places of the files, is checked before anything is read or ranked."""
    from maw.retrieval.evaluation.assessment import check_per_query_file
    from maw.retrieval.evaluation.measures import check_measures, default_measures, split_measures, with_grade
    from maw.retrieval.ranking.runs import check_run_file

    measures = None if command.measures is None else split_measures(command.measures)
    if measures is not None:
        check_measures(measures if command.relevant_grade is None else with_grade(measures, command.relevant_grade))
    elif command.relevant_grade is not None:
        default_measures(command.relevant_grade)
    if command.model is not None and command.run is not None:
        check_run_file(command.run, command.run_format)
    if command.per_query is not None:
        check_per_query_file(command.per_query)
    return {"measures": measures, "relevant_grade": command.relevant_grade}


def _dataset_name(command: BenchmarkCommand | TrainCommand | EvaluateCommand) -> str | None:
    """What --dataset or --msmarco names; None where neither is given."""
    if command.msmarco and command.dataset not in (None, "msmarco"):
        raise MAWError(f"--msmarco is --dataset msmarco, but --dataset {command.dataset} is given too: leave one out")
    return "msmarco" if command.msmarco else command.dataset


@execute.register
def _(command: EncodeCommand, words: Sequence[str]) -> int:
    quiet_libraries()
    from maw.vector_commands import encode

    return encode(command)


@execute.register
def _(command: SearchCommand, words: Sequence[str]) -> int:
    quiet_libraries()
    from maw.vector_commands import search

    return search(command)


@execute.register
def _(command: DataCommand, words: Sequence[str]) -> int:
    from maw.retrieval.data.loading import load_dataset
    from maw.retrieval.data.report import render_report

    with speaking(as_json=command.json) as out:
        dataset = load_dataset(command.dataset, strict=command.strict)
        if not command.json:
            out.say(render_report(dataset))
        out.result(dataset.report())
    return 0


@execute.register
def _(command: ReportCommand, words: Sequence[str]) -> int:
    from maw.benchmark.report import write_report

    print(visible(str(write_report(command.folder))))
    return 0


@execute.register
def _(command: InspectCommand, words: Sequence[str]) -> int:
    quiet_libraries()
    from maw.display.request import Request, show

    with speaking() as out:
        show(Request(**vars(command)), out.console)
    return 0


def quiet_libraries() -> None:
    """Leave the terminal to our own progress: libraries report errors, not their progress."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)
