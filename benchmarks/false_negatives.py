"""What does it change that documents judged relevant to a query are never its negatives?

    python benchmarks/false_negatives.py --data FOLDER --output FOLDER [--model FOLDER] [--workers 8] [--minutes 7.5]
    python benchmarks/false_negatives.py --output FOLDER --table

NFCorpus, whose queries have 43 relevant documents on average; `dense-full` and `maw-full` (the study's last recipe),
learning rate 2e-4, seeds 0 to 4. Each is trained twice:

    against-judgements    every other document of the batch is a negative, judged relevant or not, in the batches that
                          the study had
    masked                what is judged relevant to a query is no negative of it, in the batches made for that

and that in two settings:

    study        five positives a query, batches of 128, 3 epochs, as the study trained: 11,401 pairs, 270 steps a run
    all-pairs    every pair, batches of 64, 1 epoch: 110,388 pairs, 1,725 steps a run

A run is named SETTING/VARIANT/CONDITION/SEED; `--runs` names those that are wanted, by their beginnings or by patterns
(`--runs study all-pairs/*/*/[012]`). All is the default, the study's setting first, then all pairs seed by seed. Each
setting has 20 runs: 5,400 steps of 128 pairs, 34,500 of 64. On one H200 the study's trainings took about 34 steps of
128 or 55 of 64 a second, all processes together; so the study's setting wants about 3 minutes, and a seed of all pairs
(four runs) about 2. In eight minutes on one GPU that eight processes share by MPS, all of the study's setting, then of
all pairs as many seeds as there is time for; the same command goes on with the others:

    nvidia-cuda-mps-control -d; PYTHONPATH=src python benchmarks/false_negatives.py --data DATA --output OUT \\
        --workers 8 --minutes 7.5

`--data` holds the folder `nfcorpus` in BEIR's layout; nothing is fetched. Every run is written as it ends, as
`OUTPUT/runs/NAME.json` beside the scores of its queries, and has the number of relevant documents in the batches of
each epoch and of those that were negatives in the loss. The same command goes on with what is missing, and no run is
started that would probably end after `--minutes`. `--limit N` tries the script: N queries of each split, the documents
judged for them, one epoch, batches of 8. The table is printed at the end and by `--table` alone.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import os
import statistics
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "study"))

import data as study_data
import rows as study_rows
from choosing import SEEDS
from markdown import comparisons, table
from plan import Run
from recipes import LATER
from runs import splits

from maw.benchmark.comparison import Comparison, compare
from maw.io.atomic import write_json
from maw.retrieval.data.dataset import RetrievalDataset
from maw.retrieval.training.batches import Batches, TrainingTexts
from maw.retrieval.training.relevance import Relevance
from maw.retrieval.training.settings import TrainingSettings

TRAIN = "nfcorpus"
LEARNING_RATE = 2e-4
"""Best on dev for the dense twin in the study's search (docs/results/study.md)."""
RECIPE = "task-led, noise .0075; first layer"
SETTINGS: dict[str, dict[str, Any]] = {
    "study": {"epochs": 3, "batch_size": 128, "positives": 5},
    "all-pairs": {"epochs": 1, "batch_size": 64, "positives": None},
}
TRIED_BATCH = 8
CONDITIONS = ("against-judgements", "masked")
VARIANTS = ("dense-full", "maw-full")


@dataclass(frozen=True)
class Wanted:
    """One training."""

    setting: str
    variant: str
    condition: str
    seed: int
    tried: bool = False
    """Whether the script is only tried: one epoch of small batches."""

    @property
    def label(self) -> str:
        """How it is named in the command."""
        return f"{self.setting}/{self.variant}/{self.condition}/{self.seed}"

    @property
    def masked(self) -> bool:
        """Whether the loss leaves out what is relevant."""
        return self.condition == "masked"

    @property
    def positives(self) -> int | None:
        """At most so many a query."""
        return SETTINGS[self.setting]["positives"]

    @property
    def run(self) -> Run:
        """As the study knows it."""
        setting = SETTINGS[self.setting]
        epochs, batch_size = (1, TRIED_BATCH) if self.tried else (setting["epochs"], setting["batch_size"])
        return Run(
            *("negatives", TRAIN, self.variant, self.seed, LEARNING_RATE, epochs, batch_size),
            maw=LATER[RECIPE] if "maw" in self.variant else {},
            option=f"{self.setting}/{self.condition}",
        )


def planned(patterns: Sequence[str], *, tried: bool = False) -> list[Wanted]:
    """The runs that are wanted, setting by setting and seed by seed, so that pairs are complete early."""
    every = [
        Wanted(setting, variant, condition, seed, tried)
        for setting in SETTINGS
        for seed in SEEDS
        for variant in VARIANTS
        for condition in CONDITIONS
    ]
    chosen = [one for one in every if any(fnmatch.fnmatch(one.label, f"{pattern}*") for pattern in patterns)]
    if not chosen:
        raise SystemExit(f"no run begins with {' or '.join(patterns)}: they are named as {every[0].label}")
    return chosen


def relevant_candidates(data: RetrievalDataset, settings: TrainingSettings) -> dict[str, list[int]]:
    """Pairs of a query and a candidate relevant to it, but its row's own, epoch by epoch: in batches, in the loss."""
    texts = TrainingTexts(
        data.queries, data.documents, data.training_pairs(settings.positives_per_query, settings.seed)
    )
    relevance = Relevance(texts, data.judgements("train"))
    batches = Batches(
        texts, settings.batch_size, seed=settings.seed, relevance=relevance if settings.mask_relevant else None
    )
    ids = torch.from_numpy(relevance.ids)
    counts: dict[str, list[int]] = {"other documents": [], "in the batches": [], "negatives in the loss": []}
    for epoch in range(settings.epochs):
        batches.set_epoch(epoch)
        whole = list(batches.whole())
        found = sum(int(relevance.mask(ids[rows], ids[rows]).sum()) for rows in whole)
        counts["other documents"].append(sum(len(rows) * (len(rows) - 1) for rows in whole))
        counts["in the batches"].append(found)
        counts["negatives in the loss"].append(0 if settings.mask_relevant else found)
    return counts


def run_one(asked: argparse.Namespace, wanted: Wanted) -> str:
    """Train, measure and write one run in a process that does several; returns a line about it."""
    from training import do_run, quiet, training_settings

    quiet()
    start, run = time.time(), wanted.run
    path, part = asked.output / "runs" / f"{run.name}.json", asked.output / "parts"
    took = [json.loads(file.read_text())["took"] for file in (asked.output / "runs").glob("*.json")]
    if start + (max(took) if took else 0.0) > asked.until:
        return f"{wanted.label}: not begun, there is no time left for it"
    try:
        options = {"mask_relevant": wanted.masked, "positives": wanted.positives}
        there = argparse.Namespace(**{**vars(asked), "output": part})
        do_run(run, there, torch.device(asked.device), **options)
        counts = relevant_candidates(study_data.training_set(TRAIN, asked.data), training_settings(run, **options))
        result = json.loads((part / "runs" / path.name).read_text(encoding="utf-8"))
        result |= {"label": wanted.label, "relevant candidates": counts, "took": time.time() - start}
        (part / "runs" / f"{run.name}.npz").replace(path.with_suffix(".npz"))
        write_json(path, result)  # the last thing, so that a run that is there is whole
    except Exception:
        path.with_suffix(".failed").write_text(traceback.format_exc(), encoding="utf-8")
        return f"{wanted.label}: failed, see {path.with_suffix('.failed').name}"
    path.with_suffix(".failed").unlink(missing_ok=True)
    score, steps = result["means"][f"{TRAIN}/test"], result["outcome"]["steps"]
    false = ", ".join(f"{count:,}" for count in counts["negatives in the loss"])
    return (
        f"{wanted.label}: nDCG@10 {score:.4f} on test, false negatives an epoch {false}, {steps} steps, "
        f"{time.time() - start:.0f} s"
    )


# The table


def tables(folder: Path) -> str:
    """Means, spread, differences seed by seed, and comparisons of the runs that are done."""
    rows, scores = study_rows.read(folder / "runs")
    if not rows:
        return "No run is done yet."
    cells: dict[tuple[str, str, str], dict[int, study_rows.Row]] = {}
    for row in rows:
        setting, variant, condition, seed = row["label"].split("/")
        cells.setdefault((setting, variant, condition), {})[int(seed)] = row
    where = sorted({f"{row['environment']['device']}, commit {row['environment']['commit']}" for row in rows})
    note = "nDCG@10 on NFCorpus; spread is the standard deviation over seeds. Measured on " + "; ".join(where) + "."
    return "\n\n".join([note, _means(cells), _differences(cells), comparisons(_compared(cells, scores))])


Cells = dict[tuple[str, str, str], dict[int, study_rows.Row]]


def _means(cells: Cells) -> str:
    lines = []
    for (setting, variant, condition), own in sorted(cells.items()):
        counted = [
            f"{statistics.mean(count for row in own.values() for count in row['relevant candidates'][kind]):,.0f}"
            for kind in ("other documents", "in the batches", "negatives in the loss")
        ]
        dev = statistics.mean(row["means"][f"{TRAIN}/dev"] for row in own.values())
        mean, spread, each = _spread({seed: row["means"][f"{TRAIN}/test"] for seed, row in own.items()}, "")
        steps = " ".join(sorted({str(row["outcome"]["steps"]) for row in own.values()}))
        lines.append([setting, variant, condition, steps, *counted, f"{dev:.4f}", mean, spread, each])
    heads = ["setting", "variant", "trained", "steps", "other documents an epoch", "of them relevant"]
    return table([*heads, "false negatives in the loss", "dev", "test", "spread", "seed by seed"], lines)


def _differences(cells: Cells) -> str:
    """Masked less against the judgements, of the same seed."""
    lines = []
    for setting in SETTINGS:
        for variant in VARIANTS:
            with_, without = (cells.get((setting, variant, condition), {}) for condition in CONDITIONS[::-1])
            if both := sorted(with_.keys() & without.keys()):
                name = f"{TRAIN}/test"
                gained = {seed: with_[seed]["means"][name] - without[seed]["means"][name] for seed in both}
                lines.append([setting, variant, len(both), *_spread(gained, "+")])
    heads = ["setting", "variant", "seeds", "masked less against-judgements, test", "spread", "seed by seed"]
    return table(heads, lines)


def _spread(values: dict[int, float], sign: str) -> tuple[str, str, str]:
    """Mean, standard deviation and every value, by seed."""
    ordered = [value for _, value in sorted(values.items())]
    spread = f"{statistics.stdev(ordered):.4f}" if len(ordered) > 1 else "-"
    each = " ".join(f"{seed}: {value:{sign}.4f}" for seed, value in sorted(values.items()))
    return f"{statistics.mean(ordered):{sign}.4f}", spread, each


def _compared(cells: Cells, scores: study_rows.Scores) -> list[tuple[str, Comparison]]:
    pairs = [((variant, "masked"), (variant, CONDITIONS[0])) for variant in VARIANTS]
    pairs += [((VARIANTS[1], condition), (VARIANTS[0], condition)) for condition in CONDITIONS]
    compared: list[tuple[str, Comparison]] = []
    for setting in SETTINGS:
        for pair in pairs:
            first, second = (cells.get((setting, *cell), {}) for cell in pair)
            if seeds := sorted(first.keys() & second.keys()):
                values = [
                    [scores[cell[seed]["name"]][split] for seed in seeds]
                    for cell in (first, second)
                    for split in splits(TRAIN)
                ]
                names = [", ".join(cell) for cell in pair]
                compared.append((setting, compare(*names, values[0], values[1], "nDCG@10")))
    return compared


# The command


def limited(folder: Path, to: Path, limit: int) -> Path:
    """A folder as `--data`, with the first queries of every split and the documents judged for them."""
    whole = study_data.dataset(TRAIN, folder)
    qrels = {split: {query: judged[query] for query in list(judged)[:limit]} for split, judged in whole.qrels.items()}
    documents = {document for judged in qrels.values() for grades in judged.values() for document in grades}
    queries = {query for judged in qrels.values() for query in judged}
    (to / TRAIN / "qrels").mkdir(parents=True, exist_ok=True)
    for name, texts, ids in (("corpus", whole.documents, documents), ("queries", whole.queries, queries)):
        lines = [json.dumps({"_id": one, "text": texts[one]}) + "\n" for one in sorted(ids)]
        (to / TRAIN / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    for split, judged in qrels.items():
        lines = [f"{query}\t{document}\t{grade}\n" for query in judged for document, grade in judged[query].items()]
        (to / TRAIN / "qrels" / f"{split}.tsv").write_text("".join(["query-id\tcorpus-id\tscore\n", *lines]))
    return to


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder that holds the folder nfcorpus")
    parser.add_argument("--model", default="packaged")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--runs", nargs="+", default=["*"], help="beginnings of names, or patterns")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time")
    parser.add_argument("--minutes", type=float, default=1e6, help="start no run that would probably end later")
    parser.add_argument("--limit", type=int, help="so many queries of each split, to try the script")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--commit", help="what was checked out, where this is a copy without its repository")
    parser.add_argument("--table", action="store_true", help="only print the table of the runs that are done")
    asked = parser.parse_args()
    if asked.data is None and not asked.table:
        parser.error("--data is wanted: the folder that holds the folder nfcorpus")
    asked.until = time.time() + 60 * asked.minutes
    return asked


def main() -> None:
    asked = arguments()
    failed = False
    if not asked.table:
        for folder in (asked.output / "runs", asked.output / "parts" / "runs"):
            folder.mkdir(parents=True, exist_ok=True)
        if asked.limit is not None:
            asked.data = limited(asked.data, asked.output / f"limited to {asked.limit}", asked.limit)
        os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "true"}
        os.environ["RAYON_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // asked.workers))
        wanted = [
            (asked, one)
            for one in planned(asked.runs, tried=asked.limit is not None)
            if not (asked.output / "runs" / f"{one.run.name}.json").is_file()
        ]
        with multiprocessing.get_context("spawn").Pool(asked.workers) as pool:
            for line in pool.imap_unordered(_run_one, wanted):
                failed |= ": failed" in line
                print(line, flush=True)
    print(tables(asked.output))
    if failed:
        raise SystemExit("some runs failed: see their files; the same command tries them again")


def _run_one(what: tuple[argparse.Namespace, Wanted]) -> str:
    return run_one(*what)


if __name__ == "__main__":
    main()
