"""The command line: `maw benchmark`, `train`, `evaluate`, `encode`, `search`, `report` and `inspect`.

Exit status: 0 done, 2 bad input (one line says what to do), 130 interrupted (what was finished is kept).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from maw.errors import MAWError
from maw.help import help_for
from maw.options import MAWOptions, TrainingOptions
from maw.vector_options import EncodeCommand, SearchCommand

__all__ = ["main"]

Dataset = Annotated[str | None, tyro.conf.arg(metavar="NAME")]
MSMARCO = Annotated[bool, tyro.conf.arg(name="msmarco")]


@dataclass(frozen=True)
class BenchmarkCommand:
    """Train every variant, evaluate it, and say whether MAW helped.

    Without arguments: the packaged encoder on pydocs, small enough for two cores. The same command goes on with a
    benchmark that was interrupted.
    """

    dataset: Dataset = None
    """pydocs (built in, the default), msmarco, ir:ID (ir_datasets: BEIR, LoTTE, ...), beir:FOLDER or msmarco:FOLDER."""
    msmarco: MSMARCO = False
    """The same as --dataset msmarco."""
    model: str = "packaged"
    """packaged (all-MiniLM-L6-v2), a model folder, or a hub name."""
    variants: str | None = None
    """Names with commas: bm25, untuned, dense-lora, dense-full, maw-lora, maw-full, literal, static, random."""
    seeds: int = 1
    """How often each variant is trained."""
    drop_own: bool = False
    """Leave out of every ranking the document with the query's own id (ArguAna: always)."""
    full: bool = False
    """Use all of pydocs instead of the preset quick (other data sets are always used in full)."""
    output: Path | None = None
    """The folder for everything; default maw-results/DATASET-PRESET."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dry_run: bool = False
    """Print the plan and the estimate, and stop."""
    training: TrainingOptions = field(default_factory=TrainingOptions)
    maw: MAWOptions = field(default_factory=MAWOptions)


@dataclass(frozen=True)
class TrainCommand:
    """Fine-tune one variant and save it as a folder that SentenceTransformer loads.

    The same command goes on with a training that was stopped, to the same weights. On several GPUs or machines:
    torchrun --nproc-per-node GPUS -m maw train ...
    """

    variant: str
    """Such as maw-lora or dense-full."""
    output: Path
    """The model's folder."""
    dataset: Dataset = None
    """pydocs (built in, the default), msmarco, ir:ID (ir_datasets: BEIR, LoTTE, ...), beir:FOLDER or msmarco:FOLDER."""
    msmarco: MSMARCO = False
    """The same as --dataset msmarco."""
    model: str = "packaged"
    """packaged (all-MiniLM-L6-v2), a model folder, or a hub name."""
    seed: int = 0
    device: str = "auto"
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
    """What orders a run file: its ranks, or its scores (equal ones by descending id)."""
    measures: str | None = None
    """Names with commas, as ir-measures spells them; default nDCG@10,MRR@10,R@100,R@1000,AP."""
    relevant_grade: int | None = None
    """The grade from which on a document is relevant to the default measures other than nDCG (TREC DL passages: 2)."""
    per_query: Path | None = None
    """Write the values of every query there, a table separated by tabs."""
    drop_own: bool = False
    """Leave out of every ranking the document with the query's own id (ArguAna: always)."""
    max_length: int | None = None
    """Tokens a text is cut to; default: the model's own limit."""
    device: str = "auto"


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
    json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print everything as JSON instead of the tables."""
    max_length: int | None = None
    """Tokens a text is cut to; default: the model's own limit, at most 512."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


Command = (
    Annotated[BenchmarkCommand, tyro.conf.subcommand("benchmark")]
    | Annotated[TrainCommand, tyro.conf.subcommand("train")]
    | Annotated[EvaluateCommand, tyro.conf.subcommand("evaluate")]
    | Annotated[EncodeCommand, tyro.conf.subcommand("encode")]
    | Annotated[SearchCommand, tyro.conf.subcommand("search")]
    | Annotated[ReportCommand, tyro.conf.subcommand("report")]
    | Annotated[InspectCommand, tyro.conf.subcommand("inspect")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the return value is the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        from maw import __version__

        print(__version__)
        return 0
    if (screen := help_for(given)) is not None:
        print(screen, end="", file=sys.stdout if given else sys.stderr)
        return 0 if given else 2
    command = tyro.cli(
        Command,
        prog="maw",
        description="Multi-Attention-Weight attention for text encoders: train, benchmark, report, inspect.",
        args=["--help" if word == "--help-all" else word for word in given],
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from maw import commands

    try:
        return commands.execute(command, ["maw", *given])
    except MAWError as error:
        print(f"maw: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"maw: cannot read or write {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("maw: interrupted; what was finished is kept, the same command goes on", file=sys.stderr)
        return 130
