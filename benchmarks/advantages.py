"""Does scaling a group's rewards turn the policy gradient? Expected updates on real rewards against the exact gradient.

    python benchmarks/advantages.py --data FOLDER [--output FILE.json] [--commit COMMIT] [--texts 100] [--groups 16384]
        [--sets nfcorpus ...] [--model FOLDER] [--device cuda]

The entropy rewards of all depths in an untuned all-MiniLM-L6-v2 are recorded in its first and last layer, on queries
and documents of data sets. The policy is uniform, as training begins, or random (standard normal logits). For
every text many groups of eight depths are sampled, and the mean update of its policy logits is compared with the exact
gradient: the cosine between the two, the share of depths that the update moves the other way, and its length. Rewards
are taken as they are and above their depth's mean over the other texts of the data set, which is what baselines of
depths come to. `none` is left out: relative to its length it is `leave-one-out`. How far leave-one-out is from the
exact gradient is the error of sampling.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any, Literal

import torch
from calibration import SETS, record, texts_of
from measuring import add_arguments, finish
from torch import Tensor
from torch.nn.functional import cosine_similarity

from maw import grpo
from maw.config import Advantage, MAWConfig
from maw.hf.attach import attach, detach
from maw.retrieval.models import load_encoder

KINDS: tuple[Advantage, ...] = ("leave-one-out", "std")
GROUP = 8
Policy = Literal["uniform", "random"]


def expected_update(logits: Tensor, rewards: Tensor, kind: Advantage, groups: int) -> Tensor:
    """The mean over sampled groups of minus the policy loss's gradient by the logits, (D,).

    A group's update is 1/G sum_m A_m (e_{d_m} - pi); the advantages of a group sum to zero, so pi drops out.
    """
    index = grpo.sample_group(logits.expand(groups, -1), GROUP)
    advantages = grpo.group_advantages(rewards[index], kind)
    return torch.zeros_like(rewards).index_add_(0, index.flatten(), advantages.flatten()) / (groups * GROUP)


def compare(logits: Tensor, rewards: Tensor, kind: Advantage, groups: int) -> dict[str, Any]:
    """Texts' expected updates, and their sum, against the exact gradients; exact gradients that cancel have no sum."""
    policy = logits.softmax(dim=-1)
    exact = policy * (rewards - (policy * rewards).sum(dim=-1, keepdim=True))
    update = torch.stack([expected_update(*text, kind, groups) for text in zip(logits, rewards, strict=True)])
    cosine = cosine_similarity(update, exact, dim=-1)
    length = update.norm(dim=-1) / exact.norm(dim=-1)
    return {
        "advantage": kind,
        "mean cosine": float(cosine.mean()),
        "smallest cosine": float(cosine.min()),
        "depths moved the other way": float((update.sign() != exact.sign()).double().mean()),
        "cosine of the sums": None
        if exact.sum(dim=0).norm() < 1e-9 * exact.norm()
        else float(cosine_similarity(update.sum(dim=0), exact.sum(dim=0), dim=-1)),
        "length, median": float(length.median()),
        "length, 5 % and 95 %": [float(length.quantile(share)) for share in (0.05, 0.95)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds the BEIR folders")
    parser.add_argument("--sets", nargs="+", default=SETS, help=f"among {', '.join(SETS)}")
    parser.add_argument("--model", default="packaged")
    parser.add_argument("--texts", type=int, default=100, help="queries, and as many documents, of each data set")
    parser.add_argument("--groups", type=int, default=16_384, help="sampled for every text")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    model = load_encoder(asked.model, device=device, max_length=128)
    rows = []
    for layer, name in itertools.product((0, -1), asked.sets):
        attach(model, MAWConfig(layers=[layer]))
        model.eval()
        recorded = record(model, *texts_of(name, asked.data, asked.texts)).reward.double().to(device)
        detach(model)
        others = (recorded.sum(dim=0) - recorded) / (len(recorded) - 1)
        for policy, above in itertools.product(("uniform", "random"), (False, True)):
            torch.manual_seed(0)
            logits = torch.zeros_like(recorded) if policy == "uniform" else torch.randn_like(recorded)
            rewards = recorded - others if above else recorded
            for kind in KINDS:
                row = {"layer": layer, "data": name, "policy": policy, "above the depth's mean": above}
                rows.append(row | compare(logits, rewards, kind, asked.groups))
                print({key: round(v, 4) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
    finish({"rows": rows, "texts": 2 * asked.texts, "groups": asked.groups, "group_size": GROUP}, device, asked)


if __name__ == "__main__":
    main()
