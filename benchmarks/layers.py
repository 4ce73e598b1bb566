"""What depth weights that differ from text to text do to vectors and rankings, by the layer that has them.

    python benchmarks/layers.py [--output FILE.json] [--commit COMMIT] [--draws 3]

The packaged MiniLM, untrained, with MAW in one layer after the other. Its depth weights are noise, drawn for each text:
they share as much information with a text as the study's policies learn (.03 nat), and none of it is of use. Of each
layer: the mean distance of queries' unit vectors from those without noise, and by how much nDCG@10 on pydocs changes,
mean over draws and queries, with the standard error over queries.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from measuring import add_arguments, finish
from ranked import METRIC, ranked
from sentence_transformers import SentenceTransformer

import maw
from maw.commands import quiet_libraries
from maw.hf.attach import maw_layers
from maw.module import DepthAttention
from maw.retrieval.data.loading import load_dataset
from maw.retrieval.models import load_encoder

LENGTH = 64
NOISE = {"tau": 1.0, "noise": 0.2}
"""A weight's standard deviation is 26 % of it."""


def encoder(layer: int, device: torch.device, *, noisy: bool) -> SentenceTransformer:
    model = load_encoder("packaged", device=device, max_length=LENGTH)
    maw.attach(model, maw.MAWConfig(layers=[layer], **NOISE))
    for own in maw_layers(model) if noisy else []:
        own.register_forward_pre_hook(switch_to_training)
    return model


def switch_to_training(layer: DepthAttention, _: Any) -> None:
    """`encode` puts the whole model into evaluation mode; this layer draws noise all the same."""
    layer.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--draws", type=int, default=3)
    asked = parser.parse_args()
    quiet_libraries()
    device = torch.device(asked.device)
    data = load_dataset("pydocs").subset(documents=2500, test_queries=700, train_pairs=100, dev_queries=20)
    quiet, scores = ranked(encoder(0, device, noisy=False), data)
    print(f"without noise: {METRIC} {scores.mean():.4f}", flush=True)
    rows = {}
    for layer in range(6):
        model = encoder(layer, device, noisy=True)
        torch.manual_seed(0)
        found = [ranked(model, data) for _ in range(asked.draws)]
        change = np.mean([own - scores for _, own in found], axis=0)
        rows[f"layer {layer}"] = {
            "distance": float(np.mean([float((own - quiet).norm(dim=1).mean()) for own, _ in found])),
            f"change of {METRIC}": float(change.mean()),
            "standard error": float(change.std(ddof=1) / len(change) ** 0.5),
        }
        told = ", ".join(f"{name} {value:.4f}" for name, value in rows[f"layer {layer}"].items())
        print(f"layer {layer}: {told}", flush=True)
    finish({METRIC: float(scores.mean()), "rows": rows}, device, asked)


if __name__ == "__main__":
    main()
