"""What the study chooses, and by what: dev splits alone.

A twin's settings are those of its search that were best on dev. A recipe for MAW is the best on dev of its round, of
those whose selection works and that lose little against the twin; of all, if none does.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from data import DOMAINS
from recipes import CANDIDATES, FINALISTS, RECIPES, SHORTLIST

__all__ = [
    "CONTROLS",
    "FIFTH",
    "FOURTH",
    "MAW",
    "RECIPES_ON",
    "SECOND",
    "SEEDS",
    "SETS",
    "THIRD",
    "TUNING_SEED",
    "Results",
    "Round",
    "Unfinished",
    "chosen",
    "dev",
    "domains_of",
    "final_default",
    "selecting",
    "tuned",
    "working",
]

SETS = (*DOMAINS, "mixed")
SEEDS = range(5)
TUNING_SEED = 1000
CONTROLS = ("static", "ia3-key", "linear-gate", "random", "literal", "logit-dropout")
MAW = ("maw-full", "maw-lora")
RECIPES_ON = (("nfcorpus", "maw-full"), ("pydocs", "maw-full"), ("pydocs", "maw-lora"))
LEAST_ALIVE, LEAST_INFORMATION, LARGEST_GAP, LARGEST_LOSS = 0.5, 0.01, 0.001, 0.003
"""What a selection that works has on dev: a share of the depths, nat in its weights, nDCG@10 of its gap, and of what it
is below its dense twin. The last was added when recipes that had the others were seen to rank worse."""

Results = Sequence[Mapping[str, Any]]
"""What finished runs left: see `training.do_run`."""


def dev(result: Mapping[str, Any]) -> float:
    """What choices are made by: the mean of nDCG@10 on the dev splits of the training set's domains."""
    return statistics.mean(result["means"][f"{name}/dev"] for name in domains_of(result["run"]["train"]))


def domains_of(train: str) -> tuple[str, ...]:
    """The domains of a training set."""
    return DOMAINS if train == "mixed" else (train,)


class Unfinished(ValueError):
    """Runs are missing that others are chosen by."""


def tuned(results: Results, train: str, tuning: str, encoder: str = "minilm") -> dict[str, Any]:
    """The dense twin's settings that were best on dev."""
    found = [
        result
        for result in results
        if "failed" not in result
        and result["run"]["seed"] == TUNING_SEED
        and result["run"]["encoder"] == encoder
        and (result["run"]["train"], result["run"]["variant"]) == (train, f"dense-{tuning}")
    ]
    if not found:
        raise Unfinished(f"dense-{tuning} was not tuned on {train}: run --phases tuning first")
    best = max(found, key=dev)["run"]
    return {name: best[name] for name in ("learning_rate", "epochs", "batch_size")}


class Round(NamedTuple):
    """Recipes that are tried in some settings, the phase of the twins they are compared with, that in which the best
    of them runs everywhere, that of its twins there, and the phases to ask for to have them tried."""

    tries: str
    recipes: Mapping[str, Mapping[str, Any]]
    twins: str
    everywhere: str
    everywhere_twins: str
    made_by: str
    on: Sequence[tuple[str, str]] = RECIPES_ON


SECOND = Round("recipes", RECIPES, "main", "default", "default", "recipes")
THIRD = Round("shortlist", SHORTLIST, "shortlist", "final", "final", "shortlist")
IN_EVERY_SETTING = tuple(itertools.product(SETS, MAW))
FOURTH = Round("final", FINALISTS, "final", "final", "final", "final,finalists", IN_EVERY_SETTING)
FIFTH = Round("candidates", CANDIDATES, "final", "candidates", "final", "candidates", IN_EVERY_SETTING)


def _cells(results: Results, phase: str, option: str) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """The runs of an option, by training set and variant; controls are no option's."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for result in results:
        run = result["run"]
        if (run["phase"], run["option"]) == (phase, option) and run["variant"] not in CONTROLS:
            found.setdefault((run["train"], run["variant"]), []).append(result)
    return found


def _best_on_dev(
    results: Results, phase: str, options: Iterable[str], cells: int, seeds: int, made_by: str
) -> list[str]:
    """Options from the best on dev to the worst, by the mean of their cells; without those of which a run failed."""
    means = {}
    for option in options:
        found = _cells(results, phase, option).values()
        if len(found) != cells or any(len(rows) != seeds for rows in found):
            raise Unfinished(f"{option!r} has runs that are not finished: run --phases {made_by} first")
        if not any("failed" in row for rows in found for row in rows):
            means[option] = statistics.mean(statistics.mean(map(dev, rows)) for rows in found)
    return sorted(means, key=means.__getitem__, reverse=True)


def chosen(results: Results, stage: Round) -> str:
    """The recipe that a round chooses: the best on dev of those that work; of all, if none does."""
    ranked = _best_on_dev(results, stage.tries, stage.recipes, len(stage.on), len(SEEDS), stage.made_by)
    works = working(results, stage)
    return next((option for option in ranked if option in works), ranked[0])


def final_default(results: Results) -> str:
    """The default in the end: the last round's choice if it works and loses little, else that of the round before."""
    option = chosen(results, FIFTH)
    return option if option in working(results, FIFTH) else chosen(results, FOURTH)


def working(results: Results, stage: Round) -> list[str]:
    """The recipes whose selection works on every training set and that lose nothing by it."""
    return [option for option in selecting(results, stage) if _loses_little(results, stage, option)]


def selecting(results: Results, stage: Round) -> list[str]:
    """The recipes whose selection works on every training set: half of the depths alive in every run, weights that
    depend on the text and no gap, on average over seeds. The gentle ones of the second round were not measured on dev;
    on test they have .0001 nat at most."""
    return [option for option in stage.recipes if _works(_cells(results, stage.tries, option))]


def _loses_little(results: Results, stage: Round, option: str) -> bool:
    """Against the twins of the same training set, on average over seeds."""
    for (train, variant), rows in _cells(results, stage.tries, option).items():
        twins = _cells(results, stage.twins, "").get((train, variant.replace("maw", "dense")), [])
        if len(twins) < len(rows):
            raise Unfinished(f"the twins of {variant} on {train} are not finished: run --phases {stage.twins} first")
        if statistics.mean(map(dev, twins)) - statistics.mean(map(dev, rows)) > LARGEST_LOSS:
            return False
    return True


def _works(cells: Mapping[Any, Sequence[Mapping[str, Any]]]) -> bool:
    for rows in cells.values():
        own = [one for row in rows for one in row.get("selection", {}).values()]
        if len(own) < len(rows) or not all("layers on dev" in one for one in own):
            return False
        layers = [layer for one in own for layer in one["layers on dev"]]
        if min(layer["depths alive by weight"] for layer in layers) < LEAST_ALIVE:
            return False
        if statistics.mean(layer["information of weights, nat"] for layer in layers) < LEAST_INFORMATION:
            return False
        if abs(statistics.mean(gap for one in own for gap in one["gaps"]["dev"])) >= LARGEST_GAP:
            return False
    return bool(cells)
