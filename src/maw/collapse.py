"""Collapse has a name: what can go wrong with MAW while nothing stops, each with its sign, its threshold and a remedy.

Pure functions of numbers that exist anyway: the statistics of a layer (`maw.DepthAttention.collect`), a probe of the
model on a few texts (`maw.retrieval.training.probe`), and the measured metric. An *alarm* says that the run is not
what it claims to be; a *note* says what a reader of the results should know and is no failure. docs/collapse.md has
the table.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

__all__ = [
    "ADVICE",
    "Finding",
    "Watch",
    "below_untuned",
    "probe_findings",
    "selector_findings",
]

Level: TypeAlias = Literal["alarm", "note"]

WINDOW = 10
"""Steps whose mean is judged: a single batch may be odd. It is also the first step at which anything is judged."""
PATIENCE, PATIENT_SHARE = 50, 0.25
"""A policy that is still uniform is worth a note after so many steps and this share of the training: it starts uniform,
and in a long training may learn late."""

USAGES = {"depth_usage": "policy", "weight_usage": "depth weight"}
"""The vectors among a layer's statistics, and what they are means of."""
COLLAPSED_USAGE = 0.2
ALIVE = 0.5
HEDGING_ENTROPY, HEDGING_INFORMATION = 0.95, 0.01
CONSTANT_GROUPS, CONSTANT_DEVIATION, SAMPLED_ENTROPY = 0.9, 0.01, 0.3
ATTENTION_ENTROPY = 0.1
SELECTION_GAP = 0.25
MASK_ERROR = 0.05
VIEW_SPREAD = 1e-4

ADVICE: dict[str, str] = {
    "policy collapse": (
        "raise kl_weight, or lower MAW's learning rate; where the training loss drives it raise tau, with noise in "
        "proportion, and where the reward does lower auxiliary_weight and raise kl_weight in proportion"
    ),
    "dead depths": "raise kl_weight or tau, with noise in proportion, or use fewer depths (depth)",
    "uniform hedging": (
        "nothing is broken: the depth weights hardly depend on the text. To let them follow it more lower tau (with "
        "noise in proportion) or kl_weight; to do without use selection='uniform'"
    ),
    "constant reward": (
        "nothing can be learnt from it: use views that differ (views='auto', not 'ones' or the literal recipe) and the "
        "default scale"
    ),
    "attention-entropy collapse": (
        "lower MAW's learning rate, raise kl_weight, and leave scale at its default: each token attends to one token, "
        "whose gradient is nearly 0"
    ),
    "train/evaluation gap": (
        "encode with the settings the model was trained with (selection, tau), or raise tau or lower noise: training "
        "saw other vectors than evaluation makes"
    ),
    "loss of the mask": (
        "padding is attended to: give the encoder an attention_mask of the batch, and register a mask function for "
        "an attention implementation of your own (transformers.AttentionMaskInterface)"
    ),
    "below untuned": "lower the learning rate or train shorter; compare with the dense twin: is it MAW or the tuning?",
}
"""What to change, by the name of the finding."""


@dataclass(frozen=True)
class Finding:
    """Something that went wrong, or that one should know.

    Attributes:
        name: one of `ADVICE`.
        level: `alarm` or `note`.
        seen: what was seen, with its number.
        threshold: where it begins.
        advice: what to change.
        layer: which MAW layer, counted from the first one; None where it concerns the whole model.
        step: the training step at which it was first seen; None outside training.
    """

    name: str
    level: Level
    seen: str
    threshold: str
    advice: str
    layer: int | None = None
    step: int | None = None

    def __str__(self) -> str:
        where = "" if self.layer is None else f" in MAW layer {self.layer}"
        when = "" if self.step is None else f" at step {self.step}"
        return f"{self.name}{where}{when}: {self.seen} (threshold: {self.threshold}). {self.advice}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def _finding(name: str, seen: str, threshold: str, *, level: Level = "alarm", layer: int | None = None) -> Finding:
    return Finding(name, level, seen, threshold, ADVICE[name], layer)


def selector_findings(
    statistics: Mapping[str, float | Tensor], *, step: int, steps: int = 0, layer: int | None = None
) -> list[Finding]:
    """What the statistics of one layer's selector say.

    A policy that is sure of each text but chooses differently for different texts has not collapsed: what is judged is
    the entropy of the mean policy, `depth_usage`, relative to log D. Below a temperature of 1 depth weights are sharper
    than the policy, so that the mean weights, `weight_usage`, are judged, too.

    Args:
        statistics: as `maw.DepthAttention.collect` returns them, or means of several.
        step: training steps so far; a policy starts uniform, which is no finding before step `PATIENCE`.
        steps: those of the whole training, if they are known: nor is it in their first quarter.
        layer: goes into the findings.

    Returns:
        at most one of policy collapse, dead depths, constant reward and uniform hedging, in that order: each would
        bring the next ones along; none for a single depth or without statistics.

    >>> healthy = {"policy_entropy": 0.6, "depth_information": 0.3, "zero_spread": 0.0, "depth_usage": [0.25] * 4}
    >>> selector_findings(healthy, step=90)
    []
    >>> collapsed = healthy | {"policy_entropy": 0.03, "depth_usage": [0.98, 0.02, 0.0, 0.0]}
    >>> [finding.name for finding in selector_findings(collapsed, step=90)]
    ['policy collapse']
    """
    usages = {USAGES[name]: torch.as_tensor(number) for name, number in statistics.items() if name in USAGES}
    depth = len(usages["policy"]) if usages else 1
    if depth == 1:
        return []
    value = {name: float(number) for name, number in statistics.items() if name not in USAGES}
    spread, what = min(
        (float(torch.special.entr(usage).sum()) / math.log(depth), what) for what, usage in usages.items()
    )
    if spread < COLLAPSED_USAGE:
        seen = f"the mean {what} has {spread:.3f} of its largest entropy: all texts get the same few of {depth} depths"
        return [_finding("policy collapse", seen, f"below {COLLAPSED_USAGE}", layer=layer)]
    alive, what = min((int((usage >= 1 / (4 * depth)).sum()), what) for what, usage in usages.items())
    if alive < ALIVE * depth:
        seen = f"{alive} of {depth} depths have at least 1/(4D) in the mean {what}"
        return [_finding("dead depths", seen, f"below {ALIVE} of them", layer=layer)]
    constant = _constant_reward(value)
    if constant is not None:
        return [_finding("constant reward", *constant, layer=layer)]
    entropy = value["policy_entropy"]
    information = max(value[name] for name in ("depth_information", "weight_information") if name in value)
    patience = max(PATIENCE, math.ceil(PATIENT_SHARE * steps))
    if step >= patience and entropy >= HEDGING_ENTROPY and information < HEDGING_INFORMATION:
        seen = f"policy entropy {entropy:.3f} of its largest, and depth and text share {information:.4f} nat"
        threshold = f"at least {HEDGING_ENTROPY}, and below {HEDGING_INFORMATION} nat, from step {patience} on"
        return [_finding("uniform hedging", seen, threshold, level="note", layer=layer)]
    return []


def _constant_reward(value: Mapping[str, float]) -> tuple[str, str] | None:
    """What was seen and the threshold, where rewards do not differ."""
    groups, deviation = value.get("zero_spread"), value.get("reward_deviation")
    # a policy that is sure of each text draws one depth only: its groups then say nothing of the rewards
    if groups is not None and groups > CONSTANT_GROUPS and value["policy_entropy"] >= SAMPLED_ENTROPY:
        return f"in {groups:.2f} of the groups all depths have the same reward", f"above {CONSTANT_GROUPS}"
    if groups is None and deviation is not None and deviation < CONSTANT_DEVIATION:
        seen = (
            f"rewards of all texts and depths have a standard deviation of {deviation:.1e} around {value['reward']:.4f}"
        )
        return seen, f"below {CONSTANT_DEVIATION}"
    return None


def probe_findings(probe: Mapping[str, Any]) -> list[Finding]:
    """What a probe of the model (`maw.retrieval.training.probe.probe`) says.

    Args:
        probe: `attention_entropy` and `view_spread`, one number a MAW layer, `selection_gap` and `mask_error`.

    >>> healthy = {"attention_entropy": [0.7], "view_spread": [1.0], "selection_gap": 0.05, "mask_error": 1e-6}
    >>> probe_findings(healthy), probe_findings(healthy | {"mask_error": 0.2})[0].name
    ([], 'loss of the mask')
    """
    found = []
    for layer, spread in enumerate(probe["view_spread"]):
        if spread < VIEW_SPREAD:
            seen = f"view vectors differ from depth to depth by {spread:.1e} of their length: all slices are the same"
            found.append(_finding("constant reward", seen, f"below {VIEW_SPREAD}", layer=layer))
    for layer, entropy in enumerate(probe["attention_entropy"]):
        if entropy < ATTENTION_ENTROPY:
            seen = f"its attention has {entropy:.3f} of its largest entropy"
            found.append(_finding("attention-entropy collapse", seen, f"below {ATTENTION_ENTROPY}", layer=layer))
    if probe["selection_gap"] > SELECTION_GAP:
        seen = f"training weights move a vector by {probe['selection_gap']:.2f} of the distance between two texts"
        found.append(_finding("train/evaluation gap", seen, f"above {SELECTION_GAP}"))
    if probe["mask_error"] > MASK_ERROR:
        seen = f"padding moves a vector by {probe['mask_error']:.3f} of its length"
        found.append(_finding("loss of the mask", seen, f"above {MASK_ERROR}"))
    return found


def below_untuned(metric: str, tuned: float, untuned: float) -> list[Finding]:
    """A tuned model that ranks worse than the encoder it came from.

    >>> [str(finding).partition(" (")[0] for finding in below_untuned("nDCG@10", 0.4, 0.5)]
    ['below untuned: nDCG@10 is 0.4000, untuned 0.5000']
    >>> below_untuned("nDCG@10", 0.5, 0.5)
    []
    """
    if not tuned < untuned:
        return []
    return [_finding("below untuned", f"{metric} is {tuned:.4f}, untuned {untuned:.4f}", "below the untuned row")]


class Watch:
    """The findings of one training, each kept once for each layer, at the step where it was first seen.

    Args:
        found: what was found before the training was interrupted.
    """

    def __init__(self, found: Iterable[Finding] = ()) -> None:
        self.found = {(finding.name, finding.layer): finding for finding in found}
        self.histories: dict[int, deque[tuple[int, Mapping[str, Any]]]] = {}

    def selectors(self, step: int, statistics: Sequence[Mapping[str, Any]], *, steps: int = 0) -> list[Finding]:
        """Take in the statistics of all MAW layers at one step of a training of `steps`, if that is known.

        Returns:
            the findings that are new.
        """
        new = []
        for layer, latest in enumerate(statistics):
            history = self.histories.setdefault(layer, deque())
            history.append((step, latest))
            while history[0][0] <= step - WINDOW:
                history.popleft()
            if step < WINDOW:
                continue
            columns = {name: [torch.as_tensor(values[name]) for _, values in history] for name in latest}
            means = {name: torch.stack(values).float().mean(dim=0).cpu() for name, values in columns.items()}
            new += selector_findings(means, step=step, steps=steps, layer=layer)
        return self._keep(step, new)

    def probed(self, step: int, probe: Mapping[str, Any]) -> list[Finding]:
        """Take in a probe.

        Returns:
            the findings that are new.
        """
        return self._keep(step, probe_findings(probe))

    def _keep(self, step: int, findings: Iterable[Finding]) -> list[Finding]:
        new = [replace(finding, step=step) for finding in findings if (finding.name, finding.layer) not in self.found]
        self.found |= {(finding.name, finding.layer): finding for finding in new}
        return new
