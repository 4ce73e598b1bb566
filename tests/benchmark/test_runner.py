"""The benchmark as typed: a whole run on a toy, resumed, refused, and its folder."""

from __future__ import annotations

import dataclasses
import doctest
import json
import shutil
from dataclasses import replace

import growing
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer

from maw.benchmark import results, states
from maw.benchmark.comparison import compare, correct
from maw.benchmark.plan import Benchmark, planned_runs
from maw.benchmark.runner import Runner
from maw.benchmark.tables import result_tables
from maw.cli import main
from maw.errors import MAWError
from maw.io.json import sealed

SMALL = ["--batch-size", "5", "--epochs", "1", "--max-length", "16", "--device", "cpu", "--maw-depth-dim", "8"]


def arguments(tiny_model, toy_data, output, *more):
    given = ["benchmark", "--dataset", f"beir:{toy_data}", "--model", str(tiny_model), "--output", str(output)]
    return [*given, *SMALL, *more]


@pytest.fixture(scope="module")
def finished(tiny_model, toy_data, tmp_path_factory):
    output = tmp_path_factory.mktemp("results") / "toy"
    names = "bm25,untuned,dense-lora,dense-full,maw-lora,maw-full,literal"
    with growing.report_at_the_end():
        assert main(arguments(tiny_model, toy_data, output, "--variants", names, "--seeds", "2")) == 0
    return output


def test_the_output_folder_is_whole(finished):
    results = json.loads((finished / "results.json").read_text())
    assert results["schema"] == 1
    assert results["finished"]
    variants = [(row["variant"], row["seed"]) for row in results["rows"]]
    assert len(variants) == len(set(variants)) == 2 + 2 * 5
    for row in results["rows"]:
        assert set(row["metrics"]) == {"nDCG@10", "MRR@10", "R@100", "R@1000", "AP"}
        assert row["split"] == "test"
        assert row["peak_bytes"] > 0
        assert row["seconds"] > 0
        assert row["device"] == "cpu"
        assert results["environments"][row["environment"]]["torch"]
        tuned = {
            "training": [row["seed"]],
            "order": row["seed"],
            "positives": row["seed"],
            "dev_documents": row["seed"],
        }
        tuned |= {"lora": row["seed"]} if row["variant"].endswith("lora") else {}
        tuned |= {"maw": row["seed"]} if row["variant"].startswith(("maw", "literal")) else {}
        assert row["seeds"] == ({} if row["variant"] in ("bm25", "untuned") else tuned)
    by_name = {row["variant"]: row for row in results["rows"]}
    assert by_name["maw-full"]["total_parameters"] > by_name["dense-full"]["total_parameters"]
    assert by_name["bm25"]["metrics"]["nDCG@10"] == 1
    assert {(one["variant"], one["baseline"]) for one in results["comparisons"]} == {
        ("maw-lora", "dense-lora"),
        ("maw-full", "dense-full"),
        ("literal", "dense-full"),
    }
    for one in results["comparisons"]:
        assert one["queries"] == 6
        assert one["seeds"] == 2
        assert one["p_value_corrected"] >= one["p_value"]
        assert one["verdict"] in ("better", "worse", "no difference shown")
    assert "maw-full" in results["verdict"]
    assert results["data"]
    assert results["environment"]["torch"]
    assert results["environment"] == results["environments"][0]
    assert results["mixture"] is None
    names = {file.name for file in (finished / "runs").iterdir()}
    assert {"bm25-test.trec", "maw-full-seed1-test.trec"} <= names
    assert len((finished / "runs" / "maw-full-seed0-test.trec").read_text().splitlines()) == 6 * 20
    table = pq.read_table(finished / "per_query.parquet")
    assert table.num_rows == 12 * 6
    assert set(table.column_names) == {"variant", "seed", "split", "query_id", *results["rows"][0]["metrics"]}
    assert "maw-full" in (finished / "report.html").read_text()


def test_findings_and_the_selectors_statistics_are_kept_with_the_rows(finished):
    results = json.loads((finished / "results.json").read_text())
    untuned = next(row["metrics"]["nDCG@10"] for row in results["rows"] if row["variant"] == "untuned")
    for row in results["rows"]:
        names = [finding["name"] for finding in row["findings"]]
        assert ("below untuned" in names) == row["below_untuned"]
        assert ("constant reward" in names) == (row["variant"] == "literal"), names
        assert row["below_untuned"] == (row["seed"] is not None and row["metrics"]["nDCG@10"] < untuned)
        assert (row["selector"] is not None) == (row["variant"] in ("maw-lora", "maw-full", "literal"))
    assert "Alarm for literal: constant reward" in results["verdict"]


def test_a_model_that_fell_below_its_untuned_row_is_an_alarm(tiny_model, toy_data, tmp_path, capsys):
    output = tmp_path / "ruined"
    names = ["--variants", "dense-full", "--learning-rate", "3"]
    assert main(arguments(tiny_model, toy_data, output, *names)) == 0
    row = json.loads((output / "results.json").read_text())["rows"][-1]
    assert [(found["name"], found["level"]) for found in row["findings"]] == [("below untuned", "alarm")]
    assert "Alarm for dense-full: below untuned." in capsys.readouterr().out


def test_saved_models_load_and_carry_a_card(finished):
    for name in ("maw-full-seed0", "maw-lora-seed1", "dense-lora-seed0"):
        folder = finished / "models" / name
        vector = SentenceTransformer(str(folder), device="cpu").encode("a river")
        assert vector.shape == (48,)
        card = (folder / "README.md").read_text()
        assert "nDCG@10" in card
        assert ("auxiliary_weight" in card) == name.startswith("maw")
    assert not list((finished / "training").rglob("checkpoint-*"))


def test_a_saved_model_ranks_as_its_run_file_says(finished, toy_data, tmp_path):
    run = tmp_path / "again.trec"
    folder = finished / "models" / "maw-lora-seed1"
    assert main(["evaluate", str(folder), "--dataset", f"beir:{toy_data}", "--device", "cpu", "--run", str(run)]) == 0
    again = [line.split()[:4] for line in run.read_text().splitlines()]
    assert again == [
        line.split()[:4] for line in (finished / "runs" / "maw-lora-seed1-test.trec").read_text().splitlines()
    ]


def test_the_same_command_does_nothing_twice_and_goes_on_where_a_run_is_missing(finished, tiny_model, toy_data, capsys):
    state = finished / "state" / "maw-full-seed0.json"
    before = json.loads(state.read_text())
    other = (finished / "state" / "dense-full-seed0.json").stat().st_mtime_ns
    state.unlink()
    assert (
        main(arguments(tiny_model, toy_data, finished, "--variants", "maw-full,bm25,maw-lora,literal", "--seeds", "2"))
        == 0
    )
    assert "to do on cpu: maw-full-seed0\n" in capsys.readouterr().out
    after = json.loads(state.read_text())
    assert after["per_query"] == before["per_query"], "the same seed gives the same model"
    assert (finished / "state" / "dense-full-seed0.json").stat().st_mtime_ns == other


def test_a_folder_of_another_benchmark_is_refused(finished, tiny_model, toy_data, capsys):
    assert main(arguments(tiny_model, toy_data, finished, "--learning-rate", "1e-3")) == 2
    assert "holds a benchmark with other training" in capsys.readouterr().err
    assert (finished / "results.json").is_file()


def test_runs_of_another_environment_are_marked_and_another_kind_of_device_is_refused(tmp_path, tiny_model, toy_data):
    benchmark = Benchmark(
        dataset=f"beir:{toy_data}", model=str(tiny_model), variants=("bm25",), preset="full", output=tmp_path / "b"
    )
    assert Runner(benchmark).go()["mixture"] is None
    state = tmp_path / "b" / "state" / "bm25.json"
    changed = json.loads(state.read_text())
    changed["environment"]["torch"] = "2.0"
    state.write_text(json.dumps(sealed(changed)))
    results = Runner(benchmark).go()
    assert results["mixture"].startswith("These runs were made in environments that differ in torch (2.0, ")
    assert results["verdict"].startswith(results["mixture"])
    assert sorted(row["environment"] for row in results["rows"]) == [0, 1]
    assert results["mixture"] in (tmp_path / "b" / "report.html").read_text()
    marker = tmp_path / "b" / "benchmark.json"
    marker.write_text(json.dumps(sealed({**json.loads(marker.read_text()), "device": "cuda"})))
    with pytest.raises(MAWError, match="holds a benchmark with other device"):
        Runner(benchmark)


def rows_of(output):
    return [(row["variant"], row["seed"]) for row in json.loads((output / "results.json").read_text())["rows"]]


def test_fewer_variants_and_seeds_in_the_same_folder_keep_what_is_finished(finished, tiny_model, toy_data, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(finished, output)
    whole = json.loads((output / "results.json").read_text())
    assert whole["earlier"] == []
    table = pq.read_table(output / "per_query.parquet")
    assert main(arguments(tiny_model, toy_data, output, "--variants", "untuned")) == 0
    fewer = json.loads((output / "results.json").read_text())
    for name in ("rows", "comparisons", "depth_usage", "verdict", "seconds"):
        assert fewer[name] == whole[name], name
    assert pq.read_table(output / "per_query.parquet").equals(table)
    seeds = [f"{name}-seed{seed}" for seed in (0, 1) for name in ("dense-lora", "dense-full", "maw-lora", "maw-full")]
    seeds[4:4], seeds[9:] = ["literal-seed0"], ["literal-seed1"]
    assert fewer["earlier"] == ["bm25", *seeds]
    assert fewer["settings"]["seeds"] == 2
    assert set(fewer["settings"]["variants"]) == {variant for variant, _ in rows_of(finished)}
    assert "did not ask for: bm25, dense-lora-seed0" in (output / "report.html").read_text()


def test_more_and_then_other_variants_in_one_folder_are_rows_in_the_tables_order(
    tiny_model, toy_data, tmp_path, capsys
):
    output = tmp_path / "grown"
    assert main(arguments(tiny_model, toy_data, output, "--variants", "dense-full", "--seeds", "2")) == 0
    assert "finished earlier" not in capsys.readouterr().out
    assert main(arguments(tiny_model, toy_data, output, "--variants", "bm25")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not asked for now, and kept in the results: dense-full-seed0, dense-full-seed1" in said
    assert rows_of(output) == [("bm25", None), ("untuned", None), ("dense-full", 0), ("dense-full", 1)]
    assert main(arguments(tiny_model, toy_data, output, "--variants", "maw-full", "--dry-run", "--json")) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert plan["runs"] == ["maw-full-seed0"]
    assert plan["finished"] == ["untuned", "dense-full-seed0"]
    assert plan["earlier"] == ["bm25", "dense-full-seed1"]
    assert main(arguments(tiny_model, toy_data, output, "--variants", "maw-full")) == 0
    expected = [("bm25", None), ("untuned", None), ("dense-full", 0), ("maw-full", 0), ("dense-full", 1)]
    assert rows_of(output) == expected
    [compared] = json.loads((output / "results.json").read_text())["comparisons"]
    assert compared["seeds"] == 1


def test_a_finished_run_of_a_variant_that_is_not_known_is_refused(tiny_model, toy_data, tmp_path, capsys):
    output = tmp_path / "new"
    assert main(arguments(tiny_model, toy_data, output, "--variants", "bm25")) == 0
    shutil.copy(output / "state" / "bm25.json", output / "state" / "maw-next-seed0.json")
    capsys.readouterr()
    assert main(arguments(tiny_model, toy_data, output, "--variants", "bm25")) == 2
    assert "named after a run of bm25, untuned" in " ".join(capsys.readouterr().err.split())


def test_another_encoder_with_the_same_weights_is_refused(tmp_path, tiny_model, toy_data):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    benchmark = Benchmark(
        dataset=f"beir:{toy_data}", model=str(model), variants=("bm25",), preset="full", output=tmp_path / "b"
    )
    Runner(benchmark).go()
    assert not Runner(benchmark).pending()
    more = replace(benchmark, variants=("bm25", "maw-full"))
    assert len(Runner(more).pending()) == 2, "what is known of the encoder does not depend on the variants"
    pooling = model / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"pooling_mode": "cls"}))
    with pytest.raises(MAWError, match="holds a benchmark with other encoder:"):
        Runner(benchmark)


def test_dry_run_shows_the_plan_and_trains_nothing(tiny_model, toy_data, tmp_path, capsys):
    assert main(arguments(tiny_model, toy_data, tmp_path / "dry", "--dry-run", "--variants", "maw-full")) == 0
    out = capsys.readouterr().out
    assert "untuned, dense-full-seed0, maw-full-seed0" in out.replace("\n", " ")
    assert "estimated time" in out
    assert not (tmp_path / "dry").exists()


def test_splits_that_are_others_together_are_not_reported_and_trec_dl_counts_from_grade_2(
    tiny_model, toy_data, tmp_path, capsys
):
    """A folder like the MS MARCO pool: dl19 and dl20, both of them as test, dev, and no train."""
    folder = tmp_path / "pool"
    shutil.copytree(toy_data, folder)
    (folder / "qrels" / "train.tsv").unlink()
    rows = {name: [f"q{i}\td{i}\t3" for i in ids] for name, ids in (("dl19", range(4)), ("dl20", range(4, 8)))}
    rows["dl19"].append("q0\td1\t1")
    for name, lines in (rows | {"test": rows["dl19"] + rows["dl20"], "held": ["q8\td8\t1", "q9\td9\t2"]}).items():
        (folder / "qrels" / f"{name}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    assert main(arguments(tiny_model, folder, tmp_path / "out", "--variants", "bm25,untuned")) == 0
    said = capsys.readouterr().out
    assert "test is dl19 and dl20 together" in said
    assert "dl20 (grade 2)" in said
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["split"] for row in results["rows"]} == {"dl19", "dl20", "held"}
    assert results["dataset"]["counts"]["unions"] == {"test": ["dl19", "dl20"]}
    own = next(row["metrics"] for row in results["rows"] if row["split"] == "dl19")
    assert set(own) == {"nDCG@10", *(f"{name}(rel=2){cut}" for name, cut in CUTS)}
    table = pq.read_table(tmp_path / "out" / "per_query.parquet")
    assert table.num_rows == 2 * (8 + 2)
    assert {"MRR(rel=2)@10", "MRR@10"} < set(table.column_names)
    assert table["MRR@10"].null_count == table.num_rows - 2 * 2


def test_the_examples_run():
    assert doctest.testmod(results).failed == 0
    assert doctest.testmod(states).failed == 0


CUTS = (("MRR", "@10"), ("R", "@100"), ("R", "@1000"), ("AP", ""))


def test_a_killed_benchmark_keeps_what_was_finished(tiny_model, toy_data, tmp_path, monkeypatch, capsys):
    from maw.benchmark import tuning

    def killed(*given, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "train", killed)
        assert main(arguments(tiny_model, toy_data, tmp_path / "k", "--variants", "dense-full")) == 130
    assert "the same command goes on" in capsys.readouterr().err
    results = json.loads((tmp_path / "k" / "results.json").read_text())
    assert not results["finished"]
    assert [row["variant"] for row in results["rows"]] == ["untuned"]
    assert "untuned" in (tmp_path / "k" / "report.html").read_text()
    assert main(arguments(tiny_model, toy_data, tmp_path / "k", "--variants", "dense-full")) == 0
    assert json.loads((tmp_path / "k" / "results.json").read_text())["finished"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--variants", "maw-huge"], "variants must be among bm25"),
        (["--dataset", "wikipedia"], "got 'wikipedia'"),
        (["--dataset", "beir:/no/such/folder"], "/no/such/folder"),
        (["--maw-layer-indices", "7"], "2 layers, -2 to 1 are possible, got 7"),
        (["--maw-layer-indices", "last"], "integers with commas, or all"),
        (["--maw-num-heads", "8"], "--maw-num-heads is 8 but the encoder has 12 heads"),
        (["--maw-settings", '{"tau": 0}'], "tau must be a finite number above 0"),
        (["--maw-settings", "tau"], "must be a JSON object"),
        (["--model", "/no/such/model"], "neither a model folder"),
        (["--max-length", "5000"], "this model takes 1 to 512 tokens"),
        (["--seeds", "0"], "seeds must be at least 1"),
        (["--batch-size", "11"], "10 training pairs, fewer than one batch of 11"),
        (["--device", "tpu"], "device must be auto, cpu, cuda or mps"),
        (["--device", "cpu:x"], "one of several such as cuda:1, got 'cpu:x': give a whole number"),
    ],
)
def test_bad_input_is_a_message_and_status_2(tiny_model, toy_data, tmp_path, capsys, more, words):
    given = arguments(tiny_model, toy_data, tmp_path / "out", "--variants", "maw-full")
    names = {name for name in more if name.startswith("--")}
    kept = [x for i, x in enumerate(given) if x not in names and (i == 0 or given[i - 1] not in names)]
    assert main([*kept, *more]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_or_is_not_ours(tiny_model, toy_data, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(arguments(tiny_model, toy_data, tmp_path / "file" / "results")) == 2
    assert "cannot write to the output folder" in capsys.readouterr().err
    assert main(arguments(tiny_model, toy_data, tmp_path)) == 2
    assert "not empty and not a benchmark's folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("kind", "name"), [("query", "q14"), ("document", "d3")])
def test_ids_that_no_run_file_can_hold_are_refused_before_the_first_run(
    tiny_model, toy_data, tmp_path, capsys, kind, name
):
    folder = tmp_path / "data"
    shutil.copytree(toy_data, folder)
    for file in folder.rglob("*.*"):
        file.write_text(file.read_text().replace(f'"{name}"', f'"{name} x"').replace(f"{name}\t", f"{name} x\t"))
    assert main(arguments(tiny_model, folder, tmp_path / "out", "--variants", "bm25")) == 2
    assert f"a {kind} id must be one word in a run file, got '{name} x'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_folder_without_weights(tmp_path, toy_data, tiny_model, capsys):
    (tmp_path / "empty").mkdir()
    assert main(arguments(tmp_path / "empty", toy_data, tmp_path / "out")) == 2
    assert "holds no weights" in capsys.readouterr().err


@pytest.mark.parametrize("left", [0, 100, -10])
def test_a_model_folder_with_damaged_weights(tmp_path, toy_data, tiny_model, capsys, left):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:left])
    assert main(arguments(folder, toy_data, tmp_path / "out")) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"wanted whole weights, but {weights} cannot be read" in said
    assert "copy or save the model again" in said


def test_the_table_says_the_time_of_one_run_as_the_report_does():
    rows = [
        {"variant": "dense-full", "seed": seed, "split": split, "metrics": {"AP": 0.5}, "seconds": seconds}
        | {"trainable_parameters": 3, "total_parameters": 3, "peak_bytes": 0, "findings": []}
        for split in ("dl19", "dl20")
        for seed, seconds in enumerate((10.0, 20.0, 60.0))
    ]
    table = results.results_table(rows, ["AP"])
    [times] = [column for column in table.columns if column.header == "time a run"]
    assert list(times.cells) == ["30 s", ""]
    for found in result_tables({"dataset": {"name": "toy"}, "rows": rows}, {}):
        assert [line["seconds"] for line in found["lines"]] == [30.0]


@pytest.mark.parametrize(
    ("p_value", "words"),
    [(1.0, "p = 1.0000,"), (0.0496, "p = 0.0496,"), (0.0001, "p = 0.0001,"), (4e-5, "p < 0.0001,")],
)
def test_a_corrected_p_value_is_never_said_to_be_zero(p_value, words):
    one = correct([compare("maw-full", "dense-full", [0.5, 0.7, 0.6], [0.4, 0.6, 0.6], "AP")])[0]
    said = results.verdict([dataclasses.replace(one, p_value_corrected=p_value)])
    assert f"corrected {words}" in said


def test_a_run_always_brings_its_twin_and_the_untuned_row():
    runs = planned_runs(Benchmark(variants=("maw-lora",), seeds=2))
    assert [run.name for run in runs] == [
        "untuned",
        "dense-lora-seed0",
        "maw-lora-seed0",
        "dense-lora-seed1",
        "maw-lora-seed1",
    ]
    with pytest.raises(MAWError, match="preset"):
        Benchmark(preset="medium")


def test_rows_below_the_untuned_row_are_marked():
    from maw.benchmark.results import mark_below_untuned

    def row(variant, value):
        return {"variant": variant, "split": "test", "metrics": {"nDCG@10": value}}

    marked = mark_below_untuned(
        [row("bm25", 0.1), row("untuned", 0.5), row("literal", 0.4), row("maw-full", 0.5)], "nDCG@10"
    )
    assert [one["below_untuned"] for one in marked] == [False, False, True, False]


def test_train_saves_a_model_that_loads_and_overwrites_nothing(tiny_model, toy_data, tmp_path, capsys):
    output = tmp_path / "model"
    given = ["train", "--variant", "maw-lora", "--dataset", f"beir:{toy_data}", "--model", str(tiny_model)]
    given += ["--output", str(output), *SMALL]
    assert main(given) == 0
    assert SentenceTransformer(str(output), device="cpu").encode("a river").shape == (48,)
    assert main(given) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert main([*given[:2], "bm25", *given[3 : -len(SMALL) - 1], str(tmp_path / "other"), *SMALL]) == 2
    assert "bm25 is not trained" in capsys.readouterr().err


def test_the_runner_needs_no_terminal(tiny_model, toy_data, tmp_path):
    benchmark = Benchmark(
        dataset=f"beir:{toy_data}", model=str(tiny_model), variants=("bm25",), preset="full", output=tmp_path / "api"
    )
    results = Runner(benchmark).go()
    assert [row["variant"] for row in results["rows"]] == ["bm25", "untuned"]
    assert results["verdict"].startswith("No MAW variant")
