from __future__ import annotations

import doctest
import json
import math
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import maw.retrieval.ranking.bm25 as module
from maw.errors import MAWError
from maw.retrieval.data import corpora
from maw.retrieval.data.corpora import hold_file
from maw.retrieval.data.loading import load_dataset
from maw.retrieval.data.msmarco import _records
from maw.retrieval.evaluation.measures import evaluate
from maw.retrieval.ranking.bm25 import bm25_run, rounded_lengths
from maw.retrieval.ranking.runs import ranked

DOCUMENTS = {
    "d1": "the cat sat on the mat",
    "d2": "cats and dogs",
    "d3": "a dog chases a cat and another cat",
    "d4": "birds",
}


def test_scores_worked_by_hand() -> None:
    # after stop words and stemming: d1 cat sat mat, d2 cat dog, d3 dog chase cat anoth cat, d4 bird
    lengths, counts = {"d1": 3, "d2": 2, "d3": 5, "d4": 1}, {"d1": 1, "d2": 1, "d3": 2}
    idf = math.log(1 + (4 - 3 + 0.5) / (3 + 0.5))
    average = sum(lengths.values()) / 4
    expected = {
        name: idf * count / (count + 0.9 * (1 - 0.4 + 0.4 * lengths[name] / average)) for name, count in counts.items()
    }
    run = bm25_run(DOCUMENTS, {"q": "Cats!"})
    assert run["q"] == pytest.approx(expected, rel=1e-6)
    assert list(run["q"]) == ["d3", "d2", "d1"]


def test_a_repeated_query_word_counts_as_often() -> None:
    run = bm25_run(DOCUMENTS, {"once": "cat", "twice": "cat cats"})
    assert run["twice"] == pytest.approx({name: 2 * score for name, score in run["once"].items()}, rel=1e-6)


def test_what_has_no_word_of_the_query_is_not_retrieved() -> None:
    run = bm25_run(DOCUMENTS, {"dogs": "dog", "unknown": "zebra", "stop": "the of and", "empty": ""})
    assert {query: set(found) for query, found in run.items()} == {
        "dogs": {"d2", "d3"}, "unknown": set(), "stop": set(), "empty": set(),
    }  # fmt: skip


def test_equal_scores_are_cut_by_ascending_id_whatever_the_order_of_the_documents() -> None:
    names = [f"n{i:03}" for i in range(200)]
    np.random.default_rng(0).shuffle(names)
    documents = dict.fromkeys(names, "one two") | {"z": "one one two two", "y": "three"}
    for k in (1, 2, 50, 300):
        run = bm25_run(documents, {"q": "one"}, k)
        assert list(run["q"]) == ["z", *sorted(names)][:k]


def test_every_evaluation_keeps_the_order_of_equal_scores() -> None:
    documents = dict.fromkeys(["a", "b", "c", "d"], "one") | {"e": "two"}
    found = bm25_run(documents, {"q": "one"})["q"]
    assert ranked({"q": found}) == {"q": ["a", "b", "c", "d"]}
    single = np.array(list(found.values()), dtype=np.float32)  # what trec_eval reads
    assert (np.diff(single) < 0).all()
    assert found == pytest.approx({name: found["a"] - 1e-6 * place for place, name in enumerate("abcd")}, abs=1e-7)


def test_a_millionth_less_is_lost_in_high_scores_and_evaluation_orders_them_by_descending_id() -> None:
    documents = dict.fromkeys(["a", "b", "c", "d"], "one") | {f"e{i}": "two" for i in range(9)}
    found = bm25_run(documents, {"q": "one " * 1000})["q"]
    assert len(set(found.values())) == 1
    assert found["a"] > 100
    assert list(found) == ["d", "c", "b", "a"]
    assert ranked({"q": found}) == {"q": list(found)}


def test_lengths_are_what_one_byte_holds_of_them() -> None:
    kept = rounded_lengths(np.arange(5000))
    assert kept[:40].tolist() == list(range(40))
    # the steps of the format: 8 values of each size, counted from 24
    assert np.unique(kept)[40:58].tolist() == [*range(40, 56, 2), *range(56, 88, 4), 88, 96]
    assert ((kept <= np.arange(5000)) & (np.diff(kept, prepend=0) >= 0)).all()
    assert (kept[64:] > np.arange(64, 5000) * 8 / 9).all()
    documents = {"a": "cat " + "dog " * 40, "b": "cat " + "dog " * 39, "c": "bird"}  # 41 and 40 words
    rounded = bm25_run(documents, {"q": "cat"})["q"]
    exact = bm25_run(documents, {"q": "cat"}, exact_lengths=True)["q"]
    assert list(rounded) == ["a", "b"]
    assert list(exact) == ["b", "a"]


def test_empty_documents_count_neither_in_the_average_nor_in_the_idf() -> None:
    found = bm25_run(DOCUMENTS | {f"e{i}": "the" for i in range(9)}, {"q": "Cats!"})["q"]
    assert found == bm25_run(DOCUMENTS, {"q": "Cats!"})["q"]


def test_scores_are_those_of_the_formula_in_single_precision() -> None:
    draw, single = np.random.default_rng(1), np.float32
    words = np.array([f"w{n}" for n in range(60)])
    documents = {f"d{n}": " ".join(draw.choice(words, draw.integers(1, 200))) for n in range(50)}
    asked = list(draw.choice(words, 12))
    split = {name: text.split() for name, text in documents.items()}
    average = single(sum(map(len, split.values())) / 50)
    for name, score in bm25_run(documents, {"q": " ".join(asked)})["q"].items():
        total = 0.0
        for word in dict.fromkeys(asked):
            if not (count := split[name].count(word)):
                continue
            holding = sum(word in found for found in split.values())
            weight = single(asked.count(word)) * single(math.log(1 + (50 - holding + 0.5) / (holding + 0.5)))
            length = single(rounded_lengths(np.array([len(split[name])]))[0])
            norm = single(1) / (single(0.9) * ((single(1) - single(0.4)) + single(0.4) * length / average))
            total += float(weight - weight / (single(1) + single(count) * norm))
        assert score == float(single(total))


def test_texts_on_disk_give_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAW_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "collection.tsv"
    file.write_text("".join(f"{name}\t{text}\n" for name, text in reversed((DOCUMENTS | {"d9": "cat"}).items())))
    held = []
    for limit in (2**20, -1):
        monkeypatch.setattr(corpora, "IN_MEMORY", limit)
        held.append(hold_file(file, "t", partial(_records, file, "t"), {}, "t"))
    assert type(held[1]).__name__ == "TextStore"
    runs = [bm25_run(documents, {"q": "cats", "p": "dog birds"}, drop_own=True) for documents in held]
    assert [list(found.items()) for found in runs[0].values()] == [list(found.items()) for found in runs[1].values()]


def test_it_is_repeatable() -> None:
    assert bm25_run(DOCUMENTS, {"q": "cat dog"}) == bm25_run(dict(reversed(DOCUMENTS.items())), {"q": "cat dog"})


def test_empty_texts_are_no_trouble() -> None:
    assert bm25_run({"a": "", "b": "word"}, {"q": "word"})["q"].keys() == {"b"}
    assert bm25_run({"a": "", "b": "the"}, {"q": "word"}) == {"q": {}}


def test_progress_is_shown_only_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    bm25_run(DOCUMENTS, {"q": "cat"})
    silent = capsys.readouterr()
    assert silent.out + silent.err == ""
    bm25_run(DOCUMENTS, {"q": "cat"}, show_progress=True)
    assert "BM25" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("documents", "queries", "settings", "message"),
    [
        ({}, {"q": "a"}, {}, "at least one document"),
        ({"a": "a"}, {}, {}, "at least one query"),
        ({"a": "a"}, {"q": "a"}, {"k": 0}, "k must be at least 1, got 0"),
        ({"a": "a"}, {"q": "a"}, {"k1": -1.0}, "k1 must be at least 0"),
        ({"a": "a"}, {"q": "a"}, {"b": 1.5}, "b between 0 and 1"),
    ],
)
def test_bad_input_is_refused(documents, queries, settings, message: str) -> None:
    with pytest.raises(MAWError, match=message):
        bm25_run(documents, queries, **settings)


def test_the_examples_run() -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


def test_nfcorpus_agrees_with_anserini() -> None:
    folder = os.environ.get("MAW_DATA")
    if not folder:
        pytest.skip("MAW_DATA is not set: name the folder that holds nfcorpus to compare with published values")
    data = Path(folder) / "nfcorpus"

    def rows(name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (data / name).read_text(encoding="utf-8").splitlines()]

    qrels: dict[str, dict[str, int]] = {}
    for line in (data / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, grade = line.split("\t")
        qrels.setdefault(query, {})[document] = int(grade)
    documents = {row["_id"]: row["title"] + " " + row["text"] for row in rows("corpus.jsonl")}
    queries = {row["_id"]: row["text"] for row in rows("queries.jsonl") if row["_id"] in qrels}
    result = evaluate(qrels, bm25_run(documents, queries), ["nDCG@10", "R@100", "R@1000"])
    assert result.queries == 323
    # Anserini's regression for BEIR's NFCorpus, flat: docs/regressions/regressions-beir-v1.0.0-nfcorpus-flat.md
    assert result.means == pytest.approx({"nDCG@10": 0.3218, "R@100": 0.2457, "R@1000": 0.3704}, abs=5e-5)


def test_arguana_agrees_with_anserini() -> None:
    folder = Path(os.environ.get("MAW_DATA", "")) / "arguana"
    if not folder.is_dir():
        pytest.skip("MAW_DATA has no folder arguana: put BEIR's there to compare with published values")
    data = load_dataset(f"beir:{folder}")
    run = bm25_run(data.documents, data.evaluation_split("test")[0], drop_own=True)
    # Anserini's regression for BEIR's ArguAna, flat: docs/regressions/regressions-beir-v1.0.0-arguana-flat.md
    assert evaluate(data.judgements("test"), run, ["nDCG@10", "R@100", "R@1000"]).means == pytest.approx(
        {"nDCG@10": 0.3970, "R@100": 0.9324, "R@1000": 0.9872}, abs=5e-5
    )
