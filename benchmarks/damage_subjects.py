"""What is damaged, made anew by real commands on a toy corpus, and the command that reads it.

Everything is tiny (a BERT of two layers, twenty passages), so that a case takes a fraction of a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["SUBJECTS", "Subject", "build", "patched"]

WORDS = (
    *(["river", "engine", "violin", "glacier", "parliament", "enzyme", "harbour", "theorem", "orchard", "satellite"]),
    *(["lantern", "compass", "mill", "quarry", "tunnel", "vineyard", "anvil", "beacon", "canal", "dune"]),
)
TRAINING = ("--epochs", "2", "--batch-size", "4", "--max-length", "16", "--device", "cpu")
MAW = ("--maw-depth-dim", "4")


@dataclass(frozen=True)
class Subject:
    """Something that can be damaged.

    Args:
        name: for people.
        folder: its folder in the folder of all subjects.
        arguments: the command line of each way to read it; `{it}` is the damaged copy, `{base}` the folder of all
            subjects, `{new}` an empty folder.
        result: from the copy, and the new folder and the output of the command, to what must not change.
        part: the folder inside the copy whose files are damaged.
        fits: which files.
        weight: how large its part of all cases is.
        caught: whether all that decides its results has a checksum: other results are then a fault, and otherwise
            what somebody else's valid folder may give.
        told: where a command may leave out a part that it cannot read: the file that has to name the damaged one.
    """

    name: str
    folder: str
    arguments: tuple[tuple[str, ...], ...]
    result: Callable[[Path, Path, str], Any]
    part: str = "."
    fits: Callable[[Path], bool] = lambda path: True
    weight: int = 10
    caught: bool = True
    told: str | None = None


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# what must not change


def vectors(_: Path, new: Path, __: str) -> Any:
    files = [*(new / "vectors").rglob("*.npy"), *(new / "vectors").rglob("*.ids.txt")]
    return {path.name: checksum(path) for path in sorted(files)}


def own_vectors(copy: Path, _: Path, __: str) -> Any:
    files = [*copy.rglob("*.npy"), *copy.rglob("*.ids.txt")]
    return {path.name: checksum(path) for path in sorted(files)}


def run_file(_: Path, new: Path, __: str) -> Any:
    return checksum(new / "run.trec")


def printed(_: Path, __: Path, output: str) -> Any:
    return [line for line in output.splitlines() if "seconds" not in line]


def weights(copy: Path, _: Path, __: str) -> Any:
    return {path.name: checksum(path) for path in sorted((copy / "model").rglob("*.safetensors"))}


def report(copy: Path, _: Path, __: str) -> Any:
    return checksum(copy / "report.html")


def results(copy: Path, _: Path, __: str) -> Any:
    """What a benchmark found, without when and for how long."""
    whole = json.loads((copy / "results.json").read_text())
    rows = [{name: row[name] for name in ("variant", "seed", "split", "metrics", "findings")} for row in whole["rows"]]
    kept = ("dataset", "settings", "earlier", "comparisons", "depth_usage", "verdict", "finished", "started")
    moved = {name: value for name, value in json.loads((copy / "moved.json").read_text()).items() if name != "checksum"}
    return [rows, moved, {name: whole[name] for name in kept}]


def lists(_: Path, __: Path, output: str) -> Any:
    return output


# reading


MODEL = (
    ("encode", "{it}", "{base}/corpus.jsonl", "--output", "{new}/vectors", "--dtype", "float32", "--device", "cpu"),
    ("evaluate", "{it}", "--dataset", "beir:{base}/data", "--run", "{new}/run.trec", "--device", "cpu"),
)
INSPECT = ("inspect", "{it}", "a river and an engine", "--json", "--device", "cpu")


def model_result(copy: Path, new: Path, output: str) -> Any:
    if (new / "vectors").is_dir():
        return vectors(copy, new, output)
    return run_file(copy, new, output) if (new / "run.trec").is_file() else printed(copy, new, output)


def store_result(copy: Path, new: Path, output: str) -> Any:
    return run_file(copy, new, output) if (new / "run.trec").is_file() else printed(copy, new, output)


STORE = (
    ("search", "{base}/models/plain", "{it}", "what is a river", "--k", "20", "--json", "--device", "cpu"),
    ("search", "{base}/models/plain", "{it}", "--queries", "{base}/queries.jsonl", "--run", "{new}/run.trec"),
)
ENCODE = ("encode", "{base}/models/plain", "{base}/corpus.jsonl", "--output", "{it}", "--shard-size", "8")
BENCHMARK = (
    *("benchmark", "--dataset", "beir:{base}/data", "--model", "{base}/base", "--output", "{it}"),
    *("--variants", "bm25,untuned,dense-full,maw-full", *TRAINING, *MAW),
)
TRAIN = (
    *(
        "train",
        "--variant",
        "maw-full",
        "--dataset",
        "beir:{base}/data",
        "--model",
        "{base}/base",
        "--output",
        "{it}/model",
    ),
    *(*TRAINING, *MAW, "--save-every", "1", "--hard-negatives", "1"),
)
CACHED = ("evaluate", "{base}/models/plain", "--dataset", "beir:{base}/data", "--run", "{new}/run.trec")
NEGATIVES = ("negatives", "{it}")


def no_card(path: Path) -> bool:
    return path.name != "README.md"


def no_board(path: Path) -> bool:
    return not path.name.startswith("events.out") and path.name != ".lock"


def of_benchmark(path: Path) -> bool:
    """Not the models, which are read by other commands, and as models are damaged above; not what is for people."""
    return no_board(path) and path.name != "report.html" and "models" not in path.parts


SUBJECTS = (
    Subject("model folder: plain host", "models/plain", MODEL, model_result, fits=no_card, weight=16),
    Subject("model folder: MAW", "models/maw", (*MODEL, INSPECT), model_result, fits=no_card, weight=16),
    Subject("model folder: MAW and LoRA", "models/lora", (*MODEL, INSPECT), model_result, fits=no_card, weight=16),
    Subject("model folder that others saved", "base", MODEL, model_result, fits=no_card, weight=10, caught=False),
    Subject("store of vectors, searched", "store", STORE, store_result, weight=20),
    Subject("store of vectors, gone on with", "begun", (ENCODE,), own_vectors, weight=14),
    Subject("text cache", "cache", (CACHED,), run_file, weight=16),
    Subject("cache of negatives", "negatives", (NEGATIVES,), lists, weight=8),
    Subject("benchmark, reported", "benchmark", (("report", "{it}"),), report, fits=of_benchmark, weight=10,
            told="report.html"),
    Subject("benchmark, gone on with", "benchmark", (BENCHMARK,), results, fits=of_benchmark, weight=10),
    Subject("training, gone on with", "training", (TRAIN,), weights, part="model.training", fits=no_board, weight=10),
)  # fmt: skip


# making them


def build(base: Path, command: Callable[[list[str]], int]) -> None:
    """Make every subject in a folder, by the commands that people use.

    Args:
        base: an empty folder.
        command: runs a command line; the exit status.
    """
    base.mkdir(parents=True, exist_ok=True)
    _data(base)
    _host(base / "base")

    def do(*arguments: str) -> None:
        words = [word.format(base=base, it="{it}") for word in arguments]
        if status := command(words):
            raise RuntimeError(f"maw {' '.join(words)} ended with status {status}")

    for name, variant in (("plain", "dense-full"), ("maw", "maw-full"), ("lora", "maw-lora")):
        model = str(base / "models" / name)
        more = MAW if name != "plain" else ()
        begun = ("train", "--variant", variant, "--dataset", "beir:{base}/data", "--model", "{base}/base")
        do(*begun, "--output", model, *TRAINING, *more)
    encode = [word.format(base=base, it=base / "store") for word in ENCODE]
    do(*encode)
    shutil.copytree(base / "store", base / "begun")
    for name in ("manifest.json", "shards/00001.json", "shards/00001.npy"):
        (base / "begun" / name).unlink()
    do(*(word.format(base=base, it=base / "benchmark") for word in BENCHMARK))
    with patched(base / "cache"):
        do(*(word.format(base=base, new=base) for word in CACHED))
    (base / "run.trec").unlink()
    mined(base, base / "negatives")
    _stopped_training(base, command)


def _data(base: Path) -> None:
    folder = base / "data"
    (folder / "qrels").mkdir(parents=True)
    texts = [f"A passage about a {word} and what a {word} is for, number {i}." for i, word in enumerate(WORDS)]
    documents = [
        {"_id": f"d{i}", "title": word, "text": text} for i, (word, text) in enumerate(zip(WORDS, texts, strict=True))
    ]
    queries = [{"_id": f"q{i}", "text": f"what is a {word}"} for i, word in enumerate(WORDS)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        shutil.copyfile(folder / f"{name}.jsonl", base / f"{name}.jsonl")
    for split, ids in (("train", range(8)), ("dev", range(8, 12)), ("test", range(12, 20))):
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in ids)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")


def _host(folder: Path) -> None:
    """An encoder as Sentence Transformers saves it, with a vocabulary of the toy corpus alone."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [
        *special,
        *["a", "about", "an", "and", "for", "is", "number", "passage", "what", ".", ","],
        *WORDS,
        *map(str, range(20)),
    ]
    tokenizer = BertTokenizerFast(vocab={word: number for number, word in enumerate(words)})
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    host = BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, initializer_range=0.2, **sizes))
    aside = folder.with_name("host")
    host.eval().save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    model = SentenceTransformer(modules=[Transformer(str(aside)), Pooling(32), Normalize()], device="cpu")
    model.save_pretrained(str(folder), create_model_card=False)
    shutil.rmtree(aside)


def mined(base: Path, cache: Path) -> str:
    """Hard negatives of the toy data, kept in or found in a cache folder."""
    from maw.retrieval.data.loading import load_dataset
    from maw.retrieval.training.negatives import NegativeSettings, mine

    found = mine(load_dataset(f"beir:{base / 'data'}"), NegativeSettings(per_query=3), cache=cache)
    return json.dumps([dict(found), getattr(found, "report", None)], sort_keys=True)


def _stopped_training(base: Path, command: Callable[[list[str]], int]) -> None:
    """A training that was stopped after its third step of four."""
    from maw.retrieval.training.trainer import Trainer

    plain = Trainer.training_step

    def training_step(self: Any, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return plain(self, *arguments, **options)

    Trainer.training_step = training_step
    try:
        (base / "training").mkdir()
        status = command([word.format(base=base, it=base / "training") for word in TRAIN])
    finally:
        Trainer.training_step = plain
    if status != 130 or not (base / "training" / "model.training" / "checkpoint-3").is_dir():
        raise RuntimeError(f"the training was to be stopped, got status {status}")


@contextmanager
def patched(cache: Path) -> Iterator[None]:
    """Keep texts on the disk, also those of a small corpus, in this folder."""
    from maw.retrieval.data import corpora

    before, os.environ["MAW_CACHE"], limit = os.environ.get("MAW_CACHE"), str(cache), corpora.IN_MEMORY
    corpora.IN_MEMORY = 0
    try:
        yield
    finally:
        corpora.IN_MEMORY = limit
        os.environ.pop("MAW_CACHE")
        if before is not None:
            os.environ["MAW_CACHE"] = before
