"""The report of a benchmark: one self-contained HTML page from the output folder alone.

`results.json` says what was run and what came out, `logs/*.jsonl` how training went. A run that was stopped has less of
both; the report then says so and shows what there is. The page loads nothing, runs no script, and escapes all it shows.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from maw.benchmark import formats, plots
from maw.errors import MAWError

__all__ = ["SCHEMA", "write_report"]

SCHEMA = 1
PRIMARY = "nDCG@10"  # the metric that is plotted, where there is one; otherwise the first in the results

CURVES = {
    "loss": ("Training loss", "loss", "The training loss at each logged step."),
    "dev": ("Metric on the development split", "", "The metric on the development split during training."),
    "reward": (
        "Reward",
        "mean reward",
        "The mean reward of the sampled depths: a rise means that the policy finds depths that are worth more.",
    ),
    "policy_entropy": (
        "Policy entropy",
        "entropy / log D",
        "How evenly the policy spreads its choice: 1 is uniform over all depths, near 0 is a collapse onto few.",
    ),
    "zero_spread": (
        "Groups without reward spread",
        "share of groups",
        "The share of groups in which all sampled depths got the same reward: they teach the policy nothing.",
    ),
}


@dataclass
class _Log:
    """One training log: the curves by key, and the last depth usage, one row a MAW layer."""

    variant: str
    seed: int | None
    curves: dict[str, dict[float, float]] = field(default_factory=dict)
    usage: list[list[float]] | None = None


def write_report(folder: Path) -> Path:
    """Write `report.html` into a benchmark's output folder, from its `results.json` and `logs/*.jsonl`.

    The file is written aside and then renamed, so that a report which is there stays until the new one is whole.

    Args:
        folder: the output folder of `maw benchmark`, of a finished or of a stopped run.

    Returns:
        The path of the report.

    Raises:
        MAWError: the folder or `results.json` is missing, or is not what `maw benchmark` writes.
    """
    folder = Path(folder)
    results = _read_results(folder)
    logs, notes = _read_logs(folder / "logs")
    page = _render(results, logs, notes)
    target = folder / "report.html"
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        aside.write_text(page, encoding="utf-8", newline="\n")
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    return target


def _read_results(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise MAWError(
            f"a report needs a benchmark's output folder, got {str(folder)!r}, which is no folder: check --output"
        )
    path = folder / "results.json"
    if not path.is_file():
        raise MAWError(
            f"a report needs results.json, got {str(folder)!r} without one: name a folder `maw benchmark` wrote"
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MAWError(
            f"{str(path)!r} must be JSON, got {error}: run `maw benchmark` on this folder again to write it anew"
        ) from None
    if not isinstance(results, dict) or "schema" not in results:
        raise _not_ours(path, "an object with `schema`", results)
    if results["schema"] != SCHEMA or isinstance(results["schema"], bool):
        raise MAWError(
            f"{str(path)!r} must have schema {SCHEMA}, got {results['schema']!r}: make the report with the version of "
            "maw that wrote the results"
        )
    for name in ("dataset", "model", "settings", "maw", "environment", "data"):
        if not isinstance(results.get(name) or {}, dict):
            raise _not_ours(path, f"an object as `{name}`", results[name])
        results[name] = results.get(name) or {}
    results["maw"] = results["maw"] or results["settings"].pop("maw", None) or {}
    for name, words in (("rows", ("variant",)), ("comparisons", ("variant", "baseline", "metric"))):
        entries = results.get(name, [] if name == "comparisons" else None)
        if not isinstance(entries, list):
            raise _not_ours(path, f"a list as `{name}`", entries)
        results[name] = entries
        for place, entry in enumerate(entries):
            if not isinstance(entry, dict) or not all(isinstance(entry.get(word), str) for word in words):
                raise _not_ours(path, f"{' and '.join(words)} as words in {name}[{place}]", entry)
            if not isinstance(entry.setdefault("metrics", {}), dict):
                raise _not_ours(path, f"an object as `metrics` in {name}[{place}]", entry["metrics"])
    return results


def _not_ours(path: Path, wanted: str, got: object) -> MAWError:
    shown = repr(got)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    return MAWError(f"{str(path)!r} needs {wanted}, got {shown}: name a folder that `maw benchmark` wrote")


def _read_logs(folder: Path) -> tuple[list[_Log], list[str]]:
    """All logs in the order of their names, and what could not be read, in words."""
    logs, notes = [], []
    for path in sorted(folder.glob("*.jsonl")):
        parts = re.fullmatch(r"(?P<variant>.+?)(?:-seed(?P<seed>\d+))?", path.stem, flags=re.DOTALL)
        if parts is None:
            continue
        log = _Log(parts["variant"], int(parts["seed"]) if parts["seed"] else None)
        unread = 0
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                unread += 1
                continue
            if not isinstance(entry, dict) or (step := formats.number(entry.get("step"))) is None:
                unread += 1
                continue
            for name, value in entry.items():
                if (found := formats.number(value)) is not None:  # a step that was repeated after a stop counts once
                    log.curves.setdefault(name, {})[step] = found
            log.usage = _usage(entry.get("depth_usage")) or log.usage
        if unread:
            lines = "1 line could not be read and is" if unread == 1 else f"{unread} lines could not be read and are"
            notes.append(f"{path.name}: {lines} left out.")
        logs.append(log)
    return sorted(logs, key=lambda log: (log.variant, -1 if log.seed is None else log.seed)), notes


def _usage(found: object) -> list[list[float]] | None:
    """Depth usage as it is logged, a list of shares for each layer; None for anything else."""
    layers = found if isinstance(found, list) else []
    whole = [isinstance(layer, list) and layer and len(formats.values(layer)) == len(layer) for layer in layers]
    return layers if layers and all(whole) else None


def _render(results: dict[str, Any], logs: list[_Log], notes: list[str]) -> str:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise MAWError("the report needs jinja2: pip install 'maw-attention[retrieval]'") from None
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("count", "duration", "flat", "memory", "metric", "probability", "signed", "words")
    environment.filters |= {name: getattr(formats, name) for name in names}
    variants = list(dict.fromkeys([row["variant"] for row in results["rows"]] + [log.variant for log in logs]))
    title = _title(results["dataset"])
    tables = _tables(results, title)
    counts = results["dataset"].get("counts")
    counts = counts if isinstance(counts, dict) else {}
    present = {(row["variant"], row.get("seed")) for row in results["rows"]}
    return environment.get_template("report.html.jinja").render(
        results=results,
        title=title,
        counts={name: value for name, value in counts.items() if not isinstance(value, dict | list)},
        nested={name: value for name, value in counts.items() if isinstance(value, dict | list)},
        finished=results.get("finished") is True,
        seeds=sorted({row["seed"] for row in results["rows"] if formats.number(row.get("seed")) is not None}),
        variants=variants,
        begun=[log for log in logs if (log.variant, log.seed) not in present],
        tables=tables,
        plots=_plots(
            results, tables, {variant: [one for one in logs if one.variant == variant] for variant in variants}
        ),
        logs=logs,
        notes=notes,
        families={variant: plots.family(variant) for variant in variants},
    )


def _title(dataset: Mapping[str, Any]) -> str:
    """What the data are called in headings: a subset's own name spells out all its numbers."""
    whole = dataset.get("subset_of")
    return formats.words(dataset.get("name")) if not whole else f"a subset of {formats.words(whole)}"


def _tables(results: dict[str, Any], title: str) -> list[dict[str, Any]]:
    """One table for each data set and split, one line a variant: means over seeds and their standard deviations."""
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for row in results["rows"]:
        dataset = row.get("dataset", results["dataset"].get("name"))
        dataset = title if dataset == results["dataset"].get("name") else formats.words(dataset)
        place = (dataset, formats.words(row.get("split")))
        groups.setdefault(place, {}).setdefault(row["variant"], []).append(row)
    tables = []
    for (dataset, split), variants in groups.items():
        metrics = list(dict.fromkeys(name for rows in variants.values() for row in rows for name in row["metrics"]))
        lines: list[dict[str, Any]] = []
        for variant, rows in variants.items():
            values: dict[str, list[float]] = {
                name: formats.values(row["metrics"].get(name) for row in rows) for name in metrics
            }
            lines.append(
                {
                    "variant": variant,
                    "runs": len(rows),
                    "below": sum(row.get("below_untuned") is True for row in rows),
                    "found": values,
                    "means": {name: fmean(found) if found else None for name, found in values.items()},
                    "spreads": {name: stdev(found) if len(found) > 1 else None for name, found in values.items()},
                    "trainable": max(formats.values(row.get("trainable_parameters") for row in rows), default=None),
                    "total": max(formats.values(row.get("total_parameters") for row in rows), default=None),
                    "seconds": fmean(found) if (found := formats.values(row.get("seconds") for row in rows)) else None,
                    "peak": max(formats.values(row.get("peak_bytes") for row in rows), default=None),
                }
            )
        spread = any(len(found) > 1 for line in lines for found in line["found"].values())
        tables.append({"dataset": dataset, "split": split, "metrics": metrics, "lines": lines, "spread": spread})
    return tables


def _plots(results: dict[str, Any], tables: list[dict[str, Any]], logs: Mapping[str, list[_Log]]) -> list[plots.Plot]:
    """All plots there is something for, in the order of the page."""
    made = []
    wanted = _primary(list(dict.fromkeys(one["metric"] for one in results["comparisons"]))) or PRIMARY
    for place, table in enumerate(tables):
        metric = _primary(table["metrics"], wanted)
        values = {line["variant"]: line["found"].get(metric, []) for line in table["lines"]}
        if metric is not None and any(values.values()):
            title = f"{metric} by variant, {table['dataset']}, {table['split']}"
            untuned = values.get("untuned")
            made.append(plots.dots(f"metric-{place}", title, values, metric, fmean(untuned) if untuned else None))
    for place, split in enumerate(dict.fromkeys(formats.words(one.get("split")) for one in results["comparisons"])):
        those = [one for one in results["comparisons"] if formats.words(one.get("split")) == split]
        metric = _primary([one["metric"] for one in those], wanted)
        found = [one for each in those if each["metric"] == metric and (one := _difference(each)) is not None]
        if found:
            title = f"Paired differences in {metric}, {split}"
            made.append(plots.differences(f"differences-{place}", title, found, f"difference in {metric}"))
    developed = {name for those in logs.values() for log in those for name in log.curves if name.startswith("dev_")}
    dev = _primary(sorted(developed), f"dev_{wanted}")
    for name, (title, label, caption) in CURVES.items():
        key = dev if name == "dev" else name
        runs = {variant: [log.curves[key] for log in those if key in log.curves] for variant, those in logs.items()}
        runs = {variant: found for variant, found in runs.items() if found}
        if runs:
            made.append(plots.curves(f"curve-{name}", title, runs, label or str(key).removeprefix("dev_"), caption))
    usage = {variant: [row for log in those for row in log.usage or ()] for variant, those in logs.items()}
    usage = {variant: found for variant, found in usage.items() if found}
    if usage:
        made.append(plots.strips("depth-usage", "Depth usage", usage))
    return made


def _difference(entry: Mapping[str, Any]) -> plots.Difference | None:
    mean = formats.number(entry.get("mean_difference"))
    if mean is None:
        return None
    ends = entry.get("interval")
    ends = formats.values(ends) if isinstance(ends, list) else []
    interval = (ends[0], ends[1]) if len(ends) == 2 else None
    return plots.Difference(
        entry["variant"], entry["baseline"], mean, interval, formats.number(entry.get("smallest_detectable"))
    )


def _primary(metrics: list[str], wanted: str = PRIMARY) -> str | None:
    return wanted if wanted in metrics else next(iter(metrics), None)
