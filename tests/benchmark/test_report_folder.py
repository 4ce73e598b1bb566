"""The report of a real folder, whole and damaged: what can be shown is shown, and what is missing is said."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import growing
import pytest

from maw.benchmark.folder import read_folder
from maw.benchmark.per_query import read_per_query
from maw.benchmark.report import write_report
from maw.benchmark.runner import Runner
from maw.benchmark.statistics import bootstrap_interval
from maw.benchmark.tables import findings, headline
from maw.cli import main
from maw.errors import MAWError
from maw.io.json import sealed


@pytest.fixture
def folder(small_benchmark, tmp_path):
    return shutil.copytree(
        small_benchmark.output, tmp_path / "out", ignore=shutil.ignore_patterns("models", "training")
    )


def words(folder):
    text = write_report(folder).read_text(encoding="utf-8")
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text))


@pytest.mark.slow
def test_fifty_seeds_of_twelve_variants_are_hardly_more_than_ten(small_benchmark, tmp_path):
    folder = growing.grow(small_benchmark, tmp_path / "out", variants=12, seeds=50)
    results = json.loads((folder / "results.json").read_text())
    assert len(results["rows"]) == (2 + 10 * 50) * 2
    assert len(results["comparisons"]) == 8 * 2
    assert {one["seeds"] for one in results["comparisons"]} == {50}
    assert (folder / "report.html").stat().st_size < 1.5e6
    said = words(folder)
    assert "50 (seeds 0, 1, 2, " in said
    for wanted in (
        "logit-dropout against dense-full, held",
        "Gained most",
        "of more than 10 seeds the band is their range",
    ):
        assert wanted in said
    assert "per_query.parquet" not in said


def test_a_whole_folder_has_everything(folder):
    said = words(folder)
    results = json.loads((folder / "results.json").read_text())
    for wanted in ("Query by query", "Gained most", "Top passages before and after", "Effective depths, queries"):
        assert wanted in said
    assert results["comparisons"][0]["verdict"] in said.lower()
    for missing in ("moved.json", "per_query.parquet", "not recorded in this folder", "There are no training logs"):
        assert missing not in said
    entry = json.loads((folder / "moved.json").read_text())["comparisons"][0]["queries"][0]
    before, after = entry["relevant"][0]["ranks"]
    assert f"rank {before} before, {after} after" in said


def test_the_table_has_the_intervals_of_the_values(folder):
    matrix = read_per_query(folder / "per_query.parquet")["maw-full", "test"].metrics["AP"]
    low, high = bootstrap_interval(matrix)
    found = re.findall(r"\[(0\.\d{4}), (0\.\d{4})\]", words(folder))
    assert any(
        float(one) == pytest.approx(low, abs=0.002) and float(two) == pytest.approx(high, abs=0.002)
        for one, two in found
    )


@pytest.mark.parametrize(
    ("name", "content", "note", "gone"),
    [
        ("per_query.parquet", None, "per-query values need per_query.parquet", "["),
        ("per_query.parquet", b"no", "per_query.parquet was changed after the results were written", "["),
        ("moved.json", None, "There is no moved.json (a benchmark writes it when it is finished", "what has the"),
        ("moved.json", b"{", "moved.json is damaged: it is no JSON", "what has the"),
        ("moved.json", b'{"schema": 9}', "moved.json has schema 9, wanted 1", "what has the"),
        ("moved.json", b'{"schema": 1, "comparisons": [{}]}', "moved.json could not be read (KeyError", "what has the"),
    ],
)
def test_a_damaged_file_leaves_out_its_part(folder, name, content, note, gone):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    said = words(folder)
    assert note in said
    assert "Paired comparisons" in said
    assert "Gained most" in said, "from whichever of both is there"
    if name == "moved.json":
        assert gone not in said


def test_moved_texts_without_values_are_shown_without_a_scatter(folder):
    (folder / "per_query.parquet").unlink()
    text = write_report(folder).read_text(encoding="utf-8")
    assert 'id="plot-scatter-0"' not in text
    assert "what has the" in text


def test_killed_before_the_first_result(folder, capsys):
    (folder / "results.json").unlink()
    assert main(["report", str(folder)]) == 0
    said = words(folder)
    assert "This run is not finished." in said
    assert "Begun without a result yet: dense-full seed 0, maw-full seed 0." in said
    assert "There are no rows yet." in said
    assert "Training loss" in said
    assert json.loads((folder / "benchmark.json").read_text())["command"] in said
    assert json.loads((folder / "benchmark.json").read_text())["encoder"] in said


def test_a_folder_that_is_not_ours_is_refused(tmp_path, capsys):
    (tmp_path / "results.json").write_text('{"accuracy": 0.9}')
    assert main(["report", str(tmp_path)]) == 2
    assert "needs an object with `schema`" in capsys.readouterr().err
    (tmp_path / "results.json").unlink()
    (tmp_path / "benchmark.json").write_text("[]")
    with pytest.raises(MAWError, match="is damaged: wanted an object, got"):
        write_report(tmp_path)


def test_usage_of_another_form_is_left_out(folder):
    results = json.loads((folder / "results.json").read_text())
    (good,) = results["depth_usage"]
    for bad in ("much", [3], [{**good, "variant": 1}], [{**good, "layers": [0]}], [{**good, "query": [["x"]]}]):
        results["depth_usage"] = bad
        (folder / "results.json").write_text(json.dumps(sealed(results)))
        assert read_folder(folder).usage == []
    said = words(folder)
    assert "Usage by kind of input, queries and documents, was not measured in this folder" in said
    assert "Depth usage at the end of training" in said


def test_several_environments_are_a_table(folder):
    results = json.loads((folder / "results.json").read_text())
    results["environments"].append({**results["environments"][0], "torch": "2.0"})
    results["rows"][0]["environment"] = 1
    results["mixture"] = "They differ in torch."
    (folder / "results.json").write_text(json.dumps(sealed(results)))
    said = words(folder)
    assert "They differ in torch." in said
    assert "1 (4 runs)" in said or "1 (3 runs)" in said
    assert "torch differs" in said
    assert "transformers differs" not in said


def comparison(variant, verdict, split="test"):
    return {"variant": variant, "baseline": "dense", "verdict": verdict, "split": split}


def test_the_verdict_names_splits_only_where_they_differ():
    both = [comparison("a", "better", split) for split in ("x", "y")]
    assert headline(both) == "Better than its dense twin: a."
    mixed = [both[0], comparison("a", "no difference shown", "y"), comparison("b", None, "x")]
    assert headline(mixed) == ("Better than its dense twin: a (x). No difference shown: a (y). Not judged yet: b (x).")
    assert headline([]) is None


def test_findings_are_grouped_by_name_alarms_first():
    note = {"name": "uniform hedging", "level": "note", "layer": 0, "seen": "even"}
    alarm = {"name": "below untuned", "level": "alarm", "layer": None, "seen": "0.4"}
    rows = [
        {"variant": "a", "seed": seed, "split": split, "findings": [note, alarm] if seed else [note]}
        for seed in (0, 1)
        for split in ("x", "y")
    ]
    found = findings([*rows, {"variant": "b", "seed": 0, "findings": [alarm, 3, {"level": "alarm"}]}, {"variant": "c"}])
    assert [one["name"] for one in found] == ["below untuned", "uniform hedging"]
    assert [(one["variant"], one["seeds"], one["runs"]) for one in found[0]["places"]] == [("a", 1, 2), ("b", 1, 1)]
    assert [(one["variant"], one["seeds"], one["layer"]) for one in found[1]["places"]] == [("a", 2, 0)]


def edited(path):
    """Another digit somewhere in a file, which keeps its size and stays JSON."""
    text = path.read_text(encoding="utf-8")
    place = re.search(r"0\.\d+", text).end() - 1
    path.write_text(f"{text[:place]}{(int(text[place]) + 1) % 10}{text[place + 1 :]}", encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"results\.json was changed after it was written: .* take the line with .checksum. out"),
        ("[" * 100_000, r"results\.json is damaged: .* inside one another"),
        ('{"schema": 1, "schema": 1}', 'the key "schema" comes twice'),
    ],
)
def test_edited_results_are_refused(folder, capsys, content, said):
    if content is None:
        edited(folder / "results.json")
    else:
        (folder / "results.json").write_text(content)
    assert main(["report", str(folder)]) == 2
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize("name", ["per_query.parquet", "moved.json", "maw-full-seed0.jsonl", "dense-full-seed0.jsonl"])
def test_an_edited_part_is_left_out_of_the_report_which_says_so(folder, name):
    path = folder / name if not name.endswith(".jsonl") else folder / "logs" / name
    if path.suffix == ".parquet":
        data = bytearray(path.read_bytes())
        data[200] ^= 1
        path.write_bytes(data)
    else:
        edited(path)
    assert f"{name} was changed after" in words(folder)


@pytest.mark.parametrize("name", ["benchmark.json", "state/bm25.json", "state/maw-full-seed0.json"])
def test_a_benchmark_does_not_go_on_with_an_edited_file(small_benchmark, tmp_path, name):
    folder = shutil.copytree(small_benchmark.output, tmp_path / "out", ignore=shutil.ignore_patterns("models"))
    path = folder / name
    for content in ("[" * 100_000, "null", "{", path.read_text().replace("0", "1", 1)):
        path.write_text(content)
        with pytest.raises(MAWError, match=rf"{path.name} (is damaged|was changed after it was written)"):
            Runner(replace(small_benchmark, output=folder)).go()


def test_a_benchmark_does_not_go_on_with_edited_rankings(small_benchmark, tmp_path):
    folder = shutil.copytree(small_benchmark.output, tmp_path / "out", ignore=shutil.ignore_patterns("models"))
    edited(folder / "runs" / "bm25-test.trec")
    with pytest.raises(MAWError, match=r"bm25-test\.trec is damaged: .* Delete .*bm25\.json and give the same"):
        Runner(replace(small_benchmark, output=folder)).go()
