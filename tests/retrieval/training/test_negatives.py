"""Hard negatives: never a relevant document, only for train, the same from the cache, by BM25, a model or files."""

from __future__ import annotations

import doctest
import gzip
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys import encoder

from maw.errors import MAWError
from maw.retrieval.data.dataset import RetrievalDataset, normalise, relevant
from maw.retrieval.data.loading import load_dataset
from maw.retrieval.data.text_writer import build_store
from maw.retrieval.data.texts import TextStore
from maw.retrieval.ranking.bm25 import bm25_run
from maw.retrieval.ranking.dense import dense_runs, encode
from maw.retrieval.training import candidates as candidates_module
from maw.retrieval.training import negatives
from maw.retrieval.training.negatives import Negatives, NegativeSettings, mine
from maw.retrieval.training.rows import find_negatives
from maw.retrieval.training.settings import TrainingSettings

WORDS = ("river", "engine", "violin", "glacier", "parliament", "enzyme", "harbour", "theorem", "orchard", "satellite")


def toy(**options) -> RetrievalDataset:
    """Every word has a passage that is relevant, one with the same text, and ones that only name it."""
    documents = {}
    for word in WORDS:
        documents[f"{word}-right"] = f"A {word} is a {word}, says this passage."
        documents[f"{word}-copy"] = f"a {word.upper()} is a {word},  says this passage."
        documents[f"{word}-zero"] = f"Nothing is known of the {word} here."
        for number in range(4):
            documents[f"{word}-{number}"] = f"The {word} " + "and other words " * (number + 1)
    queries = {f"q-{word}": f"what is a {word}" for word in WORDS} | {
        "twin": "What is  a RIVER",
        "river-0": "the river",
    }
    qrels = {
        "train": {f"q-{word}": {f"{word}-right": 1, f"{word}-zero": 0} for word in WORDS[:7]}
        | {"twin": {"river-3": 2}, "river-0": {"river-1": 1}, "q-satellite": {"satellite-0": 0}},
        "test": {f"q-{word}": {f"{word}-right": 1} for word in WORDS[7:9]},
    }
    return RetrievalDataset.from_parts("toy", documents, queries, qrels, **options)


def on_disk(data: RetrievalDataset, folder: Path) -> RetrievalDataset:
    return replace(data, documents=build_store(folder, data.documents.items(), {}, None))  # type: ignore[arg-type]


def check(data: RetrievalDataset, found) -> None:
    """What holds whatever the source: queries of train with something relevant; nothing relevant, nothing twice."""
    judged = {query: row for query, row in data.judgements("train").items() if relevant(row)}
    assert list(found) == list(judged)
    assert len(found) == len(judged)
    texts: dict[str, set[str]] = {}
    for query, row in judged.items():
        texts.setdefault(normalise(data.queries[query]), set()).update(
            normalise(data.documents[document]) for document in relevant(row)
        )
    for query, names in found.items():
        assert len(set(names)) == len(names)
        for name in names:
            assert normalise(data.documents[name]) not in texts[normalise(data.queries[query])]


def test_bm25_negatives_are_its_ranking_without_what_is_relevant() -> None:
    data = toy()
    found = mine(data, NegativeSettings(per_query=4))
    check(data, found)
    ranking = bm25_run(data.documents, {"q-river": data.queries["q-river"]})["q-river"]
    left = [name for name in ranking if name not in ("river-right", "river-copy", "river-3")]  # river-3: of its twin
    assert found["q-river"] == left[:4]
    assert "engine-zero" in found["q-engine"]  # judged, and not relevant
    assert isinstance(found, Negatives)
    assert found.report["queries"] == 9
    assert found.report["negatives"] == sum(map(len, found.values()))
    assert found.report["left_out_same_text"] >= 7
    assert found.report["queries_with_fewer"] == sum(len(names) < 4 for names in found.values())


def test_no_other_split_has_negatives() -> None:
    found = mine(toy(), NegativeSettings(per_query=1))
    assert "q-theorem" not in found
    assert "q-satellite" not in found  # nothing relevant is known
    assert {name.split("-")[0] for names in found.values() for name in names} <= set(WORDS[:7])


def test_skip_depth_and_draw() -> None:
    data = toy()
    every = mine(data, NegativeSettings(per_query=4))["q-engine"]
    assert mine(data, NegativeSettings(per_query=2, skip=1))["q-engine"] == every[1:3]
    assert mine(data, NegativeSettings(per_query=3, depth=3))["q-engine"] == every[:2]  # the third was a copy
    drawn = [mine(data, NegativeSettings(per_query=2, draw=True, seed=seed))["q-engine"] for seed in range(12)]
    assert all(set(names) < set(every) | {"engine-3"} for names in drawn)
    assert len({tuple(names) for names in drawn}) > 3
    assert drawn[0] == mine(data, NegativeSettings(per_query=2, draw=True, seed=0))["q-engine"]


def test_a_store_gives_the_same_negatives(tmp_path: Path) -> None:
    data = toy()
    stored = on_disk(data, tmp_path / "s")
    assert isinstance(stored.documents, TextStore)
    model = encoder()
    for source in ("bm25", "dense"):
        settings = NegativeSettings(source=source, per_query=3, relative_margin=0.05)
        assert dict(mine(stored, settings, model)) == dict(mine(data, settings, model))


def test_own_documents_are_no_negatives_where_the_collection_asks_for_it() -> None:
    assert "river-0" in mine(toy(), NegativeSettings(per_query=4))["river-0"]
    assert "river-0" not in mine(toy(drop_own=True), NegativeSettings(per_query=4))["river-0"]


# Margins


def test_margins_worked_by_hand() -> None:
    settings = NegativeSettings(absolute_margin=0.125, relative_margin=0.25)
    assert (settings.limit(1.0), settings.limit(0.25), settings.limit(-1.0)) == (0.75, 0.125, -1.25)
    assert NegativeSettings().limit(0.5) == float("inf")


def test_bm25_keeps_its_distance_from_the_best_relevant_document() -> None:
    data = toy()
    query = data.queries["q-river"]
    score = bm25_run(data.documents, {"q": query})["q"]
    best = max(score["river-right"], score["river-3"])
    plain = mine(data, NegativeSettings(per_query=4))["q-river"]
    for absolute, share in ((0.1, None), (None, 0.3), (0.4, 0.1)):
        found = mine(data, NegativeSettings(per_query=4, absolute_margin=absolute, relative_margin=share))
        limit = min(best - (absolute or 0), best - (share or 0) * best)
        assert found["q-river"] == [name for name in plain if score[name] <= limit]
        assert found.report["left_out_margin"] > 0  # type: ignore[attr-defined]
    assert mine(data, NegativeSettings(per_query=4, absolute_margin=100.0))["q-river"] == []


def test_a_model_keeps_its_distance_from_the_best_relevant_document() -> None:
    data, model = toy(), encoder()
    query = encode(model, [data.queries["q-engine"]], "query")
    vectors = encode(model, list(data.documents.values()), "document")
    score = dict(zip(data.documents, (vectors @ query[0]).tolist(), strict=True))
    order = sorted(sorted(score, reverse=True), key=lambda name: -score[name])
    allowed = [name for name in order if name not in ("engine-right", "engine-copy")]
    found = mine(data, NegativeSettings(source="dense", per_query=60), model)
    check(data, found)
    assert found["q-engine"] == allowed[:60]
    margin = score["engine-right"] - score[allowed[len(allowed) // 2]]  # the better half is too near
    assert margin > 0
    found = mine(data, NegativeSettings(source="dense", per_query=5, absolute_margin=margin + 1e-5), model)
    assert found["q-engine"] == [name for name in allowed if score[name] < score["engine-right"] - margin - 1e-5][:5]


def test_of_several_relevant_documents_the_best_scored_one_counts() -> None:
    data, model = toy(), encoder()
    judged = {"train": data.qrels["train"] | {"q-engine": {"engine-right": 1, "violin-0": 1}}, "test": {}}
    data = replace(data, qrels=judged)
    query = encode(model, [data.queries["q-engine"]], "query")
    vectors = encode(model, list(data.documents.values()), "document")
    score = dict(zip(data.documents, (vectors @ query[0]).tolist(), strict=True))
    found = mine(data, NegativeSettings(source="dense", per_query=60, absolute_margin=0.05), model)["q-engine"]
    assert score["engine-right"] > score["violin-0"]
    assert all(score[name] <= score["engine-right"] - 0.05 for name in found)
    assert any(score[name] > score["violin-0"] - 0.05 for name in found)


def test_chunks_of_documents_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = toy(), encoder()
    settings = NegativeSettings(source="dense", per_query=10, absolute_margin=0.01)
    whole = dict(mine(data, settings, model))
    runs = dense_runs(model, data.documents, {"train": {"q-violin": data.queries["q-violin"]}})["train"]["q-violin"]
    assert [name for name in runs if name in whole["q-violin"]] == whole["q-violin"]
    for number in (7, 50):
        monkeypatch.setattr(candidates_module, "DOCUMENTS_AT_ONCE", number)
        monkeypatch.setattr(candidates_module, "PAIRS_AT_ONCE", 3)
        assert dict(mine(data, settings, model)) == whole


# Given negatives


def given(tmp_path: Path, name: str, lines: list[str]) -> NegativeSettings:
    path = tmp_path / name
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return NegativeSettings(source="given", per_query=3, files=(path,))


TRIPLES = [
    *("q-river\triver-right\tengine-0", "q-river\triver-right\triver-copy", "q-river\triver-right\triver-3"),
    *("q-theorem\ttheorem-right\tengine-0", "q-river\triver-right\tnowhere", "q-river\triver-right\tengine-0"),
    *("q-violin\tviolin-right\triver-right", "q-river\triver-right\tengine-1", "nobody\tx\tengine-0"),
]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("triples.tsv", TRIPLES),
        ("triples.tsv.gz", TRIPLES),
        ("top1000.train.tsv", ["\t".join(line.split("\t")[::2]) for line in TRIPLES]),
        ("top1000.train.txt", ["\t".join([*line.split("\t")[::2], "query", "text"]) for line in TRIPLES]),
        ("run.trec", [f"{line.split()[0]} Q0 {line.split()[2]} {n} {-n} tag" for n, line in enumerate(TRIPLES)]),
    ],
)
def test_negatives_from_files(tmp_path: Path, name: str, lines: list[str]) -> None:
    data = toy()
    found = mine(data, given(tmp_path, name, lines))
    check(data, found)
    assert {query: names for query, names in found.items() if names} == {
        "q-river": ["engine-0", "engine-1"],
        "q-violin": ["river-right"],
    }


def test_files_that_came_with_the_data_are_taken(tmp_path: Path) -> None:
    settings = given(tmp_path, "triples.tsv", TRIPLES)
    data = replace(toy(), negative_files=settings.files)
    assert dict(mine(data, replace(settings, files=()))) == dict(mine(toy(), settings))


def test_given_negatives_are_scored_by_a_model_where_there_is_a_margin(tmp_path: Path) -> None:
    data, model = toy(), encoder()
    lines = [f"q-engine\t{name}" for name in data.documents]
    settings = replace(given(tmp_path, "ranking.tsv", lines), per_query=60)
    dense = mine(data, replace(settings, source="dense", absolute_margin=0.02), model)["q-engine"]
    found = mine(data, replace(settings, absolute_margin=0.02), model)["q-engine"]
    assert set(found) == set(dense)
    assert found == [name for name in data.documents if name in set(dense)]  # in the file's order
    with pytest.raises(MAWError, match="a margin needs scores, and given negatives have none: give a model"):
        mine(data, replace(settings, absolute_margin=0.02))


@pytest.mark.parametrize("margin", [None, 0.02])
@pytest.mark.parametrize("source", ["bm25", "model", "given"])
def test_training_asks_for_the_margin_and_the_files_of_its_settings(tmp_path: Path, source, margin) -> None:
    data, model = toy(), encoder()
    path = given(tmp_path, "ranking.tsv", [f"q-engine\t{name}" for name in data.documents]).files[0]
    files = (path,) if source == "given" else ()
    settings = TrainingSettings(
        hard_negatives=60, max_length=16, negatives=source, negative_margin=margin, negative_files=files
    )
    found = find_negatives(data, settings, model, tmp_path / "kept")
    wanted = NegativeSettings(
        source="dense" if source == "model" else source, per_query=60, relative_margin=margin, files=files
    )
    assert found is not None
    assert dict(found) == dict(mine(data, wanted, model))
    assert bool(found.report.get("left_out_margin")) == (margin is not None)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"negative_margin": -0.1, "hard_negatives": 1}, "negative_margin must be 0 or more, got -0.1"),
        ({"negative_margin": 0.1}, "choose hard negatives, but hard_negatives is 0: say how many"),
        ({"negative_files": (Path("f"),), "negatives": "given"}, "but hard_negatives is 0: say how many"),
        ({"negative_files": (Path("f"),), "hard_negatives": 1}, 'are for negatives "given", got "bm25"'),
    ],
)
def test_settings_of_training_that_choose_nothing_are_refused(settings, message: str) -> None:
    with pytest.raises(MAWError, match=message):
        TrainingSettings(**settings)


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("x.tsv", ["q-river\ta", "q-river"], "x.tsv, line 2: wanted 2 columns .*got 1"),
        ("x.tsv", ["a b c d e"], "x.tsv, line 1: wanted 2 columns .*got 5"),
        ("x.tsv", ["what is a river\tA river.\tAn engine."], "x.tsv: none of its queries is one of train"),
        ("x.tsv", ["q-river\t8\t9"], "x.tsv: none of its documents is in the collection.*ids, not texts"),
        ("x.tsv", [], "x.tsv: none of its queries"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path: Path, name: str, lines: list[str], message: str) -> None:
    with pytest.raises(MAWError, match=message):
        mine(toy(), given(tmp_path, name, lines))


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    settings = given(tmp_path, "t.tsv.gz", [*TRIPLES, *(f"q-river\tx\t{n}" for n in range(2000))])
    os.truncate(settings.files[0], settings.files[0].stat().st_size - 100)
    with pytest.raises(MAWError, match=r"t\.tsv\.gz is no whole gzip file .Compressed file ended"):
        mine(toy(), settings)
    broken = given(tmp_path, "b.tsv.gz", [*TRIPLES, *(f"q-river\tx\t{n}" for n in range(2000))]).files[0]
    raw = broken.read_bytes()
    broken.write_bytes(raw[:2000] + b"\xff" * 100 + raw[2100:])
    with pytest.raises(MAWError, match=r"b\.tsv\.gz is no whole gzip file .Error -3 while decompressing"):
        mine(toy(), replace(settings, files=(broken,)))
    with pytest.raises(MAWError, match=r"none\.tsv, but it is not there"):
        mine(toy(), replace(settings, files=(tmp_path / "none.tsv",)))
    with pytest.raises(MAWError, match="come from files, but none is named and toy has none"):
        mine(toy(), replace(settings, files=()))


# Kept


def test_negatives_are_kept_by_what_they_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, model, times = toy(), encoder(), []
    searched = negatives.candidates

    def counting(*arguments):
        times.append(1)
        return searched(*arguments)

    monkeypatch.setattr(negatives, "candidates", counting)
    two = NegativeSettings(per_query=2)

    def calls(data=data, settings=two, model=None) -> int:
        before = len(times)
        found = mine(data, settings, model, cache=tmp_path / "kept")
        expected = mine(data, settings, model)
        assert dict(found) == dict(expected)
        assert found.report == expected.report  # type: ignore[attr-defined]
        return len(times) - before - 1

    assert (calls(), calls()) == (1, 0)
    assert calls(settings=NegativeSettings(per_query=3)) == 1
    assert calls(settings=NegativeSettings(per_query=2, seed=1)) == 1
    assert calls(model=model) == 0  # BM25 asks no model
    dense = NegativeSettings(source="dense", per_query=2)
    assert (calls(settings=dense, model=model), calls(settings=dense, model=model)) == (1, 0)
    with torch.no_grad():
        next(iter(model.parameters())).add_(0.1)
    assert calls(settings=dense, model=model) == 1
    model[1].pooling_mode = "cls"  # the same weights give other vectors
    assert (calls(settings=dense, model=model), calls(settings=dense, model=model)) == (1, 0)
    model.max_seq_length = 8
    assert (calls(settings=dense, model=model), calls(settings=dense, model=model)) == (1, 0)
    changed = replace(data, documents=dict(data.documents) | {"river-0": "another text"})
    assert (calls(data=changed), calls(data=changed)) == (1, 0)
    judged = {"train": data.qrels["train"] | {"q-river": {"river-right": 1, "river-1": 1}}, "test": data.qrels["test"]}
    assert calls(data=replace(data, qrels=judged)) == 1
    assert calls(data=on_disk(data, tmp_path / "s")) == 0  # the same texts, kept in another place
    triples = given(tmp_path, "t.tsv", TRIPLES)
    assert (calls(settings=triples), calls(settings=triples)) == (1, 0)
    given(tmp_path, "t.tsv", [*TRIPLES, "q-river\tx\tglacier-1"])
    assert calls(settings=triples) == 1


def test_interrupted_mining_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched = negatives.candidates

    def killed(*arguments):
        yield next(iter(searched(*arguments)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(negatives, "candidates", killed)
        with pytest.raises(KeyboardInterrupt):
            mine(toy(), NegativeSettings(per_query=2), cache=tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}
    assert dict(mine(toy(), NegativeSettings(per_query=2), cache=tmp_path)) == dict(
        mine(toy(), NegativeSettings(per_query=2))
    )


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "random"}, "come from bm25, dense or given, got 'random'"),
        ({"per_query": 0}, "per_query of negatives must be at least 1, got 0"),
        ({"skip": -1}, "skip of negatives must be at least 0"),
        ({"per_query": 8, "skip": 3, "depth": 10}, "at least skip . per_query = 11, got 10"),
        ({"absolute_margin": -0.1}, "absolute_margin must be 0 or more, got -0.1"),
        ({"relative_margin": float("nan")}, "relative_margin must be 0 or more, got nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message: str) -> None:
    with pytest.raises(MAWError, match=message):
        NegativeSettings(**settings)


def test_what_is_missing_is_said() -> None:
    with pytest.raises(MAWError, match="found by a model: give one"):
        mine(toy(), NegativeSettings(source="dense"))
    data = toy()
    with pytest.raises(MAWError, match="wanted the split 'train'"):
        mine(replace(data, qrels={"test": data.qrels["test"]}), NegativeSettings())
    with pytest.raises(MAWError, match="wanted train queries with a relevant document"):
        mine(replace(data, qrels={"train": {"q-river": {"river-0": 0}}}), NegativeSettings())


def test_real_negatives_are_not_relevant_and_no_copies(tmp_path: Path) -> None:
    """600 train queries of NFCorpus, some with hundreds of relevant documents; 40 documents are copies."""
    root = os.environ.get("MAW_DATA")
    if not root or not (Path(root) / "nfcorpus").is_dir():
        pytest.skip("MAW_DATA has no nfcorpus: name the folder that holds it")
    data = load_dataset(f"beir:{Path(root) / 'nfcorpus'}")
    data = replace(data, qrels={"train": dict(list(data.qrels["train"].items())[:600])})
    found = mine(data, NegativeSettings(per_query=5, relative_margin=0.05), cache=tmp_path)
    check(data, found)
    assert len(found) == 600
    assert found.report["left_out_same_text"] > 0  # type: ignore[attr-defined]
    assert found.report["left_out_margin"] > 200  # type: ignore[attr-defined]
    assert found.report["negatives"] > 3 * 600  # type: ignore[attr-defined]


def test_the_examples_run() -> None:
    for tested in (negatives,):
        result = doctest.testmod(tested)
        assert result.attempted
        assert not result.failed
