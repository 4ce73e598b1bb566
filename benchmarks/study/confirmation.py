"""Tables of what was trained again with seeds by which nothing was chosen."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence

from choosing import MAW, SEEDS, SETS, Unfinished, dev
from data import POOL
from markdown import comparisons, table
from plan import CONFIRMING_SEEDS, MORE_SEEDS, confirmed, followed
from recipes import LATER
from rows import Row
from runs import POOL_SPLITS, SELECTION, Cell, Runs, on_the_pool, splits, splits_of_the_pool, together

__all__ = ["confirmation"]

TEN_SEEDS = (*SEEDS, *CONFIRMING_SEEDS)


def confirmation(runs: Runs) -> list[str]:
    """The default and the choices of earlier rounds, trained again on every set beside new twins."""
    try:
        options = confirmed(runs.rows)
    except Unfinished:
        return []
    new = {option: _cells(runs, option, CONFIRMING_SEEDS) for option in options}
    if not all(cell.rows and cell.others for cells in new.values() for cell in cells):
        return []
    both = followed(runs.rows)
    parts = ["## The default and what came before it again, with seeds by which nothing was chosen"]
    parts += ["The default first; all with the gradients of encoder and MAW clipped apart. Seeds 5 to 9:"]
    parts += _each(options, lambda option: _compared(runs, new[option]))
    parts += ["### All settings together, seeds 5 to 9", *together(runs, new, CONFIRMING_SEEDS)]
    parts += ["### One recipe in two layers, seeds 5 to 9", *_layers(runs, new)]
    parts += ["### Scores", *_each(both, lambda option: _scores(runs, option))]
    parts += ["### Ten more seeds on pydocs"]
    parts += _each(both, lambda option: _compared(runs, _cells(runs, option, MORE_SEEDS)))
    parts += ["### With all their seeds", *_each(both, lambda option: _compared(runs, _cells(runs, option, None)))]
    parts += together(runs, {option: _cells(runs, option, TEN_SEEDS) for option in both}, TEN_SEEDS)
    parts += ["### On dev, by which they were chosen", _dev(runs, both)]
    parts += ["### What the selection does, seeds 5 to 9", _selections(runs, new)]
    parts += ["### Out of domain: MS MARCO's pool, seeds 5 to 9", *_each(both, lambda option: _pool(runs, new[option]))]
    parts += together(runs, new, CONFIRMING_SEEDS, asked=splits_of_the_pool)
    return [*parts, "### Time", _time(new)]


def _each(options: Sequence[str], tables: Callable[[str], str]) -> list[str]:
    return [part for option in options for part in (f"`{option}`:", tables(option))]


def _cells(runs: Runs, option: str, seeds: Collection[int] | None) -> list[Cell]:
    """A recipe in every setting, of the confirmation and of the round that chose it; None is every seed."""
    cells = []
    for train, variant in itertools.product(SETS, MAW):
        both = (
            [row for row in runs.with_option(train, *own) if seeds is None or row["run"]["seed"] in seeds]
            for own in ((variant, option), (variant.replace("maw", "dense"), ""))
        )
        cells.append(Cell(train, *both))
    return cells


def _layers(runs: Runs, recipes: Mapping[str, Sequence[Cell]]) -> list[str]:
    """Recipes that were tried in the first layer and in the last one."""
    cells = {
        first: [Cell(one.train, one.rows, two.rows) for one, two in zip(recipes[first], recipes[last], strict=True)]
        for first, last in itertools.permutations(recipes, 2)
        if LATER[first] == {**LATER[last], "layers": [0]} != LATER[last]
    }
    return together(runs, cells, CONFIRMING_SEEDS, "in the last layer")


def _compared(runs: Runs, cells: Sequence[Cell]) -> str:
    return comparisons(
        [
            (cell.train, runs.compared(cell.rows, cell.others, splits(cell.train), cell.variant))
            for cell in cells
            if cell.rows
        ]
    )


def _scores(runs: Runs, option: str) -> str:
    """Means on test of a recipe and its twins, of the new seeds and of all ten."""
    lines = []
    cells = (_cells(runs, option, seeds) for seeds in (CONFIRMING_SEEDS, TEN_SEEDS))
    for new, ten in zip(*cells, strict=True):
        for own, all_of_them in ((new.rows, ten.rows), (new.others, ten.others)):
            lines.append([new.train, own[0]["run"]["variant"], runs.marked(own, new.train)])
            lines[-1].append(runs.marked(all_of_them, new.train))
    return table(["training set", "variant", "nDCG@10, seeds 5 to 9", "seeds 0 to 9"], lines)


def _dev(runs: Runs, options: Sequence[str]) -> str:
    lines = []
    for option in options:
        for cells in zip(
            *(_cells(runs, option, seeds) for seeds in (SEEDS, CONFIRMING_SEEDS, MORE_SEEDS)), strict=True
        ):
            lines.append([option, cells[0].train, cells[0].variant])
            for cell in cells:
                differences = [dev(row) - dev(twin) for row, twin in cell.pairs()]
                lines[-1].append(f"{statistics.mean(differences):+.4f}" if differences else "-")
    note = "Mean difference from the twins on dev, mean over the set's domains."
    heads = ["recipe", "training set", "variant", "seeds 0 to 4", "5 to 9", "20 to 29"]
    return f"{note}\n\n{table(heads, lines)}"


def _selections(runs: Runs, recipes: Mapping[str, Sequence[Cell]]) -> str:
    lines = [
        [option, cell.train, cell.variant, *runs.selection(cell.rows, cell.train)]
        for option, cells in recipes.items()
        for cell in cells
    ]
    return table(["recipe", "training set", "variant", *SELECTION], lines)


def _pool(runs: Runs, cells: Sequence[Cell]) -> str:
    untuned = [runs.untuned["means"][f"{POOL}/{split}"] for split in POOL_SPLITS]
    lines = [["-", "untuned", *(f"{mean:.4f}" for mean in untuned)]]
    for cell in cells:
        for rows in (cell.others, cell.rows):
            means = [statistics.mean(row["means"][f"{POOL}/{split}"] for row in rows) for split in POOL_SPLITS]
            marks = [" (below untuned)" if mean < base else "" for mean, base in zip(means, untuned, strict=True)]
            lines.append([cell.train, rows[0]["run"]["variant"]])
            lines[-1] += [f"{mean:.4f}{mark}" for mean, mark in zip(means, marks, strict=True)]
    found = [one for cell in cells for one in on_the_pool(runs, cell)]
    return f"{table(['training set', 'variant', *POOL_SPLITS], lines)}\n\n{comparisons(found)}"


def _time(recipes: Mapping[str, Sequence[Cell]]) -> str:
    note = (
        "Seconds of a training beside those of the twin of the same seed, median over seeds; 15 processes shared each "
        "GPU and had a processor core each, where a training step waits for Python rather than for the GPU. Settings "
        "whose twins were trained in another call are left out."
    )
    lines = []
    for option, cells in recipes.items():
        for cell in cells:
            if len({row["environment"]["commit"] for pair in cell.pairs() for row in pair}) > 1:
                continue
            pairs = [(_seconds(row), _seconds(twin)) for row, twin in cell.pairs()]
            ratios = [own / other for own, other in pairs]
            lines.append([option, cell.train, cell.variant, f"{statistics.median(other for _, other in pairs):.0f}"])
            lines[-1].append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return f"{note}\n\n{table(['recipe', 'training set', 'variant', 'seconds of a twin', 'MAW / twin'], lines)}"


def _seconds(row: Row) -> float:
    return row["seconds"]["training"]
