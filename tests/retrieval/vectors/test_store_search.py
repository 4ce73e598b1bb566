from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from test_store import DOCUMENTS, contents, write_corpus
from toys import WORDS, encoder

from maw.cli import main
from maw.errors import MAWError
from maw.progress import showing
from maw.retrieval.data.corpus_file import CorpusFile
from maw.retrieval.ranking.dense import dense_runs
from maw.retrieval.ranking.runs import ranked, read_run, write_run
from maw.retrieval.vectors.corpus_encoding import EncodingSettings, encode_corpus
from maw.retrieval.vectors.parquet_export import export_parquet
from maw.retrieval.vectors.store import VectorStore
from maw.retrieval.vectors.store_search import read_queries, search_store, text_of, write_search

TWINS = {**DOCUMENTS, **{f"twin{i}": DOCUMENTS[f"d{i}"] for i in range(0, 23, 2)}, "z": "", "é": ""}
QUERIES = {f"q{i}": f"a {word}" for i, word in enumerate(WORDS)} | {"d3": DOCUMENTS["d3"]}


@pytest.fixture(scope="module")
def model():
    return encoder()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A corpus in which many documents have a twin with the same text, and its store."""
    folder = tmp_path_factory.mktemp("twins")
    write_corpus(folder / "corpus.jsonl", TWINS)
    encode_corpus(model, folder / "corpus.jsonl", folder / "vectors", EncodingSettings("float32", shard_size=5))
    return folder


@pytest.fixture(scope="module")
def store(folder):
    return VectorStore(folder / "vectors")


@pytest.mark.parametrize("k", [1, 2, 7, 100])
def test_results_are_those_of_the_search_in_memory_ties_included(model, store, k):
    """Twins may lie in different shards, on both sides of the k-th place: the higher id is in."""
    found = {query: {hit.document: hit.score for hit in hits} for query, hits in search_store(model, store, QUERIES, k)}
    expected = dense_runs(model, TWINS, {"all": QUERIES}, k=k)["all"]
    whole = ranked(dense_runs(model, TWINS, {"all": QUERIES}, k=100)["all"])
    for query in QUERIES:
        assert list(found[query].values()) == pytest.approx(list(expected[query].values()), abs=1e-6)
        # a text's vector depends on its batch by rounding, and twins are in different batches: compare them by text
        assert [TWINS[name] for name in found[query]] == [TWINS[name] for name in whole[query][:k]]
        scores = list(found[query].items())
        assert scores == sorted(sorted(scores, reverse=True), key=lambda pair: -pair[1])


def test_equal_vectors_are_ranked_by_descending_id(folder, model, tmp_path):
    names = ["b", "a", "é", "c", "aa", "Z", "10", "9"]
    write_corpus(tmp_path / "corpus.jsonl", dict.fromkeys(names, "the same"))
    encode_corpus(model, tmp_path / "corpus.jsonl", tmp_path / "vectors", EncodingSettings("float32", shard_size=3))
    store = VectorStore(tmp_path / "vectors")
    for number in range(3):  # rounding may differ between batches; the rule is about equal vectors
        path = tmp_path / "vectors" / "shards" / f"{number:05}.npy"
        np.save(path, np.repeat(store[0:1], len(np.load(path)), axis=0))
    store = VectorStore(tmp_path / "vectors", checksums=False)
    for k in (1, 3, 8):
        ((_, hits),) = search_store(model, store, {"q": "same"}, k)
        assert [hit.document for hit in hits] == sorted(names, reverse=True)[:k]


def test_the_querys_own_document_is_left_out_on_request(model, store):
    kept = dict(search_store(model, store, QUERIES, 3))
    dropped = dict(search_store(model, store, QUERIES, 3, drop_own=True))
    assert "d3" in [hit.document for hit in kept["d3"]]
    assert "d3" not in [hit.document for hit in dropped["d3"]]
    assert len(dropped["d3"]) == 3
    assert dropped["q1"] == kept["q1"]


def test_a_run_file_is_the_one_that_write_run_writes(model, store, tmp_path):
    results = dict(search_store(model, store, QUERIES, 9))
    assert write_search(tmp_path / "own.trec", iter(results.items()), "maw") == len(QUERIES)
    run = {query: {hit.document: hit.score for hit in hits} for query, hits in results.items()}
    write_run(tmp_path / "other.trec", run, "maw")
    assert (tmp_path / "own.trec").read_bytes() == (tmp_path / "other.trec").read_bytes()
    assert read_run(tmp_path / "own.trec") == run
    with pytest.raises(MAWError, match="one word in a run file, got 'q 1'"):
        write_search(tmp_path / "bad.trec", iter([("q 1", results["q1"])]), "maw")
    assert not list(tmp_path.glob("*bad*"))
    with pytest.raises(MAWError, match="needs a folder that exists"):
        write_search(tmp_path / "none" / "run.trec", iter([]), "maw")


def test_what_follows_a_search_says_how_far_it_is(model, store, tmp_path):
    file = io.StringIO()
    with showing(Console(file=file), every=0.0):
        write_search(tmp_path / "run.trec", search_store(model, store, QUERIES, 3), "maw")
    told = file.getvalue()
    assert "searching documents: 37 of 37" in told
    assert told.index("searching documents: 37 of 37") < told.index("results: queries: 1 of 11")
    assert "results: queries: 11 of 11" in told


def test_the_text_of_a_hit_is_read_from_the_corpus(model, store, folder, tmp_path):
    corpus = CorpusFile(folder / "corpus.jsonl")
    for _, hits in search_store(model, store, {"q": "a river"}, 37):
        assert {hit.document: text_of(store, corpus, hit) for hit in hits} == {k: v.strip() for k, v in TWINS.items()}
    other = CorpusFile(write_corpus(tmp_path / "other.jsonl", dict(sorted(TWINS.items()))))
    with pytest.raises(MAWError, match=r"other\.jsonl, line .*this is not the corpus"):
        text_of(store, other, hits[0])


def test_queries_are_read_strictly(model, store, tmp_path):
    path = tmp_path / "queries.tsv"
    path.write_text("1\tone\n2\ttwo\n")
    assert read_queries(path) == {"1": "one", "2": "two"}
    path.write_text("1\tone\n1\ttwo\n")
    with pytest.raises(MAWError, match=r"queries\.tsv, line 2: id '1' was given in line 1 already"):
        read_queries(path)
    path.write_text("")
    with pytest.raises(MAWError, match=r"at least one query, got none: .*queries\.tsv is empty"):
        read_queries(path)
    with pytest.raises(MAWError, match="at least one query, got none"):
        list(search_store(model, store, {}, 1))


def test_parquet_has_ids_and_vectors_in_bounded_groups(store, tmp_path, monkeypatch):
    monkeypatch.setattr("maw.retrieval.vectors.parquet_export.GROUP", 2)
    assert export_parquet(store, tmp_path) == len(store.plan.shards)
    table = pq.read_table(tmp_path)
    assert str(table.schema.field("vector").type).startswith("fixed_size_list<element: float")
    assert table.schema.field("vector").type.list_size == 48
    assert table["id"].to_pylist() == list(TWINS)
    vectors = np.array(table["vector"].to_pylist(), dtype=np.float32)
    np.testing.assert_array_equal(vectors, store[0 : len(store)])
    assert pq.ParquetFile(tmp_path / "00000.parquet").metadata.num_row_groups == 3
    assert export_parquet(store, tmp_path) == 0, "what is there is kept"
    (tmp_path / "00003.parquet").unlink()
    assert export_parquet(store, tmp_path) == 1


def test_parquet_of_another_store_is_refused(model, store, tmp_path):
    write_corpus(tmp_path / "corpus.jsonl")
    encode_corpus(model, tmp_path / "corpus.jsonl", tmp_path / "vectors")
    half = VectorStore(tmp_path / "vectors")
    export_parquet(half, tmp_path / "parquet")
    assert str(pq.read_schema(tmp_path / "parquet" / "00000.parquet").field("vector").type).count("float") == 1
    before = contents(tmp_path / "parquet")
    with pytest.raises(MAWError, match=r"00000\.parquet is there already and not of this store"):
        export_parquet(store, tmp_path / "parquet")
    assert contents(tmp_path / "parquet") == before


@pytest.mark.parametrize("damage", [lambda raw: raw[:-100], lambda raw: b"", lambda raw: b"id,vector\n1,2\n"])
def test_a_file_that_is_no_whole_parquet_file_is_named(store, tmp_path, damage):
    export_parquet(store, tmp_path)
    path = tmp_path / "00002.parquet"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(MAWError, match=r"wanted a Parquet file of this store, but .*00002\.parquet cannot.*delete it"):
        export_parquet(store, tmp_path)
    path.unlink()
    assert export_parquet(store, tmp_path) == 1


@pytest.mark.parametrize("name", ["file", "file/below/it"])
def test_a_file_in_place_of_the_parquet_folder_is_refused(store, tmp_path, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(MAWError, match=r"wanted a folder for Parquet files, but .*file is a file"):
        export_parquet(store, tmp_path / name)
    assert contents(tmp_path) == {"file": b"mine"}


def test_parquet_is_on_the_disk_before_it_has_its_name(store, tmp_path, monkeypatch):
    real, synced = os.fsync, []

    def fsync(number: int) -> None:
        synced.append(os.fstat(number).st_ino)
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / f".x.{socket.gethostname()}.{dead_process()}.part").write_text("of a killed process")
    export_parquet(store, tmp_path)
    for number in range(len(store.plan.shards)):
        assert synced[2 * number :][:2] == [(tmp_path / f"{number:05}.parquet").stat().st_ino, tmp_path.stat().st_ino]
    assert not list(tmp_path.glob(".*"))


def dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


# The command line


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(str(path))
    return path


def test_encode_and_search_by_command(saved, tmp_path, capsys):
    corpus, vectors = write_corpus(tmp_path / "corpus.jsonl", TWINS), tmp_path / "vectors"
    encode = ["encode", str(saved), str(corpus), "--output", str(vectors), "--shard-size", "10", "--device", "cpu"]
    assert main([*encode, "--parquet", str(tmp_path / "parquet")]) == 0
    told = capsys.readouterr().out
    assert "37 documents encoded in" in told
    assert "vectors is complete" in told
    assert "4 Parquet files written" in told
    assert main(encode) == 0
    assert "0 documents encoded" in capsys.readouterr().out

    search = ["search", str(saved), str(vectors), "--device", "cpu"]
    assert main([*search, DOCUMENTS["d3"], "--k", "2", "--corpus", str(corpus)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[0] == "1"
    assert DOCUMENTS["d3"] in first
    assert second.split()[0] == "2"
    queries = tmp_path / "queries.jsonl"
    queries.write_text("".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in QUERIES.items()))
    run = tmp_path / "run.trec"
    assert main([*search, "--queries", str(queries), "--run", str(run)]) == 0
    assert "11 queries searched in 37 documents" in capsys.readouterr().out
    assert {query: len(documents) for query, documents in read_run(run).items()} == dict.fromkeys(QUERIES, 37)

    for wrong, message in (
        ([*search], "one of the two"),
        ([*search, "x", "--queries", str(queries)], "one of the two"),
        ([*search, "--queries", str(queries)], "belong together"),
        ([*search, "x", "--k", "0"], "k must be at least 1, got 0"),
        ([*encode, "--dtype", "float32"], "dtype 'float16' there and 'float32' now"),
        ([*encode, "--parquet", str(corpus)], "corpus.jsonl is a file: give another --parquet folder"),
        ([*encode, "--batch-size", "0"], "--batch-size must be at least 1"),
        (["encode", str(saved), str(tmp_path / "no.jsonl"), "--output", "x"], "there is no such file"),
    ):
        assert main(wrong) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("blank", ["", "  ", "\u00a0"])
def test_an_empty_query_is_refused(model, store, folder, tmp_path, blank, capsys):
    with pytest.raises(MAWError, match="a query must have a text to search for, got none for 'q2'"):
        next(search_store(model, store, {"q1": "x", "q2": blank}, 3))
    assert main(["search", "packaged", str(folder), blank, "--device", "cpu"]) == 2
    assert capsys.readouterr().err == "maw: the query is empty: give the words to search for\n"
    (tmp_path / "queries.tsv").write_text(f"q1\tx\nq2\t{blank}\n", encoding="utf-8")
    with pytest.raises(MAWError, match="line 2: query 'q2' has no text to search for"):
        read_queries(tmp_path / "queries.tsv")
