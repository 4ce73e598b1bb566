"""The shards of a store encoded on a Ray cluster: a Ray Data pipeline from shard numbers to finished files.

A task encodes some shards by the very code of one process and writes them to the folder, which all nodes see; what
goes through Ray is numbers. A node that is lost takes its unfinished shards with it: Ray runs their tasks again on
another node, where what was finished is found in the folder. Tasks and not actors, because the task of a lost actor
waits for that very actor.
"""

from __future__ import annotations

import copy
import logging
import signal
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maw.errors import MAWError
from maw.retrieval.data.corpus_file import CorpusFile
from maw.retrieval.vectors.plan import Plan, shard_file
from maw.retrieval.vectors.shard_encoder import Finished, Pace, ShardEncoder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["encode_on_ray"]

TOGETHER = 4
"""Shards of a task, at most: the second is tokenised while the first is encoded."""


@dataclass(frozen=True)
class _Job:
    """What every task needs; the model is fetched once by each process."""

    name: str
    model: list[Any]
    device: str
    corpus: Path
    folder: Path
    plan: Plan
    pace: Pace


_encoders: dict[str, ShardEncoder] = {}
"""Of a Ray worker process, by job."""


def encode_on_ray(
    model: SentenceTransformer, corpus: CorpusFile, folder: Path, plan: Plan, numbers: list[int], pace: Pace
) -> Iterator[Finished]:
    """Encode shards on the cluster that `RAY_ADDRESS` names or this process is connected to, else on this machine.

    Args:
        model: an encoder; on a GPU here, it is on a GPU in every task.
        corpus: under a path that every node sees.
        folder: the store's, under a path that every node sees.
        plan: the store's.
        numbers: which shards.
        pace: how to work.

    Raises:
        MAWError: Ray is not installed, or as `ShardEncoder.encode`.
    """
    try:
        ray: Any = import_module("ray")
        data: Any = import_module("ray.data")
    except ImportError as error:
        raise MAWError("--engine ray needs Ray: pip install 'maw-attention[ray]'") from error
    if not numbers:
        return
    if not ray.is_initialized():
        before = signal.getsignal(signal.SIGTERM)
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray's own would end the process without a word
    data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what happens is told by whoever called
    kind = model.device.type
    held = {name: int(ray.cluster_resources().get(name, 0)) for name in ("CPU", "GPU")}
    resources, slots = {"num_cpus": 1}, held["CPU"]
    if kind == "cuda":
        slots = held["GPU"]
        if not slots:
            raise MAWError("the Ray cluster has no GPU: start its nodes with GPUs, or give --device cpu")
        resources = {"num_gpus": 1, "num_cpus": max(1, held["CPU"] // slots)}
        if pace.workers is None:
            pace = replace(pace, workers=max(1, resources["num_cpus"] - 1))
    size = max(1, min(TOGETHER, len(numbers) // (2 * max(1, slots))))
    groups = [{"numbers": numbers[begin : begin + size]} for begin in range(0, len(numbers), size)]
    reference = ray.put(copy.deepcopy(model).to("cpu") if kind != "cpu" else model)
    job = _Job(uuid.uuid4().hex, [reference], kind, corpus.path.resolve(), folder.resolve(), plan, pace)
    tasks = data.from_items(groups, override_num_blocks=len(groups))
    pipeline = tasks.map(_encode_group, fn_kwargs={"job": job}, max_retries=-1, **resources)
    for row in pipeline.iter_rows():
        if row["refused"]:
            raise MAWError(row["refused"])
        for number, waited in zip(row["finished"], row["waited"], strict=True):
            yield Finished(int(number), plan.shards[int(number)]["rows"], float(waited))


def _encode_group(row: dict[str, Any], job: _Job) -> dict[str, Any]:
    numbers = [int(number) for number in row["numbers"]]
    waited = dict.fromkeys(numbers, 0.0)
    try:
        if job.name not in _encoders:
            _encoders.clear()
            model = import_module("ray").get(job.model[0]).to(job.device)
            _encoders[job.name] = ShardEncoder(model, CorpusFile(job.corpus), job.folder, job.pace)
        encoder = _encoders[job.name]
        todo = [number for number in numbers if not shard_file(job.folder, number, "json").is_file()]
        with encoder.tokenising() as executor:
            waited |= {done.number: done.waited for done in encoder.encode(job.plan, todo, executor)}
    except MAWError as error:  # Ray would wrap it in a report of its own
        return {"finished": [], "waited": [], "refused": str(error)}
    return {"finished": numbers, "waited": [waited[number] for number in numbers], "refused": ""}
