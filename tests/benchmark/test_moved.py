"""Queries that moved: what is kept of them is what the run files, the judgements and the values say."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maw.benchmark import moved
from maw.benchmark.intervals import mean_intervals
from maw.benchmark.moved import write_moved
from maw.benchmark.per_query import Pair, pair, read_per_query
from maw.benchmark.statistics import bootstrap_interval
from maw.errors import MAWError
from maw.retrieval.data.loading import load_dataset
from maw.retrieval.ranking.runs import ranked, read_run


def test_kept_texts_are_those_of_the_rankings(small_benchmark):
    folder, dataset = small_benchmark.output, load_dataset(small_benchmark.dataset)
    kept = json.loads((folder / "moved.json").read_text())
    assert [(one["variant"], one["baseline"], one["split"]) for one in kept["comparisons"]] == [
        ("maw-full", "dense-full", "held"),
        ("maw-full", "dense-full", "test"),
    ]
    for one in kept["comparisons"]:
        split = one["split"]
        runs = [ranked(read_run(folder / "runs" / f"{name}-seed0-{split}.trec")) for name in ("dense-full", "maw-full")]
        assert 0 < len(one["queries"]) <= 10
        for query in one["queries"]:
            name = query["query_id"]
            assert query["text"] == dataset.queries[name]
            assert query["seed"] == 0
            assert [list(query[side]["top"]) for side in ("before", "after")] == [run[name][:3] for run in runs]
            (relevant,) = query["relevant"]
            assert {relevant["id"]: relevant["grade"]} == dataset.judgements(split)[name]
            assert relevant["ranks"] == [run[name].index(relevant["id"]) + 1 for run in runs]
            for document in (relevant["id"], *query["before"]["top"]):
                assert kept["documents"][document] == f"{dataset.documents[document][:320]}…"


def test_they_are_those_that_moved_most(small_benchmark):
    folder = small_benchmark.output
    table = pq.read_table(folder / "per_query.parquet").to_pylist()
    values = {
        variant: {
            row["query_id"]: row["nDCG@10"] for row in table if (row["variant"], row["split"]) == (variant, "test")
        }
        for variant in ("dense-full", "maw-full")
    }
    moves = {query: values["maw-full"][query] - values["dense-full"][query] for query in values["maw-full"]}
    entry = json.loads((folder / "moved.json").read_text())["comparisons"][1]
    shown = {one["query_id"]: one["after"]["mean"] - one["before"]["mean"] for one in entry["queries"]}
    assert shown == pytest.approx({query: moves[query] for query in shown})
    ordered = sorted(moves.values())
    wanted = [move for move in ordered[:5] if move < 0] + [move for move in ordered[-5:] if move > 0]
    assert sorted(shown.values()) == pytest.approx(wanted)


def test_without_run_files_the_texts_remain(small_benchmark, tmp_path):
    folder = shutil.copytree(small_benchmark.output, tmp_path / "out", ignore=shutil.ignore_patterns("models", "runs"))
    results = json.loads((folder / "results.json").read_text())
    write_moved(folder, results["comparisons"], load_dataset(small_benchmark.dataset))
    (query, *_) = json.loads((folder / "moved.json").read_text())["comparisons"][0]["queries"]
    assert query["text"]
    assert query["before"]["top"] == {}
    assert query["relevant"][0]["ranks"] == [None, None]


def test_rankings_are_of_a_seed_near_the_mean():
    variant = np.array([[0.5, 0.0, 1.0], [0.9, 1.0, 0.5], [0.1, 0.2, 0.5], [0.4, 0.3, 0.0]])
    one = Pair(np.array(["a", "b", "c"]), (3, 5, 7, 9), variant, np.zeros((4, 3)))
    assert one.moved(2) == ([2, 0], [])
    assert one.typical_rows([0, 1, 2]) == [0, 3, 2]
    assert set(one.typical_rows([0, 1, 2], most=1)) == {2}


def table(tmp_path, **columns):
    path = tmp_path / "per_query.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_values_are_aligned_by_query_and_seed(tmp_path):
    rows = [("a", 1, "q2", 0.2), ("a", 1, "q1", 0.1), ("a", 0, "q1", 0.3), ("a", 0, "q2", 0.4), ("b", 0, "q2", 0.6)]
    rows += [("b", 0, "q1", 0.5), ("b", 1, "q3", 0.9), ("u", None, "q1", 0.7)]
    names, seeds, queries, values = (list(column) for column in zip(*rows, strict=True))
    found = read_per_query(table(tmp_path, variant=names, seed=seeds, split=["s"] * 8, query_id=queries, AP=values))
    assert found["a", "s"].seeds == (0, 1)
    assert found["u", "s"].seeds == (None,)
    assert found["a", "s"].queries.tolist() == ["q1", "q2", "q3"]
    np.testing.assert_equal(found["a", "s"].metrics["AP"], [[0.3, 0.4, np.nan], [0.1, 0.2, np.nan]])
    assert pair(found, "a", "b", "s", "AP") is None, "seed 1 of b has no query in common with seed 0"
    assert pair(found, "a", "u", "s", "AP") is None
    assert pair(found, "a", "nobody", "s", "AP") is None
    own = pair(found, "a", "a", "s", "AP")
    assert own is not None
    assert own.queries.tolist() == ["q1", "q2"]
    assert own.after.tolist() == pytest.approx([0.2, 0.3])


def test_files_of_another_kind_are_refused(tmp_path):
    with pytest.raises(MAWError, match=r"need per_query\.parquet, got .* without one"):
        read_per_query(tmp_path / "per_query.parquet")
    with pytest.raises(MAWError, match="columns variant, seed, split, query_id, got none named seed, split"):
        read_per_query(table(tmp_path, variant=["a"], query_id=["q"]))
    (tmp_path / "per_query.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(MAWError, match="must be a Parquet file"):
        read_per_query(tmp_path / "per_query.parquet")


def test_an_interval_is_the_bootstraps():
    rng = np.random.default_rng(1)
    matrices = [rng.random((seeds, 200)) + rng.normal(0, 0.05, (seeds, 1)) for seeds in (1, 4, 10)]
    for matrix, found in zip(matrices, mean_intervals(matrices, samples=20_000), strict=True):
        assert found == pytest.approx(bootstrap_interval(matrix, samples=20_000, seed=3), abs=0.002)
    assert mean_intervals(matrices, samples=50) == mean_intervals(matrices, samples=50)
    assert mean_intervals([]) == []
    with pytest.raises(MAWError, match="same two or more queries, got 3, 200 queries"):
        mean_intervals([matrices[0], matrices[1][:, :3]])


def test_entries_of_another_form_are_refused(small_benchmark):
    query = json.loads((small_benchmark.output / "moved.json").read_text())["comparisons"][0]["queries"][0]
    moved.check_entry(query)
    for change in ({"text": None}, {"before": {}}, {"relevant": [{}]}, {"seed": "0"}):
        with pytest.raises((KeyError, TypeError)):
            moved.check_entry({**query, **change})
