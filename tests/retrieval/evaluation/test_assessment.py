"""`maw evaluate`: run files of every form by judgements of every form, and models; what is counted and refused."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from toys import encoder, small_disk

from maw.cli import main
from maw.errors import MAWError
from maw.retrieval.data.dataset import RetrievalDataset
from maw.retrieval.evaluation.assessment import assess_model, assess_run, dense_rankings, write_per_query
from maw.retrieval.evaluation.measures import DEFAULT_MEASURES, default_measures, evaluate
from maw.retrieval.ranking.bm25 import bm25_run
from maw.retrieval.ranking.runs import read_run, without_own, write_run

TREC_RUN = "1 Q0 a 1 9.5 t\n1 Q0 b 2 9.5 t\n1 Q0 c 3 1.0 t\n2 Q0 b 1 5.0 t\n3 Q0 a 1 1.0 t\n"
TREC_QRELS = "1 0 b 3\n1 0 a 0\n1 0 lost 1\n2 0 b 1\n2 0 a 2\n4 0 c 1\n5 0 c 0\n"


def table(text: str, header: str, columns: list[int]) -> str:
    rows = [line.split() for line in text.splitlines()]
    return "\n".join([*([header] if header else []), *("\t".join(row[n] for n in columns) for row in rows)]) + "\n"


RUNS = {
    "trec": TREC_RUN,
    "msmarco": table(TREC_RUN, "", [0, 2, 3]),
    "table": table(TREC_RUN, "query-id\tcorpus-id\trank\tscore", [0, 2, 3, 4]),
}
QRELS = {
    "trec": TREC_QRELS,
    "tsv": table(TREC_QRELS, "", [0, 2, 3]),
    "beir": table(TREC_QRELS, "query-id\tcorpus-id\tscore", [0, 2, 3]),
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "run").write_text(TREC_RUN)
    (tmp_path / "qrels").write_text(TREC_QRELS)
    return tmp_path / "run", tmp_path / "qrels"


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """The collection of these files; it lacks the document `lost`."""
    (folder := tmp_path / "toy").mkdir()
    (folder / "qrels").mkdir()
    rows = {"corpus": [{"_id": name, "text": f"text {name}"} for name in "abc"]}
    rows["queries"] = [{"_id": str(n), "text": f"query {n}"} for n in range(1, 6)]
    for name, records in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    (folder / "qrels" / "dl19.tsv").write_text("query-id\tcorpus-id\tscore\n1\tb\t3\n1\ta\t1\n2\tb\t1\n2\ta\t2\n")
    return folder


# Run files


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("qrels", QRELS)
def test_every_form_of_run_and_judgements_gives_the_same(tmp_path: Path, run: str, qrels: str) -> None:
    (tmp_path / "run").write_text(RUNS[run])
    (tmp_path / "qrels").write_text(QRELS[qrels])
    found = assess_run(tmp_path / "run", qrels=tmp_path / "qrels")
    assert list(found.evaluation.means) == list(DEFAULT_MEASURES)
    assert found.evaluation.per_query["MRR@10"] == {"1": 0.5, "2": 1.0, "4": 0.0, "5": 0.0}
    assert found.evaluation.per_query["nDCG@10"]["1"] == pytest.approx(3 / math.log2(3) / (3 + 1 / math.log2(3)))
    assert [note.partition(" ")[0] for note in found.notes] == ["4", "2", "1", "1", "grades"]
    assert found.notes[1:4] == [
        "2 of them have no retrieved document and count with 0",
        "1 of them have no relevant document and count, as in trec_eval -c",
        "1 queries of the run have no judgements and are ignored",
    ]


def test_ties_by_rank_or_by_score(files: tuple[Path, Path]) -> None:
    run, qrels = files
    assert assess_run(run, qrels=qrels).evaluation.per_query["MRR@10"]["1"] == 0.5
    assert assess_run(run, qrels=qrels, ties="score").evaluation.per_query["MRR@10"]["1"] == 1.0  # b before a


def test_binary_measures_from_a_grade_on(files: tuple[Path, Path]) -> None:
    run, qrels = files
    found = assess_run(run, qrels=qrels, relevant_grade=2)
    assert tuple(found.evaluation.means) == default_measures(2)
    assert found.evaluation.per_query["MRR(rel=2)@10"] == {"1": 0.5, "2": 0.0, "4": 0.0, "5": 0.0}
    assert (
        "grades go up to 3; MRR(rel=2)@10, R(rel=2)@100, R(rel=2)@1000, AP(rel=2): grade 2 or more" in found.notes[-1]
    )
    assert list(assess_run(run, qrels=qrels, measures=["P@1"]).evaluation.means) == ["P@1"]
    with pytest.raises(MAWError, match="must be at least 1, got 0"):
        assess_run(run, qrels=qrels, relevant_grade=0)


def test_the_collection_checks_ids_and_counts_what_it_lacks(files: tuple[Path, Path], beir: Path) -> None:
    from maw.retrieval.data.loading import load_dataset

    run, qrels = files
    data = load_dataset(f"beir:{beir}")
    found = assess_run(run, qrels=qrels, dataset=data)
    assert "1 judgements name documents that" in " ".join(found.notes)
    assert found.evaluation.means == assess_run(run, qrels=qrels).evaluation.means
    own = assess_run(run, dataset=data)
    assert tuple(own.evaluation.means) == default_measures(2)  # the split is dl19
    assert own.evaluation.per_query["nDCG@10"].keys() == {"1", "2"}
    run.write_text(TREC_RUN + "2 Q0 nowhere 2 4.0 t\n")
    with pytest.raises(MAWError, match=r"run, line 6: document 'nowhere' is not in the collection beir:"):
        assess_run(run, qrels=qrels, dataset=data)
    run.write_text(TREC_RUN + "9 Q0 a 2 4.0 t\n")
    with pytest.raises(MAWError, match=r"run, line 6: query '9' is not among the queries of beir:"):
        assess_run(run, qrels=qrels, dataset=data)


def edited(which: str, content: str) -> Callable[[Path, Path], None]:
    return lambda run, qrels: {"run": run, "qrels": qrels}[which].write_text(content) and None


BAD = {
    "no run": (lambda run, qrels: run.unlink(), r"run file must exist"),
    "no judgements": (lambda run, qrels: qrels.unlink(), r"wanted the file .*qrels, but it is not there"),
    "an empty run": (edited("run", "\n"), r"run by .*qrels: the run must hold at least one retrieved document"),
    "an empty file of judgements": (edited("qrels", ""), r"qrels, line 1: .* empty"),
    "a document twice": (edited("run", "1 Q0 a 1 9 t\n1 Q0 a 2 8 t\n"), r"run, line 2: a document must come once"),
    "a rank twice": (edited("run", "1\ta\t1\n1\tb\t1\n"), r"run, line 2: a rank must come once"),
    "other columns": (edited("run", "1\ta\t1\n1\tb\t2\t3\n"), r"run, line 2: wanted three columns .*got 4"),
    "no known form": (edited("run", "1 a\n"), r"run, line 1: wanted six columns .*or three columns .*got 2"),
    "a table without header": (edited("run", "1\ta\t1\t2.0\n"), r"run, line 1: .*add the header query-id<TAB>corpus"),
    "a rank that is no number": (edited("run", "1\ta\tfirst\n"), r"run, line 1: the rank must be a whole number"),
    "queries of another set": (
        edited("run", "\n8 Q0 a 1 9 t\n"),
        r"run, line 2: no query of the run is judged in .*qrels .the run has '8', the judgements '1'.",
    ),
    "nothing relevant": (edited("qrels", "1 0 a 0\n"), r"by .*qrels: judgements must name at least one relevant"),
    "two grades": (edited("qrels", "1 0 a 0\n1 0 a 1\n"), r"qrels, line 2: query '1' .* grade 1 here and 0 in line 1"),
    "no grade": (edited("qrels", "1 0 a x\n"), r"qrels, line 1: wanted an integer grade"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_files_are_named(files: tuple[Path, Path], change, message: str, capsys: pytest.CaptureFixture) -> None:
    run, qrels = files
    change(run, qrels)
    with pytest.raises(MAWError, match=message):
        assess_run(run, qrels=qrels)
    assert main(["evaluate", "--run", str(run), "--qrels", str(qrels)]) == 2
    assert capsys.readouterr().err.startswith("maw: ")


def test_a_file_of_ranks_has_no_scores(tmp_path: Path, files: tuple[Path, Path]) -> None:
    (tmp_path / "run").write_text(RUNS["msmarco"])
    with pytest.raises(
        MAWError, match="run, line 1: the file has ranks but no scores: its order can only be that of --ties rank"
    ):
        assess_run(files[0], qrels=files[1], ties="score")


def test_ms_marco_s_form_is_written_and_comes_back(tmp_path: Path) -> None:
    run = {"q2": {"b": 0.5, "a": 0.5, "c": 7.0}, "q1": {"x": 2.0}}
    write_run(tmp_path / "run.tsv", run, "t", layout="msmarco")
    assert (tmp_path / "run.tsv").read_text() == "q2\tc\t1\nq2\tb\t2\nq2\ta\t3\nq1\tx\t1\n"
    assert read_run(tmp_path / "run.tsv") == {"q2": {"c": -1.0, "b": -2.0, "a": -3.0}, "q1": {"x": -1.0}}
    with pytest.raises(MAWError, match="must be 'trec' or 'msmarco', got 'tsv'"):
        write_run(tmp_path / "run.tsv", run, "t", layout="tsv")  # type: ignore[arg-type]


# The query's own document


def arguments() -> RetrievalDataset:
    """Queries that are documents, as in ArguAna: each would find itself first."""
    texts = {f"a{n}": f"The argument number {n} about rivers" for n in range(6)}
    qrels = {"test": {"a0": {"a1": 1}, "a2": {"a3": 1}}}
    return RetrievalDataset.from_parts("arguments", texts, texts, qrels, drop_own=True)


def test_own_documents_are_dropped_from_dense_rankings_and_bm25() -> None:
    data, model = arguments(), encoder()
    queries, _ = data.evaluation_split("test")
    dropped = dense_rankings(model, data, ["test"], k=3)["test"]
    kept = dense_rankings(model, replace(data, drop_own=False), ["test"], k=4)["test"]
    for query in queries:
        assert query in kept[query]
        assert dropped[query] == {name: score for name, score in kept[query].items() if name != query}
        assert len(dropped[query]) == 3
    with_own = bm25_run(data.documents, queries, 3)
    without = bm25_run(data.documents, queries, 3, drop_own=True)
    for query in queries:
        assert query in with_own[query]
        assert query not in without[query]
        assert len(without[query]) == 3
    assert assess_model(model, data, "test").evaluation.means["MRR@10"] >= 1 / 5


def test_without_own_keeps_k_whether_it_was_there_or_not() -> None:
    run = {"a": {"a": 3.0, "b": 2.0, "c": 1.0}, "b": {"x": 3.0, "y": 2.0, "z": 1.0}}
    assert without_own(run, 2) == {"a": {"b": 2.0, "c": 1.0}, "b": {"x": 3.0, "y": 2.0}}
    assert without_own(run) == {"a": {"b": 2.0, "c": 1.0}, "b": run["b"]}


# As typed


def test_a_run_as_typed(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run, qrels = (str(path) for path in files)
    given = ["evaluate", "--run", run, "--qrels", qrels, "--measures", "nDCG@10, R(rel=2)@1000"]
    assert main([*given, "--per-query", str(tmp_path / "values.tsv")]) == 0
    said = capsys.readouterr().out.splitlines()
    evaluation = assess_run(*files[:1], qrels=files[1], measures=["nDCG@10", "R(rel=2)@1000"]).evaluation
    assert said[:2] == [f"{name:8} {value:.5f}" for name, value in evaluation.means.items()]
    rows = [row.split("\t") for row in (tmp_path / "values.tsv").read_text().splitlines()]
    assert rows[0] == ["query-id", "nDCG@10", "R(rel=2)@1000"]
    assert {row[0]: float(row[1]) for row in rows[1:]} == evaluation.per_query["nDCG@10"]
    assert main([*given, "--ties", "score"]) == 0
    assert capsys.readouterr().out.splitlines()[0] != said[0]
    assert main([*given, "--relevant-grade", "2", "--drop-own"]) == 0


def test_a_model_as_typed(beir: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    model = encoder()
    monkeypatch.setattr("maw.retrieval.models.load_encoder", lambda *_, **__: model)
    given = ["evaluate", "model", "--dataset", f"beir:{beir}", "--device", "cpu", "--run", str(tmp_path / "out.tsv")]
    assert main([*given, "--run-format", "msmarco", "--per-query", str(tmp_path / "values.tsv")]) == 0
    said = capsys.readouterr().out
    assert "3 documents" in said
    assert "MRR(rel=2)@10" in said  # the only split is dl19, which is then the default
    assert len((tmp_path / "out.tsv").read_text().splitlines()) == 2 * 3
    again = ["evaluate", "--run", str(tmp_path / "out.tsv"), "--dataset", f"beir:{beir}"]
    assert main(again) == 0
    figures = [line for line in said.splitlines() if line.startswith(("nDCG", "MRR", "R(", "AP"))]
    assert [line for line in capsys.readouterr().out.splitlines() if line in figures] == figures


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "wanted a model to evaluate, or a run file"),
        (["packaged", "--qrels", "x"], "--qrels judges a run file"),
        (["--run", "run"], "a run needs judgements: give --qrels FILE, or --dataset"),
        (["packaged", "--msmarco", "--dataset", "pydocs"], "--msmarco is --dataset msmarco, but --dataset pydocs"),
        (["packaged", "--dataset", "beir:toy", "--split", "test"], "wanted the split 'test', but the splits are dl19"),
        (["--run", "run", "--qrels", "qrels", "--measures", "Foo@3"], "there is no measure 'Foo@3'"),
        (["--run", "run", "--qrels", "qrels", "--per-query", "no/x.tsv"], "needs a folder that exists"),
    ],
)
def test_what_does_not_go_together_is_refused(files, beir, given, message, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *given]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--measures", "nDCG@10,Foo@3"], "there is no measure 'Foo@3'"),
        (
            ["--measures", "alpha_nDCG@10"],
            "no installed program computes the measure alpha_nDCG@10: to have one: pip install",
        ),
        (["--measures", " , "], "name one or more measures, got none"),
        (["--relevant-grade", "0"], "must be at least 1, got 0"),
        (["--run", "no/run"], "the run file needs a folder that exists, got 'no/run'"),
        (["--run", "."], "the run must go into a file, got the folder '.'"),
        (["--per-query", "no/x.tsv"], "values per query needs a folder that exists, got 'no/x.tsv'"),
        (["--per-query", "."], "the values per query must go into a file, got the folder '.'"),
    ],
)
def test_what_is_wrong_is_said_before_the_data_are_read(given, message, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("maw.retrieval.data.loading.load_dataset", lambda *_, **__: pytest.fail("data were read"))
    assert main(["evaluate", "packaged", "--dataset", "beir:toy", *given]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_ids_that_no_run_file_can_hold_are_refused_before_anything_is_ranked(
    beir: Path, capsys, monkeypatch, tmp_path
) -> None:
    corpus = (beir / "corpus.jsonl").read_text()
    (beir / "corpus.jsonl").write_text(corpus + '{"_id": "d 9", "title": "", "text": "A blank in the id"}\n')
    monkeypatch.setattr("maw.retrieval.models.load_encoder", lambda *_, **__: encoder())
    monkeypatch.setattr("maw.retrieval.ranking.dense.dense_runs", lambda *_, **__: pytest.fail("texts were ranked"))
    given = ["evaluate", "packaged", "--dataset", f"beir:{beir}", "--device", "cpu"]
    assert main([*given, "--run", str(tmp_path / "run")]) == 2
    assert "a document id must be one word in a run file, got 'd 9'" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr("maw.retrieval.models.load_encoder", lambda *_, **__: encoder())
    assert main(given) == 0, "without a run file any id will do"


def test_a_file_that_cannot_be_written_is_one_line(files, tmp_path: Path, capsys) -> None:
    run, qrels = (str(path) for path in files)
    with small_disk(20):
        status = main(["evaluate", "--run", run, "--qrels", qrels, "--per-query", str(tmp_path / "v.tsv")])
    assert status == 2
    assert "v.tsv could not be written: File too large. What was finished is kept" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["qrels", "run"]
    with small_disk(20), pytest.raises(MAWError, match=r"v\.tsv could not be written"):
        write_per_query(tmp_path / "v.tsv", evaluate({"q": {"a": 1}}, {"q": {"a": 1.0}}))


# Published runs: TREC Deep Learning 2019 and 2020, passages, official judgements, the files as they are

PUBLISHED = {
    "dl19": {"bm25": 0.5058, "tasb": 0.7210, "splade": 0.7308, "repllama": 0.7439, "ada2": 0.7035},
    "dl20": {"bm25": 0.4796, "tasb": 0.6854, "splade": 0.7197, "repllama": 0.7205, "ada2": 0.6759},
}
BY_SCORE = {"dl19": 0.7384, "dl20": 0.7195}


@pytest.mark.parametrize("track", PUBLISHED)
def test_published_runs_as_typed(track: str, capsys: pytest.CaptureFixture) -> None:
    root = os.environ.get("MAW_DATA")
    if not root or not (Path(root) / "msmarco-passage-pool").is_dir():
        pytest.skip("MAW_DATA has no msmarco-passage-pool: name the folder that holds it")
    pool = Path(root) / "msmarco-passage-pool"

    def ndcg(system: str, *more: str) -> float:
        run, qrels = pool / "runs" / f"{track}-{system}-top100.tsv", pool / "qrels_official" / f"{track}.tsv"
        assert main(["evaluate", "--run", str(run), "--qrels", str(qrels), *more]) == 0
        said.append(capsys.readouterr().out)
        return round(float(said[-1].partition("nDCG@10")[2].split()[0]), 4)

    said: list[str] = []
    assert {system: ndcg(system) for system in PUBLISHED[track]} == PUBLISHED[track]
    assert ndcg("repllama", "--ties", "score") == BY_SCORE[track]  # its scores were rounded to three digits
    # with the pool as the collection: all of the run is in it, not all that was judged; binary measures from grade 2
    assert ndcg("bm25", "--dataset", f"beir:{pool}", "--split", track) == PUBLISHED[track]["bm25"]
    assert "judgements name documents that beir:" in said[-1]
    assert "R(rel=2)@1000" in said[-1]
