"""Encoding in several processes and on a cluster: the files of one process, whoever is lost meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from test_store import contents, write_corpus
from toys import WORDS, encoder

from maw.errors import MAWError
from maw.retrieval.models import choose_device, load_encoder
from maw.retrieval.ranking.dense import encode
from maw.retrieval.ranking.search import search
from maw.retrieval.vectors.corpus_encoding import EncodingSettings, encode_corpus
from maw.retrieval.vectors.shard_encoder import Pace
from maw.retrieval.vectors.store import VectorStore

DATA = os.environ.get("MAW_DATA")
POOL = Path(DATA) / "msmarco-passage-pool" if DATA else None
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A model's folder, a corpus, and the store that one process makes of it."""
    folder = tmp_path_factory.mktemp("work")
    model = encoder()
    model.save_pretrained(str(folder / "model"))
    texts = {f"d{i}": f"{WORDS[i % 10]} and {WORDS[i % 7]} " * (i % 9) for i in range(3000)}
    write_corpus(folder / "corpus.jsonl", texts)
    encode_corpus(model, folder / "corpus.jsonl", folder / "alone", EncodingSettings(shard_size=100))
    return folder


def command(work: Path, output: str, *more: str) -> list[str]:
    given = ["encode", str(work / "model"), str(work / "corpus.jsonl"), "--output", str(work / output)]
    return [*given, "--shard-size", "100", "--device", "cpu", *more]


def finished(folder: Path) -> int:
    return len(list(folder.glob("shards/*.json")))


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_two_processes_of_torchrun_make_the_store_of_one(work):
    run = [sys.executable, *TORCHRUN, "-m", "maw", *command(work, "two")]
    done = subprocess.run(run, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "process 0 of 2: 1,500 documents encoded" in done.stdout
    assert "process 1 of 2: 1,500 documents encoded" in done.stdout
    assert "two is complete" in done.stdout
    assert contents(work / "two") == contents(work / "alone")


def test_a_process_that_is_killed_is_started_again(work):
    folder = work / "killed"
    alone = [sys.executable, "-m", "maw", *command(work, "killed", "--batch-size", "2")]
    environments = [{**ENVIRONMENT, "RANK": str(rank), "WORLD_SIZE": "2"} for rank in (0, 1)]
    first, second = (subprocess.Popen(alone, env=one, stdout=subprocess.DEVNULL) for one in environments)
    wait_for(lambda: any(int(path.stem) % 2 == 0 for path in folder.glob("shards/*.json")))
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert second.wait(timeout=300) == 0
    assert 15 < finished(folder) < 30
    assert not (folder / "manifest.json").exists()
    done = subprocess.run(alone, env=environments[0], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "killed is complete" in done.stdout
    assert not list(folder.rglob("*.part"))
    assert contents(folder).keys() == contents(work / "alone").keys()
    np.testing.assert_allclose(VectorStore(folder)[0:3000], VectorStore(work / "alone")[0:3000], atol=2e-3)


def test_tokenising_in_processes_makes_the_same_files(work):
    model = load_encoder(str(work / "model"), device=choose_device("cpu"))
    settings = EncodingSettings(shard_size=100)
    encode_corpus(model, work / "corpus.jsonl", work / "workers", settings, pace=Pace(workers=2))
    assert contents(work / "workers") == contents(work / "alone")


@pytest.mark.filterwarnings("ignore")  # Ray's, about itself
def test_a_cluster_that_loses_a_node_makes_the_same_files(work, monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra ray is not installed: the cluster's engine needs it")
    from ray.cluster_utils import Cluster  # ty: ignore[import-not-found]

    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # stay on this machine
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(toys.__file__).parent), *sys.path]))
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        lost = cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        assert ray.cluster_resources()["CPU"] == 2
        model = load_encoder(str(work / "model"), device=choose_device("cpu"))
        folder = work / "cluster"
        left: list[int] = []

        def take_away():
            wait_for(lambda: finished(folder) >= 2)
            left.append(30 - finished(folder))
            cluster.remove_node(lost, allow_graceful=False)

        thread = threading.Thread(target=take_away)
        thread.start()
        pace = Pace(batch_size=2)  # slowly, so that it is taken away meanwhile
        outcome = encode_corpus(
            model, work / "corpus.jsonl", folder, EncodingSettings(shard_size=100), pace=pace, engine="ray"
        )
        thread.join()
        assert left[0] > 0
        assert ray.cluster_resources()["CPU"] == 1
        assert (outcome.documents, outcome.complete) == (3000, True)
        encode_corpus(model, work / "corpus.jsonl", work / "local", EncodingSettings(shard_size=100), pace=pace)
        assert contents(folder) == contents(work / "local")

        with torch.no_grad():
            model[0].model.embeddings.LayerNorm.weight.fill_(float("nan"))
        with pytest.raises(MAWError, match=r"corpus\.jsonl, line 1: the model's vector is not finite"):
            encode_corpus(model, work / "corpus.jsonl", work / "broken", EncodingSettings(), engine="ray")
    finally:
        ray.shutdown()
        cluster.shutdown()


def swaps(query: torch.Tensor, one: VectorStore, other: VectorStore, depth: int) -> tuple[int, float]:
    """How many places differ in the two rankings, and the largest difference of scores in such a place."""
    (first, here), (_, there) = (search(query, store, depth, order=store.order) for store in (one, other))
    vectors = torch.from_numpy(one[0 : len(one)].astype(np.float32))
    moved = here != there
    score_there = torch.einsum("qw,qkw->qk", query, vectors[there])
    gap = (first - score_there).abs()[moved]
    return int(moved.sum()), float(gap.max()) if len(gap) else 0.0


@pytest.mark.skipif(POOL is None, reason="MAW_DATA names no folder with msmarco-passage-pool")
def test_the_ranking_does_not_depend_on_batches_and_processes(tmp_path):
    """Real passages and all queries of the pool, ranked to depth 100 by the packaged encoder."""
    lines = (POOL / "corpus.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "corpus.jsonl").write_bytes(b"".join(lines[::55]))
    model = load_encoder("packaged", device=choose_device("cpu"), max_length=64)
    settings = EncodingSettings("float32", shard_size=256)

    def made(name, shares=((0, 1),), **pace):
        for share in shares:
            encode_corpus(model, tmp_path / "corpus.jsonl", tmp_path / name, settings, pace=Pace(**pace), share=share)
        return VectorStore(tmp_path / name)

    queries = [json.loads(line)["text"] for line in (POOL / "queries.jsonl").read_bytes().splitlines()]
    query = encode(model, queries, "query").cpu()
    assert len(query) == 697
    base = made("32", batch_size=32)
    for other in (
        made("1", batch_size=1),
        made("512", batch_size=512, batch_tokens=10**6),
        made("two", shares=((1, 2), (0, 2)), batch_size=32),
    ):
        number, gap = swaps(query, base, other, 100)
        print(f"{other.folder.name}: {number} of {697 * 100} places differ, scores there by at most {gap:.1e}")
        assert gap < 1e-5
        assert number < 697
    assert contents(tmp_path / "two") == contents(tmp_path / "32")
