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
confirmation    the last three rounds' choices on every set with seeds by which nothing is chosen
candidates  what the options suggest, on every set beside the twins of `final`; the best of them beside controls
lora        controls with LoRA, where the best of the candidates is above its twin
alone       the encoder frozen: MAW, controls, or the last layer's query and key projections trained on their own
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from choosing import (
    CONTROLS,
    FIFTH,
    FOURTH,
    RECIPES_ON,
    SECOND,
    SEEDS,
    SETS,
    THIRD,
    TUNING_SEED,
    Results,
    Round,
    Unfinished,
    chosen,
    dev,
    final_default,
    tuned,
)
from data import DOMAINS
from recipes import (
    BEGUN_OPTIONS,
    CANDIDATES,
    FINALISTS,
    FIRST_CHOICE,
    LATER,
    LORA_CONTROLS,
    OPTIONS,
    RECIPES,
    SHORTLIST,
    matched_dropout,
)

__all__ = [
    "ALONE_ON",
    "ALONE_RATES",
    "CONFIRMING_SEEDS",
    "LEARNING_RATES",
    "LORA_CONTROLS_ON",
    "LORA_SEEDS",
    "MORE_SEEDS",
    "OPTIONS_ON",
    "PHASES",
    "RESTS_ON",
    "Run",
    "alone",
    "confirmed",
    "followed",
    "phase",
]

CONFIRMING_SEEDS = range(5, 10)
MORE_SEEDS = range(20, 30)
DRAWING = ("random", "logit-dropout")
"""Controls with noise of their own."""
PHASES = (
    *("tuning", "main", "recipes", "default", "shortlist", "final", "finalists"),
    *("controls", "options", "scratch", "candidates", "confirmation", "lora", "alone"),
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
    "main": {"tuning"},
    "confirmation": {"tuning", "final", "finalists", "candidates"},
    "candidates": {"tuning", "final", "finalists"},
    "lora": {"tuning", "candidates"},
    "alone": {"final", "finalists"},
}
LEARNING_RATES = {"full": (2e-5, 5e-5, 1e-4, 2e-4), "lora": (2e-4, 5e-4, 1e-3, 2e-3)}
OPTIONS_ON = ("pydocs",)
OPTIONS_SEEDS = (10, 11, 12)
LORA_CONTROLS_ON = "pydocs"
LORA_SEEDS = (*SEEDS, *CONFIRMING_SEEDS)
ALONE_ON = ("pydocs", "nfcorpus")
ALONE_RATES = (3e-4, 1e-3, 3e-3, 1e-2)


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
        "scratch": _scratch,
        "confirmation": _confirmation,
        "candidates": _candidates,
        "lora": _lora,
        "alone": _alone,
    }
    runs: list[Run] = []
    try:
        for run in makers[name](results):  # those before one that cannot be planned are kept
            runs.append(run)  # noqa: PERF402
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


def _default(results: Results) -> Iterable[Run]:
    option = chosen(results, SECOND)
    yield from _pairs(results, SECOND, option)
    others = [run for name in RECIPES if name != option for run in _pairs(results, SECOND, name)]
    yield from _finished([run for run in others if run.option], results)


def _final(results: Results) -> Iterable[Run]:
    option = chosen(results, THIRD)
    yield from _pairs(results, THIRD, option)
    yield from _controls_of(results, THIRD, option, [name for name in CONTROLS if name != "literal"])


def _finalists(results: Results) -> Iterable[Run]:
    yield from _everywhere(results, FOURTH)


def _everywhere(results: Results, stage: Round) -> Iterable[Run]:
    """A round's recipes in every setting, the long ones of all of them first; their twins are there."""
    each = [_pairs(results, stage, option) for option in stage.recipes]
    for runs in zip(*each, strict=True):
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
    recipe = SHORTLIST[chosen(results, THIRD)]
    for train, seed in itertools.product(OPTIONS_ON, OPTIONS_SEEDS):
        settings = tuned(results, train, "full")
        yield Run("options", train, "dense-full", seed, **settings)
        for option, changes in {"the default": {}, **OPTIONS}.items():
            yield Run("options", train, "maw-full", seed, **settings, maw={**recipe, **changes}, option=option)


def _candidates(results: Results) -> Iterable[Run]:
    yield from _everywhere(results, FIFTH)
    try:
        option = chosen(results, FIFTH)
    except Unfinished:
        return
    for controls in (("static", "ia3-key", "linear-gate", "logit-dropout"), ("random",)):
        yield from _controls_of(results, FIFTH, option, controls)


def _lora(results: Results) -> Iterable[Run]:
    recipe, settings = CANDIDATES[chosen(results, FIFTH)], tuned(results, LORA_CONTROLS_ON, "lora")
    for seed, (control, changes) in itertools.product(LORA_SEEDS, LORA_CONTROLS.items()):
        yield Run("lora", LORA_CONTROLS_ON, "maw-lora", seed, **settings, maw={**recipe, **changes}, option=control)


def _confirmation(results: Results) -> Iterable[Run]:
    options = confirmed(results)
    sets = ("mixed", "tldr-commands", "nfcorpus", "pydocs", "nq-qed")  # the long ones first
    for train, tuning, seed in itertools.product(sets, ("lora", "full"), CONFIRMING_SEEDS):
        yield from _beside_a_twin(results, train, tuning, seed, options)
    # Ten more seeds where the fourth round's choice had a mean over .002 below its twin's with these.
    for tuning, seed in itertools.product(("full", "lora"), MORE_SEEDS):
        yield from _beside_a_twin(results, "pydocs", tuning, seed, followed(results))


def _beside_a_twin(results: Results, train: str, tuning: str, seed: int, options: Sequence[str]) -> Iterable[Run]:
    settings = tuned(results, train, tuning)
    yield Run("confirmation", train, f"dense-{tuning}", seed, **settings)
    for option in options:
        yield Run("confirmation", train, f"maw-{tuning}", seed, **settings, maw=LATER[option], option=option)


def confirmed(results: Results) -> tuple[str, ...]:
    """What runs again with new seeds: the default first, then the choices of the last rounds; all clipped apart."""
    return tuple(dict.fromkeys((final_default(results), *(chosen(results, stage) for stage in (FIFTH, FOURTH, THIRD)))))


def followed(results: Results) -> tuple[str, ...]:
    """Those of them that get ten more seeds on pydocs: the default, and the default before."""
    return confirmed(results)[:2]


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
