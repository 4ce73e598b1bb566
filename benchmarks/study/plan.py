"""Which runs the study has, and in which order. Later phases use what earlier ones found, on dev splits alone.

tuning      dense twins: learning rate, epochs, batch; one seed that no other run has
main        the first round: the default as the study began, and controls beside it
recipes     the second round: candidates for MAW's default, on two training sets
default     the one that is best on dev, of those whose selection works, beside dense twins, on every set
controls    what is to be told apart from it, on every set, with its settings
shortlist   the third round, from here on with draws apart from dropout's: what the two before leave to choose from
final       the one of these that is best on dev, in the same way, beside dense twins and all controls
finalists   on every set beside the same twins: that one and a few more, of which one is the default in the end
options     changes of the third round's choice, on one training set
scratch     a small encoder that was never trained: its twin's learning rate, then MAW
best        the options that were best on dev, on every training set
confirmation  the default, and the third round's choice once more, on every set with seeds that no choice saw
alone       the encoder frozen: MAW, controls, or the last layer's query and key projections trained on their own
"""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from data import DOMAINS
from recipes import BEGUN_OPTIONS, FINALISTS, FIRST_CHOICE, OPTIONS, RECIPES, SHORTLIST, matched_dropout

__all__ = [
    "ALONE_ON",
    "CONFIRMING_SEEDS",
    "CONTROLS",
    "FOURTH",
    "MAW",
    "MORE_SEEDS",
    "PHASES",
    "RESTS_ON",
    "SECOND",
    "SEEDS",
    "THIRD",
    "Round",
    "Run",
    "Unfinished",
    "alone",
    "chosen",
    "confirmed",
    "dev",
    "domains_of",
    "phase",
    "selecting",
    "tuned",
    "working",
]

SETS = (*DOMAINS, "mixed")
SEEDS = range(5)
CONFIRMING_SEEDS = range(5, 10)
MORE_SEEDS = range(20, 30)
TUNING_SEED = 1000
CONTROLS = ("static", "ia3-key", "linear-gate", "random", "literal", "logit-dropout")
MAW = ("maw-full", "maw-lora")
DRAWING = ("random", "logit-dropout")
"""Controls with noise of their own."""
PHASES = (
    *("tuning", "main", "recipes", "default", "shortlist", "final", "finalists"),
    *("controls", "options", "scratch", "best", "confirmation", "alone"),
)
RESTS_ON: dict[str, set[str]] = {
    "tuning": set(),
    "recipes": {"tuning"},
    "default": {"tuning", "main", "recipes"},
    "controls": {"tuning"},
    "shortlist": {"tuning"},
    "final": {"tuning", "shortlist"},
    "finalists": {"tuning"},
    "scratch": {"final", "finalists"},
    "options": {"tuning", "shortlist"},
    "best": {"tuning", "shortlist", "options"},
    "main": {"tuning"},
    "confirmation": {"tuning", "final", "finalists"},
    "alone": {"final", "finalists"},
}
LEARNING_RATES = {"full": (2e-5, 5e-5, 1e-4, 2e-4), "lora": (2e-4, 5e-4, 1e-3, 2e-3)}
RECIPES_ON = (("nfcorpus", "maw-full"), ("pydocs", "maw-full"), ("pydocs", "maw-lora"))
OPTIONS_ON = ("pydocs",)
OPTIONS_SEEDS = (10, 11, 12)
ALONE_ON = ("pydocs", "nfcorpus")
ALONE_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
LEAST_ALIVE, LEAST_INFORMATION, LARGEST_GAP, LARGEST_LOSS = 0.5, 0.01, 0.001, 0.003
"""What a selection that works has on dev: a share of the depths, nat in its weights, nDCG@10 of its gap, and of what it
is below its dense twin. The last was added when recipes that had the others were seen to rank worse."""

Results = Sequence[Mapping[str, Any]]
"""What finished runs left: see `training.do_run`."""


@dataclass(frozen=True)
class Run:
    """One training, or none for the encoder as it comes."""

    phase: str
    train: str
    variant: str
    seed: int
    learning_rate: float = 0.0
    epochs: int = 0
    batch_size: int = 64
    maw: Mapping[str, Any] = field(default_factory=dict)
    option: str = ""
    encoder: str = "minilm"

    @property
    def name(self) -> str:
        """Readable, and different for every run."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.phase}-{self.train}-{self.variant}-s{self.seed}-{digest}"


def dev(result: Mapping[str, Any]) -> float:
    """What choices are made by: the mean of nDCG@10 on the dev splits of the training set's domains."""
    return statistics.mean(result["means"][f"{name}/dev"] for name in domains_of(result["run"]["train"]))


def domains_of(train: str) -> tuple[str, ...]:
    """The domains of a training set."""
    return DOMAINS if train == "mixed" else (train,)


class Unfinished(ValueError):
    """Runs are missing that others are chosen by."""


def phase(name: str, results: Results, *, strict: bool = False) -> list[Run]:
    """The runs of a phase, the most important first, as far as they can be planned from those it rests on.

    Raises:
        Unfinished: it rests on runs that are missing, if `strict`.
    """
    makers = {
        "tuning": _tuning,
        "recipes": _recipes,
        "default": _default,
        "controls": _controls,
        "shortlist": _shortlist,
        "final": _final,
        "finalists": _finalists,
        "options": _options,
        "main": _main,
        "best": _best,
        "scratch": _scratch,
        "confirmation": _confirmation,
        "alone": _alone,
    }
    runs: list[Run] = []
    try:
        runs.extend(makers[name](results))
    except Unfinished:
        if strict:
            raise
    return runs


def _tuning(_: Results) -> Iterable[Run]:
    for train in ("mixed", "tldr-commands", "nfcorpus", "nq-qed", "pydocs"):  # the long ones first
        epochs = (1, 2) if train == "mixed" else (1, 3)
        grid = itertools.product(("full", "lora"), range(4), epochs, (64, 128))
        for tuning, rate, number, batch in grid:
            yield Run("tuning", train, f"dense-{tuning}", TUNING_SEED, LEARNING_RATES[tuning][rate], number, batch)


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
    of them runs everywhere, and the phases to ask for to have them tried."""

    tries: str
    recipes: Mapping[str, Mapping[str, Any]]
    twins: str
    everywhere: str
    made_by: str
    on: Sequence[tuple[str, str]] = RECIPES_ON


SECOND = Round("recipes", RECIPES, "main", "default", "recipes")
THIRD = Round("shortlist", SHORTLIST, "shortlist", "final", "shortlist")
FOURTH = Round("final", FINALISTS, "final", "final", "final,finalists", tuple(itertools.product(SETS, MAW)))


def _recipes(results: Results) -> Iterable[Run]:
    yield from _tries(results, SECOND)


def _shortlist(results: Results) -> Iterable[Run]:
    for seed, (train, variant) in itertools.product(SEEDS, RECIPES_ON):
        tuning = variant.removeprefix("maw-")
        yield Run("shortlist", train, f"dense-{tuning}", seed, **tuned(results, train, tuning))
    yield from _tries(results, THIRD)


def _tries(results: Results, stage: Round) -> Iterable[Run]:
    for seed, (option, maw), (train, variant) in itertools.product(SEEDS, stage.recipes.items(), RECIPES_ON):
        settings = tuned(results, train, variant.removeprefix("maw-"))
        yield Run(stage.tries, train, variant, seed, **settings, maw=maw, option=option)


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


def chosen(results: Results, stage: Round = THIRD) -> str:
    """The recipe that is the default from here on: the best on dev of those that work; of all, if none does."""
    ranked = _best_on_dev(results, stage.tries, stage.recipes, len(stage.on), len(SEEDS), stage.made_by)
    works = working(results, stage)
    return next((option for option in ranked if option in works), ranked[0])


def working(results: Results, stage: Round = THIRD) -> list[str]:
    """The recipes whose selection works on every training set and that lose nothing by it."""
    return [option for option in selecting(results, stage) if _loses_little(results, stage, option)]


def selecting(results: Results, stage: Round = THIRD) -> list[str]:
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


def _default(results: Results) -> Iterable[Run]:
    option = chosen(results, SECOND)
    yield from _pairs(results, SECOND, option)
    others = [run for name in RECIPES if name != option for run in _pairs(results, SECOND, name)]
    yield from _finished([run for run in others if run.option], results)


def _final(results: Results) -> Iterable[Run]:
    option = chosen(results)
    yield from _pairs(results, THIRD, option)
    yield from _controls_of(results, THIRD, option, [name for name in CONTROLS if name != "literal"])


def _finalists(results: Results) -> Iterable[Run]:
    each = [_pairs(results, FOURTH, option) for option in FINALISTS]
    for runs in zip(*each, strict=True):  # the long ones of all of them first
        yield from (run for run in runs if run.option)


def _pairs(results: Results, stage: Round, option: str) -> Iterable[Run]:
    """A recipe and its twins, the long ones first."""
    sets = ("mixed", "tldr-commands", "nfcorpus", "pydocs", "nq-qed")
    for train, seed, variant in itertools.product(sets, SEEDS, ("dense-lora", "maw-lora", "dense-full", "maw-full")):
        settings = tuned(results, train, variant.rpartition("-")[2])
        recipe = {} if variant.startswith("dense") else {"maw": stage.recipes[option], "option": option}
        yield Run(stage.everywhere, train, variant, seed, **settings, **recipe)


def _controls(results: Results) -> Iterable[Run]:
    quiet = tuple(name for name in CONTROLS if name not in (*DRAWING, "literal"))  # which has settings of its own
    yield from _controls_of(results, SECOND, FIRST_CHOICE, quiet)
    # those that draw are the third round's; these had logit dropout of .013, whatever their settings say
    yield from _finished(list(_controls_of(results, SECOND, FIRST_CHOICE, DRAWING)), results)


def _controls_of(results: Results, stage: Round, option: str, controls: Sequence[str]) -> Iterable[Run]:
    recipe = stage.recipes[option]
    for seed, train, variant in itertools.product(SEEDS, SETS, controls):
        matched = {"logit_dropout": matched_dropout(recipe)} if variant == "logit-dropout" else {}
        settings = tuned(results, train, "full")
        yield Run(stage.everywhere, train, variant, seed, **settings, maw={**recipe, **matched}, option=option)


def _scratch(results: Results) -> Iterable[Run]:
    common: dict[str, Any] = {"epochs": 4, "batch_size": 128, "encoder": "scratch"}
    rates = (2e-4, 5e-4, 1e-3, 2e-3)
    search = [Run("scratch", "mixed", "dense-full", TUNING_SEED, rate, **common) for rate in rates]
    yield from search
    rows: list[tuple[str, dict[str, Any], str]] = [
        ("dense-full", {}, ""),
        ("maw-full", {}, "last layer"),
        ("maw-full", {"layers": "all"}, "all layers"),
        ("static", {"layers": "all"}, "all layers"),
        ("maw-full", {"layers": "all", "tau": 1.0}, "all layers, tau 1"),
    ]
    begun = [
        Run("scratch", "mixed", variant, seed, 5e-4, **common, maw=maw, option=option)
        for seed, (variant, maw, option) in itertools.product(SEEDS, rows)
    ]
    yield from _finished(begun, results)
    if len(_finished(search, results)) == len(search):
        rate, option = tuned(results, "mixed", "full", "scratch")["learning_rate"], chosen(results, FOURTH)
        for seed, (variant, maw, where) in itertools.product(SEEDS, rows[:4]):
            recipe = {} if variant == "dense-full" else {**FINALISTS[option], **maw}
            name = f"{option}; {where}" if recipe else ""
            if recipe or rate != 5e-4:  # else its twins are there already
                yield Run("scratch", "mixed", variant, seed, rate, **common, maw=recipe, option=name)
            else:
                yield begun[seed * len(rows)]


def _options(results: Results) -> Iterable[Run]:
    settings = tuned(results, "nfcorpus", "full")
    begun = [Run("options", "nfcorpus", "dense-full", 10, **settings)]
    begun += [
        Run("options", "nfcorpus", "maw-full", 10, **settings, maw=maw, option=option)
        for option, maw in BEGUN_OPTIONS.items()
    ]
    yield from _finished(begun, results)
    recipe = SHORTLIST[chosen(results)]
    for train, seed in itertools.product(OPTIONS_ON, OPTIONS_SEEDS):
        settings = tuned(results, train, "full")
        yield Run("options", train, "dense-full", seed, **settings)
        for option, changes in {"the default": {}, **OPTIONS}.items():
            yield Run("options", train, "maw-full", seed, **settings, maw={**recipe, **changes}, option=option)


def _best(results: Results) -> Iterable[Run]:
    """The two options with the best mean on dev over their training sets; never a control."""
    tried = [name for name in OPTIONS if "logit" not in name]
    recipe = SHORTLIST[chosen(results)]
    found = [
        result for result in results if result["run"]["seed"] in OPTIONS_SEEDS and result["run"]["train"] in OPTIONS_ON
    ]
    for option in _best_on_dev(found, "options", tried, len(OPTIONS_ON), len(OPTIONS_SEEDS), "options")[:2]:
        for seed, train, tuning in itertools.product(SEEDS, SETS, ("full", "lora")):
            maw = {**recipe, **OPTIONS[option]}
            yield Run("best", train, f"maw-{tuning}", seed, **tuned(results, train, tuning), maw=maw, option=option)


def _confirmation(results: Results) -> Iterable[Run]:
    recipes = {"": {}, **{option: {**SHORTLIST, **FINALISTS}[option] for option in confirmed(results)}}
    sets = ("mixed", "tldr-commands", "nfcorpus", "pydocs", "nq-qed")  # the long ones first
    for train, tuning, seed in itertools.product(sets, ("lora", "full"), CONFIRMING_SEEDS):
        settings = tuned(results, train, tuning)
        for option, maw in recipes.items():
            variant = f"{'maw' if option else 'dense'}-{tuning}"
            yield Run("confirmation", train, variant, seed, **settings, maw=maw, option=option)
    default = chosen(results, FOURTH)  # ten more seeds where its mean was over .002 below the twin's with these
    for tuning, seed in itertools.product(("full", "lora"), MORE_SEEDS):
        settings = tuned(results, "pydocs", tuning)
        yield Run("confirmation", "pydocs", f"dense-{tuning}", seed, **settings)
        yield Run("confirmation", "pydocs", f"maw-{tuning}", seed, **settings, maw=recipes[default], option=default)


def confirmed(results: Results) -> tuple[str, ...]:
    """What runs again with new seeds: the default, and the third round's choice, this time clipped apart."""
    return tuple(dict.fromkeys((chosen(results, FOURTH), chosen(results, THIRD))))


def alone(results: Results) -> dict[str, tuple[str, dict[str, Any]]]:
    """What is trained beside a frozen encoder, by name: the variant and its settings."""
    recipe = FINALISTS[chosen(results, FOURTH)]
    return {
        "query and key projections": ("dense-full", {}),
        "MAW": ("maw-full", recipe),
        "MAW, KL 1": ("maw-full", {**recipe, "kl_weight": 1.0}),
        **{name: (name, recipe) for name in ("static", "ia3-key", "linear-gate")},
    }


def _alone(results: Results) -> Iterable[Run]:
    """One learning rate for what is trained, MAW's or the projections', searched first with a seed of its own."""

    def run(train: str, option: str, rate: float, seed: int) -> Run:
        variant, maw = alone(results)[option]
        maw = {**maw, "encoder": "frozen", "learning_rate": rate}
        return Run("alone", train, variant, seed, rate, 3, 64, maw=maw, option=option)

    each = list(itertools.product(ALONE_ON, alone(results)))
    search = [run(*cell, rate, TUNING_SEED) for cell in each for rate in ALONE_RATES]
    yield from search
    names = {one.name for one in search}
    done = {result["name"]: dev(result) for result in results if result["name"] in names and "failed" not in result}
    for seed, (train, option) in itertools.product(SEEDS, each):
        own = [one for one in search if (one.train, one.option) == (train, option)]
        if all(one.name in done for one in own):
            best = max(own, key=lambda one: done[one.name])
            yield run(train, option, best.learning_rate, seed)


def _main(results: Results) -> Iterable[Run]:
    yield Run("main", "", "untuned", 0)
    pairs = ("dense-full", "maw-full", "dense-lora", "maw-lora")
    for sets, variants in ((("mixed", "nfcorpus"), (*pairs, *CONTROLS)), (DOMAINS, pairs)):
        for seed, train, variant in itertools.product(SEEDS, sets, variants):
            if variants == pairs and train == "nfcorpus":
                continue
            tuning = "lora" if variant.endswith("lora") else "full"
            yield Run("main", train, variant, seed, **tuned(results, train, tuning))
    rest = [train for train in DOMAINS if train != "nfcorpus"]
    for train in rest:  # the literal recipe everywhere; the other controls are in `default`, with five seeds
        settings = tuned(results, train, "full")
        yield from (Run("main", train, "literal", seed, **settings) for seed in SEEDS)
        others = itertools.product(SEEDS, (name for name in CONTROLS if name != "literal"))
        yield from _finished([Run("main", train, variant, seed, **settings) for seed, variant in others], results)


def _finished(runs: Sequence[Run], results: Results) -> list[Run]:
    """Of runs that are no longer planned, those that were done when they were."""
    names = {result["name"] for result in results if "failed" not in result}
    return [run for run in runs if run.name in names]
