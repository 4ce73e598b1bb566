"""`MAWConfig`: every setting of MAW in one frozen, validated value with a JSON round trip."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from maw.errors import MAWError

__all__ = ["Advantage", "Estimator", "Kernels", "MAWConfig", "Mechanism", "Reward", "Selection", "ViewKind"]

ViewKind = Literal["auto", "spectral", "frame", "random", "ones"]
Selection = Literal["gumbel", "softmax", "hard", "uniform"]
Advantage = Literal["std", "none", "leave-one-out"]
Estimator = Literal["sampled", "exact"]
Reward = Literal["entropy", "retrieval", "sum"]
Mechanism = Literal["maw", "ia3-key", "linear-gate", "logit-dropout"]
Kernels = Literal["auto", "torch", "triton"]

LARGEST_DEPTH = 4096
"""As many depths as a head of 64 channels has independent forms; what is stored of them is D x C x C a head."""

RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    # The specification's snippets to the letter: identical slices, no scale, one sampled depth whose baseline is the
    # value network, no KL, Gumbel-Softmax at its usual temperature, and the last layer. It names no weight of the loss
    # and no learning rate: these are the ones that it was measured with.
    "literal": {
        "layers": (-1,),
        "views": "ones",
        "train_views": False,
        "scale": 1.0,
        "tau": 1.0,
        "noise": 1.0,
        "group_size": 1,
        "advantage": "none",
        "depth_baseline": False,
        "kl_weight": 0.0,
        "auxiliary_weight": 0.003,
        "learning_rate": 1e-3,
        "calibrate": False,
    },
}


@dataclass(frozen=True)
class MAWConfig:
    """What MAW is to be, in which layers, and how its depth selection is trained (method.md sections 1 to 4).

    Args:
        layers: indices of the encoder layers that get MAW, negative ones counted from the end, or `"all"`. The first is
            the default: weights come to depend on the text there, and no cost is shown (docs/results/study.md).
        depth: D, the number of view vectors per head, at most 4096.
        num_heads: the encoder's number of heads; only checked, never set. None takes the encoder's.
        views: how view vectors start: `"auto"` (spectral where it applies, else frame), `"spectral"`, `"frame"`,
            `"random"` (a control), `"ones"` (the literal recipe).
        train_views: whether view vectors are trained.
        scale: the factor on the mixed scores in (4). None is `scaling * D * C**2`, the exact start.
        selection: how policy logits become depth weights: `"gumbel"`, `"softmax"`, `"hard"`, `"uniform"`.
        tau: temperature of that softmax, the same in training and in evaluation.
        noise: factor on the Gumbel noise of training. What it does to the weights depends on noise / tau; at the
            defaults a weight's standard deviation is 3 % of it.
        tau_start: tau at the first training step, from where it goes to `tau` in equal steps; None is `tau` throughout.
            Between steps, as in evaluation on dev, and in the saved model it is `tau`.
        reward: what a depth choice is worth: `"entropy"`, minus the normalised attention entropy of its slice;
            `"retrieval"`, the log-likelihood of the text's partner in the batch when it is encoded with this slice
            alone (`maw.retrieval.training.rollouts`); `"sum"` of both.
        retrieval_weight: weight of the retrieval reward in that sum.
        group_size: G, depth choices sampled per text. With 1 the value network is the baseline.
        depth_baseline: whether a depth is rewarded by what it is worth to this text more than to the other texts of
            the forward that drew it (`maw.grpo.depth_baselines`); a group of one does without.
        advantage: scaling of group-relative advantages: `"leave-one-out"` (unbiased), `"none"` or `"std"`, which can
            point the wrong way where rewards are far apart, and is 10 to 30 times as long on real ones
            (`maw.grpo.group_advantages`, method.md section 4).
        estimator: `"sampled"` (GRPO) or `"exact"`, the gradient over all D arms, which needs no group: `group_size`,
            `advantage` and `clip` then have no effect, and `updates` must be 1.
        clip: half-width of the clipped probability ratio.
        updates: how many optimiser steps each group of samples serves (`maw.retrieval.training.losses.AuxiliaryLoss`
            replays it in the later ones). With 1 the ratio is always 1.
        auxiliary_weight: weight of the auxiliary loss beside the training loss: of rewards, value loss and KL alike, so
            that with 0 nothing holds the policy.
        value_weight: weight of the value loss inside the auxiliary loss.
        kl_weight: weight of KL(policy || uniform) inside the auxiliary loss. Times `auxiliary_weight` it holds the
            policy against the training loss; a low `tau` makes weights of a policy that is next to uniform. Against the
            reward alone a weight of 1 is heavy with `advantage="leave-one-out"`: .05 gives what 1 gave with `"std"`.
        entropy_weight: weight of the policy-entropy bonus inside the auxiliary loss.
        learning_rate: learning rate of MAW's own parameters.
        calibrate: whether training by `maw.retrieval.training` begins by looking at some texts, so that the selector
            can tell them apart from the start. In another trainer, use `maw.calibrating`.
        seed: seed of the random parts of the views.
        kernels: what computes: `"auto"` (Triton kernels on a CUDA device by the rule in `maw.kernels`, else PyTorch),
            `"torch"`, or `"triton"`, which is an error where it cannot run.
        mechanism: `"maw"`, or what sits in its place in a control experiment: see `maw.controls`, which reads of the
            settings only `layers`, `learning_rate`, `seed`, `depth` and `logit_dropout`.
        logit_dropout: share of logits dropped by the control `"logit-dropout"`.

    Raises:
        MAWError: a value is out of its range; the message says which and what would do.

    >>> MAWConfig(layers=[-1], depth=32).depth
    32
    >>> MAWConfig.from_json(MAWConfig(layers="all").to_json()) == MAWConfig(layers="all")
    True
    """

    layers: tuple[int, ...] | list[int] | Literal["all"] = (0,)
    depth: int = 64
    num_heads: int | None = None
    views: ViewKind = "auto"
    train_views: bool = True
    scale: float | None = None
    selection: Selection = "gumbel"
    tau: float = 0.3
    noise: float = 0.0075
    tau_start: float | None = None
    reward: Reward = "entropy"
    retrieval_weight: float = 1.0
    group_size: int = 8
    depth_baseline: bool = True
    advantage: Advantage = "leave-one-out"
    estimator: Estimator = "sampled"
    clip: float = 0.2
    updates: int = 1
    auxiliary_weight: float = 0.03
    value_weight: float = 0.5
    kl_weight: float = 1.0
    entropy_weight: float = 0.0
    learning_rate: float = 3e-4
    calibrate: bool = True
    seed: int = 0
    kernels: Kernels = "auto"
    mechanism: Mechanism = "maw"
    logit_dropout: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _checked_layers(self.layers))
        for name, kind in (
            ("views", ViewKind),
            ("selection", Selection),
            ("advantage", Advantage),
            ("estimator", Estimator),
            ("reward", Reward),
            ("kernels", Kernels),
            ("mechanism", Mechanism),
        ):
            value = getattr(self, name)
            if value not in get_args(kind):
                choices = ", ".join(repr(choice) for choice in get_args(kind))
                raise MAWError(f"{name} must be one of {choices}, got {value!r}")
        for name in ("depth", "group_size", "updates"):
            _check_integer(name, getattr(self, name), least=1)
        if self.depth > LARGEST_DEPTH:
            raise MAWError(
                f"depth must be at most {LARGEST_DEPTH}, got {self.depth}: the slices of a head with C channels span "
                "all forms there are with C * C depths, and few are needed; 64 is the default"
            )
        _check_integer("seed", self.seed, least=0)
        if self.num_heads is not None:
            _check_integer("num_heads", self.num_heads, least=1)
        for name in ("tau", "clip"):
            _check_number(name, getattr(self, name), above=0.0)
        self._check_updates()
        for name in ("train_views", "depth_baseline", "calibrate"):
            if not isinstance(getattr(self, name), bool):
                raise MAWError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.scale is not None:
            _check_number("scale", self.scale, above=0.0)
        if self.tau_start is not None:
            _check_number("tau_start", self.tau_start, above=0.0)
        weights = ("auxiliary_weight", "value_weight", "kl_weight", "entropy_weight", "retrieval_weight")
        for name in (*weights, "noise", "learning_rate", "logit_dropout"):
            _check_number(name, getattr(self, name), least=0.0)
        if self.logit_dropout >= 1:
            raise MAWError(f"logit_dropout must be a share below 1, got {self.logit_dropout!r}")

    def _check_updates(self) -> None:
        if self.estimator == "exact" and self.updates != 1:
            raise MAWError(
                f"updates must be 1 with estimator='exact', which draws no samples to reuse, got {self.updates}"
            )
        if self.reward != "entropy" and self.updates != 1:
            raise MAWError(
                f"updates must be 1 with reward={self.reward!r}, whose samples are not kept, got {self.updates}"
            )

    @classmethod
    def recipe(cls, name: str, **changes: Any) -> MAWConfig:
        """A named configuration: `"default"`, or `"literal"`, the specification's snippets to the letter.

        >>> MAWConfig.recipe("literal").views
        'ones'
        """
        if name not in RECIPES:
            raise MAWError(f"recipe must be one of {sorted(RECIPES)}, got {name!r}")
        return cls(**{**RECIPES[name], **changes})

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        values = dataclasses.asdict(self)
        if self.layers != "all":
            values["layers"] = list(self.layers)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MAWConfig:
        """The inverse of `to_dict`; unknown names are an error."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise MAWError(
                f"unknown MAW settings {unknown}: known are {sorted(known)}. Did another version of maw write them?"
            )
        return cls(**values)

    def to_json(self) -> str:
        """The settings as one JSON object."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> MAWConfig:
        """The inverse of `to_json`."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise MAWError(f"MAW settings must be a JSON object, got text that is not JSON ({error})") from None
        if not isinstance(values, dict):
            raise MAWError(f"MAW settings must be a JSON object, got {type(values).__name__}")
        return cls.from_dict(values)

    def layer_indices(self, count: int) -> list[int]:
        """`layers` as sorted indices into an encoder of `count` layers.

        Raises:
            MAWError: an index is out of range or names the same layer twice.

        >>> MAWConfig(layers=[-1, 0]).layer_indices(6)
        [0, 5]
        """
        if self.layers == "all":
            return list(range(count))
        for layer in self.layers:
            if not -count <= layer < count:
                raise MAWError(
                    f"layers: the encoder has {count} layers, {-count} to {count - 1} are possible, got {layer}"
                )
        indices = sorted(layer % count for layer in self.layers)
        for first, second in itertools.pairwise(indices):
            if first == second:
                raise MAWError(f"layers: layer {first} is named twice in {list(self.layers)} ({count} layers)")
        return indices


def _checked_layers(layers: Any) -> tuple[int, ...] | Literal["all"]:
    if isinstance(layers, str):
        if layers != "all":
            raise MAWError(f"layers must be a list of layer indices or 'all', got {layers!r}")
        return "all"
    if isinstance(layers, int) and not isinstance(layers, bool):
        layers = (layers,)
    try:
        layers = tuple(layers)
    except TypeError:
        raise MAWError(f"layers must be a list of layer indices or 'all', got {layers!r}") from None
    if not layers:
        raise MAWError("layers must name at least one layer, got an empty list: give [0] for the first layer")
    for layer in layers:
        if not isinstance(layer, int) or isinstance(layer, bool):
            raise MAWError(f"layers must be integers, got {layer!r}")
    if len(set(layers)) != len(layers):
        raise MAWError(f"layers must differ, got a duplicate in {list(layers)}")
    return layers


def _check_integer(name: str, value: Any, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise MAWError(f"{name} must be an integer of at least {least}, got {value!r}")


def _check_number(name: str, value: Any, *, least: float | None = None, above: float | None = None) -> None:
    try:
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        number = False
    if not number or (least is not None and value < least) or (above is not None and value <= above):
        wanted = f"at least {least}" if least is not None else f"above {above}"
        raise MAWError(f"{name} must be a finite number {wanted}, got {value!r}")
