"""Tables of what came after the default was chosen: with seeds that no choice saw, and beside a frozen encoder."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Collection, Sequence
from dataclasses import replace

from choosing import MAW, SEEDS, SETS, TUNING_SEED, Unfinished, dev
from data import POOL
from markdown import comparisons, table
from plan import ALONE_ON, ALONE_RATES, CONFIRMING_SEEDS, MORE_SEEDS, alone, confirmed
from rows import Row
from runs import POOL_SPLITS, SELECTION, Cell, Runs, on_the_pool, splits, together

__all__ = ["beside_a_frozen_encoder", "confirmation"]


def confirmation(runs: Runs) -> list[str]:
    """The default and the third round's choice, trained again on every set beside new twins."""
    try:
        options = confirmed(runs.rows)
    except Unfinished:
        return []
    new = {option: _cells(runs, option, CONFIRMING_SEEDS) for option in options}
    if not all(cell.rows and cell.twins for cells in new.values() for cell in cells):
        return []
    default = options[0]
    parts = ["## The default again, with seeds that no choice saw"]
    for option, cells in new.items():
        name = f"`{option}`" + ("" if option == default else ", encoder and MAW clipped apart this time")
        parts += [f"{name}, seeds 5 to 9:", _compared(runs, cells)]
    parts += ["### All settings together", *together(runs, new, CONFIRMING_SEEDS)]
    parts += ["### Scores", _scores(runs, default)]
    more = [cell for cell in _cells(runs, default, MORE_SEEDS) if cell.rows]
    if more:
        heading = "### Ten more seeds on pydocs, where its mean in full was over .002 below the twin's"
        parts += [heading, _compared(runs, more)]
    parts += ["### The default with all its seeds", _compared(runs, _cells(runs, default, None))]
    parts += together(runs, {default: _cells(runs, default, (*SEEDS, *CONFIRMING_SEEDS))}, (*SEEDS, *CONFIRMING_SEEDS))
    parts += ["### On dev, by which it was chosen", _dev(runs, default)]
    lines = [
        [option, cell.train, cell.rows[0]["run"]["variant"], *runs.selection(cell.rows, cell.train)]
        for option, cells in new.items()
        for cell in cells
    ]
    parts += ["### What the selection does", table(["recipe", "training set", "variant", *SELECTION], lines)]
    parts += ["### Out of domain: MS MARCO's pool", _pool(runs, new[default])]
    return [*parts, "### Time", _time(new)]


def _cells(runs: Runs, option: str, seeds: Collection[int] | None) -> list[Cell]:
    """A recipe in every setting, of the confirmation and of the round that chose it; None is every seed."""
    cells = []
    for train, variant in itertools.product(SETS, MAW):
        both = (
            [
                row
                for phase in ("final", "confirmation")
                for row in runs.pick(phase=phase, train=train, variant=name, option=own)
                if seeds is None or row["run"]["seed"] in seeds
            ]
            for name, own in ((variant, option), (variant.replace("maw", "dense"), ""))
        )
        cells.append(Cell(train, *both))
    return cells


def _compared(runs: Runs, cells: Sequence[Cell]) -> str:
    return comparisons(
        [
            (cell.train, runs.compared(cell.rows, cell.twins, splits(cell.train), cell.rows[0]["run"]["variant"]))
            for cell in cells
        ]
    )


def _scores(runs: Runs, option: str) -> str:
    """Means on test of the default and its twins, of the new seeds and of all ten."""
    lines = []
    cells = (_cells(runs, option, seeds) for seeds in (CONFIRMING_SEEDS, (*SEEDS, *CONFIRMING_SEEDS)))
    for new, ten in zip(*cells, strict=True):
        for own, all_of_them in zip(new[1:], ten[1:], strict=True):
            lines.append([new.train, own[0]["run"]["variant"], runs.marked(own, new.train)])
            lines[-1].append(runs.marked(all_of_them, new.train))
    return table(["training set", "variant", "nDCG@10, seeds 5 to 9", "seeds 0 to 9"], lines)


def _dev(runs: Runs, option: str) -> str:
    sets = (SEEDS, CONFIRMING_SEEDS, MORE_SEEDS)
    lines = []
    for cells in zip(*(_cells(runs, option, seeds) for seeds in sets), strict=True):
        lines.append([cells[0].train, cells[0].rows[0]["run"]["variant"]])
        for cell in cells:
            pairs = zip(cell.rows, cell.twins, strict=True)
            differences = [dev(row) - dev(twin) for row, twin in pairs]
            lines[-1].append(f"{statistics.mean(differences):+.4f}" if differences else "-")
    note = "Mean difference from the twins on dev, mean over the set's domains."
    return f"{note}\n\n{table(['training set', 'variant', 'seeds 0 to 4', '5 to 9', '20 to 29'], lines)}"


def _pool(runs: Runs, cells: Sequence[Cell]) -> str:
    untuned = [runs.untuned["means"][f"{POOL}/{split}"] for split in POOL_SPLITS]
    lines = [["-", "untuned", *(f"{mean:.4f}" for mean in untuned)]]
    for cell in cells:
        for rows in (cell.twins, cell.rows):
            means = [statistics.mean(row["means"][f"{POOL}/{split}"] for row in rows) for split in POOL_SPLITS]
            marks = [" (below untuned)" if mean < base else "" for mean, base in zip(means, untuned, strict=True)]
            lines.append([cell.train, rows[0]["run"]["variant"]])
            lines[-1] += [f"{mean:.4f}{mark}" for mean, mark in zip(means, marks, strict=True)]
    found = [one for cell in cells for one in on_the_pool(runs, cell)]
    return f"{table(['training set', 'variant', *POOL_SPLITS], lines)}\n\n{comparisons(found)}"


def _time(recipes: dict[str, list[Cell]]) -> str:
    note = (
        "Seconds of a training beside those of the twin of the same seed, median over seeds; 15 processes shared each "
        "GPU and had a processor core each, where a training step waits for Python rather than for the GPU."
    )
    lines = []
    for option, cells in recipes.items():
        for train, variant, rows, twins in ((c.train, c.rows[0]["run"]["variant"], c.rows, c.twins) for c in cells):
            pairs = [(_seconds(row), _seconds(twin)) for row, twin in zip(rows, twins, strict=True)]
            ratios = [own / other for own, other in pairs]
            lines.append([option, train, variant, f"{statistics.median(other for _, other in pairs):.0f}"])
            lines[-1].append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return f"{note}\n\n{table(['recipe', 'training set', 'variant', 'seconds of a twin', 'MAW / twin'], lines)}"


def _seconds(row: Row) -> float:
    return row["seconds"]["training"]


def beside_a_frozen_encoder(runs: Runs) -> str:
    """What is trained alone: MAW, controls, or the last layer's query and key projections."""
    rows = runs.pick(phase="alone")
    if not rows:
        return "Not yet run."
    names, search, lines = list(alone(runs.rows)), [], []
    for train, name in itertools.product(ALONE_ON, names):
        own = [row for row in rows if (row["run"]["train"], row["run"]["option"]) == (train, name)]
        tried = {row["run"]["learning_rate"]: dev(row) for row in own if row["run"]["seed"] == TUNING_SEED}
        best = max(tried, key=tried.__getitem__, default=None)
        search.append([train, name])
        search[-1] += [
            f"**{tried[rate]:.4f}**" if rate == best else f"{tried[rate]:.4f}" if rate in tried else "-"
            for rate in ALONE_RATES
        ]
        own = [row for row in own if row["run"]["seed"] in SEEDS]
        if own:
            values = [runs.mean(row, train) for row in own]
            each = " ".join(f"{value:.4f}"[1:] for value in values)
            trained = f"{own[0]['parameters']['trainable_parameters']:,}"
            lines.append([train, name, runs.marked(own, train), each, trained, *runs.selection(own, train)])
    found = []
    for train, name in itertools.product(ALONE_ON, names):
        maw, other = (
            [row for row in runs.pick(phase="alone", train=train, option=one) if row["run"]["seed"] in SEEDS]
            for one in ("MAW", name)
        )
        if name != "MAW" and maw and other:
            found.append((train, replace(runs.compared(maw, other, splits(train), "MAW"), baseline=name)))
    heads = ["training set", "trained", "nDCG@10", "seeds", "parameters", *SELECTION]
    rates = table(["training set", "trained", *(f"{rate:g}" for rate in ALONE_RATES)], search)
    note = "The search for a learning rate, nDCG@10 on dev with a seed of its own; three epochs, 64 pairs a batch."
    return f"{note}\n\n{rates}\n\nOn test:\n\n{table(heads, lines)}\n\n{comparisons(found)}"
