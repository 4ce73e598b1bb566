"""A corpus to vectors on the disk: passages a second, what bounds them, and what MAW costs.

    python benchmarks/encoding.py --corpus corpus.jsonl [--device cuda] [--documents 1000000] [--precision float16]
    python benchmarks/encoding.py --corpus corpus.jsonl --memory 100000,1000000   # own memory at several sizes

The passages of the corpus are repeated under new ids up to --documents. In turns, --rounds times: the whole of
`maw encode` (reading, tokenising, model, writing; the model is loaded) for the host and for the host with MAW in its
last layer. Once: `SentenceTransformer.encode` with its defaults on --baseline of the passages, to an array in memory;
tokenising alone; the model alone, on batches that are ready; writing alone. The slowest of these three is the floor.
Before anything is timed, vectors of both ways are compared.

Memory at several sizes is that of a process for each size, with one layer of the encoder and 16 tokens a text: large
sizes are then reached soon, and what is held for a document is the same.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from host_memory import HostMemory
from measuring import add_arguments, finish

import maw
from maw.retrieval.data.corpus_file import CorpusFile
from maw.retrieval.models import load_encoder
from maw.retrieval.vectors.corpus_encoding import EncodingSettings, Outcome, encode_corpus
from maw.retrieval.vectors.plan import Plan
from maw.retrieval.vectors.shard_encoder import Pace, ShardEncoder, computing, forward
from maw.retrieval.vectors.store import VectorStore


def repeat(corpus: Path, target: Path, documents: int) -> list[str]:
    """Write the passages again and again, with new ids; return the texts of the first time."""
    texts = [text for block in CorpusFile(corpus).blocks(lines=4096) for text in block.texts()]
    with target.open("w", encoding="utf-8") as file:
        for number, text in zip(range(documents), itertools.cycle(texts), strict=False):
            file.write(json.dumps({"_id": str(number), "text": text}, ensure_ascii=False) + "\n")
    return texts


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def baseline(model, texts: list[str], number: int, device: torch.device) -> float:
    """Passages a second of `SentenceTransformer.encode` with its defaults."""
    chosen = list(itertools.islice(itertools.cycle(texts), number))
    model.encode(chosen[:64])
    synchronise(device)
    start = time.perf_counter()
    model.encode(chosen)
    return number / (time.perf_counter() - start)


def encode(model, work: Path, settings: EncodingSettings, pace: Pace, device: torch.device) -> tuple[Outcome, Any]:
    shutil.rmtree(work / "vectors", ignore_errors=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with HostMemory() as memory:
        outcome = encode_corpus(model, work / "corpus.jsonl", work / "vectors", settings, pace=pace)
    peaks: dict[str, float] = memory.mebibytes()
    if device.type == "cuda":
        peaks["device peak MiB"] = torch.cuda.max_memory_allocated(device) / 2**20
    return outcome, peaks


def alone(model, work: Path, pace: Pace, device: torch.device, shards: int) -> dict[str, float]:
    """Passages a second of each stage without the others, over the first shards of the store that is there."""
    plan = Plan.read(work / "vectors" / "plan.json")
    encoder = ShardEncoder(model, CorpusFile(work / "corpus.jsonl"), work / "vectors", pace)
    numbers = range(min(shards, len(plan.shards)))
    rows = sum(plan.shards[number]["rows"] for number in numbers)
    rates = {}
    with encoder.tokenising() as executor:
        next(encoder.tokens(plan, [0], executor))  # the processes start
        start = time.perf_counter()
        for _ in encoder.tokens(plan, numbers, executor):
            pass
        rates["tokenising"] = rows / (time.perf_counter() - start)
        batches = list(encoder.batches(plan, [0], executor))
    with torch.inference_mode(), computing(plan.settings["precision"], device):
        for repetition in range(2):  # the first to warm up
            synchronise(device)
            start = time.perf_counter()
            for batch in batches:
                forward(model, batch, normalise=plan.settings["normalised"])
            synchronise(device)
            rates["model"] = plan.shards[0]["rows"] / (time.perf_counter() - start)
            if repetition == 0 and device.type == "cpu":
                break
    tokens = sum(batch.tokens for batch in batches)
    filled = sum(batch.features["input_ids"].numel() for batch in batches)
    vectors = np.load(work / "vectors" / "shards" / "00000.npy")
    start = time.perf_counter()
    for _ in numbers:
        encoder.write(plan, 0, vectors)
    rates["disk"] = rows / (time.perf_counter() - start)
    return {**rates, "tokens a passage": tokens / plan.shards[0]["rows"], "share of real tokens": tokens / filled}


def only_memory(arguments: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """The peaks of encoding with one layer and 16 tokens a text."""
    model = load_encoder(arguments.model, device=device, max_length=16).eval()
    model[0].model.encoder.layer = model[0].model.encoder.layer[:1]
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        repeat(arguments.corpus, Path(folder) / "corpus.jsonl", arguments.documents)
        settings, pace = EncodingSettings(shard_size=arguments.shard_size), Pace(workers=arguments.workers)
        outcome, peaks = encode(model, Path(folder), settings, pace, device)
    return {"documents": outcome.documents, "seconds": outcome.seconds, **peaks}


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--model", default="packaged")
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--baseline", type=int, default=500)
    parser.add_argument("--shard-size", type=int, default=65_536)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="a folder on the disk to measure; default: a temporary one")
    parser.add_argument("--memory", help="sizes with commas: one process each, to compare their memory")
    parser.add_argument("--only-memory", action="store_true", help="of --documents, in this process")
    return parser.parse_args()


def main() -> None:
    arguments = read_arguments()
    device = torch.device(arguments.device)
    if arguments.only_memory:
        print(json.dumps(only_memory(arguments, device)))
        return
    if arguments.memory is not None:
        found = {}
        for size in arguments.memory.split(","):
            command = [sys.executable, *sys.argv, "--only-memory", "--documents", size]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[size] = json.loads(answer.stdout.splitlines()[-1])
            print(size, json.dumps(found[size]))
        finish({"memory": found}, device, arguments)
        return
    settings = EncodingSettings("float16", arguments.precision, arguments.shard_size)
    pace = Pace(batch_tokens=arguments.batch_tokens, workers=arguments.workers)
    models = {}
    for name in ("host", "MAW"):
        models[name] = load_encoder(arguments.model, device=device, max_length=arguments.max_length).eval()
    maw.attach(models["MAW"], maw.MAWConfig(layers=[-1]))
    models["MAW"].to(device).eval()
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        work = Path(folder)
        texts = repeat(arguments.corpus, work / "corpus.jsonl", arguments.documents)
        times: dict[str, list[float]] = {name: [] for name in models}
        peaks: dict[str, Any] = {}
        waited = 0.0
        for turn in range(arguments.rounds):
            for name, model in models.items():
                outcome, peaks[name] = encode(model, work, settings, pace, device)
                times[name].append(outcome.seconds)
                waited = outcome.waited
                if turn == 0:
                    first = texts[: min(500, arguments.documents)]
                    expected = models["host"].encode_document(first, normalize_embeddings=True)
                    gap = float(np.abs(VectorStore(work / "vectors")[0 : len(first)] - expected).max())
                    if gap > 0.02:
                        raise SystemExit(f"{name}: vectors differ from SentenceTransformer.encode by {gap}: no report")
                    print(f"{name}: vectors differ from SentenceTransformer.encode by at most {gap:.1e}")
        rates = {name: arguments.documents / statistics.median(values) for name, values in times.items()}
        stages = alone(models["MAW"], work, pace, device, max(1, 200_000 // arguments.shard_size))
        rates["SentenceTransformer.encode"] = baseline(models["host"], texts, arguments.baseline, device)
    floor = min(("tokenising", "model", "disk"), key=stages.__getitem__)
    left_out = ("output", "work", "corpus", "commit")
    results = {
        "corpus": arguments.corpus.name,
        "settings": {
            **{name: value for name, value in vars(arguments).items() if name not in left_out},
            "model": Path(arguments.model).name,
        },
        "passages a second, text to disk": rates,
        "host / SentenceTransformer.encode": rates["host"] / rates["SentenceTransformer.encode"],
        "time of MAW / host, medians": statistics.median(times["MAW"]) / statistics.median(times["host"]),
        "seconds": times,
        "of the last, the model waited for tokens, s": waited,
        "alone, passages a second (with MAW)": stages,
        "floor": floor,
        "memory": peaks,
    }
    print(json.dumps(results, indent=1))
    finish(results, device, arguments)


if __name__ == "__main__":
    main()
