"""What `maw encode` and `maw search` do."""

from __future__ import annotations

from rich.console import Console

from maw.errors import MAWError
from maw.progress import counting, duration
from maw.vector_options import EncodeCommand, SearchCommand

__all__ = ["encode", "search"]


def encode(command: EncodeCommand, console: Console) -> int:
    """Encode a corpus; returns the exit status."""
    from maw.retrieval.data.corpus_file import CorpusFile
    from maw.retrieval.models import choose_own_device, load_encoder
    from maw.retrieval.processes import own_share
    from maw.retrieval.vectors.corpus_encoding import EncodingSettings, encode_corpus
    from maw.retrieval.vectors.shard_encoder import Pace

    settings = EncodingSettings(command.dtype, command.precision, command.shard_size)
    pace = Pace(command.batch_size, command.batch_tokens, command.workers)
    CorpusFile(command.corpus)
    rank, processes = own_share()
    model = load_encoder(command.model, device=choose_own_device(command.device), max_length=command.max_length)
    with counting(console, "encoding", shown=rank == 0) as begin:
        outcome = encode_corpus(
            model, command.corpus, command.output, settings, pace=pace, engine=command.engine, begin=begin
        )
    who = f"process {rank} of {processes}: " if processes > 1 else ""
    took = f"{duration(outcome.seconds)}, {outcome.documents / outcome.seconds:,.0f} a second"
    waited = f"the model waited {duration(outcome.waited)} for tokens"
    console.print(f"{who}{outcome.documents:,} documents encoded in {took}; {waited}", highlight=False)
    if not outcome.complete:
        console.print(
            f"{who}{outcome.missing:,} shards of {command.output} are not finished: other processes have them, or run "
            "the same command again",
            highlight=False,
        )
        return 0
    console.print(f"{who}{command.output} is complete", highlight=False)
    if command.parquet is not None:
        from maw.retrieval.vectors.parquet_export import export_parquet
        from maw.retrieval.vectors.store import VectorStore

        written = export_parquet(VectorStore(command.output, checksums=False), command.parquet)
        console.print(f"{who}{written:,} Parquet files written to {command.parquet}", highlight=False)
    return 0


def search(command: SearchCommand, console: Console) -> int:
    """Search a store; returns the exit status."""
    from maw.retrieval.data.corpus_file import CorpusFile
    from maw.retrieval.models import choose_device, load_encoder
    from maw.retrieval.vectors.store import VectorStore
    from maw.retrieval.vectors.store_search import read_queries, search_store, text_of, write_search

    if (command.query is None) == (command.queries is None):
        raise MAWError("give one query in quotes, or a file of them with --queries: one of the two")
    if (command.queries is None) != (command.run is None):
        raise MAWError("--queries and --run belong together: a file of queries gives a run file")
    corpus = None if command.corpus is None else CorpusFile(command.corpus)
    queries = {"query": command.query or ""} if command.queries is None else read_queries(command.queries)
    k = command.k if command.k is not None else 10 if command.run is None else 1000
    store = VectorStore(command.vectors, checksums=not command.skip_checksums)
    model = load_encoder(command.model, device=choose_device(command.device))
    results = search_store(model, store, queries, k, drop_own=command.drop_own, show_progress=console.is_terminal)
    if command.run is not None:
        number = write_search(command.run, results, "maw")
        console.print(f"{number:,} queries searched in {len(store):,} documents: {command.run}", highlight=False)
        return 0
    for _, found in results:
        for rank, hit in enumerate(found, start=1):
            text = f"  {text_of(store, corpus, hit)}" if corpus is not None else ""
            console.print(f"{rank:4} {hit.score:8.5f}  {hit.document}{text}", highlight=False, markup=False)
    return 0
