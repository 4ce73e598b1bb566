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

from beside import beside_a_frozen_encoder, controls_with_lora
from choosing import (
    CONTROLS,
    FIFTH,
    FOURTH,
    MAW,
    SECOND,
    SEEDS,
    SETS,
    THIRD,
    TUNING_SEED,
    Round,
    Unfinished,
    chosen,
    dev,
    final_default,
    selecting,
    working,
)
from confirmation import confirmation
from data import POOL
from markdown import comparisons, table
from plan import LEARNING_RATES, OPTIONS_ON
from rows import Row, Scores, read_all, write
from runs import POOL_SPLITS, SELECTION, Cell, Runs, on_the_pool, splits, together

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


class Default(NamedTuple):
    """A default of the study, the phase of its runs, the option that MAW's runs have there, and their twins' phase."""

    name: str
    phase: str
    option: str
    twins: str


class Study(Runs):
    """The tables, part by part."""

    def __init__(self, rows: Sequence[Row], scores: Scores) -> None:
        super().__init__(rows, scores)
        self.chosen = {stage.tries: self._choice(stage) for stage in (SECOND, THIRD, FOURTH, FIFTH)}

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
        parts += [*confirmation(self)]
        parts += ["## Controls with LoRA, beside the candidates' best", controls_with_lora(self)]
        parts += ["## The candidates", self._recipes(FIFTH), *self._together(FIFTH)]
        parts += ["## The finalists", self._recipes(FOURTH), *self._together(FOURTH)]
        parts += ["## The third round's recipes", self._recipes(THIRD)]
        parts += ["## The second round's recipes", self._recipes(SECOND), *self._passed_over()]
        parts += ["## Never trained before", self._scratch(), "## Options", self._options()]
        parts += ["## Beside a frozen encoder", beside_a_frozen_encoder(self)]
        return "\n\n".join(parts) + "\n"

    def _stages(self) -> list[Default]:
        """The defaults that the study had, the last one first."""
        defaults = {
            option: Default(
                f"the default that the {name} round chose, {option}", stage.everywhere, option, stage.everywhere_twins
            )
            for name, stage in (("second", SECOND), ("third", THIRD), ("fourth", FOURTH), ("last", FIFTH))
            if (option := self.chosen[stage.tries]) and self.pick(phase=stage.everywhere, option=option)
            if stage is not FIFTH or option == self.default
        }
        return [*reversed(defaults.values()), Default("the default as the study began", "main", "", "main")]

    @property
    def default(self) -> str | None:
        """The default in the end."""
        try:
            return final_default(self.rows)
        except Unfinished:
            return None

    def _choice(self, stage: Round) -> str | None:
        """The recipe that a round chose; None where it is not finished."""
        try:
            return chosen(self.rows, stage)
        except Unfinished:
            return None

    def _of(self, stage: Default, train: str, variant: str) -> list[Row]:
        """A variant's rows. Twins and controls are those of every default of the phase."""
        own = {"option": stage.option} if variant in MAW else {}
        phase = stage.twins if variant.startswith("dense") else stage.phase
        return self.pick(phase=phase, train=train, variant=variant, **own)

    # The search for the twins

    def _tuning(self) -> str:
        lines = []
        for train in SETS:
            for tuning, rates in LEARNING_RATES.items():
                rows = self.pick(phase="tuning", train=train, variant=f"dense-{tuning}", seed=TUNING_SEED)
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

    def _variants(self, stage: Default) -> str:
        lines = []
        for train in SETS:
            total = f"{self.untuned['parameters']['total_parameters']:,}"
            lines.append([train, "untuned", f"{self.mean(self.untuned, train):.4f}", "", "", total])
            for variant in ("dense-full", "maw-full", "dense-lora", "maw-lora", *CONTROLS):
                rows = self._of(stage, train, variant)
                if rows:
                    values = [self.mean(row, train) for row in rows]
                    spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
                    each = " ".join(f"{value:.4f}"[1:] for value in values)
                    trained = f"{rows[0]['parameters']['trainable_parameters']:,}"
                    lines.append([train, variant, self.marked(rows, train), spread, each, trained])
        heads = ["training set", "variant", "nDCG@10", "deviation of seeds", "seeds", "trained parameters"]
        note = "On the test split of the training set's domain; `mixed` is the mean over four domains."
        return f"{note}\n\n{table(heads, lines)}"

    def _differences(self, stage: Default, pairs: Callable[..., Any], variants: Sequence[str]) -> str:
        found = []
        for train, variant in itertools.product(SETS, variants):
            rows, others = pairs(stage, train, variant)
            if rows and others:
                found.append((train, self.compared(rows, others, splits(train), rows[0]["run"]["variant"])))
        return comparisons(found)

    def _twins(self, stage: Default, train: str, variant: str) -> tuple[list[Row], list[Row]]:
        twin = "dense-lora" if variant.endswith("lora") else "dense-full"
        return tuple(self._of(stage, train, name) for name in (variant, twin))

    def _controls(self, stage: Default, train: str, control: str) -> tuple[list[Row], list[Row]]:
        return tuple(self._of(stage, train, name) for name in ("maw-full", control))

    def _out_of_domain(self, stage: Default) -> str:
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
                found += on_the_pool(self, Cell(train, rows, twins))
        if not found:
            return "Not measured."
        means_of_splits = table(["training set", "variant", "seeds", *POOL_SPLITS], lines)
        return f"{means_of_splits}\n\n{comparisons(found)}"

    def _measured_there(self, stage: Default, train: str, variant: str) -> list[Row]:
        return [row for row in self._of(stage, train, variant) if f"{POOL}/dev" in row["means"]]

    def _selections(self, stage: Default, variants: Sequence[str] = (*MAW, "random", "literal")) -> str:
        lines = []
        for train, variant in itertools.product(SETS, variants):
            rows = self._of(stage, train, variant)
            if rows:
                lines.append([train, variant, *self.selection(rows, train)])
        return table(["training set", "variant", *SELECTION], lines)

    # Recipes and options

    def _recipes(self, stage: Round) -> str:
        lines, found = [], []
        for train, variant in stage.on:
            twins = self.pick(phase=stage.twins, train=train, variant=variant.replace("maw", "dense"))
            begun = self.pick(phase="main", train=train, variant=variant) if stage is SECOND else []
            tried = {
                option: self.pick(phase=stage.tries, train=train, variant=variant, option=option)
                for option in stage.recipes
            }
            for option, rows in {"as the study began": begun, **tried}.items():
                if rows:
                    lines.append([train, variant, option, f"{statistics.mean(map(dev, rows)):.4f}"])
                    lines[-1] += [self.marked(rows, train), *self.selection(rows, train)]
                    found.append((train, self.compared(rows, twins, splits(train), f"{variant}, {option}")))
        if not lines:
            return "Not yet run."
        choice = self.default if stage is FIFTH else self.chosen[stage.tries]
        otherwise = "that of the round before" if stage is FIFTH else "the best of all"
        named = [
            ", ".join(names) or "none"
            for names in (selecting(self.rows, stage), working(self.rows, stage) if choice else [])
        ]
        note = (
            "Recipes whose selection works on dev (half of the depths alive in every run; on average over seeds .01 "
            f"nat in the weights and a gap under .001): {named[0]}. Of these at most .003 below the twin on dev: "
            f"{named[1]}. The best of them on dev is the default; if there is none, {otherwise}: {choice or '-'}."
        )
        heads = ["training set", "variant", "recipe", "dev", "test", *SELECTION]
        return f"{note}\n\n{table(heads, lines)}\n\n{comparisons(found)}"

    def _together(self, stage: Round) -> list[str]:
        """Each recipe against its twins over all settings."""
        cells = {
            option: [
                Cell(
                    train,
                    self.pick(phase=stage.tries, train=train, variant=variant, option=option),
                    self.pick(phase=stage.twins, train=train, variant=variant.replace("maw", "dense")),
                )
                for train, variant in stage.on
            ]
            for option in stage.recipes
        }
        return together(self, cells, SEEDS)

    def _passed_over(self) -> list[str]:
        """Recipes that were run as a default before a rule or another recipe took their place."""
        run = {row["run"]["option"] for row in self.pick(phase="default") if row["run"]["variant"] in MAW}
        stages = [Default(name, "default", name, "default") for name in sorted(run - {self.chosen[SECOND.tries]})]
        if not stages:
            return []
        parts = ["### Recipes that were run as a default and passed over"]
        for stage in stages:
            parts += [f"`{stage.name}`:", self._differences(stage, self._twins, MAW), self._selections(stage, MAW)]
        return parts

    def _scratch(self) -> str:
        rows = collections.defaultdict(list)
        for row in self.pick(phase="scratch"):
            run = row["run"]
            seed = run["seed"] if run["seed"] == TUNING_SEED else -1
            rows[run["learning_rate"], run["variant"], run["option"], seed].append(row)
        lines, found = [], []
        for (rate, variant, option, seed), own in sorted(rows.items()):
            values = [self.mean(row, "mixed") for row in own]
            each = " ".join(f"{value:.4f}"[1:] for value in values)
            where = "search" if seed == TUNING_SEED else option or "-"
            told = [
                f"{rate:g}",
                variant,
                where,
                f"{statistics.mean(map(dev, own)):.4f}",
                f"{statistics.mean(values):.4f}",
            ]
            lines.append([*told, each, *self.selection(own, "mixed")[2:]])
            twins = rows.get((rate, "dense-full", "", -1), [])
            if own is not twins and twins and seed != TUNING_SEED:
                name = f"{variant}, {option}, rate {rate:g}"
                found.append(("mixed", self.compared(own, twins, splits("mixed"), name)))
        heads = ["learning rate", "variant", "MAW in", "dev", "test", "seeds", *SELECTION[2:]]
        return f"{table(heads, lines)}\n\n{comparisons(found)}"

    def _options(self) -> str:
        lines, found = [], []
        for train in ("nfcorpus", *OPTIONS_ON):
            rows = collections.defaultdict(list)
            for row in self.pick(phase="options", train=train):
                rows[row["run"]["option"]].append(row)
            twins = rows.get("", [])
            for option, own in rows.items():
                name = "the third round's choice" if option == "the default" else option
                lines.append([train, name or "dense-full", len(own), f"{statistics.mean(map(dev, own)):.4f}"])
                lines[-1] += [self.marked(own, train), *self.selection(own, train)]
                if option and twins:
                    found.append((train, self.compared(own, twins, splits(train), name)))
        every = table(["training set", "option", "seeds", "dev", "test", *SELECTION], lines)
        return f"{every}\n\n{comparisons(found)}"


if __name__ == "__main__":
    main()
