"""From the rows of finished runs to `results.json`, `per_query.parquet`, the verdict and the table."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from maw.benchmark import formats
from maw.benchmark.comparison import Comparison, compare, correct
from maw.benchmark.variants import VARIANTS
from maw.collapse import below_untuned
from maw.io.atomic import atomic_write

__all__ = [
    "comparisons",
    "environments",
    "mark_below_untuned",
    "mixture",
    "results_table",
    "state_rows",
    "usage_rows",
    "verdict",
    "write_per_query",
]


def environments(states: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The environments that runs were made in, each once, in the order they came."""
    found: list[dict[str, Any]] = []
    for state in states:
        if state["environment"] not in found:
            found.append(state["environment"])
    return found


def mixture(found: Sequence[dict[str, Any]]) -> str | None:
    """In what the environments of a benchmark's runs differ, in words; None where they do not.

    >>> mixture([{"torch": "2.11", "device": "cpu"}, {"torch": "2.13", "device": "cpu"}])
    'These runs were made in environments that differ in torch (2.11, 2.13): a difference between them may be that.'
    """
    names = dict.fromkeys(name for one in found for name in one)
    values = {name: list(dict.fromkeys(str(one.get(name)) for one in found)) for name in names}
    differing = [f"{name} ({', '.join(seen)})" for name, seen in values.items() if len(seen) > 1]
    if not differing:
        return None
    return (
        f"These runs were made in environments that differ in {', '.join(differing)}: "
        "a difference between them may be that."
    )


def state_rows(states: Iterable[dict[str, Any]], dataset: str, places: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a finished run and split; `environment` is the number of its environment among `places`."""
    kept = ("variant", "seed", "trainable_parameters", "total_parameters", "seconds", "peak_bytes")
    return [
        {
            **{name: state[name] for name in kept},
            "seeds": state.get("seeds", {}),
            "device": state["environment"]["device"],
            "environment": places.index(state["environment"]),
            "dataset": dataset,
            "split": split,
            "metrics": metrics,
            "selector": state.get("selector"),
            "findings": state.get("findings", []),
        }
        for state in states
        for split, metrics in state["metrics"].items()
    ]


def usage_rows(states: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The depth usage (`maw.benchmark.usage`) of every run that has a policy; runs of older versions have none."""
    return [
        {"variant": state["variant"], "seed": state["seed"], **state["depth_usage"]}
        for state in states
        if state.get("depth_usage") is not None
    ]


def mark_below_untuned(rows: Iterable[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """The rows with `below_untuned`: whether tuning left the encoder worse than it came, on `metric`; then also a
    finding.
    """
    rows = list(rows)
    untuned = {row["split"]: row["metrics"][metric] for row in rows if row["variant"] == "untuned"}
    marked = []
    for row in rows:
        tuned = VARIANTS[row["variant"]].kind == "tuned" and row["split"] in untuned
        found = below_untuned(metric, row["metrics"][metric], untuned[row["split"]]) if tuned else []
        findings = [*row.get("findings", []), *(finding.to_dict() for finding in found)]
        marked.append({**row, "findings": findings, "below_untuned": bool(found)})
    return marked


def comparisons(states: Sequence[dict[str, Any]], metric: str) -> list[Comparison]:
    """Every MAW variant against its dense twin, paired by query and seed, Holm-corrected over all of them."""
    values: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for state in states:
        for split, per_query in state["per_query"].items():
            values.setdefault((state["variant"], split), {})[state["seed"]] = per_query[metric]
    found = []
    for (variant, split), by_seed in values.items():
        twin = VARIANTS[variant].twin
        seeds = sorted(set(by_seed) & set(values.get((twin, split), {}))) if twin is not None else []
        if twin is None or not seeds:
            continue
        queries = sorted(by_seed[seeds[0]])
        if len(queries) < 2:
            continue
        pair = [
            [[table[seed][query] for query in queries] for seed in seeds] for table in (by_seed, values[twin, split])
        ]
        found.append(compare(variant, twin, pair[0], pair[1], metric, split=split))
    return correct(found) if found else []


def alarms(rows: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """The names of the alarms (`maw.collapse`) of every variant that has any; notes are left to `results.json`."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for finding in row.get("findings", []):
            names = found.setdefault(row["variant"], [])
            if finding["level"] == "alarm" and finding["name"] not in names:
                names.append(finding["name"])
    return {variant: names for variant, names in found.items() if names}


def verdict(found: Sequence[Comparison], rows: Iterable[dict[str, Any]] = (), mixed: str | None = None) -> str:
    """The comparisons in a sentence each, after what `mixture` says and before the alarms."""
    sentences = [] if mixed is None else [mixed]
    warned = [f"Alarm for {variant}: {', '.join(names)}." for variant, names in alarms(rows).items()]
    if not found:
        return " ".join([*sentences, "No MAW variant has been compared with its dense twin yet.", *warned])
    for one in found:
        low, high = one.interval
        p_value = formats.probability(one.p_value_corrected)
        p_value = p_value if p_value.startswith("<") else f"= {p_value}"
        words = {
            "better": f"{one.variant} is better than {one.baseline}",
            "worse": f"{one.variant} is worse than {one.baseline}",
            "no difference shown": f"{one.variant} against {one.baseline}: no difference shown",
        }[one.verdict or "no difference shown"]
        seeds = "one seed" if one.seeds == 1 else f"{one.seeds} seeds"
        sentences.append(
            f"{words} ({one.metric} on {one.split} {one.mean_difference:+.4f}, "
            f"95 % interval {low:+.4f} to {high:+.4f}, corrected p {p_value}, "
            f"{one.queries} queries, {seeds}; this test would find {one.smallest_detectable:.4f})."
        )
    return " ".join([*sentences, *warned])


def write_per_query(path: Path, states: Sequence[dict[str, Any]]) -> None:
    """One row per variant, seed, split and query, one column per metric."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "variant": state["variant"],
            "seed": state["seed"],
            "split": split,
            "query_id": query,
            **{metric: values[query] for metric, values in per_query.items()},
        }
        for state in states
        for split, per_query in state["per_query"].items()
        for query in next(iter(per_query.values()))
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))  # splits may have measures of their own
    with atomic_write(path, "wb") as file:
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), file)


def results_table(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> Table:
    """The rows for a terminal: means over seeds, with their standard deviation where there are several.

    Time is a mean over seeds too, that of one run: training and ranking. Memory is the highest peak.

    With several splits every variant has a line a split. A split in which metrics without grades count from another
    grade than 1 on, MRR(rel=2)@10 in the column MRR@10, says so in its name.
    """
    splits = list(dict.fromkeys(row["split"] for row in rows))
    there = {split: next(list(row["metrics"]) for row in rows if row["split"] == split) for split in splits}
    table = Table(title=None, header_style="bold")
    table.add_column("variant", no_wrap=True)
    if len(splits) > 1:
        table.add_column("split", no_wrap=True)
    for name in (*metrics, "trained", "time a run", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        for split in splits:
            cells = [variant if split == splits[0] else ""]
            those = [row for row in own if row["split"] == split]
            names = [_own_name(metric, there[split]) for metric in metrics]
            if len(splits) > 1:
                grades = sorted({found[1] for name in names if (found := _GRADE.search(name))})
                cells.append(split + "".join(f" (grade {grade})" for grade in grades))
            for name in names:
                values = [row["metrics"][name] for row in those]
                spread = f" ±{statistics.stdev(values):.4f}" if len(values) > 1 else ""
                cells.append(f"{statistics.fmean(values):.4f}{spread}" if values else "-")
            cells += _costs(those) if split == splits[0] else ["", "", ""]
            cells.append(", ".join(alarms(those).get(variant, [])))
            table.add_row(*cells)
    return table


_GRADE = re.compile(r"\(rel=([0-9]+)\)")


def _costs(rows: Sequence[dict[str, Any]]) -> list[str]:
    trained = rows[0]["trainable_parameters"]
    return [
        f"{trained / 1e6:.2f} M" if trained else "-",
        f"{statistics.fmean(row['seconds'] for row in rows):.0f} s",
        f"{max(row['peak_bytes'] for row in rows) / 2**30:.2f} GiB",
    ]


def _own_name(metric: str, names: Sequence[str]) -> str:
    """The name of a metric among those of a split: itself, or with the grade from which it counts.

    >>> _own_name("MRR@10", ["nDCG@10", "MRR(rel=2)@10"])
    'MRR(rel=2)@10'
    """
    return next((name for name in names if _GRADE.sub("", name) == metric), metric)


def comparison_rows(found: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Comparisons as plain JSON values."""
    return [json.loads(json.dumps(asdict(one))) for one in found]
