"""Which runs the study has, and in which order. Later phases use what earlier ones found, on dev splits alone.

tuning      dense twins: learning rate, epochs, batch; one seed that no other run has
recipes     candidates for MAW's default, on two training sets
default     the one that is best on dev, of those whose selection works, on the other training sets
options     MAW's settings, on three training sets, at its dense twin's best settings
main        every variant on every training set, five seeds
best        the options that were best on dev, as `main`
scratch     a small encoder that was never trained
"""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from data import DOMAINS

__all__ = ["BEGAN", "PHASES", "RESTS_ON", "Run", "dev", "phase"]

SETS = (*DOMAINS, "mixed")
SEEDS = range(5)
TUNING_SEED = 1000
CONTROLS = ("static", "ia3-key", "linear-gate", "random", "literal", "logit-dropout")
PHASES = ("tuning", "recipes", "default", "options", "main", "best", "scratch")
RESTS_ON: dict[str, set[str]] = {
    "tuning": set(),
    "recipes": {"tuning"},
    "default": {"tuning", "recipes"},
    "options": {"tuning"},
    "main": {"tuning"},
    "best": {"tuning", "options"},
    "scratch": set(),
}
LEARNING_RATES = {"full": (2e-5, 5e-5, 1e-4, 2e-4), "lora": (2e-4, 5e-4, 1e-3, 2e-3)}

BEGAN: dict[str, Any] = {
    "tau": 5.0, "kl_weight": 0.0, "auxiliary_weight": 0.003, "learning_rate": 1e-3, "calibrate": False,
}  # fmt: skip
"""The default recipe when the study began: a run's own settings change this."""

INFORMED: dict[str, Any] = {"kl_weight": 1.0, "learning_rate": 3e-4, "auxiliary_weight": 0.03, "calibrate": True}
"""A selector that begins calibrated and stays near uniform."""
CLOSE: dict[str, Any] = {"tau": 1.0, "noise": 0.05}
"""Weights that follow the policy, and are as calm in training as at tau 20."""

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "no reward": {"auxiliary_weight": 0.0},
    "tau 1": {"tau": 1.0},
    "tau 2": {"tau": 2.0},
    "tau 10": {"tau": 10.0},
    "tau 10, no reward": {"tau": 10.0, "auxiliary_weight": 0.0},
    "tau from 1 to 5": {"tau_start": 1.0},
    "tau from 10 to 2": {"tau_start": 10.0, "tau": 2.0},
    "no noise, no reward": {"selection": "softmax", "auxiliary_weight": 0.0, "tau": 1.0},
    "no noise": {"selection": "softmax", "tau": 1.0},
    "uniform weights": {"selection": "uniform"},
    "hard": {"selection": "hard", "tau": 1.0},
    "reward .01": {"auxiliary_weight": 0.01},
    "reward .1": {"auxiliary_weight": 0.1},
    "reward .1, KL 1": {"auxiliary_weight": 0.1, "kl_weight": 1.0},
    "retrieval .003": {"reward": "retrieval"},
    "retrieval .03": {"reward": "retrieval", "auxiliary_weight": 0.03},
    "retrieval .03, tau 1, no noise": {
        "reward": "retrieval", "auxiliary_weight": 0.03, "tau": 1.0, "selection": "softmax", "kl_weight": 1.0,
    },
    "both .01": {"reward": "sum", "auxiliary_weight": 0.01},
    "exact gradient .03": {"estimator": "exact", "auxiliary_weight": 0.03},
    "all layers": {"layers": "all"},
    "all layers, tau 10": {"layers": "all", "tau": 10.0},
    "all layers, uniform": {"layers": "all", "selection": "uniform"},
    "first layer": {"layers": [0]},
    "last two layers": {"layers": [-2, -1]},
    "depth 8": {"depth": 8},
    "depth 16": {"depth": 16},
    "depth 128": {"depth": 128},
    "frame views": {"views": "frame"},
    "views fixed": {"train_views": False},
    "learning rate 1e-4": {"learning_rate": 1e-4},
    "learning rate 3e-3": {"learning_rate": 3e-3},
    "calibrated": {"calibrate": True},
    "informed": {**INFORMED, **CLOSE},
    "informed, no reward": {**INFORMED, **CLOSE, "auxiliary_weight": 0.0},
    "informed, all layers": {**INFORMED, **CLOSE, "layers": "all"},
    "informed, all layers, no reward": {**INFORMED, **CLOSE, "layers": "all", "auxiliary_weight": 0.0},
    "weights per head": {"weights per": "head", "tau": 10.0},
    "weights per token": {"weights per": "token", "tau": 10.0},
    "weights per head and token": {"weights per": "head and token", "tau": 10.0},
    "weights per head, tau 1, noise .05": {"weights per": "head", **CLOSE},
    "weights per token, tau 1, noise .05": {"weights per": "token", **CLOSE},
    "weights per head and token, tau 1, noise .05": {"weights per": "head and token", **CLOSE},
    "logit dropout .05": {"mechanism": "logit-dropout", "logit_dropout": 0.05},
    "logit dropout .3": {"mechanism": "logit-dropout", "logit_dropout": 0.3},
}  # fmt: skip


OPTIONS_ON = ("nfcorpus", "pydocs", "mixed")

GENTLE: dict[str, Any] = {"tau": 10.0, "kl_weight": 1.0}
RECIPES: dict[str, dict[str, Any]] = {
    "gentle 3e-4": {**GENTLE, "learning_rate": 3e-4},
    "gentle 3e-4, reward .03": {**GENTLE, "learning_rate": 3e-4, "auxiliary_weight": 0.03},
    "gentle 1e-4, reward .03": {**GENTLE, "learning_rate": 1e-4, "auxiliary_weight": 0.03},
    "gentle 3e-4, retrieval .03": {**GENTLE, "learning_rate": 3e-4, "auxiliary_weight": 0.03, "reward": "retrieval"},
    "informed, tau 10": {**INFORMED, "tau": 10.0},
    "informed, tau 20": {**INFORMED, "tau": 20.0},
    "informed, tau 3, noise .15": {**INFORMED, "tau": 3.0, "noise": 0.15},
    "informed, tau 1, noise .1": {**INFORMED, "tau": 1.0, "noise": 0.1},
    "informed, tau 1, noise .05": {**INFORMED, **CLOSE},
    "informed, tau 1, noise .05, learning rate 1e-3": {**INFORMED, **CLOSE, "learning_rate": 1e-3},
    "informed, tau 1, noise .05, KL 2": {**INFORMED, **CLOSE, "kl_weight": 2.0},
    "informed, tau 1, noise .05, retrieval": {**INFORMED, **CLOSE, "reward": "retrieval"},
    "informed, tau 1, noise .05, no reward": {**INFORMED, **CLOSE, "auxiliary_weight": 0.0},
}
"""Gentle ones, and ones whose selector begins calibrated and whose weights follow it more or less closely."""


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
    own = DOMAINS if result["run"]["train"] == "mixed" else (result["run"]["train"],)
    return statistics.mean(result["means"][f"{name}/dev"] for name in own)


def phase(name: str, results: Sequence[Mapping[str, Any]]) -> list[Run]:
    """The runs of a phase, given the finished runs of those it rests on; the most important first."""
    makers = {
        "tuning": _tuning,
        "recipes": _recipes,
        "default": _default,
        "options": _options,
        "main": _main,
        "best": _best,
        "scratch": _scratch,
    }
    return list(makers[name](results))


def _tuning(_: Sequence[Any]) -> Iterable[Run]:
    for train in ("mixed", "tldr-commands", "nfcorpus", "nq-qed", "pydocs"):  # the long ones first
        epochs = (1, 2) if train == "mixed" else (1, 3)
        grid = itertools.product(("full", "lora"), range(4), epochs, (64, 128))
        for tuning, rate, number, batch in grid:
            yield Run("tuning", train, f"dense-{tuning}", TUNING_SEED, LEARNING_RATES[tuning][rate], number, batch)


def tuned(results: Sequence[Mapping[str, Any]], train: str, tuning: str, encoder: str = "minilm") -> dict[str, Any]:
    """The dense twin's settings that were best on dev."""
    found = [
        result
        for result in results
        if result["run"]["seed"] == TUNING_SEED
        and result["run"]["encoder"] == encoder
        and (result["run"]["train"], result["run"]["variant"]) == (train, f"dense-{tuning}")
    ]
    best = max(found, key=dev)["run"]
    return {name: best[name] for name in ("learning_rate", "epochs", "batch_size")}


def _recipes(results: Sequence[Any]) -> Iterable[Run]:
    for seed, option in itertools.product(SEEDS, RECIPES):
        for train, variant in (("nfcorpus", "maw-full"), ("pydocs", "maw-full"), ("pydocs", "maw-lora")):
            settings = tuned(results, train, variant.removeprefix("maw-"))
            yield Run("recipes", train, variant, seed, **settings, maw=RECIPES[option], option=option)


def _default(results: Sequence[Any]) -> Iterable[Run]:
    working = [name for name in RECIPES if works(results, name)]  # if none does, tables.py says so
    option = max(working or RECIPES, key=lambda name: _mean_dev(results, "recipes", name))
    rows = [("nfcorpus", "maw-lora"), ("nq-qed", "maw-full"), ("nq-qed", "maw-lora"), ("mixed", "maw-full")]
    rows += [("tldr-commands", "maw-full"), ("tldr-commands", "maw-lora"), ("mixed", "maw-lora")]
    for (train, variant), seed in itertools.product(rows, SEEDS):
        settings = tuned(results, train, variant.removeprefix("maw-"))
        yield Run("default", train, variant, seed, **settings, maw=RECIPES[option], option=option)


def works(results: Sequence[Mapping[str, Any]], option: str) -> bool:
    """Whether a recipe's weights keep half of the depths alive in every run, and depend on the text: .01 nat on
    average. By dev queries and documents; the first recipes were not measured so, and their weights hardly depend on
    the text by any."""
    layers = [
        layer
        for result in results
        if (result["run"]["phase"], result["run"]["option"]) == ("recipes", option)
        for own in result["selection"].values()
        for layer in own.get("layers on dev", ())
    ]
    return (
        bool(layers)
        and min(layer["depths alive by weight"] for layer in layers) >= 0.5
        and statistics.mean(layer["information of weights, nat"] for layer in layers) >= 0.01
    )


def _mean_dev(results: Sequence[Any], phase: str, option: str) -> float:
    """The mean on dev over the training sets and variants that an option was tried on."""
    found: dict[tuple[str, str], list[float]] = {}
    for result in results:
        run = result["run"]
        if (run["phase"], run["option"]) == (phase, option):
            found.setdefault((run["train"], run["variant"]), []).append(dev(result))
    return statistics.mean(statistics.mean(values) for values in found.values()) if found else 0.0


def _options(results: Sequence[Any]) -> Iterable[Run]:
    for seed in (0, 1):
        for train in OPTIONS_ON:
            settings = tuned(results, train, "full")
            yield Run("options", train, "dense-full", 10 + seed, **settings)
            for option, changes in OPTIONS.items():
                yield Run("options", train, "maw-full", 10 + seed, **settings, maw=changes, option=option)


def _main(results: Sequence[Any]) -> Iterable[Run]:
    yield Run("main", "", "untuned", 0)
    matrix = [
        (("mixed", "nfcorpus"), ("dense-full", "maw-full", "dense-lora", "maw-lora")),
        (("mixed", "nfcorpus"), CONTROLS),
        (("pydocs", "nq-qed", "tldr-commands"), ("dense-full", "maw-full", "dense-lora", "maw-lora")),
        (("pydocs", "nq-qed", "tldr-commands"), CONTROLS),
    ]
    for sets, variants in matrix:
        for seed, train, variant in itertools.product(SEEDS, sets, variants):
            tuning = "lora" if variant.endswith("lora") else "full"
            yield Run("main", train, variant, seed, **tuned(results, train, tuning))


def _best(results: Sequence[Any]) -> Iterable[Run]:
    """The two options with the best mean on dev over their training sets; never the default or a control."""
    tried = [name for name in OPTIONS if "logit" not in name and name != "default"]
    chosen = sorted(tried, key=lambda name: _mean_dev(results, "options", name), reverse=True)
    for option, seed, train in itertools.product(
        chosen[:2], SEEDS, ("mixed", "nfcorpus", "pydocs", "nq-qed", "tldr-commands")
    ):
        yield Run("best", train, "maw-full", seed, **tuned(results, train, "full"), maw=OPTIONS[option], option=option)


def _scratch(results: Sequence[Any]) -> Iterable[Run]:
    common: dict[str, Any] = {"epochs": 4, "batch_size": 128, "encoder": "scratch"}
    for rate in (2e-4, 5e-4, 1e-3):
        yield Run("scratch", "mixed", "dense-full", TUNING_SEED, rate, **common)
    rows = [("dense-full", {}, ""), ("maw-full", {}, "last layer"), ("maw-full", {"layers": "all"}, "all layers")]
    rows += [
        ("static", {"layers": "all"}, "all layers"),
        ("maw-full", {"layers": "all", "tau": 1.0}, "all layers, tau 1"),
    ]
    for seed, (variant, maw, option) in itertools.product(SEEDS, rows):
        yield Run("scratch", "mixed", variant, seed, 5e-4, **common, maw=maw, option=option)
