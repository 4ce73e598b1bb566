"""What `maw encode` and `maw search` do."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING

from maw.errors import MAWError
from maw.io.escaping import visible
from maw.output import Output, speaking
from maw.progress import counted, duration, tracked
from maw.vector_options import EncodeCommand, SearchCommand

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from maw.retrieval.data.corpus_file import CorpusFile
    from maw.retrieval.ranking.truncation import Truncation

__all__ = ["encode", "search"]

SAMPLE = 64
"""Documents by which the speed is estimated."""


def encode(command: EncodeCommand) -> int:
    """Encode a corpus, or say what that would be; returns the exit status."""
    from maw.retrieval.data.corpus_file import CorpusFile
    from maw.retrieval.models import choose_own_device, load_encoder
    from maw.retrieval.processes import own_share
    from maw.retrieval.vectors.corpus_encoding import EncodingSettings, encode_corpus
    from maw.retrieval.vectors.parquet_export import check_parquet_folder, export_parquet
    from maw.retrieval.vectors.shard_encoder import Pace
    from maw.retrieval.vectors.store import VectorStore

    if command.parquet is not None:
        check_parquet_folder(command.parquet)
    settings = EncodingSettings(command.dtype, command.precision, command.shard_size)
    pace = Pace(command.batch_size, command.batch_tokens, command.workers)
    corpus = CorpusFile(command.corpus)
    rank, processes = own_share()
    who = f"process {rank} of {processes}: " if processes > 1 else ""
    with speaking(as_json=command.json, progress=rank == 0) as out, ExitStack() as stack:
        model = load_encoder(command.model, device=choose_own_device(command.device), max_length=command.max_length)
        if rank == 0:
            out.say(str(_truncation(model, corpus)))
        if command.dry_run:
            return _say_plan(command, out, model, corpus, processes) if rank == 0 else 0

        def begin(total: int) -> Callable[[int], None]:
            return stack.enter_context(counted("encoding", total))

        outcome = encode_corpus(
            model, command.corpus, command.output, settings, pace=pace, engine=command.engine, begin=begin
        )
        stack.close()
        took = f"{duration(outcome.seconds)}, {outcome.documents / outcome.seconds:,.0f} a second"
        waited = f"the model waited {duration(outcome.waited)} for tokens"
        out.say(f"{who}{outcome.documents:,} documents encoded in {took}; {waited}")
        out.result({"output": command.output, "process": rank, "processes": processes, **asdict(outcome)})
        if not outcome.complete:
            out.say(
                f"{who}{outcome.missing:,} shards of {command.output} are not finished: other processes have them, or "
                "run the same command again"
            )
            return 0
        out.say(f"{who}{command.output} is complete")
        if command.parquet is not None:
            written = export_parquet(VectorStore(command.output, checksums=False), command.parquet)
            out.say(f"{who}{written:,} Parquet files written to {command.parquet}")
    return 0


def _truncation(model: SentenceTransformer, corpus: CorpusFile) -> Truncation:
    """How many of the first documents are longer than the model reads."""
    from maw.retrieval.ranking.truncation import SAMPLE, count_truncated

    some: list[str] = []
    for block in corpus.blocks(lines=SAMPLE):
        some += block.texts()
        if len(some) > SAMPLE:
            return count_truncated(model, some[:SAMPLE], "document", None)
    return count_truncated(model, some, "document", len(some))


def _say_plan(
    command: EncodeCommand, out: Output, model: SentenceTransformer, corpus: CorpusFile, processes: int
) -> int:
    """What would be encoded, for how long, and where it would go."""
    from maw.retrieval.ranking.dense import encode

    documents, sample = 0, []
    for block in tracked(corpus.blocks(lines=1024), f"reading {corpus.path.name}: blocks of 1,024"):
        texts = block.texts()
        documents, sample = documents + len(texts), sample or texts[:SAMPLE]
    if not documents:
        raise MAWError(f"wanted documents to encode, but {corpus.path} is empty")
    encode(model, sample[:8], "document")
    start = time.perf_counter()
    width = encode(model, sample, "document").shape[1]
    seconds = documents * (time.perf_counter() - start) / len(sample) / processes
    shards = -(-documents // command.shard_size)
    done = len(list((command.output / "shards").glob("*.json"))) if command.output.is_dir() else 0
    size = documents * width * (2 if command.dtype == "float16" else 4)
    plan = {
        "documents": documents,
        "width": width,
        "shards": shards,
        "shards_done": done,
        "processes": processes,
        "device": str(model.device),
        "seconds": round(seconds, 1),
        "bytes": size,
        "output": command.output,
    }
    out.say(f"would encode {documents:,} documents of {corpus.path} on {model.device}, {processes} process(es)")
    out.say(f"{shards:,} shards, {done:,} of them done; all together about {duration(seconds)}")
    out.say(f"writes {command.output}: {size / 2**20:,.1f} MiB of vectors. Nothing was encoded")
    out.result({"plan": plan})
    return 0


def search(command: SearchCommand) -> int:
    """Search a store; returns the exit status."""
    from maw.retrieval.data.corpus_file import CorpusFile
    from maw.retrieval.models import choose_device, load_encoder
    from maw.retrieval.vectors.store import VectorStore
    from maw.retrieval.vectors.store_search import read_queries, search_store, text_of, write_search

    if (command.query is None) == (command.queries is None):
        raise MAWError("give one query in quotes, or a file of them with --queries: one of the two")
    if command.query is not None and not command.query.strip():
        raise MAWError("the query is empty: give the words to search for")
    if (command.queries is None) != (command.run is None):
        raise MAWError("--queries and --run belong together: a file of queries gives a run file")
    corpus = None if command.corpus is None else CorpusFile(command.corpus)
    queries = {"query": command.query or ""} if command.queries is None else read_queries(command.queries)
    k = command.k if command.k is not None else 10 if command.run is None else 1000
    with speaking(as_json=command.json) as out:
        store = VectorStore(command.vectors, checksums=not command.skip_checksums)
        model = load_encoder(command.model, device=choose_device(command.device))
        results = search_store(model, store, queries, k, drop_own=command.drop_own)
        if command.run is not None:
            number = write_search(command.run, results, "maw")
            out.say(f"{number:,} queries searched in {len(store):,} documents: {command.run}")
            out.result({"run": command.run, "queries": number, "documents": len(store), "k": k})
            return 0
        ((_, found),) = results
        texts = [None if corpus is None else text_of(store, corpus, hit) for hit in found]
        if not command.json:
            for rank, (hit, text) in enumerate(zip(found, texts, strict=True), start=1):
                line = f"{rank:4} {hit.score:8.5f}  {hit.document}" + ("" if text is None else f"  {text}")
                out.say(visible(line, one_line=True))
        hits = [
            {"document": hit.document, "score": hit.score} | ({} if text is None else {"text": text})
            for hit, text in zip(found, texts, strict=True)
        ]
        out.result({"query": command.query, "documents": len(store), "hits": hits})
    return 0
