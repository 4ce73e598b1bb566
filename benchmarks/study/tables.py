"""The study's tables, from its finished runs.

    python benchmarks/study/tables.py --runs docs/results/study FOLDER/runs --output docs/results/study

writes `tables.md`; `runs.json`, a line a run with its settings, means, selection statistics and the checksum of its
scores; and `per_query.parquet`, the nDCG@10 of every query of every run. `--runs` takes folders of runs, and such
outputs.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from data import DOMAINS, POOL
from plan import CONTROLS, LEARNING_RATES, OPTIONS_ON, RECIPES, SETS, TUNING_SEED, dev, works

from maw.benchmark.comparison import Comparison, compare, correct

POOL_SPLITS = ("dl19", "dl20", "dev")
Scores = Mapping[str, Mapping[str, np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    rows, scores = [], {}
    for folder in asked.runs:
        some_rows, some_scores = read(folder)
        rows, scores = rows + some_rows, scores | some_scores
    asked.output.mkdir(parents=True, exist_ok=True)
    write_rows(asked.output / "runs.json", rows)
    write_scores(asked.output / "per_query.parquet", scores)
    (asked.output / "tables.md").write_text(Study(rows, scores).tables(), encoding="utf-8")


# Reading and writing


def read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, dict[str, np.ndarray]]]:
    """Rows of the runs and their scores by run and split; scores that do not have their checksum are an error."""
    if (folder / "runs.json").is_file():
        whole = json.loads((folder / "runs.json").read_text(encoding="utf-8"))
        rows = [{**row, "environment": whole["environments"][row["environment"]]} for row in whole["runs"]]
        scores: dict[str, dict[str, np.ndarray]] = collections.defaultdict(dict)
        for row in pq.read_table(folder / "per_query.parquet").to_pylist():
            scores[row["run"]][row["split"]] = np.array(row["nDCG@10"], dtype=np.float32)
    else:
        rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
        scores = {}
        for row in rows:
            with np.load(folder / f"{row['name']}.npz") as file:
                scores[row["name"]] = {name.replace("|", "/"): file[name] for name in file.files}
    for row in rows:
        digest = hashlib.sha256()
        for split, values in sorted(scores[row["name"]].items()):
            digest.update(split.encode() + values.tobytes())
        if digest.hexdigest() != row["scores"]:
            raise SystemExit(f"the scores of {row['name']} are not those of its checksum")
    return rows, dict(scores)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line a run, environments once."""
    environments: list[Any] = []
    lines = []
    for row in rows:
        if row["environment"] not in environments:
            environments.append(row["environment"])
        kept = {name: value for name, value in row.items() if name not in ("maw", "environment")}
        lines.append(json.dumps({**_rounded(kept), "environment": environments.index(row["environment"])}))
    whole = '{"environments": ' + json.dumps(environments) + ',\n"runs": [\n' + ",\n".join(lines) + "\n]}\n"
    path.write_text(whole, encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 8)
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value


def write_scores(path: Path, scores: Scores) -> None:
    parts = [(run, split, values) for run, splits in scores.items() for split, values in splits.items()]
    run, split, values = zip(*parts, strict=True)
    table = pa.table({"run": run, "split": split, "nDCG@10": pa.array(values, type=pa.list_(pa.float32()))})
    pq.write_table(table, path, compression="zstd", compression_level=19, use_dictionary=["run", "split"])


# Tables


class Study:
    """The runs, by what they are."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], scores: Scores) -> None:
        self.rows, self.scores = rows, scores
        self.untuned = next(row for row in rows if row["run"]["variant"] == "untuned")

    def tables(self) -> str:
        """The whole page."""
        parts = [
            "# The study's tables",
            "Made by `benchmarks/study/tables.py` from `runs.json` and `per_query.parquet`.",
        ]
        parts += ["## Tuning the dense twins", self._tuning(), "## Every variant", self._variants()]
        parts += ["## Against the dense twins", self._against_twins()]
        parts += ["## Out of domain: MS MARCO's pool", self._out_of_domain()]
        parts += ["## What the selection does", self._selections(), "## Recipes", self._recipes()]
        parts += ["## The default", self._chosen("default", "recipes")]
        parts += ["## The options that were best on dev", self._chosen("best")]
        parts += ["## Never trained before", self._scratch(), "## Options", self._options()]
        return "\n\n".join(parts) + "\n"

    def _pick(self, **wanted: Any) -> list[Mapping[str, Any]]:
        """Rows whose run has these values, by seed."""
        found = [row for row in self.rows if all(row["run"][name] == value for name, value in wanted.items())]
        return sorted(found, key=lambda row: row["run"]["seed"])

    def _mean(self, row: Mapping[str, Any], train: str, kind: str = "") -> float:
        """The mean over the training set's domains of the mean over their test queries."""
        own = DOMAINS if train == "mixed" else (train,)
        return statistics.mean(row["means"][f"{name}/test{kind}"] for name in own)

    def _queries(self, rows: Sequence[Mapping[str, Any]], splits: Sequence[str]) -> np.ndarray:
        """(seeds, queries), the queries of all splits together."""
        return np.stack([np.concatenate([self.scores[row["name"]][split] for split in splits]) for row in rows])

    def _compared(self, rows: Sequence[Any], twins: Sequence[Any], splits: Sequence[str], name: str) -> Comparison:
        seeds = sorted({row["run"]["seed"] for row in rows} & {row["run"]["seed"] for row in twins})
        first, second = (
            self._queries([row for row in some if row["run"]["seed"] in seeds], splits) for some in (rows, twins)
        )
        return compare(name, twins[0]["run"]["variant"], first, second, "nDCG@10", split=" ".join(splits))

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
        heads = [
            "training set",
            "twin",
            "learning rate",
            "1 epoch, 64",
            "1 epoch, 128",
            "3 epochs, 64",
            "3 epochs, 128",
        ]
        note = (
            "nDCG@10 on dev, mean over the set's domains; columns are epochs and batch (mixed: 1 and 2 epochs). The "
            "best of each block is the setting of every twin and variant from here on."
        )
        return f"{note}\n\n{_table(heads, lines)}"

    def _variants(self) -> str:
        lines = []
        for train in SETS:
            base = self._mean(self.untuned, train)
            lines.append(
                [train, "untuned", f"{base:.4f}", "", "", f"{self.untuned['parameters']['total_parameters']:,}"]
            )
            for variant in ("dense-full", "maw-full", "dense-lora", "maw-lora", *CONTROLS):
                rows = self._pick(phase="main", train=train, variant=variant)
                if not rows:
                    continue
                values = [self._mean(row, train) for row in rows]
                mark = " (below untuned)" if statistics.mean(values) < base else ""
                spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
                mean = f"{statistics.mean(values):.4f}{mark}"
                each = " ".join(f"{value:.4f}"[1:] for value in values)
                lines.append([train, variant, mean, spread, each, f"{rows[0]['parameters']['trainable_parameters']:,}"])
        heads = ["training set", "variant", "nDCG@10", "deviation of seeds", "seeds", "trained parameters"]
        note = "On the test split of the training set's domain; `mixed` is the mean over four domains."
        return f"{note}\n\n{_table(heads, lines)}"

    def _against_twins(self) -> str:
        found = []
        for train in SETS:
            splits = [f"{name}/test" for name in (DOMAINS if train == "mixed" else (train,))]
            for variant in ("maw-full", "maw-lora", *CONTROLS):
                twin = "dense-lora" if variant.endswith("lora") else "dense-full"
                rows = self._pick(phase="main", train=train, variant=variant)
                if rows:
                    twins = self._pick(phase="main", train=train, variant=twin)
                    found.append((train, self._compared(rows, twins, splits, variant)))
        note = (
            "Differences, here and below, are means over queries: on `mixed` over those of all four domains together, "
            "of which tldr-commands has more than half, where the tables of nDCG@10 give each domain the same weight."
        )
        return f"{note}\n\n{_comparisons(found)}"

    def _out_of_domain(self) -> str:
        lines = []
        for train in ("", *SETS):
            names = ("untuned",) if not train else ("dense-full", "maw-full", "dense-lora", "maw-lora", *CONTROLS)
            for variant in names:
                rows = self._pick(phase="main", train=train, variant=variant)
                if rows:
                    means = [statistics.mean(row["means"][f"{POOL}/{split}"] for row in rows) for split in POOL_SPLITS]
                    lines.append([train or "-", variant, len(rows), *(f"{mean:.4f}" for mean in means)])
        return _table(["training set", "variant", "seeds", *POOL_SPLITS], lines)

    def _selections(self) -> str:
        lines = []
        for train in SETS:
            for variant in ("maw-full", "maw-lora", "random", "literal"):
                rows = self._pick(phase="main", train=train, variant=variant)
                if rows:
                    lines.append([train, variant, *self._selection(rows, train)])
        return _table(["training set", "variant", *SELECTION], lines)

    def _selection(self, rows: Sequence[Mapping[str, Any]], train: str) -> list[str]:
        layers = [layer for row in rows for own in row["selection"].values() for layer in own["layers"]]
        if not layers:  # no selection, or one that is not a text's
            return ["-"] * len(SELECTION)
        gap = statistics.mean(self._mean(row, train) - self._mean(row, train, "/sampled") for row in rows)
        fused = statistics.mean(self._mean(row, train, "/fused") - self._mean(row, train) for row in rows)
        cells = [f"{gap:+.4f}", f"{fused:+.4f}"]
        for name, of in (
            ("smallest mean weight * D", min),
            ("depths alive by policy", min),
            ("policy entropy / log D", statistics.mean),
            ("information of policy, nat", statistics.mean),
            ("information of weights, nat", statistics.mean),
        ):
            cells.append(f"{of(layer[name] for layer in layers):.4f}")
        return cells

    def _recipes(self) -> str:
        lines, found = [], []
        for train, variant in (("nfcorpus", "maw-full"), ("pydocs", "maw-full"), ("pydocs", "maw-lora")):
            twins = self._pick(phase="main", train=train, variant=variant.replace("maw", "dense"))
            present = self._pick(phase="main", train=train, variant=variant)
            for option, rows in [
                ("as the study began", present),
                *((name, self._of(train, variant, name)) for name in RECIPES),
            ]:
                if rows:
                    means = statistics.mean(map(dev, rows)), statistics.mean(self._mean(row, train) for row in rows)
                    lines.append(
                        [train, variant, option, *(f"{mean:.4f}" for mean in means), *self._selection(rows, train)]
                    )
                    found.append((train, self._compared(rows, twins, [f"{train}/test"], f"{variant}, {option}")))
        heads = ["training set", "variant", "recipe", "dev", "test", *SELECTION]
        return f"{_table(heads, lines)}\n\n{_comparisons(found)}"

    def _of(self, train: str, variant: str, option: str) -> list[Mapping[str, Any]]:
        return self._pick(phase="recipes", train=train, variant=variant, option=option)

    def _chosen(self, phase: str, earlier: str = "") -> str:
        """The options that a phase chose, with their runs of an earlier one, against twins and the untuned encoder."""
        lines, found = [], []
        for option in sorted({row["run"]["option"] for row in self._pick(phase=phase)}):
            for train, variant in itertools.product(SETS, ("maw-full", "maw-lora")):
                wanted = {"train": train, "variant": variant, "option": option}
                rows = self._pick(phase=phase, **wanted) or self._pick(phase=earlier, **wanted)
                twins = self._pick(phase="main", train=train, variant=variant.replace("maw", "dense"))
                if rows:
                    means = [statistics.mean(self._mean(row, train) for row in some) for some in (rows, twins)]
                    mark = " (below untuned)" if means[0] < self._mean(self.untuned, train) else ""
                    cells = [f"{means[0]:.4f}{mark}", f"{means[1]:.4f}", *self._selection(rows, train)]
                    lines.append([option, train, variant, *cells])
                    splits = [f"{name}/test" for name in (DOMAINS if train == "mixed" else (train,))]
                    found.append((train, self._compared(rows, twins, splits, f"{variant}, {option}")))
        if not lines:
            return "Not yet run."
        working = [name for name in RECIPES if works(self.rows, name)]
        note = (
            "Recipes whose selection works on dev (half of the depths alive in every run, .01 nat in the weights on "
            f"average): {', '.join(working) or 'none, so that all were candidates'}."
        )
        heads = ["recipe", "training set", "variant", "nDCG@10", "dense twin", *SELECTION]
        parts = [note] if phase == "default" else []
        return "\n\n".join([*parts, _table(heads, lines), _comparisons(found)])

    def _scratch(self) -> str:
        rows = collections.defaultdict(list)
        for row in self._pick(phase="scratch"):
            run = row["run"]
            if run["seed"] != TUNING_SEED:
                rows[run["variant"], run["option"]].append(row)
        twins = rows["dense-full", ""]
        splits, lines, found = [f"{name}/test" for name in DOMAINS], [], []
        for (variant, option), own in sorted(rows.items()):
            values = [self._mean(row, "mixed") for row in own]
            each = " ".join(f"{value:.4f}"[1:] for value in values)
            lines.append([variant, option or "-", f"{statistics.mean(values):.4f}", each])
            if own is not twins:
                found.append(("mixed", self._compared(own, twins, splits, f"{variant}, {option}")))
        return f"{_table(['variant', 'MAW in', 'nDCG@10', 'seeds'], lines)}\n\n{_comparisons(found)}"

    def _options(self) -> str:
        lines = []
        for train in OPTIONS_ON:
            rows = collections.defaultdict(list)
            for row in self._pick(phase="options", train=train):
                rows[row["run"]["option"] or row["run"]["variant"]].append(row)
            for option, own in rows.items():
                means = statistics.mean(map(dev, own)), statistics.mean(self._mean(row, train) for row in own)
                lines.append([train, option, len(own), *(f"{mean:.4f}" for mean in means)])
        return _table(["training set", "option", "seeds", "dev", "test"], lines)


SELECTION = (
    "gap",
    "fused",
    "smallest weight x D",
    "alive",
    "policy entropy",
    "information, policy",
    "information, weights",
)


def _comparisons(found: Sequence[tuple[str, Comparison]]) -> str:
    """Holm's correction is over the rows of one table."""
    corrected = correct([comparison for _, comparison in found])
    lines = []
    for (train, _), own in zip(found, corrected, strict=True):
        low, high = own.interval
        p = f"{own.p_value_corrected:.4f}"
        lines.append(
            [
                *(train, own.variant, own.baseline, own.seeds, own.queries, f"{own.mean_difference:+.4f}"),
                *(f"{low:+.4f} to {high:+.4f}", p, f"{own.smallest_detectable:.4f}", own.verdict),
            ]
        )
    heads = ["training set", "variant", "against", "seeds", "queries", "difference", "95 % interval", "corrected p"]
    return _table([*heads, "would find", "verdict"], lines)


def _table(heads: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)


if __name__ == "__main__":
    main()
