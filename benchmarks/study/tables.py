"""The study's tables, from its finished runs.

    python benchmarks/study/tables.py --runs docs/results/study FOLDER/runs --output docs/results/study

writes `tables.md`; `runs.json`, a line a run with its settings, means, selection statistics and the checksum of its
scores; and `per_query.parquet`, the nDCG@10 of every query of every run. `--runs` takes folders of runs, and such
outputs.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from data import POOL
from markdown import comparisons, table
from plan import (
    CONTROLS,
    FOURTH,
    LEARNING_RATES,
    MAW,
    OPTIONS_ON,
    SECOND,
    SEEDS,
    SETS,
    THIRD,
    TUNING_SEED,
    Round,
    Unfinished,
    chosen,
    dev,
    domains_of,
    selecting,
    working,
)
from rows import Row, Scores, read_all, write

from maw.benchmark.comparison import Comparison, compare

POOL_SPLITS = ("dl19", "dl20", "dev")
PREFACE = (
    "Differences are means over queries: on `mixed` over those of all four domains together, of which tldr-commands "
    "has more than half, where the tables of nDCG@10 give each domain the same weight. Each table of differences is a "
    "family of its own for Holm's correction, and *would find* is the true difference that its first step finds with "
    "power .8. A row marked * compares runs of different machines."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    rows, scores = read_all(asked.runs)
    write(asked.output, rows, scores)
    (asked.output / "tables.md").write_text(Study(rows, scores).tables(), encoding="utf-8")


class Stage(NamedTuple):
    """A default of the study, the phase of its runs, and the option that MAW's runs have there."""

    name: str
    phase: str
    option: str


class Study:
    """The runs, by what they are."""

    def __init__(self, rows: Sequence[Row], scores: Scores) -> None:
        self.rows, self.scores = rows, scores
        self.chosen = {stage.tries: self._choice(stage) for stage in (SECOND, THIRD, FOURTH)}
        self.untuned = next(row for row in rows if row["run"]["variant"] == "untuned")

    def tables(self) -> str:
        """The whole page."""
        parts = [
            "# The study's tables",
            "Made by `benchmarks/study/tables.py` from `runs.json` and `per_query.parquet`.",
            PREFACE,
            "## Tuning the dense twins",
            self._tuning(),
        ]
        for stage in self._stages():
            parts += [f"## With {stage.name}: every variant", self._variants(stage)]
            parts += ["### MAW against its dense twins", self._differences(stage, self._twins, MAW)]
            parts += ["### Controls against their dense twin", self._differences(stage, self._twins, CONTROLS)]
            parts += ["### MAW against the controls", self._differences(stage, self._controls, CONTROLS)]
            parts += ["### What the selection does", self._selections(stage)]
            parts += ["### Out of domain: MS MARCO's pool", self._out_of_domain(stage)]
        parts += ["## The finalists", self._recipes(FOURTH), *self._together(FOURTH)]
        parts += ["## The third round's recipes", self._recipes(THIRD)]
        parts += ["## The second round's recipes", self._recipes(SECOND), *self._passed_over()]
        parts += ["## The options that were best on dev", self._best()]
        parts += ["## Never trained before", self._scratch(), "## Options", self._options()]
        return "\n\n".join(parts) + "\n"

    def _stages(self) -> list[Stage]:
        """The defaults that the study had, the last one first."""
        chosen = {
            option: Stage(f"the default that the {name} round chose, {option}", stage.everywhere, option)
            for name, stage in (("second", SECOND), ("third", THIRD), ("last", FOURTH))
            if (option := self.chosen[stage.tries]) and self._pick(phase=stage.everywhere, option=option)
        }
        return [*reversed(chosen.values()), Stage("the default as the study began", "main", "")]

    def _choice(self, stage: Round) -> str | None:
        """The recipe that a round chose; None where it is not finished."""
        try:
            return chosen(self.rows, stage)
        except Unfinished:
            return None

    # Runs and their scores

    def _pick(self, **wanted: Any) -> list[Row]:
        """Rows whose run has these values, by seed."""
        found = [row for row in self.rows if all(row["run"][name] == value for name, value in wanted.items())]
        return sorted(found, key=lambda row: row["run"]["seed"])

    def _of(self, stage: Stage, train: str, variant: str) -> list[Row]:
        """A variant's rows. Twins and controls are those of every default of the phase."""
        own = {"option": stage.option} if variant in MAW else {}
        return self._pick(phase=stage.phase, train=train, variant=variant, **own)

    def _mean(self, row: Row, train: str, kind: str = "") -> float:
        """The mean over the training set's domains of the mean over their test queries."""
        return statistics.mean(row["means"][f"{name}/test{kind}"] for name in domains_of(train))

    def _marked(self, rows: Sequence[Row], train: str) -> str:
        """The mean over seeds, marked where it is below the untuned encoder."""
        mean = statistics.mean(self._mean(row, train) for row in rows)
        return f"{mean:.4f}{' (below untuned)' if mean < self._mean(self.untuned, train) else ''}"

    def _compared(self, rows: Sequence[Row], others: Sequence[Row], splits: Sequence[str], name: str) -> Comparison:
        """Pairs by seed; the queries of all splits together."""
        pairs = [{row["run"]["seed"]: row for row in some} for some in (rows, others)]
        if any(len(one) != len(some) for one, some in zip(pairs, (rows, others), strict=True)):
            raise SystemExit(f"{name}: a seed has two runs")
        seeds = sorted(pairs[0].keys() & pairs[1].keys())
        both = [[one[seed] for seed in seeds] for one in pairs]
        for split in splits:
            if len({row["queries"][split] for some in both for row in some}) != 1:
                raise SystemExit(f"{name}: runs have other queries in {split}")
        first, second = (self._scores_of(some, splits) for some in both)
        mark = " *" if len({row["environment"]["device"] for some in both for row in some}) > 1 else ""
        baseline = others[0]["run"]["variant"]
        return compare(name + mark, baseline, first, second, "nDCG@10", split=" ".join(splits))

    def _scores_of(self, rows: Sequence[Row], splits: Sequence[str]) -> np.ndarray:
        """(runs, queries of all splits)."""
        return np.stack([np.concatenate([self.scores[row["name"]][split] for split in splits]) for row in rows])

    # The search for the twins

    def _tuning(self) -> str:
        lines = []
        for train in SETS:
            for tuning, rates in LEARNING_RATES.items():
                rows = self._pick(phase="tuning", train=train, variant=f"dense-{tuning}", seed=TUNING_SEED)
                best = max(rows, key=dev)
                for rate in rates:
                    cells = []
                    for row in sorted(rows, key=lambda row: (row["run"]["epochs"], row["run"]["batch_size"])):
                        if row["run"]["learning_rate"] == rate:
                            mark = "**" if row is best else ""
                            cells.append(f"{mark}{dev(row):.4f}{mark}")
                    lines.append([train, tuning, f"{rate:g}", *cells])
        counts = ["1 epoch, 64", "1 epoch, 128", "3 epochs, 64", "3 epochs, 128"]
        note = (
            "nDCG@10 on dev, mean over the set's domains; columns are epochs and batch (mixed: 1 and 2 epochs). The "
            "best of each block is the setting of every twin and variant from here on."
        )
        return f"{note}\n\n{table(['training set', 'twin', 'learning rate', *counts], lines)}"

    # Every variant of one phase

    def _variants(self, stage: Stage) -> str:
        lines = []
        for train in SETS:
            total = f"{self.untuned['parameters']['total_parameters']:,}"
            lines.append([train, "untuned", f"{self._mean(self.untuned, train):.4f}", "", "", total])
            for variant in ("dense-full", "maw-full", "dense-lora", "maw-lora", *CONTROLS):
                rows = self._of(stage, train, variant)
                if rows:
                    values = [self._mean(row, train) for row in rows]
                    spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
                    each = " ".join(f"{value:.4f}"[1:] for value in values)
                    trained = f"{rows[0]['parameters']['trainable_parameters']:,}"
                    lines.append([train, variant, self._marked(rows, train), spread, each, trained])
        heads = ["training set", "variant", "nDCG@10", "deviation of seeds", "seeds", "trained parameters"]
        note = "On the test split of the training set's domain; `mixed` is the mean over four domains."
        return f"{note}\n\n{table(heads, lines)}"

    def _differences(self, stage: Stage, pairs: Callable[..., Any], variants: Sequence[str]) -> str:
        found = []
        for train, variant in itertools.product(SETS, variants):
            rows, others = pairs(stage, train, variant)
            if rows and others:
                found.append((train, self._compared(rows, others, _splits(train), rows[0]["run"]["variant"])))
        return comparisons(found)

    def _twins(self, stage: Stage, train: str, variant: str) -> tuple[list[Row], list[Row]]:
        twin = "dense-lora" if variant.endswith("lora") else "dense-full"
        return tuple(self._of(stage, train, name) for name in (variant, twin))

    def _controls(self, stage: Stage, train: str, control: str) -> tuple[list[Row], list[Row]]:
        return tuple(self._of(stage, train, name) for name in ("maw-full", control))

    def _out_of_domain(self, stage: Stage) -> str:
        lines, found = [], []
        means = [self.untuned["means"][f"{POOL}/{split}"] for split in POOL_SPLITS]
        lines.append(["-", "untuned", 1, *(f"{mean:.4f}" for mean in means)])
        for train, variant in itertools.product(SETS, ("dense-full", "maw-full", "dense-lora", "maw-lora", *CONTROLS)):
            rows = self._measured_there(stage, train, variant)
            if rows:
                cells = []
                for split, base in zip(POOL_SPLITS, means, strict=True):
                    mean = statistics.mean(row["means"][f"{POOL}/{split}"] for row in rows)
                    cells.append(f"{mean:.4f}{' (below untuned)' if mean < base else ''}")
                lines.append([train, variant, len(rows), *cells])
        for train, variant in itertools.product(SETS, MAW):
            twin = variant.replace("maw", "dense")
            rows, twins = (self._measured_there(stage, train, name) for name in (variant, twin))
            if rows and twins:
                for splits in (("dl19", "dl20"), ("dev",)):
                    where = [f"{POOL}/{split}" for split in splits]
                    found.append((train, self._compared(rows, twins, where, f"{variant} on {' and '.join(splits)}")))
        if not found:
            return "Not measured."
        means_of_splits = table(["training set", "variant", "seeds", *POOL_SPLITS], lines)
        return f"{means_of_splits}\n\n{comparisons(found)}"

    def _measured_there(self, stage: Stage, train: str, variant: str) -> list[Row]:
        return [row for row in self._of(stage, train, variant) if f"{POOL}/dev" in row["means"]]

    def _selections(self, stage: Stage, variants: Sequence[str] = (*MAW, "random", "literal")) -> str:
        lines = []
        for train, variant in itertools.product(SETS, variants):
            rows = self._of(stage, train, variant)
            if rows:
                lines.append([train, variant, *self._selection(rows, train)])
        return table(["training set", "variant", *SELECTION], lines)

    def _selection(self, rows: Sequence[Row], train: str) -> list[str]:
        layers = [layer for row in rows for own in row["selection"].values() for layer in own["layers"]]
        if not layers:  # no selection, or one that is not a text's
            return ["-"] * len(SELECTION)
        gaps = [gap for row in rows for gap in self._gaps(row, train)]
        fused = statistics.mean(self._mean(row, train, "/fused") - self._mean(row, train) for row in rows)
        cells = [f"{statistics.mean(gaps):+.4f} ({min(gaps):+.4f} to {max(gaps):+.4f})", f"{fused:+.4f}"]
        for name, of in STATISTICS:
            there = [layer[name] for layer in layers if name in layer]
            cells.append(f"{of(there):.4f}" if there else "-")
        return cells

    def _gaps(self, row: Row, train: str) -> list[float]:
        """Noise-free less sampled, the mean over domains, for every draw."""
        own = [row["selection"][name] for name in domains_of(train)]
        if all("gaps" in one for one in own):
            return [statistics.mean(draws) for draws in zip(*(one["gaps"]["test"] for one in own), strict=True)]
        return [self._mean(row, train) - self._mean(row, train, "/sampled")]

    # Recipes and options

    def _recipes(self, stage: Round) -> str:
        lines, found = [], []
        for train, variant in stage.on:
            twins = self._pick(phase=stage.twins, train=train, variant=variant.replace("maw", "dense"))
            begun = self._pick(phase="main", train=train, variant=variant) if stage is SECOND else []
            tried = {
                option: self._pick(phase=stage.tries, train=train, variant=variant, option=option)
                for option in stage.recipes
            }
            for option, rows in {"as the study began": begun, **tried}.items():
                if rows:
                    lines.append([train, variant, option, f"{statistics.mean(map(dev, rows)):.4f}"])
                    lines[-1] += [self._marked(rows, train), *self._selection(rows, train)]
                    found.append((train, self._compared(rows, twins, _splits(train), f"{variant}, {option}")))
        if not lines:
            return "Not yet run."
        choice = self.chosen[stage.tries]
        named = [
            ", ".join(names) or "none"
            for names in (selecting(self.rows, stage), working(self.rows, stage) if choice else [])
        ]
        note = (
            "Recipes whose selection works on dev (half of the depths alive in every run; on average over seeds .01 "
            f"nat in the weights and a gap under .001): {named[0]}. Of these at most .003 below the twin on dev: "
            f"{named[1]}. The best of them on dev is the default; if there is none, the best of all: {choice or '-'}."
        )
        heads = ["training set", "variant", "recipe", "dev", "test", *SELECTION]
        return f"{note}\n\n{table(heads, lines)}\n\n{comparisons(found)}"

    def _together(self, stage: Round) -> list[str]:
        """Each recipe against its twins over all settings; a query's value is its mean over those that ask it."""
        found, means = [], []
        for option in stage.recipes:
            pairs = [
                [
                    self._pick(phase=stage.tries, train=train, variant=variant, option=option),
                    self._pick(phase=stage.twins, train=train, variant=variant.replace("maw", "dense")),
                ]
                for train, variant in stage.on
            ]
            if any([row["run"]["seed"] for row in rows] != list(SEEDS) for pair in pairs for rows in pair):
                continue
            own: list[dict[str, list[np.ndarray]]] = [{}, {}]
            for (train, _), pair in zip(stage.on, pairs, strict=True):
                for kept, rows in zip(own, pair, strict=True):
                    for split in _splits(train):
                        kept.setdefault(split, []).append(self._scores_of(rows, [split]))
            first, second = (
                np.concatenate([np.mean(several, axis=0) for several in kept.values()], axis=1) for kept in own
            )
            found.append(("all", compare(option, "dense", first, second, "nDCG@10")))
            of_settings = [
                self._scores_of(pair[0], _splits(train)).mean() - self._scores_of(pair[1], _splits(train)).mean()
                for (train, _), pair in zip(stage.on, pairs, strict=True)
            ]
            means.append([option, f"{statistics.mean(of_settings):+.4f}"])
        if not found:
            return []
        note = (
            "Over all settings: a query's value is its mean over the four settings that ask it, and all queries count "
            "alike. Below, the mean over settings, each of which counts alike."
        )
        return [f"{note}\n\n{comparisons(found)}", table(["recipe", "mean of the settings' differences"], means)]

    def _passed_over(self) -> list[str]:
        """Recipes that were run as a default before a rule or another recipe took their place."""
        run = {row["run"]["option"] for row in self._pick(phase="default") if row["run"]["variant"] in MAW}
        stages = [Stage(name, "default", name) for name in sorted(run - {self.chosen[SECOND.tries]})]
        if not stages:
            return []
        parts = ["### Recipes that were run as a default and passed over"]
        for stage in stages:
            parts += [f"`{stage.name}`:", self._differences(stage, self._twins, MAW), self._selections(stage, MAW)]
        return parts

    def _best(self) -> str:
        lines, found = [], []
        for option in sorted({row["run"]["option"] for row in self._pick(phase="best")}):
            for train, variant in itertools.product(SETS, MAW):
                rows = self._pick(phase="best", train=train, variant=variant, option=option)
                twins = self._pick(phase=THIRD.everywhere, train=train, variant=variant.replace("maw", "dense"))
                if rows and twins:
                    lines.append([option, train, variant, self._marked(rows, train), self._marked(twins, train)])
                    lines[-1] += self._selection(rows, train)
                    found.append((train, self._compared(rows, twins, _splits(train), f"{variant}, {option}")))
        if not lines:
            return "Not yet run."
        heads = ["option", "training set", "variant", "nDCG@10", "dense twin", *SELECTION]
        return f"{table(heads, lines)}\n\n{comparisons(found)}"

    def _scratch(self) -> str:
        rows = collections.defaultdict(list)
        for row in self._pick(phase="scratch"):
            run = row["run"]
            seed = run["seed"] if run["seed"] == TUNING_SEED else -1
            rows[run["learning_rate"], run["variant"], run["option"], seed].append(row)
        lines, found = [], []
        for (rate, variant, option, seed), own in sorted(rows.items()):
            values = [self._mean(row, "mixed") for row in own]
            each = " ".join(f"{value:.4f}"[1:] for value in values)
            where = "search" if seed == TUNING_SEED else option or "-"
            told = [
                f"{rate:g}",
                variant,
                where,
                f"{statistics.mean(map(dev, own)):.4f}",
                f"{statistics.mean(values):.4f}",
            ]
            lines.append([*told, each, *self._selection(own, "mixed")[2:]])
            twins = rows.get((rate, "dense-full", "", -1), [])
            if own is not twins and twins and seed != TUNING_SEED:
                name = f"{variant}, {option}, rate {rate:g}"
                found.append(("mixed", self._compared(own, twins, _splits("mixed"), name)))
        heads = ["learning rate", "variant", "MAW in", "dev", "test", "seeds", *SELECTION[2:]]
        return f"{table(heads, lines)}\n\n{comparisons(found)}"

    def _options(self) -> str:
        lines, found = [], []
        for train in ("nfcorpus", *OPTIONS_ON):
            rows = collections.defaultdict(list)
            for row in self._pick(phase="options", train=train):
                rows[row["run"]["option"]].append(row)
            twins = rows.get("", [])
            for option, own in rows.items():
                name = "the third round's choice" if option == "the default" else option
                lines.append([train, name or "dense-full", len(own), f"{statistics.mean(map(dev, own)):.4f}"])
                lines[-1] += [self._marked(own, train), *self._selection(own, train)]
                if option and twins:
                    found.append((train, self._compared(own, twins, _splits(train), name)))
        every = table(["training set", "option", "seeds", "dev", "test", *SELECTION], lines)
        return f"{every}\n\n{comparisons(found)}"


STATISTICS: tuple[tuple[str, Callable[[Sequence[float]], float]], ...] = (
    ("smallest mean weight * D", min),
    ("depths alive by policy", min),
    ("policy entropy / log D", statistics.mean),
    ("information of policy, nat", statistics.mean),
    ("information of weights, nat", statistics.mean),
    ("information of weights among queries, nat", statistics.mean),
    ("information of weights among documents, nat", statistics.mean),
)
SELECTION = (
    *("gap", "fused", "smallest weight x D", "alive", "policy entropy", "information, policy"),
    *("information, weights", "among queries", "among documents"),
)


def _splits(train: str) -> list[str]:
    return [f"{name}/test" for name in domains_of(train)]


if __name__ == "__main__":
    main()
