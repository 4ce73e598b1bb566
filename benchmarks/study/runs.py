"""The study's finished runs, and what its tables ask of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from choosing import domains_of
from data import POOL, SOME_DOCUMENTS
from markdown import comparisons, table
from rows import Row, Scores

from maw.benchmark.comparison import Comparison, compare

__all__ = ["POOL_SPLITS", "SELECTION", "Cell", "Runs", "on_the_pool", "splits", "splits_of_the_pool", "together"]

AMONG_QUERIES, AMONG_DOCUMENTS = (f"information of weights among {kind}, nat" for kind in ("queries", "documents"))
POOL_SPLITS = ("dl19", "dl20", "dev")

STATISTICS: tuple[tuple[str, Callable[[Sequence[float]], float]], ...] = (
    ("smallest mean weight * D", min),
    ("depths alive by policy", min),
    ("policy entropy / log D", statistics.mean),
    ("information of policy, nat", statistics.mean),
    ("information of weights, nat", statistics.mean),
    (AMONG_QUERIES, statistics.mean),
    (AMONG_DOCUMENTS, statistics.mean),
)
SELECTION = (
    *("gap", "fused", "smallest weight x D", "alive", "policy entropy", "information, policy"),
    *("information, weights", "among queries", "among documents", "within both"),
)


def splits(train: str) -> list[str]:
    """The test splits of a training set."""
    return [f"{name}/test" for name in domains_of(train)]


class Runs:
    """The runs, by what they are."""

    def __init__(self, rows: Sequence[Row], scores: Scores) -> None:
        self.rows, self.scores = rows, scores
        self.untuned = next(row for row in rows if row["run"]["variant"] == "untuned")

    def pick(self, **wanted: Any) -> list[Row]:
        """Rows whose run has these values, by seed."""
        found = [row for row in self.rows if all(row["run"][name] == value for name, value in wanted.items())]
        return sorted(found, key=lambda row: row["run"]["seed"])

    def with_option(self, train: str, variant: str, option: str) -> list[Row]:
        """All seeds of a recipe, or of the dense twins (no option), of the last rounds and the confirmation."""
        phases = ("final", "candidates", "confirmation")
        found = [self.pick(phase=phase, train=train, variant=variant, option=option) for phase in phases]
        return [row for rows in found for row in rows]

    def mean(self, row: Row, train: str, kind: str = "") -> float:
        """The mean over the training set's domains of the mean over their test queries."""
        return statistics.mean(row["means"][f"{name}/test{kind}"] for name in domains_of(train))

    def marked(self, rows: Sequence[Row], train: str) -> str:
        """The mean over seeds, marked where it is below the untuned encoder."""
        mean = statistics.mean(self.mean(row, train) for row in rows)
        return f"{mean:.4f}{' (below untuned)' if mean < self.mean(self.untuned, train) else ''}"

    def compared(
        self, rows: Sequence[Row], others: Sequence[Row], splits: Sequence[str], name: str, against: str = ""
    ) -> Comparison:
        """Pairs by seed; the queries of all splits together. `against` is the others' name, if not their variant."""
        pairs = [{row["run"]["seed"]: row for row in some} for some in (rows, others)]
        if any(len(one) != len(some) for one, some in zip(pairs, (rows, others), strict=True)):
            raise SystemExit(f"{name}: a seed has two runs")
        seeds = sorted(pairs[0].keys() & pairs[1].keys())
        both = [[one[seed] for seed in seeds] for one in pairs]
        for split in splits:
            if len({row["queries"][split] for some in both for row in some}) != 1:
                raise SystemExit(f"{name}: runs have other queries in {split}")
        first, second = (self.scores_of(some, splits) for some in both)
        mark = " *" if len({row["environment"]["device"] for some in both for row in some}) > 1 else ""
        baseline = against or others[0]["run"]["variant"]
        return compare(name + mark, baseline, first, second, "nDCG@10", split=" ".join(splits))

    def scores_of(self, rows: Sequence[Row], splits: Sequence[str]) -> np.ndarray:
        """(runs, queries of all splits)."""
        return np.stack([np.concatenate([self.scores[row["name"]][split] for split in splits]) for row in rows])

    def selection(self, rows: Sequence[Row], train: str) -> list[str]:
        """What their selection does: `SELECTION`."""
        layers = [layer for row in rows for own in row["selection"].values() for layer in own["layers"]]
        if not layers:  # no selection, or one that is not a text's
            return ["-"] * len(SELECTION)
        gaps = [gap for row in rows for gap in self._gaps(row, train)]
        fused = statistics.mean(self.mean(row, train, "/fused") - self.mean(row, train) for row in rows)
        cells = [f"{statistics.mean(gaps):+.4f} ({min(gaps):+.4f} to {max(gaps):+.4f})", f"{fused:+.4f}"]
        for name, of in STATISTICS:
            there = [layer[name] for layer in layers if name in layer]
            cells.append(f"{of(there):.4f}" if there else "-")
        within = [value for row in rows for value in self._within(row)]
        return [*cells, f"{statistics.mean(within):.4f}" if within else "-"]

    def _within(self, row: Row) -> list[float]:
        """The weights' information about a text of which it is known whether it is a query, by domain and layer."""
        found = []
        for domain, own in row["selection"].items():
            queries = len(self.scores[row["name"]][f"{domain}/test"])
            for layer in own["layers"]:
                if AMONG_QUERIES in layer:
                    total = queries * layer[AMONG_QUERIES] + SOME_DOCUMENTS * layer[AMONG_DOCUMENTS]
                    found.append(total / (queries + SOME_DOCUMENTS))
        return found

    def _gaps(self, row: Row, train: str) -> list[float]:
        """Noise-free less sampled, the mean over domains, for every draw."""
        own = [row["selection"][name] for name in domains_of(train)]
        if all("gaps" in one for one in own):
            return [statistics.mean(draws) for draws in zip(*(one["gaps"]["test"] for one in own), strict=True)]
        return [self.mean(row, train) - self.mean(row, train, "/sampled")]


class Cell(NamedTuple):
    """One setting: a training set, runs on it, and those that they are compared with, mostly their dense twins."""

    train: str
    rows: Sequence[Row]
    others: Sequence[Row]

    @property
    def variant(self) -> str:
        """That of the runs."""
        return self.rows[0]["run"]["variant"]

    def pairs(self) -> list[tuple[Row, Row]]:
        """Runs of the same seed."""
        others = {row["run"]["seed"]: row for row in self.others}
        return [(row, others[row["run"]["seed"]]) for row in self.rows if row["run"]["seed"] in others]


def splits_of_the_pool(_: str) -> list[str]:
    """MS MARCO's pool, on which nothing was trained."""
    return [f"{POOL}/{split}" for split in POOL_SPLITS]


def together(
    runs: Runs,
    cells: Mapping[str, Sequence[Cell]],
    seeds: Sequence[int],
    against: str = "dense",
    asked: Callable[[str], Sequence[str]] = splits,
) -> list[str]:
    """Each recipe against its twins over all settings; recipes that lack a seed somewhere are left out.

    Args:
        against: what the others are.
        asked: the splits of a training set.
    """
    found, means = [], []
    for option, own in cells.items():
        if any([row["run"]["seed"] for row in rows] != list(seeds) for cell in own for rows in cell[1:]):
            continue
        both: list[dict[str, list[np.ndarray]]] = [{}, {}]
        for cell in own:
            for kept, rows in zip(both, (cell.rows, cell.others), strict=True):
                for split in asked(cell.train):
                    kept.setdefault(split, []).append(runs.scores_of(rows, [split]))
        first, second = (
            np.concatenate([np.mean(several, axis=0) for several in kept.values()], axis=1) for kept in both
        )
        found.append(("all", compare(option, against, first, second, "nDCG@10")))
        differences = [
            runs.scores_of(cell.rows, asked(cell.train)).mean() - runs.scores_of(cell.others, asked(cell.train)).mean()
            for cell in own
        ]
        means.append([option, f"{statistics.mean(differences):+.4f}"])
    if not found:
        return []
    note = (
        "Over all settings: a query's value is its mean over the settings that ask it, and all queries count "
        "alike. Below, the mean over settings, each of which counts alike."
    )
    return [f"{note}\n\n{comparisons(found)}", table(["recipe", "mean of the settings' differences"], means)]


def on_the_pool(runs: Runs, cell: Cell) -> list[tuple[str, Comparison]]:
    """A setting on MS MARCO's pool, on which nothing was trained."""
    found = []
    for names in (("dl19", "dl20"), ("dev",)):
        name = f"{cell.variant} on {' and '.join(names)}"
        where = [f"{POOL}/{split}" for split in names]
        found.append((cell.train, runs.compared(cell.rows, cell.others, where, name)))
    return found
