"""Reading BEIR folders strictly, the checks every data set goes through, and seeded subsets."""

from __future__ import annotations

import ast
import doctest
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from maw.errors import MAWError
from maw.retrieval.data import corpora, dataset, judgements
from maw.retrieval.data.dataset import RetrievalDataset
from maw.retrieval.data.loading import load_dataset
from maw.retrieval.data.report import render_report

CORPUS = [
    {"_id": "d1", "title": "Depth", "text": "slices of a score"},
    {"_id": "d2", "title": "", "text": " mixed by weights "},
    {"_id": "d3", "text": "no title"},
    {"_id": "d4", "title": None, "text": "null title", "metadata": {"kept": False}},
    {"_id": "d5", "title": "", "text": ""},
    {"_id": "d6", "title": "", "text": "no title"},
]
QUERIES = [{"_id": f"q{n}", "text": f"question number {n}"} for n in range(1, 7)]
HEADER = "query-id\tcorpus-id\tscore"
QRELS = {
    "train": ["q1\td1\t1", "q1\td2\t2", "q1\td3\t0", "q2\td3\t1"],
    "dev": ["q3\td4\t1"],
    "test": ["q4\td1\t2", "q5\td2\t1"],
}


@pytest.fixture(params=["in memory", "on disk"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in BEIR's layout; every test that reads it runs with texts in memory and in a store."""
    monkeypatch.setenv("MAW_CACHE", str(tmp_path / "cache"))
    if request.param == "on disk":
        monkeypatch.setattr(corpora, "IN_MEMORY", -1)
    root = tmp_path / "toy"
    (root / "qrels").mkdir(parents=True)
    write_json(root / "corpus.jsonl", CORPUS)
    write_json(root / "queries.jsonl", QUERIES)
    for split, rows in QRELS.items():
        write_lines(root / "qrels" / f"{split}.tsv", [HEADER, *rows])
    return root


def write_lines(path: Path, lines: list[str]) -> None:
    path.write_bytes("".join(line + "\n" for line in lines).encode())


def write_json(path: Path, records: list[dict[str, object]]) -> None:
    write_lines(path, [json.dumps(record) for record in records])


def set_line(name: str, number: int, line: str | bytes) -> Callable[[Path], None]:
    """Replace, or append, one line of a file."""

    def change(root: Path) -> None:
        lines = (root / name).read_bytes().split(b"\n")[:-1]
        lines[number - 1 : number] = [line if isinstance(line, bytes) else line.encode()]
        (root / name).write_bytes(b"\n".join(lines) + b"\n")

    return change


def set_file(name: str, content: bytes | None) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        if content is None:
            (root / name).unlink()
        else:
            (root / name).write_bytes(content)

    return change


def load(folder: Path) -> RetrievalDataset:
    return load_dataset(f"beir:{folder}")


def toy(train: dict[str, list[str]], test: list[str], more: int = 0) -> RetrievalDataset:
    """Build a data set: train maps a query to its documents, every test query has the document of its own name."""
    qrels = {"train": {query: dict.fromkeys(found, 1) for query, found in train.items()}}
    qrels |= {"test": {query: {f"d{query}": 2} for query in test}, "dev": {"v": {"dv": 1, "other0": 0}}}
    ids = {document for judged in qrels.values() for row in judged.values() for document in row}
    documents = {name: f"text of {name}" for name in sorted(ids | {f"other{n}" for n in range(more + 1)})}
    queries = {query: f"question {query}" for judged in qrels.values() for query in judged}
    return RetrievalDataset.from_parts("toy", documents, queries, qrels, licence="CC0")


# --- what is read ---------------------------------------------------------------------------------------------------


def test_reads_a_folder(folder: Path):
    data = load(folder)
    assert data.name == f"beir:{folder}"
    assert data.splits == ("train", "dev", "test")
    assert data.evaluation_splits == ("dev", "test")
    assert list(data.documents.values()) == [
        "Depth slices of a score",
        "mixed by weights",
        "no title",
        "null title",
        "",
        "no title",
    ]
    assert data.queries["q6"] == "question number 6"
    assert data.qrels["train"] == {"q1": {"d1": 1, "d2": 2, "d3": 0}, "q2": {"d3": 1}}
    assert data.training_pairs() == [("q1", "d1"), ("q1", "d2"), ("q2", "d3")]
    queries, judged = data.evaluation_split("test")
    assert queries == {"q4": "question number 4", "q5": "question number 5"}
    assert judged == {"q4": {"d1": 2}, "q5": {"d2": 1}}
    assert data.licence is None
    assert data.subset_of is None


def test_checksums_are_those_of_the_files(folder: Path):
    checksums = load(folder).checksums
    files = ["corpus.jsonl", "queries.jsonl", "qrels/dev.tsv", "qrels/test.tsv", "qrels/train.tsv"]
    assert checksums == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}


def test_counts_what_is_untidy_but_usable(folder: Path):
    write_json(
        folder / "queries.jsonl", [*QUERIES, {"_id": "q7", "text": " "}, {"_id": "q8", "text": "Question number 6"}]
    )
    set_line("qrels/train.tsv", 6, "q1\td2\t2")(folder)
    counts = load(folder).counts
    assert counts["documents"] == {"total": 6, "empty": 1, "repeated": 1}
    assert counts["queries"] == {"total": 8, "empty": 1, "repeated": 1, "not_judged": 3}
    assert counts["repeated_judgements"] == {"train": 1}
    assert counts["splits"]["train"] == {
        "queries": 2,
        "judgements": 4,
        "relevant": 3,
        "grades": {"0": 1, "1": 2, "2": 1},
        "queries_without_relevant": 0,
    }
    assert counts["shared_query_ids"] == counts["shared_query_texts"] == {}


def test_windows_line_ends_and_a_missing_last_one_read_the_same(folder: Path):
    expected = load(folder)
    for path in [*folder.glob("*.jsonl"), *folder.glob("qrels/*.tsv")]:
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    assert load(folder).qrels == expected.qrels
    assert load(folder).documents == expected.documents


def test_line_separators_inside_a_text_do_not_end_a_line(folder: Path):
    text = "one\u2028two\x0bthree\x85four"
    set_line("corpus.jsonl", 3, json.dumps({"_id": "d3", "text": text}, ensure_ascii=False))(folder)
    assert load(folder).documents["d3"] == text


def test_train_queries_whose_text_an_evaluation_split_has_are_dropped_and_counted(folder: Path):
    set_line("queries.jsonl", 1, json.dumps({"_id": "q1", "text": "  QUESTION\tnumber  4 "}))(folder)
    data = load(folder)
    assert data.counts["dropped_train_queries"] == ["q1"]
    assert data.counts["shared_query_texts"] == {"train/test": 1}
    assert data.counts["splits"]["train"]["queries"] == 1
    assert data.training_pairs() == [("q2", "d3")]
    assert "1 queries dropped from train" in render_report(data)


def test_a_shared_text_outside_the_judgements_is_no_leak(folder: Path):
    set_line("queries.jsonl", 6, json.dumps({"_id": "q6", "text": "question number 1"}))(folder)
    assert load(folder).counts["dropped_train_queries"] == []


def test_evaluation_splits_may_overlap(folder: Path):
    write_lines(folder / "qrels" / "both.tsv", [HEADER, "q3\td4\t1", "q4\td1\t2"])
    data = load(folder)
    assert data.splits == ("train", "both", "dev", "test")
    assert data.counts["shared_query_ids"] == {"both/dev": 1, "both/test": 1}
    assert data.counts["shared_query_texts"] == {}
    assert data.counts["dropped_train_queries"] == []


def test_a_split_of_other_splits_is_known_and_counts_as_they_do(folder: Path):
    for name, rows in {"dl19": ["q3\td4\t1"], "dl20": ["q6\td1\t2"]}.items():
        write_lines(folder / "qrels" / f"{name}.tsv", [HEADER, *rows])
    (folder / "qrels" / "dev.tsv").unlink()
    write_lines(folder / "qrels" / "all.tsv", [HEADER, "q6\td1\t2", "q3\td4\t1"])
    data = load(folder)
    assert data.counts["unions"] == {"all": ["dl19", "dl20"]}
    assert data.relevant_grade == {"dl19": 2, "dl20": 2, "all": 2}
    assert data.evaluation_splits == ("all", "dl19", "dl20", "test")
    assert "all is dl19 and dl20 together" in render_report(data)
    for rows in (["q6\td1\t1", "q3\td4\t1"], ["q6\td1\t2", "q3\td4\t1", "q4\td1\t2"]):  # other grades, another query
        write_lines(folder / "qrels" / "all.tsv", [HEADER, *rows, "q5\td1\t1"])
        assert load(folder).counts["unions"] == {}
    (folder / "qrels" / "dl20.tsv").unlink()
    write_lines(folder / "qrels" / "all.tsv", [HEADER, "q3\td4\t1"])  # the same as dl19: neither is made of the other
    assert load(folder).counts["unions"] == {}


# --- what is refused ------------------------------------------------------------------------------------------------

BAD = {
    "missing corpus": (set_file("corpus.jsonl", None), "corpus.jsonl", None, ["not there"]),
    "missing queries": (set_file("queries.jsonl", None), "queries.jsonl", None, ["not there"]),
    "empty corpus": (set_file("corpus.jsonl", b""), "corpus.jsonl", 1, ["empty"]),
    "empty queries": (set_file("queries.jsonl", b""), "queries.jsonl", 1, ["empty"]),
    "empty qrels": (set_file("qrels/dev.tsv", b""), "dev.tsv", 1, ["empty"]),
    "malformed JSON": (set_line("corpus.jsonl", 2, '{"_id": "d2", '), "corpus.jsonl", 2, ["JSON object", '\'{"_id"']),
    "blank line": (set_line("corpus.jsonl", 3, ""), "corpus.jsonl", 3, ["JSON object", "''"]),
    "control character in an id": (
        set_line("queries.jsonl", 2, '{"_id": "q\\u001b2", "text": "x"}'),
        "queries.jsonl",
        2,
        ["no control characters", "U+001B"],
    ),
    "not an object": (set_line("queries.jsonl", 3, '["q3"]'), "queries.jsonl", 3, ["JSON object", "q3"]),
    "too deep": (set_line("queries.jsonl", 3, "[" * 100_000), "queries.jsonl", 3, ["JSON object"]),
    "document without id": (set_line("corpus.jsonl", 4, '{"text": "x"}'), "corpus.jsonl", 4, ["'_id'", "'text'"]),
    "document without text": (set_line("corpus.jsonl", 4, '{"_id": "d4"}'), "corpus.jsonl", 4, ["'text'", "'_id'"]),
    "query without text": (set_line("queries.jsonl", 2, '{"_id": "q2"}'), "queries.jsonl", 2, ["'text'"]),
    "empty object": (set_line("queries.jsonl", 2, "{}"), "queries.jsonl", 2, ["'_id'", "none"]),
    "id of a number": (
        set_line("corpus.jsonl", 1, '{"_id": 1, "text": "x"}'),
        "corpus.jsonl",
        1,
        ["'_id'", "the number 1"],
    ),
    "text of null": (
        set_line("queries.jsonl", 1, '{"_id": "q1", "text": null}'),
        "queries.jsonl",
        1,
        ["'text'", "got null"],
    ),
    "title of a list": (
        set_line("corpus.jsonl", 1, '{"_id": "d1", "title": ["x"], "text": "x"}'),
        "corpus.jsonl",
        1,
        ["'title'", "list"],
    ),
    "half a surrogate pair": (
        set_line("corpus.jsonl", 5, '{"_id": "d5", "text": "\\ud83d"}'),
        "corpus.jsonl",
        5,
        ["'text'", "surrogate"],
    ),
    "empty id": (
        set_line("corpus.jsonl", 5, '{"_id": "", "text": "x"}'),
        "corpus.jsonl",
        5,
        ["an id must have a character", "''"],
    ),
    "document id twice": (
        set_line("corpus.jsonl", 5, '{"_id": "d2", "text": "x"}'),
        "corpus.jsonl",
        5,
        ["'d2'", "in line 2 already"],
    ),
    "query id twice": (
        set_line("queries.jsonl", 4, '{"_id": "q3", "text": "x"}'),
        "queries.jsonl",
        4,
        ["'q3'", "in line 3 already"],
    ),
    "invalid UTF-8 in the corpus": (
        set_line("corpus.jsonl", 3, b'{"_id": "d3", "text": "caf\xe9"}'),
        "corpus.jsonl",
        3,
        ["UTF-8", "0xe9", "byte 27"],
    ),
    "invalid UTF-8 in qrels": (set_line("qrels/test.tsv", 3, b"q5\xff\td2\t1"), "test.tsv", 3, ["UTF-8", "0xff"]),
    "no header": (set_line("qrels/test.tsv", 1, "q4\td1\t2"), "test.tsv", 1, ["header", "corpus-id", "'q4\\td1\\t2'"]),
    "TREC columns": (set_line("qrels/test.tsv", 2, "q4\t0\td1\t2"), "test.tsv", 2, ["3 columns", "got 4"]),
    "blanks for tabs": (set_line("qrels/test.tsv", 2, "q4 d1 2"), "test.tsv", 2, ["3 columns", "got 1", "'q4 d1 2'"]),
    "fractional grade": (set_line("qrels/dev.tsv", 2, "q3\td4\t1.5"), "dev.tsv", 2, ["integer grade", "'1.5'"]),
    "grade of a word": (set_line("qrels/dev.tsv", 2, "q3\td4\tyes"), "dev.tsv", 2, ["integer grade", "'yes'"]),
    "grade of other digits": (set_line("qrels/dev.tsv", 2, "q3\td4\t²"), "dev.tsv", 2, ["integer grade", "'²'"]),
    "two grades": (
        set_line("qrels/train.tsv", 6, "q1\td2\t1"),
        "train.tsv",
        6,
        ["'q1'", "'d2'", "grade 1 here", "2 in line 3"],
    ),
    "unknown query": (set_line("qrels/dev.tsv", 2, "q9\td4\t1"), "dev.tsv", 2, ["query 'q9'", "queries.jsonl"]),
    "header only": (set_file("qrels/dev.tsv", f"{HEADER}\n".encode()), "dev.tsv", 2, ["at least one judgement"]),
    "query in train and test": (
        set_line("qrels/test.tsv", 4, "q2\td1\t1"),
        "test.tsv",
        4,
        ["'q2'", "train.tsv, line 5"],
    ),
}


@pytest.mark.parametrize(("change", "file", "line", "words"), BAD.values(), ids=BAD.keys())
def test_refuses_by_file_and_line(
    folder: Path, change: Callable[[Path], None], file: str, line: int | None, words: list[str]
):
    load(folder)
    change(folder)
    with pytest.raises(MAWError) as caught:
        load(folder)
    message = str(caught.value)
    assert f"{file}, line {line}: " in message if line else file in message
    assert str(folder) in message
    for word in words:
        assert word in message
    assert len(message) < 400 + len(str(folder))


def test_many_unknown_documents_are_refused_in_one_pass(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Each line is read once, and once again up to the first unknown document, however many there are."""
    path = folder / "qrels" / "test.tsv"
    write_lines(path, [HEADER, "q4\td1\t1", *(f"q{4 + n % 2}\tgone{n}\t1" for n in range(200))])
    real, numbers = judgements.read_lines, []

    def counting(file: Path, *arguments: Any, **named: Any) -> Iterator[tuple[int, str]]:
        for number, line in real(file, *arguments, **named):
            if file == path:
                numbers.append(number)
            yield number, line

    monkeypatch.setattr(judgements, "read_lines", counting)
    with pytest.raises(MAWError, match=r"test\.tsv, line 3: document 'gone0' is not in corpus\.jsonl"):
        load_dataset(f"beir:{folder}", strict=True)
    assert numbers == [*range(1, 203), 1, 2, 3]


def test_refuses_a_folder_without_judgements(folder: Path):
    for path in (folder / "qrels").iterdir():
        path.unlink()
    with pytest.raises(MAWError, match=r"wanted judgements in .*qrels, found no \.tsv file"):
        load(folder)


def test_refuses_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(MAWError, match=r"wanted a BEIR folder, but .*nowhere is not a folder"):
        load_dataset(f"beir:{tmp_path / 'nowhere'}")


@pytest.mark.parametrize("spec", ["", "nfcorpus", "beir", "beir:", "ir:", "msmarco:", "MSMARCO", "PyDocs"])
def test_refuses_another_name_and_lists_what_is_accepted(spec: str):
    with pytest.raises(MAWError) as caught:
        load_dataset(spec)
    assert repr(spec) in str(caught.value)
    assert "pydocs" in str(caught.value)
    assert "beir:FOLDER" in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (({}, {"q": "x"}, {"test": {"q": {"d": 1}}}), "wanted documents"),
        (({"d": "x"}, {"q": "x"}, {"test": {}}), "a judged query"),
        (({"d": "x"}, {}, {"test": {"q": {"d": 1}}}), "split test judges 'q', not among the queries"),
        (({"d": "x"}, {"q": "x"}, {"test": {"q": {"e": 1}}}), "split test judges 'e', not among the documents"),
        (({"d": "x"}, {"q": "x"}, {"train": {"q": {"d": 1}}, "dev": {"q": {"d": 1}}}), "'q' in both train and dev"),
    ],
)
def test_parts_from_elsewhere_go_through_the_same_checks(parts, words: str):
    with pytest.raises(MAWError, match=words):
        RetrievalDataset.from_parts("parts", *parts)


# --- pairs and splits -----------------------------------------------------------------------------------------------


def test_a_cap_chooses_by_seed_and_keeps_the_order():
    data = toy({f"t{n}": [f"d{n}.{i}" for i in range(5)] for n in range(20)}, ["x"])
    whole = data.training_pairs()
    assert len(whole) == 100
    capped = data.training_pairs(per_query=2, seed=3)
    assert len(capped) == 40
    assert capped == [pair for pair in whole if pair in set(capped)]
    assert capped == data.training_pairs(per_query=2, seed=3)
    assert capped != data.training_pairs(per_query=2, seed=4)
    assert len({document.split(".")[1] for _, document in capped}) == 5  # not always the same places
    assert set(data.training_pairs(per_query=1, seed=3)) < set(capped)
    assert data.training_pairs(per_query=9) == whole


def test_asking_for_what_is_not_there():
    data = toy({"t": ["d"]}, ["x"])
    with pytest.raises(MAWError, match="at least 1 relevant document a query must be taken, got 0"):
        data.training_pairs(per_query=0)
    with pytest.raises(MAWError, match="wanted the split 'val', but the splits are train, dev, test"):
        data.evaluation_split("val")
    with pytest.raises(MAWError, match="train is what a model is trained on: evaluate on dev, test"):
        data.evaluation_split("train")
    no_train = RetrievalDataset.from_parts("n", {"d": "x"}, {"q": "y"}, {"test": {"q": {"d": 1}}})
    with pytest.raises(MAWError, match="wanted the split 'train', but the splits are test"):
        no_train.training_pairs()
    no_positive = RetrievalDataset.from_parts("n", {"d": "x"}, {"q": "y"}, {"train": {"q": {"d": 0}}})
    with pytest.raises(MAWError, match="no document of grade 1"):
        no_positive.training_pairs()


# --- subsets --------------------------------------------------------------------------------------------------------

SIZES = {"train_pairs": 20, "documents": 60, "test_queries": 15, "dev_queries": 1}


def test_a_subset_keeps_every_relevant_document_and_says_what_it_is():
    data = toy({f"t{n}": [f"a{n}", f"b{n % 7}"] for n in range(40)}, [f"x{n}" for n in range(30)], more=100)
    small = data.subset(**SIZES, seed=5)
    assert len(small.documents) == 60
    assert len(small.qrels["test"]) == 15
    assert len(small.qrels["dev"]) == 1
    assert len(small.training_pairs()) == 20
    for split in small.splits:
        for query, row in small.qrels[split].items():
            positives = {document for document, grade in data.qrels[split][query].items() if grade > 0}
            assert positives <= small.documents.keys()
            assert positives <= row.keys()
    assert small.subset_of == "toy"
    assert small.licence == "CC0"
    assert small.name.startswith("toy:subset(")
    assert small.counts["subset"]["asked"] == SIZES
    assert small.counts["subset"]["kept"] == SIZES
    assert small.counts["subset"]["seed"] == 5
    assert small.counts["whole"] == data.counts
    assert "SUBSET of toy, seed 5" in render_report(small)
    assert json.loads(json.dumps(small.report())) == small.report()


def test_a_subset_depends_on_the_seed_and_not_on_the_order_of_the_parts():
    data = toy({f"t{n}": [f"a{n}"] for n in range(40)}, [f"x{n}" for n in range(30)], more=100)
    turned = RetrievalDataset.from_parts(
        "toy",
        dict(reversed(data.documents.items())),
        dict(reversed(data.queries.items())),
        {split: dict(reversed(rows.items())) for split, rows in data.qrels.items()},
    )
    one, two, other = data.subset(**SIZES), turned.subset(**SIZES), data.subset(**SIZES, seed=1)
    assert one.documents == two.documents
    assert one.qrels == two.qrels
    assert one.qrels["test"].keys() != other.qrels["test"].keys()
    assert one.qrels["train"].keys() != other.qrels["train"].keys()
    assert one.documents.keys() != other.documents.keys()
    assert one == data.subset(**SIZES)
    more = data.subset(**SIZES | {"test_queries": 20})
    assert one.qrels["test"].keys() < more.qrels["test"].keys()


def test_a_choice_is_the_same_on_every_python():
    assert dataset.seeded(["a", "b", "c", "d"], 0, "test") == ["a", "d", "b", "c"]


def test_a_subset_takes_all_evaluation_queries_where_there_are_fewer_and_says_so():
    small = toy({"t": ["a"]}, ["x1", "x2"], more=3).subset(
        train_pairs=1, documents=100, test_queries=500, dev_queries=0
    )
    assert small.counts["subset"]["kept"] == {"train_pairs": 1, "documents": 8, "test_queries": 2, "dev_queries": 0}
    assert small.counts["subset"]["splits_left_out"] == ["dev"]
    assert "2 test_queries (asked 500)" in render_report(small)


def test_a_subset_has_fewer_training_pairs_where_their_documents_do_not_fit():
    data = toy({f"t{n}": [f"a{n}", f"b{n}"] for n in range(40)}, [f"x{n}" for n in range(10)])
    small = data.subset(train_pairs=30, documents=25, test_queries=10, dev_queries=0)
    assert small.counts["subset"]["kept"]["train_pairs"] == 14
    assert len(small.documents) == 25
    assert all(len(row) == 2 for row in small.qrels["train"].values())


def test_a_document_that_is_needed_twice_takes_one_place():
    data = toy({"t0": ["dx"], "t1": ["dx", "a"]}, ["x"])
    small = data.subset(train_pairs=3, documents=2, test_queries=1, dev_queries=0)
    assert len(small.training_pairs()) == 3
    assert small.documents.keys() == {"dx", "a"}


def test_a_subset_stops_at_the_pairs_nearest_to_what_was_asked():
    data = toy({f"t{n}": [f"a{n}.{i}" for i in range(10)] for n in range(9)}, ["x"])
    for asked, expected in ((1, 10), (14, 10), (15, 20), (26, 30), (999, 90)):
        small = data.subset(train_pairs=asked, documents=500, test_queries=1, dev_queries=0)
        assert len(small.training_pairs()) == expected


def test_a_subset_counts_the_judgements_it_leaves_out():
    data = toy({"t": ["a"]}, ["x"], more=50)
    small = data.subset(train_pairs=1, documents=3, test_queries=1, dev_queries=1)
    assert small.qrels["dev"] == {"v": {"dv": 1}}
    assert small.counts["subset"]["judgements_left_out"] == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"documents": 5},
            "15 test queries and 1 dev queries of the subset have 16 relevant documents.*documents=5 asked",
        ),
        ({"documents": 16}, "need 16 documents and the first training query 1 more.*documents=16"),
        ({"train_pairs": -1}, "train_pairs must be 0 or more, got -1"),
    ],
)
def test_a_subset_that_does_not_fit_is_refused_with_the_numbers(change: dict[str, int], words: str):
    data = toy({f"t{n}": [f"a{n}"] for n in range(40)}, [f"x{n}" for n in range(30)], more=100)
    with pytest.raises(MAWError, match=words):
        data.subset(**SIZES | change)


def test_a_subset_of_splits_that_are_not_there_is_refused():
    data = RetrievalDataset.from_parts(
        "n", {"d": "x"}, {"q": "y", "r": "z"}, {"test": {"q": {"d": 1}}, "dev": {"r": {"d": 0}}}
    )
    with pytest.raises(MAWError, match="wanted the split 'train'"):
        data.subset(train_pairs=1, documents=1, test_queries=1, dev_queries=0)
    with pytest.raises(MAWError, match="queries from the split dev, but none has a document of grade 1"):
        data.subset(train_pairs=0, documents=1, test_queries=1, dev_queries=1)


# --- real data, where they are ---------------------------------------------------------------------------------------


def real(name: str) -> RetrievalDataset:
    root = os.environ.get("MAW_DATA")
    if not root:
        pytest.skip(f"MAW_DATA is not set: set it to the folder that has {name}/ in BEIR's layout")
    if not (Path(root) / name).is_dir():
        pytest.skip(f"MAW_DATA={root} has no folder {name}")
    return load_dataset(f"beir:{Path(root) / name}")


def test_nfcorpus():
    data = real("nfcorpus")
    counts = data.counts
    assert counts["documents"] == {"total": 3633, "empty": 0, "repeated": 40}
    assert counts["shared_query_ids"] == {}
    assert counts["shared_query_texts"] == {"train/test": 4, "train/dev": 4, "dev/test": 1}
    dropped = counts["dropped_train_queries"]
    assert len(dropped) == len(set(dropped)) == 8
    queries = {split: found["queries"] for split, found in counts["splits"].items()}
    assert queries == {"train": 2590 - 8, "dev": 324, "test": 323}
    kept = {dataset.normalise(data.queries[query]) for query in data.qrels["train"]}
    for split in ("dev", "test"):
        assert not kept & {dataset.normalise(data.queries[query]) for query in data.qrels[split]}
    with pytest.raises(MAWError, match="323 test queries of the subset have 3128 relevant documents"):
        data.subset(train_pairs=600, documents=1500, test_queries=500, dev_queries=0)


@pytest.mark.parametrize(
    ("name", "documents", "queries"),
    [
        ("nq-qed", 8096, {"train": 6473, "dev": 694, "test": 1204}),
        ("tldr-commands", 29904, {"train": 21670, "dev": 2602, "test": 2828}),
        ("msmarco-passage-pool", 44962, {"dev": 541, "dl19": 43, "dl20": 54, "test": 97}),
        ("noveleval", 420, {"test": 21}),
    ],
)
def test_other_real_folders(name: str, documents: int, queries: dict[str, int]):
    data = real(name)
    assert len(data.documents) == documents
    assert {split: len(rows) for split, rows in data.qrels.items()} == queries
    assert data.counts["dropped_train_queries"] == []
    shared = {"dl19/test": 43, "dl20/test": 54} if "dl19" in queries else {}
    assert data.counts["shared_query_ids"] == shared
    if shared:
        assert data.counts["queries"]["not_judged"] == 59
        assert data.counts["unions"] == {"test": ["dl19", "dl20"]}
        assert data.relevant_grade == {"dl19": 2, "dl20": 2, "test": 2}


# --- the module itself ----------------------------------------------------------------------------------------------


LIGHT = (
    *(
        "beir",
        "checks",
        "corpora",
        "dataset",
        "irdatasets",
        "judgements",
        "lines",
        "text_records",
        "loading",
        "msmarco",
        "pydocs",
        "report",
    ),
    *("subsets", "text_writer", "texts"),
)


@pytest.mark.parametrize("module", LIGHT)
def test_imports_only_the_standard_library_at_the_top(module: str):
    tree = ast.parse(Path(dataset.__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
    names = {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    others = {name for name in names if name.partition(".")[0] not in sys.stdlib_module_names}
    others = {name for name in others if not name.startswith("maw.io.")}  # the lowest room, which is as light
    assert others <= {
        "maw.errors",
        "maw.progress",
        "maw.retrieval.data",
        *(f"maw.retrieval.data.{name}" for name in LIGHT),
    }


def test_examples():
    result = doctest.testmod(dataset)
    assert result.attempted >= 5
    assert result.failed == 0
