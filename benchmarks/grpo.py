"""Are the policy-gradient estimators what method.md says they are? Against the exact gradient, over all D arms.

    python benchmarks/grpo.py [--output FILE.json] [--commit COMMIT] [--groups 1000000] [--seeds 5]

Everything runs the library's own functions and autograd on planted problems with known answers: (1) the mean of sampled
gradients against the exact one, (2) their variance by group size, baseline and scaling, (3) how often a planted best
arm is found, (4) how much of the reward's variance the value network explains on texts it has not seen.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from measuring import add_arguments, finish
from torch import Tensor

from maw import grpo
from maw.config import Advantage
from maw.records import Record
from maw.records import statistics as record_statistics
from maw.selector import Selector

ARMS = 16
CHUNK = 4_000
GROUP_SIZES = (2, 4, 8, 16, 32)

Kind = Literal["none", "leave-one-out", "std", "value", "zero"]
"""An advantage of the library; or one sample at a time with the exact expected reward, or nothing, as its baseline."""

KINDS: dict[Kind, tuple[str, str]] = {
    "zero": ("nothing", "none"),
    "value": ("expected reward", "none"),
    "none": ("group mean", "none"),
    "leave-one-out": ("mean of the others", "none"),
    "std": ("group mean", "standard deviation"),
}
"""Baseline and scaling of each, for people."""


class Problem(NamedTuple):
    """One text: its policy logits and the reward of every arm, (1, D), in float64."""

    logits: Tensor
    rewards: Tensor


class Estimate(NamedTuple):
    """The mean of sampled gradients, (D,), and the trace of the covariance of one group's gradient."""

    mean: Tensor
    variance: float


def problem(seed: int, arms: int = ARMS) -> Problem:
    """Logits and rewards, standard normal; rewards lie around -.5, as those of real slices do."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, arms, generator=generator, dtype=torch.float64)
    return Problem(logits, torch.randn(1, arms, generator=generator, dtype=torch.float64) - 0.5)


def exact_gradient(given: Problem) -> Tensor:
    """The gradient of `exact_policy_loss`, (D,)."""
    logits = given.logits.clone().requires_grad_()
    grpo.exact_policy_loss(logits, given.rewards).sum().backward()
    return logits.grad[0]


def sampled_gradient(given: Problem, kind: Kind, group_size: int, groups: int) -> Estimate:
    """The gradient of `clipped_policy_loss` on this many sampled groups, each group's gradient kept apart."""
    single = kind in ("value", "zero")
    total, squares = torch.zeros_like(given.logits[0]), 0.0
    expected = -grpo.exact_policy_loss(given.logits, given.rewards) * (kind == "value")
    for start in range(0, groups, CHUNK):
        count = min(CHUNK, groups - start)
        leaf = given.logits.expand(count, -1).clone().requires_grad_()
        index = grpo.sample_group(leaf, group_size)
        reward = given.rewards.expand(count, -1).gather(-1, index)
        if single:
            advantages = grpo.group_advantages(reward.reshape(-1, 1), "none", expected.expand(reward.numel()))
            advantages = advantages.view_as(reward)
        else:
            advantages = grpo.group_advantages(reward, kind)
        before = grpo.log_probability(leaf.detach(), index)
        grpo.clipped_policy_loss(leaf, index, advantages, before, clip=0.2)[0].sum().backward()
        total += leaf.grad.sum(dim=0)
        squares += float(leaf.grad.square().sum())
    mean = total / groups
    return Estimate(mean, squares / groups - float(mean.square().sum()))


class Agreement(NamedTuple):
    """How a sampled gradient lies to the exact one."""

    factor: float
    """its length along the exact gradient, in lengths of that"""
    cosine: float
    error: float
    """distance to `wanted` times the exact gradient, in lengths of that"""
    variance: float
    """of one group's gradient, the trace of its covariance, in squared lengths of its mean"""


def agreement(estimate: Estimate, exact: Tensor, wanted: float) -> Agreement:
    """An estimate against the exact gradient and the multiple of it that it should be."""
    factor = float(estimate.mean @ exact / (exact @ exact))
    cosine = float(torch.nn.functional.cosine_similarity(estimate.mean, exact, dim=0))
    error = float((estimate.mean - wanted * exact).norm() / (wanted * exact).norm())
    return Agreement(factor, cosine, error, estimate.variance / float(estimate.mean.square().sum()))


def compare(seed: int, kind: Kind, group_size: int, groups: int) -> Agreement:
    """One planted problem, sampled."""
    given = problem(seed)
    torch.manual_seed(1000 + seed)
    wanted = (group_size - 1) / group_size if kind == "none" else 1.0
    return agreement(sampled_gradient(given, kind, group_size, groups), exact_gradient(given), wanted)


# A planted best arm

NOISE, GAP = 0.1, 0.05
"""Standard deviation of a reward, and by how much the best arm's mean exceeds that of the best other."""


def found_arms(advantage: Advantage, seeds: int, *, arms: int = 64, steps: int = 300, batch: int = 32) -> Tensor:
    """For every seed, the probability that the trained policy gives the planted best arm, (seeds,).

    Other arms have means between -.1 and 0. Adam at rate .05 on the logits; seeds run side by side, sharing nothing.
    """
    generator = torch.Generator().manual_seed(0)
    means = -0.1 * torch.rand(seeds, arms, generator=generator)
    best = torch.randint(arms, (seeds, 1), generator=generator)
    means.scatter_(1, best, GAP)
    logits = torch.zeros(seeds, arms, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.05)
    torch.manual_seed(0)
    weights = {"auxiliary_weight": 1.0, "value_weight": 0.0, "kl_weight": 0.0, "entropy_weight": 0.0}
    for _ in range(steps):
        every = logits[:, None].expand(-1, batch, -1).reshape(-1, arms)
        index = grpo.sample_group(every, 8)
        reward = means.repeat_interleave(batch, dim=0).gather(1, index)
        reward = reward + NOISE * torch.randn_like(reward)
        before = grpo.log_probability(every.detach(), index)
        value = every.new_zeros(len(every))
        loss = grpo.group_loss(every, value, index, reward, before, advantage=advantage, clip=0.2, **weights).loss
        optimiser.zero_grad()
        (loss.view(seeds, batch).mean(dim=1)).sum().backward()
        optimiser.step()
    return logits.detach().softmax(dim=-1).gather(1, best)[:, 0]


# The value network


def explained_variance(
    seed: int, *, checks: Sequence[int] = (0, 100, 500, 2000), batch: int = 64, noise: float = 0.05
) -> dict[str, float]:
    """A selector trained on states whose rewards depend on them: what it explains of unseen ones after so many steps.

    A text's expected reward is a smooth function of its state with standard deviation near .1; rewards have noise.
    """
    torch.manual_seed(seed)
    state_size, arms, group_size = 24, 8, 8
    selector, direction = Selector(state_size, arms), torch.randn(state_size) / state_size**0.5
    optimiser = torch.optim.AdamW(selector.parameters(), lr=1e-3)
    weights = {"auxiliary_weight": 1.0, "value_weight": 0.5, "kl_weight": 0.0, "entropy_weight": 0.0}

    def forward(texts: int) -> tuple[Tensor, Record]:
        state = torch.randn(texts, state_size)
        logits, value = selector.policy(state), selector.value(state)
        index = grpo.sample_group(logits, group_size)
        expected = -0.5 + 0.15 * torch.tanh(state @ direction)
        reward = expected[:, None] + noise * torch.randn(texts, group_size)
        before = grpo.log_probability(logits.detach(), index)
        found = grpo.group_loss(logits, value, index, reward, before, advantage="std", clip=0.2, **weights)
        kept = (tensor.detach() for tensor in (logits, index, reward, value, found.loss, found.policy_loss))
        return found.loss.mean(), Record(*kept, clip_share=found.clip_share.detach(), all_arms=False)

    explained = {}
    for step in range(max(checks) + 1):
        if step in checks:
            found = record_statistics([forward(2000)[1]], selection="softmax", tau=1.0)
            explained[str(step)] = float(found["value_explained_variance"])
        loss, _ = forward(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    # noise of a group's mean cannot be explained
    variance = float((0.15 * torch.tanh(torch.randn(100_000, state_size) @ direction)).var())
    return explained | {"possible": variance / (variance + noise**2 / group_size)}


# The whole study


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and ends over seeds."""
    return {"mean": statistics.fmean(values), "min": min(values), "max": max(values)}


def over_seeds(kind: Kind, group_size: int, groups: int, seeds: int) -> dict[str, dict[str, float]]:
    """All of `Agreement`, over planted problems."""
    found = [compare(seed, kind, group_size, groups) for seed in range(seeds)]
    return {name: spread([getattr(one, name) for one in found]) for name in Agreement._fields}


def row(kind: Kind, group_size: int, found: dict[str, dict[str, float]]) -> str:
    """One line of the table in Markdown."""
    baseline, scaling = KINDS[kind]
    cells = [
        f"{found['factor']['mean']:.4f} ({found['factor']['min']:.4f} to {found['factor']['max']:.4f})",
        f"{found['cosine']['min']:.5f}",
        "-" if kind == "std" else f"{100 * found['error']['max']:.2f} %",
        f"{found['variance']['mean']:.2f} ({found['variance']['min']:.2f} to {found['variance']['max']:.2f})",
    ]
    return f"| {group_size} | {baseline} | {scaling} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--groups", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"groups": arguments.groups, "seeds": arguments.seeds, "arms": ARMS, "gradients": []}
    print("| G | baseline | scaling | factor | smallest cosine | largest error | variance of a group |")
    print("|---|---|---|---|---|---|---|")
    for group_size in GROUP_SIZES:
        for kind in KINDS:
            # the headline's group size gets all groups, the others a tenth of them
            groups = arguments.groups if group_size == 8 else arguments.groups // 10
            found = over_seeds(kind, group_size, groups, arguments.seeds)
            results["gradients"].append({"group_size": group_size, "kind": kind, "groups": groups, **found})
            print(row(kind, group_size, found), flush=True)
    results["planted"] = {}
    for advantage in ("std", "none", "leave-one-out"):
        probability = found_arms(advantage, 100)
        share = {"found": int((probability > 0.5).sum()), "seeds": 100, "least": float(probability.min())}
        results["planted"][advantage] = share
        print(
            f"planted best arm, {advantage}: {share['found']} of 100; least probability {share['least']:.3f}",
            flush=True,
        )
    values = [explained_variance(seed) for seed in range(arguments.seeds)]
    results["value"] = {name: spread([one[name] for one in values]) for name in values[0]}
    print("value network's explained variance:", results["value"])
    finish(results, torch.device(arguments.device), arguments)


if __name__ == "__main__":
    main()
