"""Exact search over a store of vectors on the disk: time, memory, and FAISS beside it.

    python benchmarks/search.py --folder DIR [--device cuda] [--documents 8841823] [--queries 6980] [--output FILE.json]
    python benchmarks/search.py --folder DIR --memory 100000,1000000        # own memory at several sizes

Random unit vectors, 384 wide, are written to DIR once and used again (8,841,823 of them in float16 need 6.8 GB). Timed
are: opening the store with all checksums; the search, from vectors on the disk to scores and positions on the host;
looking up ids and writing the run file. Before anything is reported, the results of some queries are compared with a
float32 product with all documents: other documents may stand in a place only where scores differ by less than 2e-6.

FAISS's flat index (--faiss) holds all vectors in memory as float32; it is timed in turns with the search, on as many
threads, with its vectors loaded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from host_memory import HostMemory
from measuring import add_arguments, finish
from random_store import make_store, unit_vectors

from maw.retrieval.ranking.search import search
from maw.retrieval.vectors.store import VectorStore
from maw.retrieval.vectors.store_search import search_vectors, write_search

WIDTH = 384


def timed(function):
    start = time.perf_counter()
    result = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


def check(store: VectorStore, query: torch.Tensor, score: torch.Tensor, position: torch.Tensor) -> dict[str, float]:
    """Against all products in float32; a place may hold another document only where scores are equal by rounding."""
    every = max(1, len(query) // 32)
    query, score, position = query[::every], score[::every], position[::every]
    k, parts = score.shape[1], []
    for begin in range(0, len(store), 262_144):
        vectors = torch.from_numpy(store[begin : begin + 262_144].astype(np.float32)).to(query.device)
        value, place = (query @ vectors.T).topk(min(k, len(vectors)), dim=1)
        parts.append((value, place + begin))
    value, order = torch.cat([part[0] for part in parts], dim=1).topk(k, dim=1)
    place = torch.cat([part[1] for part in parts], dim=1).gather(1, order)
    other = place != position
    gap = float((value - score).abs().max())
    if gap >= 2e-6:
        raise SystemExit(f"scores differ from the float32 product by {gap}: no report")
    return {"queries": len(query), "places": other.numel(), "other documents": int(other.sum()), "largest gap": gap}


def beside_faiss(store: VectorStore, query: torch.Tensor, k: int, rounds: int) -> dict[str, float]:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    vectors = store[0 : len(store)].astype(np.float32)
    index = faiss.IndexFlatIP(WIDTH)
    index.add(vectors)
    times: dict[str, list[float]] = {"maw": [], "maw, float32 in memory": [], "faiss": []}
    for _ in range(rounds):
        (score, _), seconds = timed(lambda: search(query, store, k, order=store.order))
        times["maw"].append(seconds)
        times["maw, float32 in memory"].append(timed(lambda: search(query, vectors, k))[1])
        (expected, _), seconds = timed(lambda: index.search(query.numpy(), k))
        times["faiss"].append(seconds)
    gap = float(np.abs(score.numpy() - expected).max())
    medians = {f"{name}, s": float(np.median(values)) for name, values in times.items()}
    ratio = {
        "faiss / maw": medians["faiss, s"] / medians["maw, s"],
        "faiss / maw, fastest of each": min(times["faiss"]) / min(times["maw"]),
    }
    return {**medians, **ratio, "largest gap": gap, "faiss": faiss.__version__, "rounds": rounds}


def run(arguments: argparse.Namespace, device: torch.device) -> dict[str, object]:
    name = f"{arguments.documents}-{arguments.dtype}"
    _, making = timed(lambda: make_store(arguments.folder / name, arguments.documents, WIDTH, arguments.dtype, device))
    results: dict[str, object] = {
        "documents": arguments.documents,
        "width": WIDTH,
        "dtype": arguments.dtype,
        "queries": arguments.queries,
        "k": arguments.k,
        "making, s": making,
    }
    query = unit_vectors(arguments.queries, WIDTH, 2**31, device)
    if device.type == "cuda":
        search(query[:8], unit_vectors(70_000, WIDTH, 1, device), 10)  # the libraries start
        torch.cuda.reset_peak_memory_stats()
    with HostMemory() as memory:
        store, results["opening with checksums, s"] = timed(lambda: VectorStore(arguments.folder / name))
        found, results["search, s"] = timed(lambda: search(query, store, arguments.k, order=store.order))
        names = [f"q{number}" for number in range(len(query))]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.trec"
            _, whole = timed(lambda: write_search(path, search_vectors(query, store, names, arguments.k), "maw"))
        results["search, ids and run file, s"] = whole
    results |= memory.mebibytes()
    if device.type == "cuda":
        results["device peak MiB"] = torch.cuda.max_memory_allocated() / 2**20
    results["check"] = check(store, query, *found)
    if arguments.faiss:
        results["faiss"] = beside_faiss(store, query.cpu(), arguments.k, arguments.rounds)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=500_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--k", type=int, default=1000)
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--faiss", action="store_true")
    parser.add_argument("--memory", help="sizes with commas: one process each, to compare their memory")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.memory is None:
        results = run(arguments, device)
    else:
        common = [sys.executable, __file__, "--device", str(device), "--folder", str(arguments.folder)]
        common += ["--queries", str(arguments.queries), "--k", str(arguments.k), "--dtype", arguments.dtype]
        results = {}
        for size in arguments.memory.split(","):
            with tempfile.NamedTemporaryFile(suffix=".json") as file:
                command = [*common, "--documents", size, "--output", file.name]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                results[size] = json.loads(Path(file.name).read_text())
                del results[size]["environment"]
    print(json.dumps(results, indent=1))
    finish(results, device, arguments)


if __name__ == "__main__":
    main()
