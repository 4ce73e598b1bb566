"""The report of a benchmark: one self-contained HTML page from the output folder alone.

`maw.benchmark.folder` reads the folder; a run that was stopped has less in it, and the report then says so and shows
what there is. The page loads nothing, runs no script, and escapes all it shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from maw.benchmark import curves, depths, formats, plots, tables
from maw.benchmark.depths import Usage, usage_lines
from maw.benchmark.folder import SCHEMA, Folder, read_folder
from maw.benchmark.pairs import pairs
from maw.benchmark.svg import Plot
from maw.benchmark.training_logs import Log
from maw.errors import MAWError
from maw.io.atomic import write_text
from maw.io.escaping import visible

__all__ = ["SCHEMA", "write_report"]

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


def write_report(folder: Path) -> Path:
    """Write `report.html` into a benchmark's output folder, from what is in it.

    The file is written aside and then renamed, so that a report which is there stays until the new one is whole.

    Args:
        folder: the output folder of `maw benchmark`, of a finished or of a stopped run.

    Returns:
        The path of the report.

    Raises:
        MAWError: the folder or `results.json` is missing, or is not what `maw benchmark` writes.
    """
    folder = Path(folder)
    page = _render(read_folder(folder))
    target = folder / "report.html"
    write_text(target, visible(page))
    return target


def _render(folder: Folder) -> str:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise MAWError("the report needs jinja2: pip install 'maw-attention[retrieval]'") from None
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader([here / "page", here]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("count", "duration", "flat", "memory", "metric", "probability", "share", "signed", "words")
    environment.filters |= {name: getattr(formats, name) for name in names}
    results, logs = folder.results, folder.logs
    variants = list(dict.fromkeys([row["variant"] for row in results["rows"]] + [log.variant for log in logs]))
    found = tables.result_tables(results, folder.values)
    counts = results["dataset"].get("counts")
    counts = counts if isinstance(counts, dict) else {}
    present = {(row["variant"], row.get("seed")) for row in results["rows"]}
    return environment.get_template("report.html.jinja").render(
        results=results,
        title=tables.title_of(results["dataset"]),
        headline=tables.headline(results["comparisons"]),
        counts={name: value for name, value in counts.items() if not isinstance(value, dict | list)},
        nested={name: value for name, value in counts.items() if isinstance(value, dict | list)},
        finished=results.get("finished") is True,
        seeds=sorted({row["seed"] for row in results["rows"] if formats.number(row.get("seed")) is not None}),
        variants=variants,
        begun=[log for log in logs if (log.variant, log.seed) not in present],
        tables=found,
        findings=tables.findings(results["rows"]),
        environments=tables.environments(results),
        metric_plots=_metric_plots(results, found),
        difference_plots=_difference_plots(results),
        pairs=pairs(folder),
        curves=_curves(results, {name: [log for log in logs if log.variant == name] for name in variants}),
        usage=usage_lines(folder.usage),
        usage_plots=_usage_plots(folder),
        logs=logs,
        notes=folder.notes,
    )


def _wanted(results: Mapping[str, Any]) -> str:
    return _primary(list(dict.fromkeys(one["metric"] for one in results["comparisons"]))) or PRIMARY


def _metric_plots(results: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> list[Plot]:
    made = []
    for place, table in enumerate(found):
        metric = _primary(table["metrics"], _wanted(results))
        values = {line["variant"]: line["found"].get(metric, []) for line in table["lines"]}
        if metric is not None and any(values.values()):
            title = f"{metric} by variant, {table['dataset']}, {table['split']}"
            untuned = values.get("untuned")
            ends = {line["variant"]: line["intervals"].get(metric) for line in table["lines"]}
            reference = fmean(untuned) if untuned else None
            made.append(plots.dots(f"metric-{place}", title, values, ends, metric, reference))
    return made


def _difference_plots(results: Mapping[str, Any]) -> list[Plot]:
    made = []
    for place, split in enumerate(dict.fromkeys(formats.words(one.get("split")) for one in results["comparisons"])):
        those = [one for one in results["comparisons"] if formats.words(one.get("split")) == split]
        metric = _primary([one["metric"] for one in those], _wanted(results))
        found = [one for each in those if each["metric"] == metric and (one := _difference(each)) is not None]
        if found:
            title = f"Paired differences in {metric}, {split}"
            made.append(plots.differences(f"differences-{place}", title, found, f"difference in {metric}"))
    return made


def _curves(results: Mapping[str, Any], logs: Mapping[str, list[Log]]) -> list[Plot]:
    made = []
    developed = {name for those in logs.values() for log in those for name in log.curves if name.startswith("dev_")}
    dev = _primary(sorted(developed), f"dev_{_wanted(results)}")
    for name, (title, label, caption) in CURVES.items():
        key = dev if name == "dev" else name
        runs = {variant: [log.curves[key] for log in those if key in log.curves] for variant, those in logs.items()}
        runs = {variant: found for variant, found in runs.items() if found}
        if runs:
            named = label or str(key).removeprefix("dev_")
            lowest = 0.0 if name == "zero_spread" else None
            made.append(curves.curves(f"curve-{name}", title, runs, named, caption, lowest=lowest))
    return made


def _usage_plots(folder: Folder) -> list[Plot]:
    """By kind of input where that was measured; otherwise what the logs have of training, in which kinds are mixed."""
    made = depths.figures("depth-usage", "Depth usage by kind of input", folder.usage, ["query", "document"])
    measured = {one.variant for one in folder.usage}
    logged = [
        Usage(log.variant, log.seed, layer, "training", row)
        for log in folder.logs
        if log.variant not in measured
        for layer, row in enumerate(log.usage or ())
    ]
    return made + depths.figures("depth-usage-training", "Depth usage at the end of training", logged, ["training"])


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
