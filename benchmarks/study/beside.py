"""Tables of what stands beside the main comparisons: controls with LoRA, and training beside a frozen encoder."""

from __future__ import annotations

import itertools
import statistics

from choosing import FIFTH, SEEDS, TUNING_SEED, Unfinished, chosen, dev
from markdown import comparisons, table
from plan import ALONE_ON, ALONE_RATES, LORA_CONTROLS_ON, LORA_SEEDS, alone
from recipes import LORA_CONTROLS
from runs import SELECTION, Runs, splits

__all__ = ["beside_a_frozen_encoder", "controls_with_lora"]


def controls_with_lora(runs: Runs) -> str:
    """The best of the candidates and its controls with LoRA, against their twins and each other."""
    train = LORA_CONTROLS_ON
    if not runs.pick(phase="lora"):
        return "Not yet run."
    try:
        option = chosen(runs.rows, FIFTH)
    except Unfinished:
        return "The candidates are not finished."
    twins, maw = (
        [row for row in runs.with_option(train, variant, own) if row["run"]["seed"] in LORA_SEEDS]
        for variant, own in (("dense-lora", ""), ("maw-lora", option))
    )
    rows = {"dense-lora": twins, "maw-lora": maw}
    rows |= {name: runs.pick(phase="lora", option=name) for name in LORA_CONTROLS}
    lines = []
    rows = {name: own for name, own in rows.items() if own}
    for name, own in rows.items():
        trained = f"{own[0]['parameters']['trainable_parameters']:,}"
        lines.append([name, f"{statistics.mean(map(dev, own)):.4f}", runs.marked(own, train), trained])
    against_twins = [
        (train, runs.compared(own, twins, splits(train), name)) for name, own in rows.items() if name != "dense-lora"
    ]
    against_controls = [
        (train, runs.compared(maw, rows[name], splits(train), "maw-lora", against=name))
        for name in LORA_CONTROLS
        if name in rows
    ]
    means = table(["trained", "dev", "test", "trained parameters"], lines)
    return f"{means}\n\n{comparisons(against_twins)}\n\n{comparisons(against_controls)}"


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
            found.append((train, runs.compared(maw, other, splits(train), "MAW", against=name)))
    heads = ["training set", "trained", "nDCG@10", "seeds", "parameters", *SELECTION]
    rates = table(["training set", "trained", *(f"{rate:g}" for rate in ALONE_RATES)], search)
    note = "The search for a learning rate, nDCG@10 on dev with a seed of its own; three epochs, 64 pairs a batch."
    return f"{note}\n\n{rates}\n\nOn test:\n\n{table(heads, lines)}\n\n{comparisons(found)}"
