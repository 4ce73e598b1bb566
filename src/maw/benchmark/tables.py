"""The report's tables: results by variant with their intervals, the verdict in a sentence, alarms, environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np

from maw.benchmark import formats
from maw.benchmark.intervals import mean_intervals
from maw.benchmark.per_query import PerQuery

__all__ = ["environments", "findings", "headline", "result_tables", "title_of"]


def title_of(dataset: Mapping[str, Any]) -> str:
    """What the data are called in headings: a subset's own name spells out all its numbers."""
    whole = dataset.get("subset_of")
    return formats.words(dataset.get("name")) if not whole else f"a subset of {formats.words(whole)}"


def headline(comparisons: Sequence[Mapping[str, Any]]) -> str | None:
    """The verdict in a sentence or two, without numbers; None where nothing has been compared.

    >>> words = ("no difference shown", "worse", "no difference shown")
    >>> headline([{"variant": f"maw-{n}", "baseline": "d", "verdict": word} for n, word in enumerate(words)])
    'Worse than its dense twin: maw-1. No difference shown: maw-0, maw-2.'
    """
    said = {"better": "Better than its dense twin", "worse": "Worse than its dense twin"}
    groups: dict[str, dict[str, list[str]]] = {word: {} for word in (*said, "no difference shown")}
    splits = {formats.words(one.get("split")) for one in comparisons}
    for one in comparisons:
        words = formats.words(one.get("verdict"), "not judged yet")
        groups.setdefault(words, {}).setdefault(one["variant"], []).append(formats.words(one.get("split")))
    sentences = []
    for words, variants in groups.items():
        names = [
            name if len(of_split) == len(splits) else f"{name} ({', '.join(of_split)})"
            for name, of_split in variants.items()
        ]
        if names:
            sentences.append(f"{said.get(words, words[:1].upper() + words[1:])}: {', '.join(names)}.")
    return " ".join(sentences) or None


def result_tables(results: dict[str, Any], values: PerQuery) -> list[dict[str, Any]]:
    """One table for each data set and split, one line a variant: means over seeds, with intervals and spreads."""
    title = title_of(results["dataset"])
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for row in results["rows"]:
        dataset = row.get("dataset", results["dataset"].get("name"))
        dataset = title if dataset == results["dataset"].get("name") else formats.words(dataset)
        place = (dataset, formats.words(row.get("split")))
        groups.setdefault(place, {}).setdefault(row["variant"], []).append(row)
    tables = []
    for (dataset, split), variants in groups.items():
        metrics = list(dict.fromkeys(name for rows in variants.values() for row in rows for name in row["metrics"]))
        ends = _intervals(values, split, list(variants), metrics)
        lines = [_line(variant, rows, metrics, ends) for variant, rows in variants.items()]
        spread = any(len(found) > 1 for line in lines for found in line["found"].values())
        tables.append({"dataset": dataset, "split": split, "metrics": metrics, "lines": lines, "spread": spread})
        tables[-1]["intervals"] = bool(ends)
    return tables


def _line(
    variant: str,
    rows: Sequence[Mapping[str, Any]],
    metrics: Sequence[str],
    ends: Mapping[tuple[str, str], tuple[float, float]],
) -> dict[str, Any]:
    values: dict[str, list[float]] = {
        name: formats.values(row["metrics"].get(name) for row in rows) for name in metrics
    }
    return {
        "variant": variant,
        "runs": len(rows),
        "below": sum(row.get("below_untuned") is True for row in rows),
        "found": values,
        "means": {name: fmean(found) if found else None for name, found in values.items()},
        "spreads": {name: stdev(found) if len(found) > 1 else None for name, found in values.items()},
        "intervals": {name: ends.get((variant, name)) for name in metrics},
        "trainable": max(formats.values(row.get("trainable_parameters") for row in rows), default=None),
        "total": max(formats.values(row.get("total_parameters") for row in rows), default=None),
        "seconds": fmean(found) if (found := formats.values(row.get("seconds") for row in rows)) else None,
        "peak": max(formats.values(row.get("peak_bytes") for row in rows), default=None),
    }


def _intervals(
    values: PerQuery, split: str, variants: Sequence[str], metrics: Sequence[str]
) -> dict[tuple[str, str], tuple[float, float]]:
    """(variant, metric) -> interval, of whatever has a value for every query and seed."""
    matrices = {}
    for variant in variants:
        for metric in metrics:
            one = values.get((variant, split))
            matrix = None if one is None else one.metrics.get(metric)
            if matrix is not None and matrix.shape[1] > 1 and not np.isnan(matrix).any():
                matrices[variant, metric] = matrix
    return dict(zip(matrices, mean_intervals(list(matrices.values())), strict=True))


def findings(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What `maw.collapse` found, alarms first: one entry a name, with the variants and layers it was seen in."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    runs: dict[str, set[Any]] = {}
    for row in rows:
        runs.setdefault(row["variant"], set()).add(row.get("seed"))
        entries = row.get("findings")
        for one in entries if isinstance(entries, list) else []:
            if not isinstance(one, dict) or not isinstance(one.get("name"), str):
                continue
            key = (one.get("level") != "alarm", one["name"])
            place = (row["variant"], formats.number(one.get("layer")))
            places = found.setdefault(key, {**one, "places": {}})["places"]
            first = {"variant": place[0], "layer": place[1], "seen": one.get("seen"), "seeds": set()}
            places.setdefault(place, first)["seeds"].add(row.get("seed"))
    ordered = [found[key] for key in sorted(found, key=lambda key: key[0])]
    for entry in ordered:
        entry["places"] = [
            one | {"seeds": len(one["seeds"]), "runs": len(runs[one["variant"]])} for one in entry["places"].values()
        ]
    return ordered


def environments(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Where the runs were made in several environments: the heads of a table, and one line a property."""
    found = results.get("environments")
    found = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    if len(found) < 2:
        return [], []
    rows = [row for row in results["rows"] if isinstance(row.get("environment"), int)]
    heads = []
    for place in range(len(found)):
        count = len({(row["variant"], row.get("seed")) for row in rows if row["environment"] == place})
        heads.append(f"{place + 1} ({count} run{'' if count == 1 else 's'})")
    names = dict.fromkeys(name for one in found for name in one)
    return heads, [[name, *(formats.words(one.get(name), "none") for one in found)] for name in names]
