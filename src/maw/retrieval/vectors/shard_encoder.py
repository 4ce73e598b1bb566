"""Shards of a corpus to files of vectors: tokenising, model and disk work at the same time.

A thread reads the corpus and fills batches from what the tokenising processes return, the model takes them one after
the other and leaves a shard's vectors on its device, and another thread fetches them and writes the file. The model
waits for none of this as long as each of the others is faster than it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from maw.errors import MAWError
from maw.hf.weights import weights_type
from maw.io.atomic import write_json, write_whole
from maw.retrieval.data.corpus_file import Block, CorpusFile
from maw.retrieval.vectors.ahead import map_ahead, prefetched
from maw.retrieval.vectors.npy import npy_header
from maw.retrieval.vectors.plan import BLOCK, Plan, shard_file
from maw.retrieval.vectors.token_batches import Batch, Limits, make_batches
from maw.retrieval.vectors.tokenising import Tokeniser, Tokens, workers

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Finished", "Pace", "ShardEncoder"]


@dataclass(frozen=True)
class Pace:
    """How to work, which decides no vector by more than rounding; None is chosen by the device.

    Args:
        batch_size: texts of a batch, at most; None is 64 on a CPU and 4,096 on a GPU.
        batch_tokens: tokens of a batch, at most; None is 2,048 on a CPU and 65,536 on a GPU.
        workers: processes that tokenise; 0 is a thread, which is enough beside a model on a CPU. None is as many as
            there are cores for this process, less two, on a GPU.
    """

    batch_size: int | None = None
    batch_tokens: int | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("batch_tokens", 1), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise MAWError(f"{name} must be at least {least}, got {value}")

    def limits(self, device: torch.device) -> Limits:
        """The size of batches on a device."""
        texts, tokens, multiple = (64, 2048, 1) if device.type == "cpu" else (4096, 65_536, 8)
        return Limits(self.batch_size or texts, self.batch_tokens or tokens, multiple)

    def processes(self, device: torch.device) -> int:
        """How many processes tokenise for a device."""
        if self.workers is not None:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's processes on this machine
        return 0 if device.type == "cpu" else max(1, cores // beside - 2)


@dataclass(frozen=True)
class Finished:
    """A shard that is on the disk.

    Args:
        number: which one.
        rows: its documents.
        waited: seconds that the model waited for its tokens.
    """

    number: int
    rows: int
    waited: float


class ShardEncoder:
    """Encodes shards of one store with one model.

    Args:
        model: on the device to use, in evaluation mode.
        corpus: what the store is made from.
        folder: the store's.
        pace: how to work.
    """

    def __init__(self, model: SentenceTransformer, corpus: CorpusFile, folder: Path, pace: Pace) -> None:
        self.model, self.corpus, self.folder = model, corpus, folder
        self.device = model.device
        self.limits, self.tokeniser = pace.limits(self.device), Tokeniser(model)
        self.processes = pace.processes(self.device)
        self.ahead = 2 * self.processes + 2

    @contextmanager
    def tokenising(self) -> Generator[Executor]:
        """Hold the processes or the thread that tokenise; they also take the corpus apart for the plan."""
        with workers(self.tokeniser, self.processes) as (executor, self.tokenise):
            yield executor

    def encode(
        self,
        plan: Plan,
        numbers: Iterable[int],
        executor: Executor,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[Finished]:
        """Encode shards and write them, yielding each when it is on the disk.

        Args:
            plan: the store's.
            numbers: which shards.
            executor: what `tokenising` gave.
            progress: called with the number of documents of a batch that was given to the model.

        Raises:
            MAWError: a vector is not finite, a batch does not fit on the GPU, the corpus was changed, or the disk is
                full.
        """
        pending: list[Future[Finished]] = []
        numbers = list(numbers)
        batches = self.batches(plan, numbers, executor)
        with ThreadPoolExecutor(1, thread_name_prefix="writer") as writer, prefetched(batches, 8) as ready:
            for number in numbers:
                vectors, waited = self._encode_shard(plan, number, ready, progress)
                pending.append(writer.submit(self._finish, plan, number, vectors, waited))
                if len(pending) > 1:  # one is written while the next is made; more would pile up
                    yield pending.pop(0).result()
            for future in pending:
                yield future.result()

    def tokens(self, plan: Plan, numbers: Iterable[int], executor: Executor) -> Iterator[tuple[int, Tokens]]:
        """The tokens of one shard after the other, tokenised ahead by up to one shard."""
        starts, numbers = plan.starts, list(numbers)

        def blocks() -> Iterator[Block]:
            with self.corpus.open() as file:
                for number in numbers:
                    first, stop, offset = int(starts[number]), int(starts[number + 1]), plan.shards[number]["offset"]
                    yield from self.corpus.blocks(lines=BLOCK, first=first, offset=offset, stop=stop, file=file)

        ahead = max(self.ahead, plan.settings["shard_size"] // BLOCK)
        made = map_ahead(executor, self.tokenise, blocks(), ahead)
        for number in numbers:
            parts, missing = [], plan.shards[number]["rows"]
            while missing:
                parts.append(next(made))
                missing -= len(parts[-1].lengths)
            yield number, Tokens.joined(parts)

    def batches(self, plan: Plan, numbers: Iterable[int], executor: Executor) -> Iterator[Batch]:
        """The batches of one shard after the other."""
        pinned = self.device.type == "cuda"
        for _, tokens in self.tokens(plan, numbers, executor):
            yield from make_batches(tokens, self.tokeniser, self.limits, pinned=pinned)

    @torch.inference_mode()
    def _encode_shard(
        self, plan: Plan, number: int, ready: Iterator[Batch], progress: Callable[[int], None] | None
    ) -> tuple[_Vectors, float]:
        """The vectors of a shard, on a GPU perhaps still being computed, and the seconds waited for tokens."""
        rows, dtype = plan.shards[number]["rows"], getattr(torch, plan.settings["dtype"])
        vectors = torch.empty(rows, plan.model["width"], dtype=dtype, device=self.device)
        done, waited = 0, 0.0
        with computing(plan.settings["precision"], self.model):
            while done < rows:
                start = time.perf_counter()
                batch = next(ready)
                waited += time.perf_counter() - start
                made = self._forward(batch, normalise=plan.settings["normalised"])
                vectors[batch.rows.to(self.device, non_blocking=True)] = made.to(dtype)
                done += len(batch.rows)
                if progress is not None:
                    progress(len(batch.rows))
            return _Vectors(vectors), waited

    def _forward(self, batch: Batch, *, normalise: bool) -> Tensor:
        try:
            return forward(self.model, batch, normalise=normalise)
        except torch.OutOfMemoryError as error:
            raise MAWError(
                f"a batch of {len(batch.rows)} texts and {batch.tokens:,} tokens does not fit on {self.device}: choose "
                f"--batch-tokens below {self.limits.tokens:,}; what was finished is kept"
            ) from error

    def _finish(self, plan: Plan, number: int, vectors: _Vectors, waited: float) -> Finished:
        return replace(self.write(plan, number, vectors.fetch().numpy()), waited=waited)

    def write(self, plan: Plan, number: int, vectors: np.ndarray) -> Finished:
        """Write a shard's vectors, and then that it is finished.

        Raises:
            MAWError: a vector is not finite, or the disk is full.
        """
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(broken):
            line = int(plan.starts[number] + broken[0]) + 1
            raise MAWError(
                f"{self.corpus.path}, line {line}: the model's vector is not finite in {plan.settings['dtype']} (and "
                f"{len(broken) - 1} more of this shard). Encode with --precision float32 and --dtype float32; "
                "if it stays, the model's weights are damaged or its training diverged"
            )
        path = shard_file(self.folder, number, "npy")
        found = write_whole(path, [npy_header(vectors.dtype, vectors.shape), vectors])
        write_json(shard_file(self.folder, number, "json"), {"identity": plan.identity, "vectors": found})
        return Finished(number, len(vectors), 0.0)


class _Vectors:
    """A shard's vectors on the device; fetched beside what is computed meanwhile."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        self.ready = torch.cuda.current_stream(vectors.device).record_event() if vectors.is_cuda else None

    def fetch(self) -> Tensor:
        """The vectors on the host."""
        if self.ready is None:
            return self.vectors.cpu()
        stream = torch.cuda.Stream(self.vectors.device)
        with torch.cuda.stream(stream):
            stream.wait_event(self.ready)
            host = torch.empty(self.vectors.shape, dtype=self.vectors.dtype, pin_memory=True)
            host.copy_(self.vectors, non_blocking=True)
        self.vectors.record_stream(stream)
        stream.synchronize()
        return host


def forward(model: SentenceTransformer, batch: Batch, *, normalise: bool) -> Tensor:
    """The vectors of a batch in float32, as `SentenceTransformer.encode` makes them."""
    device = model.device
    features = {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.features.items()
    }
    vectors = model(features)["sentence_embedding"].float()
    if model.truncate_dim is not None:
        vectors = vectors[:, : model.truncate_dim]
    return torch.nn.functional.normalize(vectors, dim=1) if normalise else vectors


@contextmanager
def computing(precision: str, model: SentenceTransformer) -> Generator[None]:
    """Compute the model in the type of its weights, or by autocast in a smaller one."""
    autocast: Any = nullcontext()
    device = model.device
    if precision != weights_type(model):
        autocast = torch.autocast(device.type, dtype=getattr(torch, precision))
    here: Any = torch.cuda.device(device) if device.type == "cuda" else nullcontext()  # where kernels are launched
    with here, autocast:
        yield
