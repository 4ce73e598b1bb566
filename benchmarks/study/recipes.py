"""The settings of MAW that the study tries: recipes that may become the default, and options around one of them.

A run's settings change `BEGAN`, the default when the study began, so that later defaults do not change what a run is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "BEGAN",
    "BEGUN_OPTIONS",
    "CANDIDATES",
    "FINALISTS",
    "FIRST_CHOICE",
    "FIRST_LAYER_DROPOUT",
    "LATER",
    "LORA_CONTROLS",
    "OPTIONS",
    "RECIPES",
    "SHORTLIST",
    "matched_dropout",
]

BEGAN: dict[str, Any] = {
    "tau": 5.0, "noise": 1.0, "kl_weight": 0.0, "auxiliary_weight": 0.003, "learning_rate": 1e-3, "reward": "entropy",
    "calibrate": False, "depth_baseline": False, "logit_dropout": 0.013, "layers": [-1], "advantage": "std",
}  # fmt: skip

GENTLE: dict[str, Any] = {"tau": 10.0, "kl_weight": 1.0}
INFORMED: dict[str, Any] = {"kl_weight": 1.0, "learning_rate": 3e-4, "auxiliary_weight": 0.03, "calibrate": True}
"""A selector that begins calibrated and stays near uniform."""
CLOSE: dict[str, Any] = {"tau": 1.0, "noise": 0.05}
"""Weights that follow the policy, and are as calm in training as at tau 20."""

RELATIVE: dict[str, Any] = {
    **{**INFORMED, **CLOSE},
    **{"depth_baseline": True, "auxiliary_weight": 10.0, "kl_weight": 0.5},
}
"""One that learns what a depth is worth to a text more than to others. At tau 1 the training loss's gradient in the
policy's last layer is 50 times that of rewards of weight .03, so that theirs is 10."""

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
    "informed, tau 1, noise .05, KL .5": {**INFORMED, **CLOSE, "kl_weight": 0.5},
    "informed, tau 1, noise .05, KL 2": {**INFORMED, **CLOSE, "kl_weight": 2.0},
    "informed, tau 1, noise .05, retrieval": {**INFORMED, **CLOSE, "reward": "retrieval"},
    "informed, tau 1, noise .05, no reward": {**INFORMED, **CLOSE, "auxiliary_weight": 0.0},
    "relative": RELATIVE,
    "relative, KL 1": {**RELATIVE, "kl_weight": 1.0},
    "relative, KL .25": {**RELATIVE, "kl_weight": 0.25},
    "relative, retrieval": {**RELATIVE, "reward": "retrieval"},
}
"""Gentle ones, ones whose selector begins calibrated and whose weights follow it more or less closely, and such whose
rewards are relative to what their depth is worth on the whole."""

FIRST_CHOICE = "gentle 1e-4, reward .03"
"""The default of the study's second round, chosen before there were relative ones; controls have its settings."""

TASK_LED: dict[str, Any] = {
    **{**RELATIVE, "auxiliary_weight": 0.03, "kl_weight": 1.0},
    **{"tau": 0.3, "noise": 0.015},
}
"""One whose weights follow what the training loss asks of the policy, with a reward that hardly counts beside it."""

SHORTLIST: dict[str, dict[str, Any]] = {
    FIRST_CHOICE: RECIPES[FIRST_CHOICE],
    "gentle, noise .5": {**RECIPES[FIRST_CHOICE], "noise": 0.5},
    "relative, KL 2": {**RELATIVE, "kl_weight": 2.0},
    "task-led": TASK_LED,
    "task-led, tau .1": {**TASK_LED, "tau": 0.1, "noise": 0.005},
    "task-led, learning rate 1e-3": {**TASK_LED, "learning_rate": 1e-3},
    "task-led, KL .25": {**TASK_LED, "kl_weight": 0.25},
    "task-led, no reward": {**TASK_LED, "auxiliary_weight": 0.0},
    "task-led, retrieval": {**TASK_LED, "auxiliary_weight": 1.0, "reward": "retrieval"},
    "gentle, noise .25": {**RECIPES[FIRST_CHOICE], "noise": 0.25},
    "task-led, noise .0075": {**TASK_LED, "noise": 0.0075},
    "task-led, tau .2, noise .005": {**TASK_LED, "tau": 0.2, "noise": 0.005},
    "task-led, tau .2, noise .0025": {**TASK_LED, "tau": 0.2, "noise": 0.0025},
}
"""What two rounds leave to choose from. What MAW draws is apart from the encoder's dropout from here on. The last four
were added when the others had been seen: the gap of `task-led` was a little too large on pydocs."""

FINALISTS: dict[str, dict[str, Any]] = {
    "task-led, noise .0075": SHORTLIST["task-led, noise .0075"],
    "task-led, tau .2, KL 100": {**TASK_LED, "tau": 0.2, "noise": 0.005, "kl_weight": 100.0},
    "task-led, tau .15, KL 300": {**TASK_LED, "tau": 0.15, "noise": 0.00375, "kl_weight": 300.0},
}
"""What is tried on every training set, in full and with LoRA: the third round's choice, whose weights share .007 to
.073 nat with the text, the more the longer they are trained, and two that a stronger KL term holds nearer to uniform.
The two were trained with gradients of encoder and MAW clipped apart, all before with one norm for both."""

CANDIDATES: dict[str, dict[str, Any]] = {
    f"{name}; first layer": {**FINALISTS[name], "layers": [0]}
    for name in ("task-led, noise .0075", "task-led, tau .15, KL 300")
}
"""Two finalists with the option that is best on dev on pydocs: MAW in the first layer, where the weights share .034 nat
with the text."""

LATER: dict[str, dict[str, Any]] = {**SHORTLIST, **FINALISTS, **CANDIDATES}
"""All recipes since MAW draws apart from dropout."""

FIRST_LAYER_DROPOUT = 0.00033
"""As much noise on the logits of MiniLM's first layer as the candidates' depth noise makes there (measured as
`maw.benchmark.variants.LOGIT_DROPOUT`)."""

LORA_CONTROLS: dict[str, dict[str, Any]] = {
    "static": {"selection": "uniform"},
    "ia3-key": {"mechanism": "ia3-key"},
    "linear-gate": {"mechanism": "linear-gate"},
    "logit-dropout": {"mechanism": "logit-dropout", "logit_dropout": FIRST_LAYER_DROPOUT},
}
"""What turns a candidate into a control; the controls of `maw.benchmark.variants` are trained in full."""

OPTIONS: dict[str, dict[str, Any]] = {
    "no reward": {"auxiliary_weight": 0.0},
    "reward .03": {"auxiliary_weight": 0.03},
    "reward 1": {"auxiliary_weight": 1.0},
    "retrieval": {"reward": "retrieval"},
    "both rewards": {"reward": "sum"},
    "exact gradient": {"estimator": "exact"},
    "KL .3": {"kl_weight": 0.3},
    "KL 3": {"kl_weight": 3.0},
    "not calibrated": {"calibrate": False},
    "no baseline of depths": {"depth_baseline": False},
    "tau 10, noise 1": {"tau": 10.0, "noise": 1.0},
    "tau 1, noise .3": {"tau": 1.0, "noise": 0.3},
    "tau from 10": {"tau_start": 10.0},
    "no noise": {"selection": "softmax"},
    "hard": {"selection": "hard", "tau": 1.0},
    "uniform weights": {"selection": "uniform"},
    "all layers": {"layers": "all"},
    "all layers, no reward": {"layers": "all", "auxiliary_weight": 0.0},
    "all layers, uniform weights": {"layers": "all", "selection": "uniform"},
    "first layer": {"layers": [0]},
    "last two layers": {"layers": [-2, -1]},
    "depth 8": {"depth": 8},
    "depth 16": {"depth": 16},
    "depth 128": {"depth": 128},
    "frame views": {"views": "frame"},
    "views fixed": {"train_views": False},
    "learning rate 1e-4": {"learning_rate": 1e-4},
    "learning rate 1e-3": {"learning_rate": 1e-3},
    "weights per head": {"weights per": "head"},
    "weights per token": {"weights per": "token", "calibrate": False},
    "weights per head and token": {"weights per": "head and token", "calibrate": False},
    "logit dropout .05": {"mechanism": "logit-dropout", "logit_dropout": 0.05},
    "logit dropout .3": {"mechanism": "logit-dropout", "logit_dropout": 0.3},
}
"""Changes of the chosen recipe, each on its own."""

BEGUN_OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "no reward": {"auxiliary_weight": 0.0},
    "tau 1": {"tau": 1.0},
    "tau 2": {"tau": 2.0},
    "tau 10": {"tau": 10.0},
    "tau 10, no reward": {"tau": 10.0, "auxiliary_weight": 0.0},
    "tau from 1 to 5": {"tau_start": 1.0},
}
"""Changes of `BEGAN` that were tried before there was a better recipe to change."""


def matched_dropout(recipe: Mapping[str, Any]) -> float:
    """The share of logits to drop for as much noise on the logits as the depth noise of a recipe makes at its start.

    At tau 5 and noise 1 depth noise has .0129 of the mean square logit as variance (`maw.benchmark.variants`), which
    goes with (noise / tau)^2 or a little less (at tau 10 .0026 was measured, where this says .0032); dropout of a share
    p has p / (1 - p). In the first layer it was measured for the candidates' noise.
    """
    settings = {**BEGAN, **recipe}
    if settings.get("layers") == [0]:
        return FIRST_LAYER_DROPOUT
    variance = 0.0129 * (5 * settings["noise"] / settings["tau"]) ** 2
    return round(variance / (1 + variance), 6)
