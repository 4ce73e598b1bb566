"""A store of random unit vectors in the format of `maw encode`: for a search they are as much work as real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from maw.io.atomic import write_json, write_whole
from maw.retrieval.vectors.id_order import write_order
from maw.retrieval.vectors.npy import npy_header
from maw.retrieval.vectors.plan import Plan, shard_file

__all__ = ["make_store", "unit_vectors"]

SHARD = 65_536


def unit_vectors(rows: int, width: int, seed: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=generator, device=device), dim=1)


def make_store(folder: Path, rows: int, width: int, dtype: str, device: torch.device) -> None:
    """Write it; a folder that is complete is used as it is."""
    if (folder / "manifest.json").is_file():
        return
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    shards = []
    for number, begin in enumerate(range(0, rows, SHARD)):
        size = min(SHARD, rows - begin)
        vectors = unit_vectors(size, width, number, device).to(getattr(torch, dtype)).cpu().numpy()
        ids = [str(begin + place) for place in range(size)]
        shards.append(
            {
                "rows": size,
                "offset": 0,
                "ids": write_whole(shard_file(folder, number, "ids.txt"), [("\n".join(ids) + "\n").encode()]),
                "vectors": write_whole(
                    shard_file(folder, number, "npy"), [npy_header(np.dtype(dtype), vectors.shape), vectors]
                ),
            }
        )
        write_json(shard_file(folder, number, "json"), {"identity": "random", "vectors": shards[-1]["vectors"]})

    def ids():
        for number in range(len(shards)):
            yield shard_file(folder, number, "ids.txt").read_bytes().split(b"\n")[:-1]

    order = write_order(folder / "order.npy", ids, rows, str)
    about = {"fingerprint": "random", "width": width}, {"name": "random", "sha256": "", "rows": rows}
    plan = Plan(*about, {"dtype": dtype, "shard_size": SHARD}, order, tuple(shards))
    plan.write(folder / "manifest.json")
