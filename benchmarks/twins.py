"""How far from its dense twin does a training with MAW end, and how much of that is other dropout masks?

    python benchmarks/twins.py [--output FILE.json] [--commit COMMIT] [--steps 30]

The packaged MiniLM, trained in full on pydocs: twice without MAW, with two seeds; with MAW, whose noise is drawn apart
from the encoder's dropout (`maw.random_numbers`); and with MAW drawing from the stream that dropout draws from, so that
its twin gets other masks. Of each: the mean distance of 300 queries' unit vectors from those of the encoder without MAW
of the first seed, and the deviation of the queries' differences in nDCG@10. A comparison of as many queries and seeds
finds effects in proportion to that deviation.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from measuring import add_arguments, finish
from ranked import METRIC, ranked

import maw
from maw import module
from maw.commands import quiet_libraries
from maw.random_numbers import drawing_apart
from maw.retrieval.data.loading import load_dataset
from maw.retrieval.models import load_encoder
from maw.retrieval.training.fine_tuning import train
from maw.retrieval.training.settings import TrainingSettings

LENGTH, BATCH = 32, 64
RECIPE = {
    "tau": 10.0, "noise": 1.0, "kl_weight": 1.0, "learning_rate": 1e-4, "calibrate": False, "depth_baseline": False,
    "layers": [-1],
}  # fmt: skip
"""The study's second default: weights that are all noise, a standard deviation of 13 % each."""
ROWS = {
    "dense": (0, False, True),
    "dense, another seed": (1, False, True),
    "MAW": (0, True, True),
    "MAW, from the stream of dropout": (0, True, False),
}
"""Seed, with MAW, drawn apart."""


def trained(data: Any, device: torch.device, seed: int, *, with_maw: bool, apart: bool) -> tuple[torch.Tensor, Any]:
    """The test queries' vectors and their nDCG@10."""
    model = load_encoder("packaged", device=device, max_length=LENGTH)
    if with_maw:
        maw.attach(model, maw.MAWConfig(seed=seed, **RECIPE))
    module.drawing_apart = drawing_apart if apart else lambda _: nullcontext()
    settings = TrainingSettings(
        epochs=1, batch_size=BATCH, learning_rate=1e-4, max_length=LENGTH, dev_documents=20, seed=seed
    )
    with tempfile.TemporaryDirectory() as folder:
        train(model, data, Path(folder), settings)
    model.eval()
    return ranked(model, data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--steps", type=int, default=30)
    asked = parser.parse_args()
    quiet_libraries()
    device = torch.device(asked.device)
    pairs = BATCH * asked.steps
    data = load_dataset("pydocs").subset(train_pairs=pairs, documents=2500, test_queries=300, dev_queries=20)
    rows, twin = {}, None
    for name, (seed, with_maw, apart) in ROWS.items():
        found = trained(data, device, seed, with_maw=with_maw, apart=apart)
        twin = twin or found
        rows[name] = {
            METRIC: float(found[1].mean()),
            "distance": float((found[0] - twin[0]).norm(dim=1).mean()),
            "deviation of differences": float((found[1] - twin[1]).std()),
        }
        print(f"{name}: {', '.join(f'{key} {value:.4f}' for key, value in rows[name].items())}", flush=True)
    finish({"rows": rows}, device, asked)


if __name__ == "__main__":
    main()
