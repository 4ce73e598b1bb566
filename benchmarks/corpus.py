"""What a large collection costs: time and peak memory of reading it, of finding texts, and of loading it again.

    python benchmarks/corpus.py [--passages 100000 1000000 8841823] [--folder FOLDER] [--output FILE.json]

For every size a folder in MS MARCO's layout is written into `--folder` (a temporary one by default, removed
afterwards): passages of made-up words, 56 on average as in MS MARCO; at the full size also as many train and
development queries as MS MARCO has, and as many judgements. Then three processes, one after the other, each with its
own peak of memory:

    read      `load_dataset` for the first time: the collection is read, checked and kept on disk
    again     `load_dataset` once more, then 100,000 texts by random ids, then all texts in order
    in memory the same collection as a dictionary (up to a million passages), for comparison

The largest resident size counts the pages of memory-mapped files too, and 0.25 GiB of imported libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import add_arguments, finish, peak_resident_bytes

FULL = 8_841_823
TRAIN_QUERIES, TRAIN_JUDGEMENTS, DEV_QUERIES = 502_939, 532_761, 6_980
LOOKUPS = 100_000


def write_folder(folder: Path, passages: int) -> None:
    """A folder in MS MARCO's layout; the queries are as many as the collection's share of MS MARCO."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlucmfwypvbgkq", k=draw.randint(2, 9))) for _ in range(30_000)]
    pieces = [" ".join(draw.choices(words, k=draw.randint(4, 24))) for _ in range(20_000)]
    with (folder / "collection.tsv").open("w") as file:
        for number in range(passages):
            file.write(f"{number}\t{' '.join(draw.choices(pieces, k=4))} {number}\n")
    share = passages / FULL
    for split, queries, judgements, first in (
        ("train", TRAIN_QUERIES, TRAIN_JUDGEMENTS, 0),
        ("dev.small", DEV_QUERIES, DEV_QUERIES, TRAIN_QUERIES),
    ):
        count = max(2, int(queries * share))
        with (folder / f"queries.{split}.tsv").open("w") as file:
            for number in range(first, first + count):
                file.write(f"{number}\t{draw.choice(pieces)} {number}\n")
        with (folder / f"qrels.{split}.tsv").open("w") as file:
            for number in range(max(count, int(judgements * share))):
                document = (7 * number) % passages
                file.write(f"{first + number % count}\t0\t{document}\t1\n")


def read(folder: Path) -> dict[str, float]:
    """Load the data set as `maw` does."""
    from maw.retrieval.data.loading import load_dataset

    start = time.perf_counter()
    data = load_dataset(f"msmarco:{folder}")
    return {"seconds": time.perf_counter() - start, "documents": len(data.documents)}


def again(folder: Path) -> dict[str, float]:
    """Load what was kept, find texts, read all."""
    from maw.retrieval.data.loading import load_dataset
    from maw.retrieval.data.texts import TextStore

    start = time.perf_counter()
    documents = load_dataset(f"msmarco:{folder}").documents
    seconds = time.perf_counter() - start
    draw = random.Random(1)
    names = [str(draw.randrange(len(documents))) for _ in range(LOOKUPS)]
    start = time.perf_counter()
    for name in names:
        if not documents[name].endswith(f" {name}"):
            raise SystemExit(f"the text of {name} is not its own: no report")
    lookup = time.perf_counter() - start
    start = time.perf_counter()
    characters = sum(map(len, documents.values()))
    return {
        "seconds": seconds,
        "on disk": isinstance(documents, TextStore),
        "microseconds a text by id": 1e6 * lookup / LOOKUPS,
        "seconds for all texts": time.perf_counter() - start,
        "characters": characters,
    }


def in_memory(folder: Path) -> dict[str, float]:
    """Load the data set with its texts in a dictionary."""
    from maw.retrieval.data import corpora

    corpora.IN_MEMORY = 2**40
    return read(folder)


STEPS = {"read": read, "again": again, "in memory": in_memory}


def measured(step: str, folder: Path) -> dict[str, float]:
    """A step in a process of its own."""
    environment = {**os.environ, "MAW_CACHE": str(folder / f"cache {step == 'in memory'}")}
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(answer.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, nargs="+", default=[100_000, 1_000_000, FULL])
    parser.add_argument("--folder", type=Path, help="where the files are made; a temporary folder by default")
    add_arguments(parser)
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        found = STEPS[given.step](given.folder)
        print(json.dumps({**found, "peak GiB": peak_resident_bytes() / 2**30}))
        return
    sizes = {}
    for passages in given.passages:
        folder = Path(tempfile.mkdtemp(dir=given.folder))
        try:
            write_folder(folder, passages)
            steps = [step for step in STEPS if step != "in memory" or passages <= 1_000_000]
            sizes[passages] = {step: measured(step, folder) for step in steps}
            sizes[passages]["bytes"] = {
                "collection": (folder / "collection.tsv").stat().st_size,
                "store": sum(path.stat().st_size for path in (folder / "cache False").rglob("*") if path.is_file()),
            }
        finally:
            shutil.rmtree(folder)
        print(passages, json.dumps(sizes[passages], indent=1), flush=True)
    import torch

    finish({"sizes": sizes}, torch.device("cpu"), given)


if __name__ == "__main__":
    main()
