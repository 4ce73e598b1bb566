"""However a file of texts is read, to evaluate, to encode or to search, its ids and texts are the same."""

from __future__ import annotations

import doctest
import gzip
import json
from pathlib import Path

import pytest

from maw.cli import main
from maw.errors import MAWError
from maw.retrieval.data.corpus_file import CorpusFile
from maw.retrieval.data.loading import load_dataset
from maw.retrieval.data.report import render_report
from maw.retrieval.vectors.store_search import read_queries

LINES = [
    '{"_id": "d1", "title": "T", "text": " a "}',
    '{"_id": "d2", "title": "", "text": " a\\tb "}',
    '{"_id": "d3", "title": null, "text": ""}',
    '{"_id": "d 4", "title": " T ", "text": "\\u00e9", "metadata": {}}',
    '{"_id": "d5", "text": "x"}\r',
]
REFUSED = [
    '{"_id": "a\\nb", "text": "x"}',
    '{"_id": "", "text": "x"}',
    '{"_id": " ", "text": "x"}',
    '{"_id": "x", "text": "\\ud800"}',
    '{"_id": "\\ud800", "text": "x"}',
    '{"_id": "x", "text": "x", "title": "\\udfff"}',
    '{"_id": 1, "text": "x"}',
    '{"_id": "x", "text": "x", "title": 1}',
    '{"_id": "x"}',
    '{"text": "x"}',
    "[1]",
    "{",
]
HEADER = "query-id\tcorpus-id\tscore\n"


def beir(folder: Path, corpus: str, queries: str, **judgements: str) -> Path:
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_bytes(corpus.encode())
    (folder / "queries.jsonl").write_bytes(queries.encode())
    for split, rows in (judgements or {"test": "q\td5\t1\n"}).items():
        (folder / "qrels" / f"{split}.tsv").write_bytes(f"{HEADER}{rows}".encode())
    return folder


def marco(folder: Path, texts: str) -> Path:
    folder.mkdir()
    for name in ("collection.tsv", "queries.dev.tsv"):
        (folder / name).write_bytes(texts.encode())
    (folder / "qrels.dev.tsv").write_text("d5 0 d5 1\n")
    return folder


def records(path: Path) -> list[tuple[str, str]]:
    return [record for block in CorpusFile(path).blocks(lines=2) for record in block.records()]


def test_documents_and_queries_of_jsonl(tmp_path: Path) -> None:
    text = "\n".join(LINES) + "\n"
    folder = beir(tmp_path / "data", text, text.replace(LINES[2] + "\n", ""), test="d1\td5\t1\n")
    data = load_dataset(f"beir:{folder}")
    assert list(data.documents.items()) == records(folder / "corpus.jsonl")
    assert list(data.documents.values()) == ["T  a", "a\tb", "", "T  é", "x"]
    assert data.queries == read_queries(folder / "queries.jsonl")
    assert list(data.queries.values()) == ["a", "a\tb", "é", "x"], "a query has no title"


def test_documents_and_queries_of_tables(tmp_path: Path) -> None:
    folder = marco(tmp_path / "data", "d1\t a \nd 4\té\r\nd5\t\n")
    (folder / "queries.dev.tsv").write_text("d1\t a \nd 4\té\r\nd5\tx\n", encoding="utf-8", newline="")
    data = load_dataset(f"msmarco:{folder}")
    assert list(data.documents.items()) == records(folder / "collection.tsv") == [("d1", "a"), ("d 4", "é"), ("d5", "")]
    assert data.queries == read_queries(folder / "queries.dev.tsv")


def without_path(error: pytest.ExceptionInfo[MAWError], folder: Path) -> str:
    return str(error.value).replace(str(folder), "")


@pytest.mark.parametrize("line", REFUSED)
def test_what_one_reader_refuses_the_others_refuse_in_the_same_words(tmp_path: Path, line: str) -> None:
    good = LINES[4].strip()
    for name in ("corpus", "queries"):
        lines = {"corpus": good, "queries": '{"_id": "q", "text": "x"}'} | {name: f"{good}\n{line}"}
        if name == "queries" and "title" in line:
            continue
        folder = beir(tmp_path / name, f"{lines['corpus']}\n", f"{lines['queries']}\n", test="d5\td5\t1\n")
        with pytest.raises(MAWError, match=rf"{name}\.jsonl, line 2: ") as evaluated:
            load_dataset(f"beir:{folder}")
        with pytest.raises(MAWError) as encoded:
            (records if name == "corpus" else read_queries)(folder / f"{name}.jsonl")
        assert without_path(evaluated, folder) == without_path(encoded, folder)


@pytest.mark.parametrize("line", ["d6", "d6\ta\tb", "\ta", " \ta", "d\x1b6\ta"])
def test_what_is_refused_in_tables(tmp_path: Path, line: str) -> None:
    folder = marco(tmp_path / "data", f"d5\tx\n{line}\n")
    with pytest.raises(MAWError, match=r"queries\.dev\.tsv, line 2: ") as evaluated:
        load_dataset(f"msmarco:{folder}")
    with pytest.raises(MAWError) as searched:
        read_queries(folder / "queries.dev.tsv")
    assert str(evaluated.value) == str(searched.value)


def test_packed_files_are_found_under_their_names(tmp_path: Path) -> None:
    text = "\n".join(LINES) + "\n"
    folder = beir(tmp_path / "beir", text, text, test="d1\td5\t1\n", dev="d2\td5\t1\n")
    whole = load_dataset(f"beir:{folder}")
    table = marco(tmp_path / "marco", "d1\ta\nd5\tb\n")
    plain = load_dataset(f"msmarco:{table}")
    for root in (folder, table):
        for path in [*root.glob("*.jsonl"), *root.glob("*.tsv"), *root.glob("qrels/test.tsv")]:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + path.read_bytes()))
            path.unlink()
    for before, now in ((whole, load_dataset(f"beir:{folder}")), (plain, load_dataset(f"msmarco:{table}"))):
        assert (now.documents, now.queries, now.qrels) == (before.documents, before.queries, before.qrels)
        assert now.checksums == before.checksums
    (folder / "corpus.jsonl").write_text(LINES[4] + "\n")
    assert load_dataset(f"beir:{folder}").documents == {"d5": "x"}, "the file of the very name comes first"


# --- judged documents that the corpus lacks, as in BEIR's own ArguAna -------------------------------------------------


@pytest.fixture
def arguana(tmp_path: Path) -> Path:
    documents = "".join(json.dumps({"_id": f"d{n}", "title": "", "text": f"argument {n}"}) + "\n" for n in range(8))
    queries = "".join(json.dumps({"_id": f"q{n}", "text": f"argument {n}"}) + "\n" for n in range(6))
    rows = "".join(f"q{n}\tgone{n}\t1\n" for n in range(5)) + "q5\td5\t1\nq0\td1\t1\n"
    return beir(tmp_path / "arguana", documents, queries, test=rows, train="", dev="q5\td5\t1\n")


def test_they_are_taken_and_counted(arguana: Path) -> None:
    (arguana / "qrels" / "train.tsv").unlink()
    data = load_dataset(f"beir:{arguana}")
    assert data.qrels["test"]["q0"] == {"gone0": 1, "d1": 1}
    assert data.counts["judged_but_not_in_collection"] == {"test": 5}
    assert "5 judged documents of test are not in the corpus: no system can find them" in render_report(data)


def test_strict_refuses_them_by_file_and_line(arguana: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (arguana / "qrels" / "train.tsv").unlink()
    with pytest.raises(MAWError, match=r"test\.tsv, line 2: document 'gone0' is not in corpus\.jsonl"):
        load_dataset(f"beir:{arguana}", strict=True)
    assert main(["data", f"beir:{arguana}"]) == 0
    assert "5 judged documents of test" in capsys.readouterr().out
    assert main(["data", f"beir:{arguana}", "--strict"]) == 2
    assert "line 2: document 'gone0' is not in corpus.jsonl" in capsys.readouterr().err
    run = arguana / "run.trec"
    run.write_text("q5 Q0 d5 1 1.0 x\n")
    given = ["evaluate", "--run", str(run), "--dataset", f"beir:{arguana}", "--measures", "MRR@10"]
    assert main(given) == 0
    assert "MRR@10   0.16667" in capsys.readouterr().out, "queries whose document nobody can find count"
    assert main([*given, "--strict"]) == 2


def test_the_judgements_of_another_corpus_are_refused(tmp_path: Path) -> None:
    folder = beir(tmp_path / "x", LINES[4] + "\n", '{"_id": "q", "text": "x"}\n', test="q\tgone\t1\n")
    with pytest.raises(MAWError, match="judgements of another collection"):
        load_dataset(f"beir:{folder}")


# --- whose data they are ---------------------------------------------------------------------------------------------


def test_the_layout_of_ms_marco_says_nothing_of_a_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from maw.retrieval.data import msmarco

    folder = marco(tmp_path / "data", "d1\ta\nd5\tb\n")
    data = load_dataset(f"msmarco:{folder}")
    assert data.licence == "unknown: you gave the files"
    assert "licence: unknown: you gave the files" in render_report(data)
    monkeypatch.setattr(msmarco, "PASSAGES", 2)
    assert "non-commercial" in (load_dataset(f"msmarco:{folder}").licence or "")


def test_the_examples_run() -> None:
    from maw.retrieval.data import text_records

    result = doctest.testmod(text_records)
    assert result.attempted
    assert not result.failed
