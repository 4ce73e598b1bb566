"""Values beside those of ir_measures and trec_eval themselves; what fails is a sentence, before any ranking."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import ir_measures
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import encoder

import maw.retrieval.evaluation.assessment as assessment_module
from maw.cli import main
from maw.errors import MAWError
from maw.retrieval.data.dataset import RetrievalDataset
from maw.retrieval.data.judgements import read_judgements
from maw.retrieval.evaluation.assessment import assess_model, write_per_query
from maw.retrieval.evaluation.development import DevEvaluator
from maw.retrieval.evaluation.measures import evaluate, grade_counted, with_grade
from maw.retrieval.ranking.runs import read_run

WITHOUT_RELEVANT = ({"q1": {"d1": 1}, "q2": {"d2": 0}}, {"q1": {"d1": 2.0}, "q2": {"d2": 1.0}})

QUERIES = st.sampled_from([f"q{n}" for n in range(5)])
DOCUMENTS = st.sampled_from([f"d{n}" for n in range(8)])
JUDGED = st.dictionaries(QUERIES, st.dictionaries(DOCUMENTS, st.integers(-1, 3), min_size=1, max_size=6), min_size=1)
RETRIEVED = st.dictionaries(
    QUERIES, st.dictionaries(DOCUMENTS, st.integers(-3, 3).map(float), min_size=1, max_size=8), min_size=1
)
NAMES = ["AP", "nDCG@3", "RR", "R@2", "P@5", "AP(rel=2)@4", "Bpref", "Judged@3", "Success@1", "SetP", "NumRet", "NumQ"]


def test_a_judged_query_without_a_relevant_document_counts() -> None:
    assert evaluate(*WITHOUT_RELEVANT, ["AP", "MRR@10", "nDCG@10", "R@100"]).means == dict.fromkeys(
        ["AP", "MRR@10", "nDCG@10", "R@100"], 0.5
    )
    whole = pytrec_eval.RelevanceEvaluator(WITHOUT_RELEVANT[0], {"map"}).evaluate(WITHOUT_RELEVANT[1])
    assert sum(values["map"] for values in whole.values()) / len(whole) == 0.5


@given(judged=JUDGED, run=RETRIEVED)
@settings(max_examples=150, deadline=None)
def test_all_values_and_means_are_those_of_ir_measures(judged, run) -> None:
    if not any(grade > 0 for row in judged.values() for grade in row.values()) or not judged.keys() & run.keys():
        return
    ranks = {  # equal scores are ordered as trec_eval does; other programs of ir_measures would not
        query: {
            name: float(-place) for place, name in enumerate(sorted(sorted(row, reverse=True), key=lambda d: -row[d]))
        }
        for query, row in run.items()
    }
    found = evaluate(judged, run, NAMES)
    for name, spelled in zip(NAMES, found.means, strict=True):
        measure = ir_measures.parse_measure(name)
        theirs = ir_measures.calc([measure], judged, ranks)
        assert found.per_query[spelled] == pytest.approx({v.query_id: v.value for v in theirs.per_query}, abs=1e-12)
        assert found.means[spelled] == pytest.approx(theirs.aggregated[measure], abs=1e-12)


def test_the_command_a_model_and_dev_count_it_too(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "qrels").write_text("q1 0 d1 1\nq2 0 d2 0\n")
    (tmp_path / "run").write_text("q1 Q0 d1 1 2.0 t\nq2 Q0 d2 1 1.0 t\n")
    assert (
        main(["evaluate", "--run", str(tmp_path / "run"), "--qrels", str(tmp_path / "qrels"), "--measures", "AP"]) == 0
    )
    said = capsys.readouterr().out
    assert "AP       0.50000" in said
    assert "2 queries judged" in said
    assert "1 of them have no relevant document and count, as in trec_eval -c" in said
    texts = {"d1": "river bank", "d2": "steam engine"}
    asked = {"q1": "river bank", "q2": "an engine", "q3": "river", "q4": "engine"}
    qrels = {"dev": {"q1": {"d1": 1}, "q2": {"d2": 0}}, "test": {"q3": {"d1": 1}, "q4": {"d2": 0}}}
    data, model = RetrievalDataset.from_parts("toy", texts, asked, qrels), encoder()
    found = assess_model(model, data, "test", measures=["R@100"])
    assert found.evaluation.means == {"R@100": 0.5}
    (dev,) = DevEvaluator(data, 2, 0)(model).values()
    assert 0 < dev <= 0.5


# Grades


def test_the_grade_goes_into_measures_that_take_one() -> None:
    assert with_grade(["AP@100", "MRR@10", "nDCG@10", "NumRet"], 2) == (
        "AP(rel=2)@100",
        "MRR(rel=2)@10",
        "nDCG@10",
        "NumRet",
    )
    assert with_grade(["AP(rel=2)@100", "R@5"], 2) == ("AP(rel=2)@100", "R(rel=2)@5")
    with pytest.raises(
        MAWError, match=r"AP\(rel=3\)@100 counts grade 3 or more as relevant, but the grade asked for is 2"
    ):
        with_grade(["AP(rel=3)@100"], 2)
    with pytest.raises(MAWError, match="changes nothing for nDCG@10, which takes the grades as they are"):
        with_grade(["nDCG@10"], 2)
    with pytest.raises(MAWError, match="at least 1, got 0"):
        with_grade(["AP"], 0)
    assert grade_counted(["nDCG@10", "AP(rel=2)", "P@1"]) == {"AP(rel=2)": 2, "P@1": 1}


def test_the_grade_on_a_published_run(capsys: pytest.CaptureFixture) -> None:
    pool = Path(os.environ.get("MAW_DATA", "none")) / "msmarco-passage-pool"
    if not pool.is_dir():
        pytest.skip("MAW_DATA has no msmarco-passage-pool: name the folder that holds it")
    run, qrels = pool / "runs" / "dl19-bm25-top100.tsv", pool / "qrels_official" / "dl19.tsv"
    given = ["evaluate", "--run", str(run), "--qrels", str(qrels), "--measures", "AP@100", "--relevant-grade", "2"]
    assert main([*given, "--json"]) == 0
    judged = read_judgements(qrels, {}, "").grades
    measure = ir_measures.AP(rel=2) @ 100
    theirs = ir_measures.calc_aggregate([measure], judged, read_run(run))
    assert json.loads(capsys.readouterr().out)["measures"] == {"AP(rel=2)@100": pytest.approx(theirs[measure])}


def test_the_grade_and_the_measures_as_typed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "qrels").write_text("q1 0 a 1\nq1 0 b 2\n")
    (tmp_path / "run").write_text("q1 Q0 a 1 2.0 t\nq1 Q0 b 2 1.0 t\n")
    given = ["evaluate", "--run", str(tmp_path / "run"), "--qrels", str(tmp_path / "qrels")]
    assert main([*given, "--measures", "AP@100,nDCG@10", "--relevant-grade", "2"]) == 0
    said = capsys.readouterr().out
    assert "AP(rel=2)@100 0.50000\n" in said
    assert "grades go up to 2; AP(rel=2)@100: grade 2 or more counts as relevant\n" in said
    assert main([*given, "--measures", "AP@100"]) == 0
    assert "AP@100: grade 1 or more counts as relevant (TREC DL passages count 2 or more: --relevant-grade 2)" in (
        capsys.readouterr().out
    )
    assert main([*given, "--measures", "AP", "--relevant-grade", "9"]) == 0
    assert "grades go up to 2; AP(rel=9): grade 9 or more counts as relevant\n" in capsys.readouterr().out
    assert main([*given, "--measures", "nDCG@10", "--relevant-grade", "2"]) == 2
    assert "changes nothing for nDCG@10" in capsys.readouterr().err
    assert main([*given, "--measures", "AP(rel=1)", "--relevant-grade", "2"]) == 2
    assert "leave out one of the two" in capsys.readouterr().err


# Programs of others


@pytest.mark.parametrize("ids", [("1", "2"), ("a1", "b1"), ("2020-1", "2021-1"), ("MED-10", "MED-11"), ("007", "7")])
@pytest.mark.skipif(not ir_measures.gdeval.is_available(), reason="gdeval needs perl: install it")
def test_ids_are_numbered_for_gdeval(ids: tuple[str, str]) -> None:
    first, second = ids
    judged = {first: {"d 1": 1, "d2": 0}, second: {"d3": 2, "d2": 1}}
    run = {first: {"d 1": 2.0, "d2": 1.0}, second: {"d2": 2.0, "d3": 1.0}}
    found = evaluate(judged, run, ["ERR@10", "nDCG(dcg='exp-log2')@3", "AP"])
    assert found.per_query["ERR@10"] == pytest.approx({first: 1 / 16, second: 1 / 16 + 15 / 16 * 3 / 16 / 2}, abs=1e-5)
    gained = (1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3))
    assert found.per_query["nDCG(dcg='exp-log2')@3"] == pytest.approx({first: 1.0, second: gained}, abs=1e-5)


def test_grades_that_gdeval_does_not_take_are_refused_before_anything_is_ranked(monkeypatch) -> None:
    data = RetrievalDataset.from_parts("toy", {"d": "x"}, {"q": "x"}, {"test": {"q": {"d": 5}}})
    monkeypatch.setattr(assessment_module, "dense_rankings", lambda *_, **__: pytest.fail("texts were ranked"))
    with pytest.raises(MAWError, match="gdeval, which takes grades up to 4, got 5 for query 'q' and document 'd'"):
        assess_model(encoder(), data, "test", measures=["AP", "ERR@10"])


def test_accuracy_is_over_queries_with_a_pair_to_order(tmp_path: Path) -> None:
    judged = {"all": {"a": 1, "b": 1}, "one": {"a": 1, "b": 0}, "none": {"a": 0}, "lost": {"a": 1}}
    run = {"all": {"a": 2.0, "b": 1.0}, "one": {"b": 2.0, "a": 1.0, "c": 0.5}, "none": {"a": 1.0}}
    alone = evaluate(judged, run, ["Accuracy@3"])
    assert alone.per_query["Accuracy@3"] == {"one": 0.5}
    beside = evaluate(judged, run, ["AP", "Accuracy@3"])
    assert beside.means["Accuracy@3"] == 0.5, "ir_measures says .125 beside another measure"
    del run["all"]
    theirs = ir_measures.calc([ir_measures.Accuracy @ 3], judged, run)
    assert theirs.aggregated == {ir_measures.Accuracy @ 3: 0.5}
    write_per_query(tmp_path / "values.tsv", beside)
    rows = [line.split("\t") for line in (tmp_path / "values.tsv").read_text().splitlines()]
    assert rows[0] == ["query-id", "AP", "Accuracy@3"]
    assert {row[0]: row[2] for row in rows[1:]} == {"all": "", "one": "0.5", "none": "", "lost": ""}
    with pytest.raises(MAWError, match="the measure Accuracy@3 has a value for none of the 1 judged queries"):
        evaluate({"all": judged["all"]}, {"all": {"a": 2.0, "b": 1.0}}, ["Accuracy@3"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("INST", "INST needs max_rel"),
        ("BPM", r"BPM needs cutoff .*write BPM@10"),
        ("SDCG@3", r"SDCG@3 needs max_rel .*write SDCG\(max_rel=\.\.\.\)"),
        ("NERR10", "NERR10 needs max_rel"),
        ("P", r"P needs cutoff .*write P@10"),
        ("IPrec", r"IPrec needs recall .*write IPrec\(recall=\.\.\.\)"),
        ("P@0", "P@0 cannot have the rank after @ 0, wanted a whole number, 1 or more"),
        ("RR@0", "RR@0 cannot have the rank after @ 0"),
        ("P@1.5", "cannot have the rank after @ 1.5, wanted a whole number"),
        ("P@99999999999999999999", "cannot have the rank"),
        ("AP(rel=0)", r"AP\(rel=0\) cannot have the parameter rel 0, wanted a whole number, 1 or more"),
        ("AP(foo=1)", r"AP\(foo=1\) has no parameter foo: those of AP are: "),
        ("IPrec@2.0", "cannot have the parameter recall 2.0, wanted a number such as 0.5, from 0 to 1"),
        ("Compat(p=0)", "cannot have the parameter p 0, wanted a number such as 0.5"),
        ("ERR", "no installed program computes the measure ERR: check its spelling and parameters"),
        ("alpha_nDCG", r"no installed program computes the measure alpha_nDCG: to have one: pip install ir-measures"),
        ("NumRel(rel=2)", "no installed program computes the measure"),
        ("(" * 500, "there is no measure"),
        ("P@10@5", "there is no measure"),
        ("P(**x)", "."),
        ("", "there is no measure ''"),
    ],
)
def test_what_cannot_be_computed_is_a_sentence(name: str, said: str) -> None:
    with pytest.raises(MAWError, match=said) as caught:
        evaluate({"q": {"a": 1}}, {"q": {"a": 1.0}}, [name])
    assert "\n" not in str(caught.value)
    assert "object at" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(ir_measures.measures.registry))
@pytest.mark.parametrize("form", ["{}", "{}@3"])
def test_every_measure_has_a_value_or_a_sentence(name: str, form: str) -> None:
    judged = {"a1": {"d1": 1, "d2": 1}, "b 2": {"d1": 0}}
    for run in ({"a1": {"d1": 2.0, "d2": 1.0}}, {"a1": {"d3": 1.0, "d1": 0.5}, "b 2": {"d1": 1.0}}):
        with suppress(MAWError):  # any other exception is a failure
            assert all(map(math.isfinite, evaluate(judged, run, [form.format(name)]).means.values()))


@pytest.mark.slow
def test_a_process_that_measures_at_rank_0_ends_with_a_sentence(tmp_path: Path) -> None:
    """trec_eval's library aborts the whole process on it."""
    (tmp_path / "qrels").write_text("q1 0 a 1\n")
    (tmp_path / "run").write_text("q1 Q0 a 1 2.0 t\n")
    done = subprocess.run(
        [sys.executable, "-m", "maw", "evaluate", "--run", "run", "--qrels", "qrels", "--measures", "P@0"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "maw: the measure P@0 cannot have the rank after @ 0, wanted a whole number, 1 or more "
        "(ranking cutoff threshold)\n"
    )


# trec_eval's single precision

NEAR = st.tuples(
    st.sampled_from([0.0, 1.0, 28.1234567, -3.3, 1e-40, 1e39, 3.4e38, 16777217.0]), st.integers(-3, 3)
).map(lambda pair: pair[0] * (1 + pair[1] * 2e-8))


@given(scores=st.lists(NEAR, min_size=2, max_size=8), grades=st.lists(st.integers(0, 2), min_size=8, max_size=8))
@settings(max_examples=200, deadline=None)
def test_scores_of_files_tie_where_trec_eval_ties_them(tmp_path_factory, scores, grades) -> None:
    path = tmp_path_factory.mktemp("ties") / "run"
    names = [f"d{n}" for n in range(len(scores))]
    path.write_text("".join(f"q Q0 {name} 1 {score!r} t\n" for name, score in zip(names, scores, strict=True)))
    judged = {"q": {"d0": 1} | dict(zip(names, grades, strict=False))}
    if not any(judged["q"].values()):
        judged["q"]["d0"] = 1
    names_of = {"ndcg": "nDCG", "map": "AP", "recip_rank": "MRR"}
    given = {"q": dict(zip(names, scores, strict=True))}
    theirs = pytrec_eval.RelevanceEvaluator(judged, set(names_of)).evaluate(given)["q"]
    ours = evaluate(judged, read_run(path, ties="score"), list(names_of.values())).means
    assert ours == pytest.approx({names_of[name]: value for name, value in theirs.items()}, abs=1e-9)


def test_near_ties_as_typed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "qrels").write_text("q 0 a 1\n")
    (tmp_path / "run").write_text("q Q0 a 1 28.12345678 t\nq Q0 b 2 28.12345670 t\n")
    given = ["evaluate", "--run", str(tmp_path / "run"), "--qrels", str(tmp_path / "qrels"), "--measures", "RR"]
    for ties, value in (("score", 0.5), ("rank", 1.0)):
        assert main([*given, "--ties", ties, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["measures"] == {"MRR": value}
