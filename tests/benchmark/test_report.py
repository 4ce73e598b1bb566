from __future__ import annotations

import doctest
import itertools
import json
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from maw.benchmark import curves, depths, formats, intervals, moved, pairs, per_query, plots, scatter, svg, tables
from maw.benchmark.report import write_report
from maw.benchmark.training_logs import read_logs
from maw.errors import MAWError
from maw.io.escaping import visible
from maw.retrieval.training.model_card import write_model_card

METRICS = ("nDCG@10", "MRR@10", "R@100", "R@1000", "AP")
SIX = ("bm25", "untuned", "dense-lora", "dense-full", "maw-lora", "maw-full")
TWELVE = (*SIX, "literal", "static", "random", "linear-gate", "logit-dropout", "ia3-key")
CENTRES = {"bm25": 0.41, "untuned": 0.478, "dense-lora": 0.577, "maw-lora": 0.578, "literal": 0.46, "random": 0.535}
DEPTH = 16
ALL_PLOTS = {
    *("metric-0", "differences-0", "curve-loss", "curve-dev", "curve-reward", "curve-policy_entropy"),
    *("curve-zero_spread", "depth-usage-training"),
}
VOID = {"meta", "br", "img", "hr", "link", "input"}


def is_tuned(variant: str) -> bool:
    return variant not in {"bm25", "untuned"}


def log_lines(variant: str, seed: int, steps: int) -> list[dict[str, Any]]:
    rng = random.Random(f"{variant}-{seed}")
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        done = step / steps
        entry = {"step": step, "epoch": done, "loss": 1.6 * math.exp(-2 * done) + 0.4 + rng.gauss(0, 0.05)}
        if variant.startswith("maw") or variant in {"literal", "static", "random"}:
            weights = [math.exp(2 * done * rng.gauss(0, 1)) for _ in range(DEPTH)]
            entry |= {
                "auxiliary_loss": 0.001,
                "reward": -0.6 + 0.1 * done + rng.gauss(0, 0.01),
                "policy_entropy": 1 - 0.3 * done**2,
                "zero_spread": 0.1 * done,
                "weight_usage": [[weight / math.fsum(weights) for weight in weights]],
            }
        lines.append(entry)
        if step % max(1, steps // 3) == 0:
            lines.append({"step": step, "dev_nDCG@10": 0.5 + 0.08 * done})
    return lines


def make_folder(
    folder: Path, variants: Sequence[str] = SIX, seeds: int = 3, splits: Sequence[str] = ("test",), steps: int = 18
) -> Path:
    """A finished run's output folder, as the report reads it."""
    rng = random.Random(0)
    rows = [
        {
            "variant": variant,
            "seed": seed,
            "dataset": "pydocs",
            "split": split,
            "metrics": {m: CENTRES.get(variant, 0.582) + 0.07 * k + rng.gauss(0, 0.002) for k, m in enumerate(METRICS)},
            "trainable_parameters": 22_713_216 if variant.endswith("full") else 147_456 if is_tuned(variant) else 0,
            "total_parameters": 22_713_216 if variant != "bm25" else 0,
            "seconds": 61.2 if is_tuned(variant) else 12.0,
            "peak_bytes": 1_234_567_890 if is_tuned(variant) else 300 * 2**20,
            "below_untuned": variant == "literal",
        }
        for split in splits
        for variant in variants
        for seed in (range(seeds) if is_tuned(variant) else [None])
    ]
    pairs = [("maw-lora", "dense-lora"), ("maw-full", "dense-full"), ("literal", "dense-full")]
    comparisons = [
        {
            "variant": variant,
            "baseline": baseline,
            "split": split,
            "metric": metric,
            "mean_difference": 0.0013 if variant != "literal" else -0.12,
            "interval": [-0.003, 0.005] if variant != "literal" else [-0.14, -0.1],
            "p_value": 0.4 if variant != "literal" else 0.00001,
            "p_value_corrected": 0.8 if variant != "literal" else 0.00003,
            "queries": 500,
            "seeds": seeds,
            "smallest_detectable": 0.0061,
            "verdict": "no difference shown" if variant != "literal" else "worse",
        }
        for split in splits
        for metric in ("nDCG@10",)
        for variant, baseline in pairs
        if variant in variants and baseline in variants
    ]
    results = {
        "schema": 1,
        "command": f"maw benchmark --variants {','.join(variants)} --seeds {seeds}",
        "finished": True,
        "preset": "quick",
        "dataset": {
            "name": "pydocs",
            "licence": "PSF-2.0",
            "documents": 1500,
            "counts": {"pairs": 4560, "modules": 312},
            "splits": {"train": 600, "dev": 100, "test": 500},
        },
        "model": {"name": "all-MiniLM-L6-v2", "fingerprint": "53aa51172d142c89" * 4},
        "settings": {"lora_learning_rate": 0.0005, "training": {"batch_size": 32}, "seeds": seeds},
        "maw": {"layers": [-1], "depth": DEPTH, "views": "auto", "train_views": True, "tau": 5.0, "scale": None},
        "rows": rows,
        "comparisons": comparisons,
        "verdict": "maw-full against dense-full: no difference shown.",
        "environment": {"python": "3.11.2", "torch": "2.11.0", "device": "cpu", "commit": "1c02c7d"},
        "data": {"corpus": "ab" * 32},
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 301.2,
    }
    (folder / "logs").mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    for variant in filter(is_tuned, variants):
        for seed in range(seeds):
            lines = [json.dumps(line) for line in log_lines(variant, seed, steps)]
            (folder / "logs" / f"{variant}-seed{seed}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    path = folder / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    edit(results)
    path.write_text(json.dumps(results), encoding="utf-8")
    return folder


class Page(HTMLParser):
    """Reads a page, checks that tags nest, and keeps what the tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = text
        self.stack: list[tuple[str, dict[str, str | None]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.cells: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.cells.append([])
        if tag in {"td", "th"}:
            self.cells[-1].append("")
        if tag not in VOID:
            self.stack.append((tag, dict(attrs)))
            self.text.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for tag, _ in self.stack:
            self.text[tag][-1] += data
        if self.stack and any(tag in {"td", "th"} for tag, _ in self.stack):
            self.cells[-1][-1] += data

    def ids(self) -> list[str]:
        return [attributes["id"] or "" for _, attributes in self.tags if "id" in attributes]

    def plots(self) -> set[str]:
        return {attributes["id"].removeprefix("plot-") for tag, attributes in self.tags if tag == "figure"}

    def row(self, start: str) -> list[str]:
        return next(cells for cells in self.cells if cells and cells[0].startswith(start))

    def words(self) -> str:
        return " ".join(self.text["body"][0].split())


def page(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Six variants with three seeds."""
    return page(make_folder(tmp_path_factory.mktemp("usual") / "out"))


@pytest.mark.parametrize("module", [curves, depths, formats, intervals, moved, pairs, per_query, scatter, svg, tables])
def test_examples(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.failed == 0
    assert found.attempted > 0


def test_loads_nothing_and_runs_nothing(usual: Page) -> None:
    assert "script" not in {tag for tag, _ in usual.tags}
    for tag, attributes in usual.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value in (None, "data:,") or value.startswith(("#", "data:image/png;base64,")), (tag, value[:50])
    assert "http:" not in usual.source
    assert "https:" not in usual.source
    assert "@import" not in usual.source
    assert not re.search(r"url\((?!#)", usual.source)


def test_ids_are_unique_and_every_reference_has_its_target(usual: Page) -> None:
    ids = usual.ids()
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", usual.source))
    for _, attributes in usual.tags:
        used |= {value[1:] for name, value in attributes.items() if name == "href" and value and value.startswith("#")}
        used |= set((attributes.get("aria-labelledby") or "").split())
    assert used
    assert used <= set(ids)


def test_headings_tables_and_plots_are_accessible(usual: Page) -> None:
    assert usual.tags[0] == ("html", {"lang": "en"})
    levels = [int(tag[1]) for tag, _ in usual.tags if re.fullmatch(r"h\d", tag)]
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))
    assert all(attributes.get("scope") in {"col", "row"} for tag, attributes in usual.tags if tag == "th")
    assert len(usual.text["caption"]) == len(usual.text["table"]) == 2
    svgs = [attributes for tag, attributes in usual.tags if tag == "svg"]
    assert len(svgs) == len(ALL_PLOTS) == len(usual.text["figcaption"])
    assert all(attributes["role"] == "img" for attributes in svgs)
    assert len(usual.text["title"]) == 1 + len(svgs)
    assert all(usual.text["title"])
    assert all(len(text) > 40 for text in usual.text["figcaption"])


def test_all_plots_are_there_and_in_the_colours_of_the_page(usual: Page) -> None:
    assert usual.plots() == ALL_PLOTS
    assert not [colour for colour in svg.COLOURS.values() if colour in usual.source]
    for variable in svg.COLOURS:
        assert usual.source.count(f" --{variable}:") == 2, "each colour has a light and a dark value"
        assert f"var(--{variable})" in usual.source
    assert "prefers-color-scheme: dark" in usual.source
    assert "@media print" in usual.source


def test_sections_come_in_order(usual: Page) -> None:
    headings = ["What was run", "Results", "Paired comparisons", "Query by query", "Training", "Depth usage"]
    headings.append("How to repeat it")
    assert usual.text["h2"] == headings
    words = usual.words()
    verdict = "maw-full against dense-full: no difference shown."
    assert words.index("MAW benchmark: pydocs") < words.index(verdict) < words.index("small preset")
    assert "maw benchmark --variants bm25,untuned," in usual.text["pre"][0]
    for wanted in (
        "ab" * 32,
        "2.11.0",
        "PSF-2.0",
        "train 600, dev 100, test 500",
        "5 min 1 s",
        "3 (seeds 0, 1, 2)",
        "53aa51172d142c89" * 4,
    ):
        assert wanted in words


def test_a_subset_has_a_short_title_and_its_counts_at_the_end(tmp_path: Path) -> None:
    name = "pydocs:subset(documents=1500,seed=0)"

    def edit(results: dict[str, Any]) -> None:
        counts = {"pairs": 4560, "splits": {"test": {"queries": 500, "dropped": []}}}
        results["dataset"] |= {"name": name, "subset_of": "pydocs", "counts": counts}
        for row in results["rows"]:
            row["dataset"] = name

    found = page(change(make_folder(tmp_path / "out", seeds=1), edit))
    assert found.text["h1"] == ["MAW benchmark: a subset of pydocs"]
    assert found.source.count(name) == 1
    assert "a subset of pydocs, test" in found.text["h3"]
    terms = dict(zip(found.text["dt"], found.text["dd"], strict=True))
    assert terms["Counts"] == "pairs 4560"
    assert terms["splits, test, queries"] == "500"
    assert terms["splits, test, dropped"] == "none"


def test_results_are_means_over_seeds_with_their_spread(tmp_path: Path) -> None:
    def edit(results: dict[str, Any]) -> None:
        for row in results["rows"]:
            if row["variant"] == "maw-full":
                row["metrics"]["nDCG@10"] = {0: 0.58, 1: 0.582, 2: 0.584}[row["seed"]]
                row["below_untuned"] = row["seed"] == 1
                row["peak_bytes"] += row["seed"] * 2**30

    found = page(change(make_folder(tmp_path / "out"), edit))
    cells = [" ".join(cell.split()) for cell in found.row("maw-full")]
    assert cells[:3] == ["maw-fullbelow untuned in 1 of 3 runs", "3", "0.5820± 0.0020"]
    assert cells[7:] == ["22,713,216", "22,713,216", "1 min 1 s", "3.15 GiB"]
    cells = found.row("untuned")
    assert cells[1] == "1"
    assert re.fullmatch(r"0\.4\d{3}", cells[2])
    assert cells[7:] == ["0", "22,713,216", "12 s", "300 MiB"]
    assert "below untuned" not in " ".join(found.row("dense-full"))


def test_comparisons_are_told_in_words_and_numbers(tmp_path: Path) -> None:
    found = page(make_folder(tmp_path / "out", variants=(*SIX, "literal")))
    line = [cells for cells in found.cells if "no difference shown" in cells][1]
    assert line[:5] == ["maw-fullagainst dense-full", "no difference shown", "test", "nDCG@10", "+0.0013"]
    assert line[5:] == ["−0.0030 to +0.0050", "0.4000", "0.8000", "0.0061", "500", "3"]
    line = next(cells for cells in found.cells if "worse" in cells)
    assert line[4:8] == ["−0.1200", "−0.1400 to −0.1000", "< 0.0001", "< 0.0001"]


def test_control_characters_are_shown_in_the_page_and_the_model_s_card(tmp_path: Path) -> None:
    evil = "a\x1b[31mb\x9bc\u202ed"
    folder = change(make_folder(tmp_path / "out"), lambda results: results["dataset"].update(name=evil, licence=evil))
    write_model_card(
        tmp_path, base=evil, dataset={"name": evil}, variant=evil, maw={}, settings={"of": evil}, metrics={}
    )
    for file in (write_report(folder), tmp_path / "README.md"):
        text = file.read_text(encoding="utf-8")
        assert r"a\x1b[31mb\x9bc\u202ed" in text
        assert visible(text) == text


def test_everything_from_the_results_is_escaped(tmp_path: Path) -> None:
    evil = '<b>bold</b> & "quoted" $x_{$ \'--><script>alert(1)</script>'

    def edit(results: dict[str, Any]) -> None:
        for name in ("verdict", "command", "preset", "started"):
            results[name] = evil
        results["dataset"] |= {"name": evil, "licence": evil, "counts": {evil: evil}}
        results["model"] = {"name": evil, "fingerprint": evil}
        for name in ("settings", "maw", "environment", "data"):
            results[name] = {evil: [evil]}
        for row in results["rows"]:
            row |= {"variant": evil, "dataset": evil, "split": evil, "metrics": {evil: 0.5}}
        for one in results["comparisons"]:
            one.update(dict.fromkeys(("variant", "baseline", "split", "metric", "verdict"), evil))

    folder = change(make_folder(tmp_path / "out", seeds=1), edit)
    (folder / "logs" / "<b>bold<-seed0.jsonl").write_text('{"step": 1, "loss": 2}\nno json\n', encoding="utf-8")
    found = page(folder)
    assert not {"b", "script"} & {tag for tag, _ in found.tags}
    assert found.source.count("&lt;b&gt;bold&lt;/b&gt;") > 20
    assert "MAW benchmark: " + evil in found.text["h1"][0]
    assert any(evil[:13] in text for text in found.text["text"]), "the plots have its beginning"


def test_letters_outside_the_font_are_written_as_text(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "out", variants=("untuned", "dense-full"), seeds=1)
    found = page(change(folder, lambda results: results["rows"][1].update(variant="注意力")))
    assert any("注意力" in text for text in found.text["text"])


def test_one_seed_is_said_to_be_one(tmp_path: Path) -> None:
    found = page(make_folder(tmp_path / "out", seeds=1))
    words = found.words()
    assert "This is the small preset quick with one seed." in words
    assert "--full --seeds 5" in words
    assert "one seed was run" in words
    assert "±" not in words
    assert found.plots() == ALL_PLOTS
    full = page(change(make_folder(tmp_path / "full"), lambda results: results.update(preset="full")))
    assert "small preset" not in full.words()


def test_seeds_are_dots_and_never_only_a_mean(tmp_path: Path) -> None:
    found = page(make_folder(tmp_path / "out", variants=("untuned", "maw-full"), seeds=10))
    svg = found.source[found.source.index('id="plot-metric-0"') :]
    svg = svg[: svg.index("</svg>")]
    dots = [piece for piece in svg.split("<use ")[1:] if "--maw" in piece[: piece.index(">")]]
    assert len(dots) == 10


def test_many_seeds_are_a_band(tmp_path: Path) -> None:
    found = page(make_folder(tmp_path / "out", variants=("untuned", "dense-full", "maw-full"), seeds=11, steps=6))
    assert "of more than 10 seeds the band is their range and the line their mean" in found.words()
    svg = found.source[found.source.index('id="plot-curve-reward"') :]
    svg = svg[: svg.index("</svg>")]
    lines = [piece for piece in svg.split("<path ")[1:] if "stroke: var(--maw)" in piece]
    assert len(lines) == 1
    assert "fill-opacity: 0.25" in svg or "opacity: 0.25" in svg


def test_two_variants_without_comparison(tmp_path: Path) -> None:
    found = page(make_folder(tmp_path / "out", variants=("untuned", "dense-full"), seeds=1))
    assert found.plots() == {"metric-0", "curve-loss", "curve-dev"}
    assert "There are no comparisons." in found.words()


def test_twelve_variants_and_ten_seeds_stay_small(tmp_path: Path) -> None:
    path = write_report(make_folder(tmp_path / "out", variants=TWELVE, seeds=10, steps=400))
    assert path.stat().st_size < 5 * 2**20
    found = Page(path.read_text(encoding="utf-8"))
    assert found.plots() == ALL_PLOTS | {"depth-usage-training-2"}
    assert found.row("literal")[0].endswith("below untuned in 10 of 10 runs")
    assert "Longer logs are averaged to 100 points" in found.words()


@pytest.mark.slow
def test_twelve_variants_and_fifty_seeds_stay_small_and_show_every_seed(tmp_path: Path) -> None:
    path = write_report(make_folder(tmp_path / "out", variants=TWELVE, seeds=50, steps=20))
    assert path.stat().st_size < 10**6
    found = Page(path.read_text(encoding="utf-8"))
    assert found.plots() == ALL_PLOTS | {"depth-usage-training-2"}
    for variant in TWELVE:
        assert found.row(variant)[1] == ("50" if is_tuned(variant) else "1")
    assert found.row("literal")[0].endswith("below untuned in 50 of 50 runs")
    assert re.search(r"50 \(seeds 0, 1, 2, .*, 48, 49\)", found.words())
    assert "of more than 10 seeds the band is their range and the line their mean" in found.words()
    plot = found.source[found.source.index('id="plot-metric-0"') :]
    dots = plot[: plot.index("</svg>")].split("<use ")[1:]
    assert len([dot for dot in dots if "--maw" in dot[: dot.index(">")]]) == 2 * 50


def test_several_splits_have_a_table_and_plots_each(tmp_path: Path) -> None:
    found = page(make_folder(tmp_path / "out", seeds=1, splits=("dl19", "dl20")))
    assert [text for text in found.text["h3"] if text.startswith("pydocs, ")] == ["pydocs, dl19", "pydocs, dl20"]
    assert {"metric-0", "metric-1", "differences-0", "differences-1"} <= found.plots()
    assert len(found.text["table"]) == 3


def test_the_metric_that_was_compared_is_plotted(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "out", seeds=1)
    change(folder, lambda results: [one.update(metric="AP") for one in results["comparisons"]])
    assert "AP by variant, pydocs, test" in page(folder).text["title"]


def test_a_killed_run_is_said_to_be_unfinished(tmp_path: Path, usual: Page) -> None:
    def kill(results: dict[str, Any]) -> None:
        results |= {"finished": False, "rows": results["rows"][:4], "comparisons": [], "verdict": None}
        del results["seconds"]

    folder = change(make_folder(tmp_path / "out", seeds=1), kill)
    (folder / "logs" / "maw-full-seed0.jsonl").unlink()
    log = folder / "logs" / "maw-lora-seed0.jsonl"
    log.write_text(log.read_text(encoding="utf-8")[:-30], encoding="utf-8")
    found = page(folder)
    words = found.words()
    assert words.index("This run is not finished.") < words.index("No verdict yet.") < words.index("What was run")
    assert "Begun without a result yet: maw-lora seed 0." in words
    assert "maw-lora-seed0.jsonl: 1 line could not be read and is left out." in words
    assert "There are no comparisons yet." in words
    assert "curve-reward" in found.plots()
    assert "not finished" not in usual.words()


def test_a_run_killed_before_its_first_row(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"schema": 1, "finished": false, "rows": []}', encoding="utf-8")
    found = page(tmp_path)
    assert "There are no rows yet." in found.words()
    assert "Nothing has been compared yet." in found.words()
    assert "not recorded" in found.words()
    assert found.plots() == set()


def test_missing_keys_are_dashes(tmp_path: Path) -> None:
    rows = [{"variant": "untuned"}, {"variant": "maw-full", "seed": 0, "metrics": {"AP": None, "MRR@10": float("nan")}}]
    pair = {"variant": "maw-full", "baseline": "untuned", "metric": "AP"}
    results = {"schema": 1, "finished": True, "rows": rows, "comparisons": [pair, pair | {"interval": [1]}]}
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    found = page(tmp_path)
    assert found.row("maw-full")[2:] == ["—"] * 6
    assert sum("maw-fullagainst untuned" in cells for cells in found.cells) == 2
    assert found.plots() == set()
    pair |= {"mean_difference": 0.01, "interval": None}
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    assert page(tmp_path).plots() == {"differences-0"}


def test_missing_logs_leave_out_their_plots_only(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "out", seeds=1)
    for log in (folder / "logs").iterdir():
        log.unlink()
    (folder / "logs").rmdir()
    found = page(folder)
    assert found.plots() == {"metric-0", "differences-0"}
    assert "There are no training logs in this folder" in found.words()


def test_logs_with_holes(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "out", variants=("untuned", "dense-full", "maw-full"), seeds=2, steps=6)
    lines = [
        {"step": 1, "loss": 1.0, "weight_usage": [[0.5, 0.5], [0.1, 0.9]]},
        {"step": 2, "loss": float("nan"), "reward": "much"},
        {"step": 7, "weight_usage": [[0.0, 1.0], [0.9, 0.1]]},
        {"step": 8, "weight_usage": [[0.9, None], [0.5, 0.5]]},
        {"loss": 1.0},
        [1, 2],
    ]
    log = folder / "logs" / "maw-full-seed1.jsonl"
    log.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    other = json.dumps({"step": 9, "weight_usage": [[0.2, 0.3, 0.5]]})  # another D than the other seed's
    (folder / "logs" / "maw-full-seed0.jsonl").write_text(other, encoding="utf-8")
    (folder / "logs" / "maw-full-seed2.jsonl").write_text("", encoding="utf-8")
    found = page(folder)
    assert found.plots() == {"metric-0", "differences-0", "curve-loss", "curve-dev", "depth-usage-training"}
    assert "maw-full-seed1.jsonl: 2 lines could not be read and are left out." in found.words()
    logs, _ = read_logs(folder / "logs")
    usage = {(log.variant, log.seed): log.usage for log in logs}
    assert usage["maw-full", 1] == [[0.0, 1.0], [0.9, 0.1]], "the last whole one, one row a layer"
    assert usage["maw-full", 2] is None


def test_a_step_that_was_repeated_after_a_stop_counts_once(tmp_path: Path) -> None:
    (tmp_path / "maw-full-seed12.jsonl").write_text(
        '{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 2, "loss": 1, "weight_usage": [[1]]}\n',
        encoding="utf-8",
    )
    (log,), notes = read_logs(tmp_path)
    assert (log.variant, log.seed, log.curves["loss"], log.usage, notes) == ("maw-full", 12, {1: 3, 2: 1}, [[1]], [])


def test_the_same_folder_gives_the_same_bytes_whatever_the_users_settings(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "out", seeds=2, steps=4)
    first = write_report(folder).read_bytes()
    with matplotlib.rc_context({"axes.titleweight": "bold", "axes.labelpad": 30, "svg.fonttype": "path"}):
        assert write_report(folder).read_bytes() == first
        assert matplotlib.rcParams["axes.labelpad"] == 30


def test_no_pyplot_and_nothing_heavy_on_import(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, maw.benchmark.report as report\n"
        "assert not {'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "report.write_report(pathlib.Path(sys.argv[1]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    folder = make_folder(tmp_path / "out", seeds=1, steps=2)
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(folder)], check=True)


def test_a_failing_render_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "out", variants=("untuned", "dense-full"), seeds=1, steps=2)
    old = write_report(folder).read_bytes()
    names = sorted(path.name for path in folder.iterdir())
    change(folder, lambda results: results.update(verdict="another"))

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no space left")

    for owner, name in ((plots, "dots"), (os, "fsync"), (Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises((OSError, MAWError), match="no space left"):
                write_report(folder)
        assert (folder / "report.html").read_bytes() == old
        assert sorted(path.name for path in folder.iterdir()) == names
    assert write_report(folder).read_bytes() != old


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", r"is damaged: it is no JSON .*Run `maw benchmark`"),
        (b"\xff\xfe{}", r"is damaged: it is no JSON .*Run `maw benchmark`"),
        ("[1]", r"needs an object with `schema`, got \[1\]: name a folder"),
        ('{"rows": []}', r"needs an object with `schema`"),
        ('{"schema": 2, "rows": []}', r"must have schema 1, got 2: make the report with the version"),
        ('{"schema": true, "rows": []}', r"must have schema 1, got True"),
        ('{"schema": 1}', r"needs a list as `rows`, got None"),
        ('{"schema": 1, "rows": [3]}', r"needs variant as words in rows\[0\], got 3"),
        ('{"schema": 1, "rows": [{"variant": 3}]}', r"needs variant as words in rows\[0\]"),
        (
            '{"schema": 1, "rows": [{"variant": "a", "metrics": [1]}]}',
            r"an object as `metrics` in rows\[0\], got \[1\]",
        ),
        ('{"schema": 1, "rows": [], "dataset": "pydocs"}', r"needs an object as `dataset`, got 'pydocs'"),
        ('{"schema": 1, "rows": [], "comparisons": {}}', r"needs a list as `comparisons`, got \{\}"),
        (
            '{"schema": 1, "rows": [], "comparisons": [{"variant": "a"}]}',
            r"needs variant and baseline and metric as words in comparisons\[0\]",
        ),
    ],
)
def test_results_that_are_not_ours(tmp_path: Path, content: str | bytes, words: str) -> None:
    (tmp_path / "results.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(MAWError, match=words):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(MAWError, match=r"output folder, got .*nowhere', which is no folder: check"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(MAWError, match=r"needs results\.json, got .* without one: name a folder"):
        write_report(tmp_path)
