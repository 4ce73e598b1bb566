"""The command line: `maw benchmark`, `train`, `evaluate`, `encode`, `search`, `inspect`, `data` and `report`.

What each exit status means is in `maw.help.EXIT_STATUS`, and in `maw --help`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from maw.console import complain, escaped_notices
from maw.errors import MAWError
from maw.io.failures import refused_as_full
from maw.options import JSON, Device, MAWOptions, TrainingOptions
from maw.stopping import Terminated, terminable
from maw.vector_options import EncodeCommand, SearchCommand

__all__ = ["COMMANDS", "main"]

Dataset = Annotated[str | None, tyro.conf.arg(metavar="NAME")]
MSMARCO = Annotated[bool, tyro.conf.arg(name="msmarco")]


@dataclass(frozen=True)
class BenchmarkCommand:
    """Train every variant, evaluate it, and say whether MAW helped.

    Without arguments: the packaged encoder on pydocs, small enough for two cores. The same command goes on with a
    benchmark that was interrupted.
    """

    dataset: Dataset = None
    """pydocs, msmarco, ir:ID, beir:FOLDER, msmarco:FOLDER."""
    msmarco: MSMARCO = False
    """The same as --dataset msmarco."""
    model: str = "packaged"
    """packaged (all-MiniLM-L6-v2), a folder, or a hub name."""
    variants: str | None = None
    """Names with commas; a name that is none lists them all."""
    seeds: int = 1
    """How often each variant is trained."""
    drop_own: bool = False
    """Drop the document with the query's own id."""
    full: bool = False
    """All of pydocs instead of the preset quick."""
    output: Path | None = None
    """Of everything; else maw-results/DATASET-PRESET."""
    dry_run: bool = False
    """Print the plan, its cost and its folder, and stop."""
    json: JSON = False
    """Print the results as JSON, all else to standard error."""
    device: Device = "auto"
    training: TrainingOptions = field(default_factory=TrainingOptions)
    maw: MAWOptions = field(default_factory=MAWOptions)


@dataclass(frozen=True)
class TrainCommand:
    """Fine-tune one variant and save it as a folder that SentenceTransformer loads.

    The same command goes on with a training that was stopped, to the same weights. On several GPUs or machines:
    torchrun --nproc-per-node GPUS -m maw train ...
    """

    variant: Annotated[str, tyro.conf.arg(metavar="NAME")]
    """Such as maw-lora; a wrong one lists them all."""
    output: Path
    """The model's; OUTPUT.training gets checkpoints, logs."""
    dataset: Dataset = None
    """pydocs, msmarco, ir:ID, beir:FOLDER, msmarco:FOLDER."""
    msmarco: MSMARCO = False
    """The same as --dataset msmarco."""
    model: str = "packaged"
    """packaged (all-MiniLM-L6-v2), a folder, or a hub name."""
    seed: int = 0
    """Of every draw."""
    drop_own: bool = False
    """Drop the document with the query's own id."""
    dry_run: bool = False
    """Print the plan, its cost and its folders, and stop."""
    json: JSON = False
    """Print the outcome as JSON, all else to standard error."""
    device: Device = "auto"
    training: TrainingOptions = field(default_factory=TrainingOptions)
    maw: MAWOptions = field(default_factory=MAWOptions)


@dataclass(frozen=True)
class EvaluateCommand:
    """Evaluate a model on a data set, or a run file (--run) by a file of judgements (--qrels)."""

    model: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = None
    """packaged, a model folder, or a hub name; left out, --run is what is evaluated."""
    dataset: Dataset = None
    """pydocs (the default with a model), msmarco, ir:ID, beir:FOLDER or msmarco:FOLDER. For a run file: its collection,
    by which its ids are checked."""
    msmarco: MSMARCO = False
    """The same as --dataset msmarco."""
    split: str | None = None
    """Default: test, or the only one."""
    run: Path | None = None
    """With a model: write its ranking there. Without: the run file to evaluate (TREC, MS MARCO, or a table with the
    header query-id, corpus-id, rank, score)."""
    run_format: Literal["trec", "msmarco"] = "trec"
    """How the ranking of a model is written."""
    qrels: Path | None = None
    """Judgements of the run file: TREC (4 columns) or BEIR (header and 3)."""
    ties: Literal["rank", "score"] = "rank"
    """What orders a run file: its ranks, or its scores as trec_eval reads them: in single precision, equal ones by
    descending id."""
    measures: str | None = None
    """Names with commas, as ir-measures spells them; default nDCG@10,MRR@10,R@100,R@1000,AP."""
    relevant_grade: int | None = None
    """The grade from which on a document is relevant to measures other than nDCG (TREC DL passages: 2)."""
    per_query: Path | None = None
    """Write the values of every query there, a table separated by tabs."""
    drop_own: bool = False
    """Drop the document with the query's own id."""
    strict: bool = False
    """Refuse judged documents that the corpus lacks."""
    max_length: int | None = None
    """Tokens a text is cut to; default: the model's own limit."""
    json: JSON = False
    """Print data, measures and notes as JSON, all else to standard error."""
    device: Device = "auto"


@dataclass(frozen=True)
class DataCommand:
    """Read a data set, check it, and say what is in it and what is untidy."""

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """pydocs, msmarco, ir:ID (ir_datasets: BEIR, LoTTE, ...), beir:FOLDER or msmarco:FOLDER."""
    strict: bool = False
    """Refuse judged documents that the corpus lacks."""
    json: JSON = False
    """Print everything as JSON."""


@dataclass(frozen=True)
class ReportCommand:
    """Write report.html anew from a benchmark's folder."""

    folder: Annotated[Path, tyro.conf.Positional]
    """A folder that `maw benchmark` wrote."""


@dataclass(frozen=True)
class InspectCommand:
    """Show what the depths of a MAW layer attend to in your texts: depth weights, strongest slices, neighbours."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A model folder with MAW, or a hub name."""
    texts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT ...")] = ()
    """Texts, each in quotes."""
    file: Path | None = None
    """More texts: UTF-8, one a line; blank lines are skipped."""
    layer: int | None = None
    """Encoder layer, negative from the end; default: the last with MAW."""
    head: Annotated[str, tyro.conf.arg(metavar="N|mean")] = "mean"
    """One head, or the mean over all."""
    depths: int = 4
    """How many of the strongest depths of each text are shown."""
    html: Path | None = None
    """Write a self-contained page with heat maps there."""
    png: Path | None = None
    """Write one picture a text into this folder."""
    json: JSON = False
    """Print everything as JSON instead of the tables."""
    max_length: int | None = None
    """Tokens a text is cut to; default: the model's own limit, at most 512."""
    device: Device = "auto"


COMMANDS = {
    "benchmark": BenchmarkCommand,
    "train": TrainCommand,
    "evaluate": EvaluateCommand,
    "encode": EncodeCommand,
    "search": SearchCommand,
    "inspect": InspectCommand,
    "data": DataCommand,
    "report": ReportCommand,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the return value is the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with escaped_notices(), terminable():
            return _run(given)
    except MAWError as error:
        from maw.spelling import as_typed

        complain(f"maw: {as_typed(str(error), COMMANDS.get(given[0]) if given else None)}")
        return 2
    except BrokenPipeError:  # head has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a full disk, a folder that may not be written
        complain(f"maw: {_said(error)}")
        return 2
    except KeyboardInterrupt as error:
        was, status = ("terminated", 143) if isinstance(error, Terminated) else ("interrupted", 130)
        complain(f"maw: {was}; what was finished is kept, the same command goes on")
        return status
    except Exception as error:
        if (full := refused_as_full(error)) is None:
            raise
        complain(f"maw: a file could not be written: {full.strerror}: free some space and run the same command again")
        return 2


def _said(error: OSError) -> str:
    what = error.filename or "a file"
    if isinstance(error, PermissionError):
        return f"{what} may not be read or written by this user: ask its owner, or change its permissions"
    known = refused_as_full(error) or error
    return f"cannot read or write {what}: {known.strerror or error}"


def _run(given: list[str]) -> int:
    if given == ["--version"]:
        from maw import __version__

        print(__version__)
        return 0
    if not given or given[0] in ("-h", "--help") or (given[0] in COMMANDS and {"-h", "--help"} & set(given)):
        from maw.help import command_screen, screen

        text = command_screen(given[0], COMMANDS[given[0]]) if given and given[0] in COMMANDS else screen(COMMANDS)
        print(text, end="", file=sys.stdout if given else sys.stderr)
        return 0 if given else 2
    if given[0] not in COMMANDS:
        raise MAWError(f"no such command: {given[0]!r}; there are {', '.join(COMMANDS)} (maw --help)")
    command = tyro.cli(
        COMMANDS[given[0]],
        prog=f"maw {given[0]}",
        args=given[1:],
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    # a training step waits for its tokens; `maw encode` has them made beside the model; several processes share cores
    alone = given[0] in ("train", "benchmark") and os.environ.get("WORLD_SIZE", "1") == "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if alone else "false")
    from maw import commands

    status = commands.execute(command, ["maw", *given])
    sys.stdout.flush()
    return status
