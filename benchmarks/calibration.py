"""How soon does a policy tell texts apart: from raw states, from calibrated ones, and above baselines of depths?

    python benchmarks/calibration.py --data FOLDER [--output FILE.json] [--commit COMMIT] [--texts 1000] [--seeds 3]
        [--sets nfcorpus ...] [--steps 125 ...] [--advantage leave-one-out] [--kl-weights 1 .05 ...]

The states and the entropy rewards of all depths in an untuned encoder's last layer are recorded, on queries and
documents of four data sets. On two thirds of the texts a selector is trained by the GRPO loss alone. On the others is
measured what its choice has in common for all texts, KL(mean policy || uniform), and what it shares with the text, the
mutual information of depth and text; both in nats, and together KL(policy || uniform). Part of the information is that
queries differ from documents, so it is measured among each of them, too. The encoder does not move, so this is what the
policy can do, not what it does in training. With baselines of depths queries are compared with queries and documents
with documents, as in training, where they are forwards of their own.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import statistics
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from measuring import add_arguments, finish
from torch import Tensor

from maw import grpo
from maw.config import Advantage, MAWConfig
from maw.hf.attach import attach, maw_layers
from maw.operations import TORCH
from maw.retrieval.data.loading import load_dataset
from maw.retrieval.models import load_encoder
from maw.rewards import entropy_reward
from maw.selector import Selector, token_mean

SETS = ("pydocs", "nfcorpus", "nq-qed", "tldr-commands")
STEPS = (50, 125, 500)
LEARNING_RATES = (1e-4, 3e-4)
BATCH = 128
KINDS = ((False, False), (True, False), (True, True))
"""Calibrated, with baselines of depths."""


class Recorded(NamedTuple):
    """States (N, S), rewards of all depths (N, D), and which texts are queries (N,)."""

    state: Tensor
    reward: Tensor
    is_query: Tensor


@torch.no_grad()
def record(model: Any, queries: list[str], documents: list[str]) -> Recorded:
    (layer,) = maw_layers(model)
    states, rewards = [], []

    def listen(module: Any, arguments: tuple[Any, ...], _: dict[str, Any]) -> None:
        query, key, _, mask = arguments
        every = torch.arange(module.config.depth, device=query.device).expand(len(query), -1)
        views = module.query_views, module.key_views
        reward = entropy_reward(query, key, *views, every, scale=module.scale, mask=mask, operations=TORCH)
        states.append(token_mean(query, mask).cpu())
        rewards.append(reward.cpu())

    handle = layer.register_forward_pre_hook(listen, with_kwargs=True)
    for texts in (queries, documents):
        model.encode(texts, show_progress_bar=False)
    handle.remove()
    is_query = torch.arange(len(queries) + len(documents)) < len(queries)
    return Recorded(torch.cat(states), torch.cat(rewards), is_query)


def texts_of(name: str, data: Path, number: int) -> list[list[str]]:
    """So many queries and so many documents."""
    dataset = load_dataset("pydocs" if name == "pydocs" else f"beir:{data / name}")
    draw = random.Random(0)
    return [
        [texts[key] for key in draw.sample(sorted(texts), min(number, len(texts)))]
        for texts in (dataset.queries, dataset.documents)
    ]


def train(
    found: Recorded,
    *,
    calibrate: bool,
    baseline: bool,
    steps: int,
    learning_rate: float,
    seed: int,
    advantage: Advantage = "std",
    kl_weight: float = 1.0,
) -> Selector:
    """GRPO on recorded states: warm-up over a tenth, linear decay, AdamW, as in training."""
    torch.manual_seed(seed)
    config = MAWConfig()
    selector = Selector(found.state.shape[1], found.reward.shape[1])
    if calibrate:
        with torch.no_grad():
            hidden = selector.hidden(found.state[torch.randperm(len(found.state))[:256]])
        selector.standardise(hidden.mean(dim=0), hidden.var(dim=0, correction=0))
    optimiser = torch.optim.AdamW(selector.parameters(), lr=learning_rate)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm, (steps - step) / (steps - warm))
    )
    names = ("clip", "auxiliary_weight", "value_weight", "entropy_weight")
    settings = {name: getattr(config, name) for name in names} | {"advantage": advantage, "kl_weight": kl_weight}
    for _ in range(steps):
        batch = torch.randint(len(found.state), (BATCH,))
        state = found.state[batch]
        logits = selector.policy(state)
        chosen = grpo.sample_group(logits, config.group_size)
        reward = found.reward[batch].gather(1, chosen)
        if baseline:
            depth = found.reward.shape[1]
            reward = reward - grpo.depth_baselines(reward, chosen + depth * found.is_query[batch, None], 2 * depth)
        before = grpo.log_probability(logits.detach(), chosen)
        loss, _, _ = grpo.group_loss(logits, selector.value(state), chosen, reward, before, **settings)
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
        schedule.step()
    return selector


@torch.no_grad()
def measure(selector: Selector, held_out: Recorded) -> dict[str, float]:
    policy = selector.policy(held_out.state).softmax(dim=-1)
    usage, depth = policy.mean(dim=0), policy.shape[-1]
    entropy = torch.special.entr(policy).sum(dim=-1).mean()
    gained = (policy * held_out.reward).sum(dim=-1).mean() - held_out.reward.mean()

    def information(share: Tensor) -> float:
        return float(torch.special.entr(share.mean(dim=0)).sum() - torch.special.entr(share).sum(dim=-1).mean())

    return {
        "information": information(policy),
        "among queries": information(policy[held_out.is_query]),
        "among documents": information(policy[~held_out.is_query]),
        "common": math.log(depth) - float(torch.special.entr(usage).sum()),
        "policy entropy": float(entropy) / math.log(depth),
        "depths alive": float((usage >= 1 / (4 * depth)).float().mean()),
        "reward gained": float(gained),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds the BEIR folders")
    parser.add_argument("--texts", type=int, default=1000, help="queries, and as many documents, of each data set")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS)
    parser.add_argument("--kl-weights", nargs="+", type=float, default=(1.0,))
    parser.add_argument("--advantage", choices=get_args(Advantage), default="std", help="std, as the page has it")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    model = load_encoder("packaged", device=device, max_length=128)
    attach(model, MAWConfig(layers=[-1]))
    model.eval()
    states, rows = [], []
    for name in asked.sets:
        found = record(model, *texts_of(name, asked.data, asked.texts))
        order = torch.randperm(len(found.state), generator=torch.Generator().manual_seed(0))
        cut = 2 * len(order) // 3
        own, held_out = (Recorded(*(part[some] for part in found)) for some in (order[:cut], order[cut:]))
        mean = found.state.mean(dim=0)
        by_depth = found.reward - found.reward.mean(dim=1, keepdim=True)
        states.append(
            {
                "data": name,
                "texts": len(found.state),
                "common part": float(mean.norm()),
                "distance from it": float((found.state - mean).norm(dim=1).mean()),
                "reward spread, common": float(by_depth.mean(dim=0).std()),
                "reward spread, own": float((by_depth - by_depth.mean(dim=0)).std()),
            }
        )
        print(states[-1], flush=True)
        every = itertools.product(asked.kl_weights, asked.steps, LEARNING_RATES, KINDS)
        for kl_weight, steps, rate, (calibrate, baseline) in every:
            settings = {"calibrate": calibrate, "baseline": baseline, "steps": steps, "learning_rate": rate}
            settings |= {"advantage": asked.advantage, "kl_weight": kl_weight}
            trained = [train(own, **settings, seed=seed) for seed in range(asked.seeds)]
            measured = [measure(one, held_out) for one in trained]
            means = {key: statistics.mean(one[key] for one in measured) for key in measured[0]}
            spread = [min(one["information"] for one in measured), max(one["information"] for one in measured)]
            row = {
                "data": name,
                "KL weight": kl_weight,
                "steps": steps,
                "learning rate": rate,
                "calibrated": calibrate,
                "baselines": baseline,
                **means,
            }
            rows.append(row | {"information, smallest and largest": spread})
            print({key: round(v, 4) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
    finish({"advantage": asked.advantage, "states": states, "rows": rows}, device, asked)


if __name__ == "__main__":
    main()
