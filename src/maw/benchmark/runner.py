"""Run the benchmark: every variant and seed once, each finished run kept, the results written anew after each.

The output folder is the state. A run is finished when `state/NAME.json` is there; the same command goes on with what
is missing, and a folder started with other settings, data or encoder is refused. The results hold every finished run,
also those that only an earlier command asked for.
"""

from __future__ import annotations

import datetime
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maw.benchmark.plan import PRESETS, Benchmark, PlannedRun, evaluation_splits, planned_runs, training_settings
from maw.benchmark.resources import Cost, describe_environment, measure
from maw.benchmark.results import (
    comparison_rows,
    comparisons,
    environments,
    mark_below_untuned,
    mixture,
    state_rows,
    usage_rows,
    verdict,
    write_per_query,
)
from maw.benchmark.states import PER_QUERY, check_runs, finished_runs, kept_files, read_states, state_file
from maw.benchmark.usage import depth_usage
from maw.errors import MAWError
from maw.io.atomic import write_json
from maw.io.checked import checksum
from maw.io.failures import refuse_writing
from maw.io.json import field, read_sealed
from maw.io.locks import LOCK, alone_in
from maw.retrieval.evaluation.assessment import dense_rankings
from maw.retrieval.evaluation.measures import Evaluation, default_measures, evaluate
from maw.retrieval.identity import encoder_fingerprint, set_prompts
from maw.retrieval.models import choose_device, load_encoder
from maw.retrieval.ranking.bm25 import bm25_run
from maw.retrieval.ranking.runs import check_run_ids, write_run
from maw.retrieval.ranking.truncation import dataset_truncation
from maw.retrieval.training.checkpoints import remove_checkpoints
from maw.retrieval.training.negatives import file_checksum

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from maw.retrieval.data.dataset import RetrievalDataset
    from maw.retrieval.ranking.runs import Run as Ranking

__all__ = ["Runner", "load_benchmark_dataset"]

SCHEMA = 1
MARKER = "benchmark.json"


def load_benchmark_dataset(benchmark: Benchmark) -> RetrievalDataset:
    """The data set, cut to the preset."""
    from maw.retrieval.data.loading import load_dataset

    dataset = load_dataset(benchmark.dataset, drop_own=benchmark.drop_own or None)
    subset = PRESETS[benchmark.preset]["subset"]
    return dataset if subset is None else dataset.subset(**subset)


class Runner:
    """One benchmark in one output folder.

    Args:
        benchmark: what to do.
        command: the command line, kept with the results.
        show_progress: whether to draw progress bars.

    Raises:
        MAWError: bad settings, data or model, or an output folder that is not this benchmark's.
    """

    def __init__(self, benchmark: Benchmark, *, command: str = "", show_progress: bool = False) -> None:
        self.benchmark = benchmark
        self.command = command
        self.show_progress = show_progress
        self.folder = benchmark.output
        self.device = choose_device(benchmark.device)
        self.runs = planned_runs(benchmark)
        _check_place(self.folder)
        self.encoder = self._encoder()
        self.dataset = load_benchmark_dataset(benchmark)
        self.splits = evaluation_splits(self.dataset)
        asked = (query for split in self.splits for query in self.dataset.judgements(split))
        check_run_ids(asked, self.dataset.documents)
        for run in self.runs:
            if run.variant.kind == "tuned":
                training_settings(benchmark, run)
        self.fingerprint = encoder_fingerprint(self.encoder)
        self._try_maw()
        self.truncation = dataset_truncation(self.encoder, self.dataset.queries, self.dataset.documents)
        self.identity = self._identity()
        self._check_folder()

    def _encoder(self) -> SentenceTransformer:
        settings = training_settings(self.benchmark, self.runs[0])
        model = load_encoder(self.benchmark.model, device=self.device, max_length=settings.max_length)
        set_prompts(model, settings.query_prompt, settings.document_prompt)
        return model

    def _try_maw(self) -> None:
        """Attach and detach each MAW that will be trained, so that what does not fit is known before the first run."""
        from maw.hf.attach import attach, detach

        for config in {run.variant.maw_config(self.benchmark.maw) for run in self.runs} - {None}:
            attach(self.encoder, config)
            detach(self.encoder)

    def pending(self) -> list[PlannedRun]:
        """The runs that are not finished yet."""
        return [run for run in self.runs if not state_file(self.folder, run).is_file()]

    def earlier(self) -> list[PlannedRun]:
        """The finished runs that this benchmark did not ask for: an earlier one in the same folder did."""
        return [run for run in finished_runs(self.folder) if run not in self.runs]

    def go(self, on_start: Callable[[PlannedRun], None] | None = None) -> dict[str, Any]:
        """Do every pending run, and return the final results; refused while another command writes into the folder."""
        with alone_in(self.folder):
            self._check_folder()  # another command may have started it meanwhile
            self._start_folder()
            for run in self.pending():
                if on_start is not None:
                    on_start(run)
                self._do(run)
                self.write_results()
            return self.write_results()

    # One run

    def _do(self, run: PlannedRun) -> None:
        cost, extra = Cost(), {"trainable_parameters": 0, "total_parameters": 0}
        if run.variant.kind == "bm25":
            with measure(self.device) as cost:
                found = self._rank_by_words()
        elif run.variant.kind == "untuned":
            extra["total_parameters"] = sum(p.numel() for p in self.encoder.parameters())
            with measure(self.device) as cost:
                found = self._rank(self.encoder)
        else:
            found, cost, extra = self._tune(run)
        state: dict[str, Any] = {
            "variant": run.variant.name,
            "seed": run.seed,
            "seconds": cost.seconds,
            "peak_bytes": cost.peak_bytes,
            **extra,
            "environment": describe_environment(self.device),
            "metrics": {},
            "per_query": {},
            "files": {},
        }
        for split, ranking in found.items():
            evaluation = self._evaluate(split, ranking)
            state["metrics"][split], state["per_query"][split] = evaluation.means, evaluation.per_query
            (self.folder / "runs").mkdir(exist_ok=True)
            path = self.folder / "runs" / f"{run.name}-{split.replace('/', '-')}.trec"
            write_run(path, ranking, run.name)
            state["files"][path.relative_to(self.folder).as_posix()] = checksum(path)
        log = self.folder / "logs" / f"{run.name}.jsonl"
        if log.is_file():
            state["files"][log.relative_to(self.folder).as_posix()] = checksum(log)
        write_json(state_file(self.folder, run), state)

    def _tune(self, run: PlannedRun) -> tuple[dict[str, Ranking], Cost, dict[str, Any]]:
        from maw.benchmark.tuning import save_model, tune

        settings = training_settings(self.benchmark, run)
        work = self.folder / "training" / run.name
        (self.folder / "logs").mkdir(exist_ok=True)
        with measure(self.device) as cost:
            tuned = tune(
                self._encoder(),
                run.variant,
                self.benchmark.maw,
                self.dataset,
                settings,
                work,
                negatives=self.folder / "negatives",
                log_file=self.folder / "logs" / f"{run.name}.jsonl",
                show_progress=self.show_progress,
            )
            found = self._rank(tuned.model)
        usage = depth_usage(tuned.model, self.dataset, self.splits)
        metrics = {split: self._evaluate(split, ranking).means for split, ranking in found.items()}
        save_model(
            tuned,
            self.folder / "models" / run.name,
            base=self.benchmark.model,
            dataset=self.dataset,
            metrics=metrics,
        )
        remove_checkpoints(work)
        return found, cost, {**tuned.parameters, **tuned.outcome, "depth_usage": usage}

    def _rank(self, model: SentenceTransformer) -> dict[str, Ranking]:
        return dense_rankings(model, self.dataset, self.splits, show_progress=self.show_progress)

    def _rank_by_words(self) -> dict[str, Ranking]:
        """BM25 for all splits, from one index."""
        asked = {split: self.dataset.evaluation_split(split)[0] for split in self.splits}
        queries = {query: text for texts in asked.values() for query, text in texts.items()}
        found = bm25_run(self.dataset.documents, queries, drop_own=self.dataset.drop_own)
        return {split: {query: found[query] for query in texts} for split, texts in asked.items()}

    def _evaluate(self, split: str, ranking: Ranking) -> Evaluation:
        measures = default_measures(self.dataset.relevant_grade.get(split, 1))
        return evaluate(self.dataset.judgements(split), ranking, measures)

    # The folder

    def _identity(self) -> dict[str, Any]:
        """What must be the same for this folder to be gone on with; versions may differ, which is then said."""
        files = self.benchmark.training.get("negative_files", ())
        whole = {
            **self.benchmark.identity(),
            **({"negatives": [file_checksum(file) for file in files]} if files else {}),
            "device": self.device.type,
            "encoder": self.fingerprint,
            "data": dict(self.dataset.checksums),
        }
        return json.loads(json.dumps(whole, default=str))

    def _check_folder(self) -> None:
        """Raise unless the folder is empty, absent, or this very benchmark's."""
        marker = self.folder / MARKER
        if marker.is_file():
            started = self._started()
            different = sorted(key for key in self.identity if self.identity[key] != started.get(key))
            if different:
                raise MAWError(
                    f"{self.folder} holds a benchmark with other {', '.join(different)}: "
                    "give the same settings to go on with it, or another --output"
                )
        elif self.folder.exists() and any(path.name != LOCK for path in self.folder.iterdir()):
            raise MAWError(f"{self.folder} is not empty and not a benchmark's folder: give another --output")
        finished_runs(self.folder)

    def _started(self) -> dict[str, Any]:
        """What the folder's benchmark is."""
        remedy = f"Give another --output, or delete {self.folder} to start anew"
        started = read_sealed(self.folder / MARKER, remedy)
        field(started, "started", str, self.folder / MARKER, remedy)
        return started

    def _start_folder(self) -> None:
        try:
            begun = {**self.identity, "started": _now(), "command": self.command}
            if not (self.folder / MARKER).is_file():
                write_json(self.folder / MARKER, begun)
            (self.folder / "state").mkdir(exist_ok=True)
        except OSError as error:
            raise MAWError(f"cannot write to {self.folder}: {error.strerror}; give another --output") from error

    def write_results(self) -> dict[str, Any]:
        """Write the results, `per_query.parquet`, `report.html` and, at the end, `moved.json` from what is finished."""
        from maw.benchmark.moved import write_moved
        from maw.benchmark.report import write_report

        states, metric = read_states(self.folder, finished_runs(self.folder)), self.benchmark.metric
        earlier = self.earlier()
        places = environments(states)
        mixed = mixture(places)
        rows = mark_below_untuned(state_rows(states, self.dataset.name, places), metric)
        found = comparisons(states, metric)
        results = {
            "schema": SCHEMA,
            "command": self.command,
            "finished": not self.pending(),
            "started": self._started()["started"],
            "written": _now(),
            "preset": self.benchmark.preset,
            "dataset": {
                **self.dataset.report(),
                "truncation": [count.to_dict() for count in self.truncation],
                "documents": len(self.dataset.documents),
                "splits": {split: len(self.dataset.judgements(split)) for split in self.dataset.splits},
            },
            "model": {"name": self.benchmark.model, "fingerprint": self.fingerprint},
            "settings": {
                **self.benchmark.identity(),
                "seeds": max(self.benchmark.seeds, *(1 + (run.seed or 0) for run in earlier), 1),
                "variants": list(dict.fromkeys([*self.benchmark.variants, *(run.variant.name for run in earlier)])),
            },
            "earlier": [run.name for run in earlier],
            "rows": rows,
            "comparisons": comparison_rows(found),
            "depth_usage": usage_rows(states),
            "verdict": verdict(found, rows, mixed),
            "mixture": mixed,
            "environment": places[-1] if places else describe_environment(self.device),
            "environments": places,
            "data": dict(self.dataset.checksums),
            "seconds": sum(state["seconds"] for state in states),
        }
        write_per_query(self.folder / PER_QUERY, states)
        results["files"] = kept_files(self.folder, states)
        write_json(self.folder / "results.json", json.loads(json.dumps(results, default=str)))
        if results["finished"]:
            check_runs(self.folder, states)
            write_moved(self.folder, results["comparisons"], self.dataset)
        write_report(self.folder)
        return results


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _check_place(folder: Path) -> None:
    """Raise where the output folder could not be made, before any time is spent."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        raise MAWError(f"cannot write to the output folder {folder}: {place} is no folder; give another --output")
    if not os.access(place, os.W_OK):
        refuse_writing(place, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
