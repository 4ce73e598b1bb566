"""Whether the ranking depends on batches and processes: the same corpus encoded in several ways, all queries ranked.

    python benchmarks/rankings.py --pool FOLDER [--device cuda] [--every 1] [--max-length 128] [--processes 8]

FOLDER has corpus.jsonl and queries.jsonl in BEIR's layout. The corpus is encoded in float32 with at most 1, 32 and 512
texts a batch, and by two processes (single texts, the slowest way, by --processes of them); every query is ranked to
depth 100 against each. A place is a swap where two rankings have different documents in it; the scores of the two, both
against the first encoding in float32, may differ by less than 1e-5, else the script fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from measuring import add_arguments, finish

from maw.retrieval.models import load_encoder
from maw.retrieval.ranking.dense import encode
from maw.retrieval.ranking.search import search
from maw.retrieval.vectors.store import VectorStore
from maw.retrieval.vectors.store_search import read_queries

DEPTH, LIMIT = 100, 1e-5
WAYS = {"32": (32, 1), "1": (1, 1), "512": (512, 1), "32, two processes": (32, 2)}


def make(arguments: argparse.Namespace, corpus: Path, folder: Path, batch_size: int, processes: int) -> VectorStore:
    command = [sys.executable, "-m", "maw", "encode", arguments.model, str(corpus), "--output", str(folder)]
    command += ["--dtype", "float32", "--batch-size", str(batch_size), "--batch-tokens", str(10**6)]
    command += ["--shard-size", "4096", "--device", arguments.device]
    command += [] if arguments.max_length is None else ["--max-length", str(arguments.max_length)]
    running = []
    for rank in range(processes):
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(processes)}
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
    if any(process.wait() for process in running):
        raise SystemExit(f"encoding in {folder} failed: no report")
    return VectorStore(folder)


def compare(query: torch.Tensor, one: VectorStore, other: VectorStore) -> dict[str, float]:
    (score, here), (_, there) = (search(query, store, DEPTH, order=store.order) for store in (one, other))
    vectors = torch.from_numpy(np.array(one[0 : len(one)])).to(query.device)
    same, gaps = 0, [0.0]
    for row in range(len(query)):
        moved = here[row] != there[row]
        same += int((~moved).all())
        again = vectors[there[row][moved]] @ query[row]
        gaps += (score[row][moved] - again).abs().tolist()
    difference = max(
        float(np.abs(one[begin : begin + 4096] - other[begin : begin + 4096]).max())
        for begin in range(0, len(one), 4096)
    )
    return {
        "places": len(query) * DEPTH,
        "swapped places": int((here != there).sum()),
        "queries with the same ranking": same,
        "largest gap of scores in a swap": max(gaps),
        "largest difference of a vector's number": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--model", default="packaged")
    parser.add_argument("--every", type=int, default=1, help="take every so manyth passage")
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--processes", type=int, default=1, help="for the encoding of one text a batch")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    queries = read_queries(arguments.pool / "queries.jsonl")
    query = encode(load_encoder(arguments.model, device=device), list(queries.values()), "query")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        lines = (arguments.pool / "corpus.jsonl").read_bytes().splitlines(keepends=True)
        corpus.write_bytes(b"".join(lines[:: arguments.every]))
        base = None
        for number, (name, (batch_size, processes)) in enumerate(WAYS.items()):
            together = arguments.processes if batch_size == 1 else processes
            store = make(arguments, corpus, Path(folder) / str(number), batch_size, together)
            if base is None:
                base = store
                continue
            results[name] = compare(query, base, store)
            print(name, json.dumps(results[name]))
    finish({"against": "32", "passages": len(base), "queries": len(query), "ways": results}, device, arguments)
    if any(way["largest gap of scores in a swap"] >= LIMIT for way in results.values()):
        raise SystemExit(f"documents changed places whose scores differ by {LIMIT} or more")


if __name__ == "__main__":
    main()
