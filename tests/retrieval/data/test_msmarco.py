"""Folders with MS MARCO's own files: what is read, what is refused, and what is counted."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from maw.errors import MAWError
from maw.retrieval.data import corpora
from maw.retrieval.data.dataset import RetrievalDataset
from maw.retrieval.data.loading import load_dataset
from maw.retrieval.data.report import render_report

FILES = {
    "collection.tsv": ["0\tA river runs.", "7\tThe mill stands.", "12\tA river runs.", "3\t"],
    "queries.train.tsv": ["1\twhat runs", "2\twhat stands", "3\tnever judged"],
    "qrels.train.tsv": ["1\t0\t0\t1", "2\t0\t7\t1", "1\t0\t99\t1"],
    "queries.dev.small.tsv": ["4\twhere is the river", "5\tWHAT stands"],
    "qrels.dev.small.tsv": ["4\t0\t12\t1", "5\t0\t7\t1"],
    "queries.dl19.tsv": ["6\tmill"],
    "qrels.dl19.tsv": ["6 Q0 7 3", "6 Q0 0 0", "6 Q0 8841822 2"],
    "queries.eval.tsv": ["8\tno judgements here"],
}


@pytest.fixture(params=["in memory", "on disk"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAW_CACHE", str(tmp_path / "cache"))
    if request.param == "on disk":
        monkeypatch.setattr(corpora, "IN_MEMORY", -1)
    (root := tmp_path / "marco").mkdir()
    for name, rows in FILES.items():
        write(root / name, rows)
    return root


def write(path: Path, rows: list[str]) -> None:
    path.write_bytes("".join(f"{row}\n" for row in rows).encode())


def load(folder: Path) -> RetrievalDataset:
    return load_dataset(f"msmarco:{folder}")


def test_reads_a_folder(folder: Path) -> None:
    data = load(folder)
    assert data.name == f"msmarco:{folder}"
    assert data.splits == ("train", "dev.small", "dl19")
    assert dict(data.documents) == {"0": "A river runs.", "7": "The mill stands.", "12": "A river runs.", "3": ""}
    assert data.queries["4"] == "where is the river"
    assert "8" not in data.queries
    assert data.qrels["dl19"] == {"6": {"7": 3, "0": 0, "8841822": 2}}
    assert data.checksums == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES if name != "queries.eval.tsv"
    }
    assert data.negative_files == ()
    assert not data.drop_own


def test_what_is_untidy_is_counted(folder: Path) -> None:
    data = load(folder)
    assert data.counts["documents"] == {"total": 4, "empty": 1, "repeated": 1}
    assert data.counts["queries"] == {"total": 6, "empty": 0, "repeated": 1, "not_judged": 1}
    assert data.counts["dropped_train_queries"] == ["2"]  # dev.small has the same text
    assert data.counts["judged_but_not_in_collection"] == {"train": 1, "dl19": 1}
    assert data.qrels["train"] == {"1": {"0": 1}}
    shown = render_report(data)
    assert "1 judged documents of train are not in the corpus: left out" in shown
    assert "1 judged documents of dl19 are not in the corpus: no system can find them" in shown


def test_passages_of_trec_dl_are_relevant_from_grade_2(folder: Path) -> None:
    data = load(folder)
    assert data.relevant_grade == {"dl19": 2}
    assert "grade: dl19 2" in render_report(data)
    for name in ("queries", "qrels"):
        (folder / f"{name}.dl19.tsv").rename(folder / f"{name}.other.tsv")
    assert load(folder).relevant_grade == {}


def test_files_of_negatives_are_found(folder: Path) -> None:
    for name in ("qidpidtriples.train.full.2.tsv.gz", "triples.train.small.tsv", "top1000.train.txt", "top1000.dev"):
        (folder / name).write_bytes(b"")
    assert [path.name for path in load(folder).negative_files] == [
        "qidpidtriples.train.full.2.tsv.gz",
        "top1000.train.txt",
        "triples.train.small.tsv",
    ]


def test_other_forms_of_judgements(folder: Path) -> None:
    expected = load(folder).qrels
    write(folder / "qrels.dl19.tsv", ["6\t7\t3", "6\t0\t0", "6\t8841822\t2"])
    assert load(folder).qrels == expected
    write(folder / "qrels.dl19.tsv", ["query-id\tcorpus-id\tscore", "6\t7\t3", "6\t0\t0", "6\t8841822\t2"])
    assert load(folder).qrels == expected


def line(name: str, number: int, content: str | bytes) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        rows = (root / name).read_bytes().split(b"\n")[:-1]
        rows[number - 1 : number] = [content if isinstance(content, bytes) else content.encode()]
        (root / name).write_bytes(b"\n".join(rows) + b"\n")

    return change


def without(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


BAD = {
    "a passage without a tab": (line("collection.tsv", 2, "7 The mill"), "collection.tsv, line 2: wanted 2 columns"),
    "a third column": (line("collection.tsv", 2, "7\tThe\tmill"), "collection.tsv, line 2: wanted 2 columns.*got 3"),
    "an empty id": (line("collection.tsv", 3, "\tmill"), "collection.tsv, line 3: an id must have"),
    "invalid UTF-8": (line("collection.tsv", 1, b"0\tcaf\xe9"), "collection.tsv, line 1: wanted UTF-8.*0xe9"),
    "a passage id twice": (line("collection.tsv", 4, "7\tx"), "collection.tsv, line 4: id '7' was given in line 2"),
    "a query id twice": (line("queries.dl19.tsv", 2, "6\tx"), "queries.dl19.tsv, line 2: id '6' was given in line 1"),
    "no collection": (without("collection.tsv"), "collection.tsv, but it is not there"),
    "an empty collection": (lambda root: write(root / "collection.tsv", []), "collection.tsv, line 1.*empty"),
    "no queries for judgements": (without("queries.dl19.tsv"), "qrels.dl19.tsv judges.*queries.dl19.tsv, but that"),
    "a judged query without a text": (
        line("qrels.dl19.tsv", 3, "9 Q0 7 1"),
        "qrels.dl19.tsv, line 3: query '9' is not in queries.dl19.tsv",
    ),
    "two texts of a query": (
        line("queries.dl19.tsv", 2, "4\tanother"),
        "queries.dl19.tsv, line 2: query '4' has another text",
    ),
    "a query of train and dev": (
        lambda root: (write(root / "queries.x.tsv", ["1\twhat runs"]), write(root / "qrels.x.tsv", ["1 0 0 1"])),
        "qrels.x.tsv, line 1: query '1' is also in qrels.train.tsv, line 1",
    ),
    "a fractional grade": (line("qrels.dl19.tsv", 2, "6 Q0 0 .5"), "qrels.dl19.tsv, line 2: wanted an integer grade"),
    "two grades": (
        line("qrels.dl19.tsv", 3, "6 Q0 7 1"),
        "line 3: query '6' and document '7' have grade 1 here and 3 in line 1",
    ),
    "other columns": (line("qrels.dl19.tsv", 2, "6 0 0"), "qrels.dl19.tsv, line 2: wanted 4 columns.*got 3"),
    "five columns": (line("qrels.dl19.tsv", 1, "6 0 0 1 1"), "qrels.dl19.tsv, line 1: wanted 4 columns.*got 5"),
    "an empty file of judgements": (lambda root: write(root / "qrels.dl19.tsv", []), "qrels.dl19.tsv, line 1.*empty"),
    "only a header": (
        lambda root: write(root / "qrels.dl19.tsv", ["query-id\tcorpus-id\tscore"]),
        "qrels.dl19.tsv, line 2: wanted at least one judgement",
    ),
    "judgements of another collection": (
        lambda root: write(root / "qrels.dl19.tsv", ["6 Q0 500 3", "6 Q0 0 0"]),
        "none of the relevant documents of the split dl19 is in the collection",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_refuses_by_file_and_line(folder: Path, change: Callable[[Path], None], message: str) -> None:
    change(folder)
    with pytest.raises(MAWError, match=message):
        load(folder)


def test_refuses_what_is_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(MAWError, match="nowhere is not one: check the path after msmarco:"):
        load_dataset(f"msmarco:{tmp_path / 'nowhere'}")
    with pytest.raises(MAWError, match=r"found no qrels\.SPLIT\.tsv there"):
        load(tmp_path)


def test_the_pool_in_ms_marco_s_layout_is_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """45,000 real passages, kept on disk; the official judgements name passages that are not among them."""
    root = os.environ.get("MAW_DATA")
    if not root or not (Path(root) / "msmarco-passage-pool").is_dir():
        pytest.skip("MAW_DATA has no msmarco-passage-pool: name the folder that holds it")
    monkeypatch.setenv("MAW_CACHE", str(tmp_path / "cache"))
    pool = load_dataset(f"beir:{Path(root) / 'msmarco-passage-pool'}")
    (folder := tmp_path / "marco").mkdir()
    write(folder / "collection.tsv", [f"{name}\t{text}" for name, text in pool.documents.items()])
    for track in ("dl19", "dl20"):
        official = Path(root, "msmarco-passage-pool", "qrels_official", f"{track}.tsv").read_text().splitlines()[1:]
        rows = [row.split("\t") for row in official]
        write(folder / f"qrels.{track}.tsv", [f"{query} 0 {document} {grade}" for query, document, grade in rows])
        asked = dict.fromkeys(query for query, _, _ in rows)
        write(folder / f"queries.{track}.tsv", [f"{query}\t{pool.queries[query]}" for query in asked])
    monkeypatch.setattr(corpora, "IN_MEMORY", 2**20)
    data = load(folder)
    assert type(data.documents).__name__ == "TextStore"
    assert dict(data.documents) == dict(pool.documents)
    assert {split: len(data.qrels[split]) for split in data.splits} == {"dl19": 43, "dl20": 54}
    gone = data.counts["judged_but_not_in_collection"]
    assert gone.keys() == {"dl19", "dl20"}
    everything = {name for row in data.qrels["dl20"].values() for name in row}
    assert gone["dl20"] == sum(name not in pool.documents for name in everything) > 1000
