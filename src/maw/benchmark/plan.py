"""What a benchmark will do: its settings, its runs, and an estimate of how long they take here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from maw.benchmark.variants import DEFAULT, VARIANTS, Variant, choose_variants
from maw.config import MAWConfig
from maw.errors import MAWError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from maw.retrieval.data.dataset import RetrievalDataset
    from maw.retrieval.training.settings import TrainingSettings

__all__ = [
    "PRESETS",
    "Benchmark",
    "PlannedRun",
    "estimate_seconds",
    "evaluation_splits",
    "planned_runs",
    "rollout_forwards",
    "texts_per_second",
    "training_seconds",
    "training_settings",
]

PRESETS: dict[str, dict[str, Any]] = {
    # minutes on two cores; what it leaves out is said on the screen and in results.json
    "quick": {
        "subset": {"train_pairs": 600, "documents": 1200, "test_queries": 500, "dev_queries": 100, "seed": 0},
        "training": {"epochs": 1, "batch_size": 32, "max_length": 64, "dev_documents": 300},
    },
    "full": {"subset": None, "training": {}},
}

LORA_LEARNING_RATE = 5e-4
"""LoRA trains few, fresh parameters and takes about ten times the learning rate of full fine-tuning."""


@dataclass(frozen=True)
class Benchmark:
    """Everything that decides a benchmark's numbers, and where they go."""

    dataset: str = "pydocs"
    model: str = "packaged"
    variants: tuple[str, ...] = DEFAULT
    seeds: int = 1
    preset: Literal["quick", "full"] = "quick"
    output: Path = Path("maw-results")
    device: str = "auto"
    maw: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    lora_learning_rate: float = LORA_LEARNING_RATE
    metric: str = "nDCG@10"
    drop_own: bool = False

    def __post_init__(self) -> None:
        choose_variants(self.variants)
        MAWConfig(**self.maw)
        if self.seeds < 1:
            raise MAWError(f"seeds must be at least 1, got {self.seeds}: it is how many times each variant is trained")
        if self.preset not in PRESETS:
            raise MAWError(f"preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")

    @property
    def _literal_layers(self) -> Any:
        """A recipe keeps its own layers unless some are given, which `MAWConfig(**self.maw)` does not tell."""
        config = VARIANTS["literal"].maw_config(self.maw)
        return None if config is None else config.to_dict()["layers"]

    def identity(self) -> dict[str, Any]:
        """What must be the same for a started folder to be gone on with; variants and seeds may grow."""
        return {
            "dataset": self.dataset,
            **({"drop_own": True} if self.drop_own else {}),
            "model": self.model,
            "preset": self.preset,
            "maw": MAWConfig(**self.maw).to_dict(),
            "literal_layers": self._literal_layers,
            "training": {
                name: [str(file) for file in value] if name == "negative_files" else value
                for name, value in self.training.items()
            },
            "lora_learning_rate": self.lora_learning_rate,
        }


@dataclass(frozen=True)
class PlannedRun:
    """One variant with one seed; rows without training have no seed."""

    variant: Variant
    seed: int | None

    @property
    def name(self) -> str:
        """The name of its files."""
        return self.variant.name if self.seed is None else f"{self.variant.name}-seed{self.seed}"


def planned_runs(benchmark: Benchmark) -> list[PlannedRun]:
    """Every run, seed by seed, so that a benchmark that is stopped has whole comparisons.

    >>> [run.name for run in planned_runs(Benchmark(variants=("maw-full",), seeds=2))]
    ['untuned', 'dense-full-seed0', 'maw-full-seed0', 'dense-full-seed1', 'maw-full-seed1']
    """
    variants = choose_variants(benchmark.variants)
    fixed = [PlannedRun(variant, None) for variant in variants if variant.kind != "tuned"]
    tuned = [variant for variant in variants if variant.kind == "tuned"]
    return fixed + [PlannedRun(variant, seed) for seed in range(benchmark.seeds) for variant in tuned]


def training_settings(benchmark: Benchmark, run: PlannedRun) -> TrainingSettings:
    """How to train this run; a MAW variant and its dense twin get the same value."""
    from maw.retrieval.training.settings import TrainingSettings

    values: dict[str, Any] = {**PRESETS[benchmark.preset]["training"], **benchmark.training, "seed": run.seed or 0}
    if run.variant.tuning == "lora":
        values["learning_rate"] = benchmark.lora_learning_rate
    return TrainingSettings(**values)


def evaluation_splits(dataset: RetrievalDataset) -> list[str]:
    """The splits that are reported: all to evaluate on but one that only chooses checkpoints, and unions of others.

    Raises:
        MAWError: there is none.
    """
    splits = list(dataset.reported_splits)
    if not splits:
        raise MAWError(f"{dataset.name} has no split to report on beside train and dev: add qrels/test.tsv")
    return splits


# Costs in forwards of one text, measured on a CPU: a training step also runs backward, in LoRA with fewer gradients.
_FORWARDS_PER_TRAINED_TEXT = {"full": 3.8, "lora": 3.5}
_SECONDS_PER_TUNED_RUN = 8.0
_BM25_DOCUMENTS_PER_SECOND = 2000.0


def estimate_seconds(
    benchmark: Benchmark, runs: Sequence[PlannedRun], dataset: RetrievalDataset, model: SentenceTransformer
) -> float:
    """How long these runs will take here, from the speed of the encoder on a sample of the documents."""
    from maw.benchmark.usage import TEXTS

    rate = texts_per_second(model, dataset)
    queries = sum(len(dataset.judgements(split)) for split in evaluation_splits(dataset))
    total = 0.0
    for run in runs:
        if run.variant.kind == "bm25":
            total += len(dataset.documents) / _BM25_DOCUMENTS_PER_SECOND
            continue
        total += (len(dataset.documents) + queries) / rate
        if run.variant.tuning is not None:
            more = rollout_forwards(run.variant.maw_config(benchmark.maw), model)
            total += training_seconds(dataset, training_settings(benchmark, run), run.variant, rate, more)
            if run.variant.recipe is not None:  # its depth usage is looked at
                total += (min(TEXTS, queries) + min(TEXTS, len(dataset.documents))) / rate
    return total


def rollout_forwards(config: MAWConfig | None, model: SentenceTransformer) -> float:
    """Forwards a trained text takes more with the retrieval reward: G, of the layers from the first with MAW up."""
    from maw.hf.hosts import family_of

    if config is None or config.mechanism != "maw" or config.selection == "uniform" or config.reward == "entropy":
        return 0.0
    host: Any = model[0].model
    count = len(host.get_submodule(family_of(host).layers))
    return config.group_size * (1 - config.layer_indices(count)[0] / count)


def training_seconds(
    dataset: RetrievalDataset, settings: TrainingSettings, variant: Variant, rate: float, rollouts: float = 0.0
) -> float:
    """How long a training will take here in one process, without finding hard negatives.

    Args:
        dataset: what is trained on.
        settings: how.
        variant: what; one that is not trained takes no time.
        rate: texts the encoder takes in a second (`texts_per_second`).
        rollouts: forwards a trained text takes more (`rollout_forwards`).
    """
    if variant.tuning is None:
        return 0.0
    pairs = len(dataset.training_pairs(settings.positives_per_query, settings.seed))
    trained = (2 + settings.hard_negatives) * pairs * settings.epochs
    forwards = _FORWARDS_PER_TRAINED_TEXT[variant.tuning] + (settings.mini_batch_size is not None)
    total = trained * (forwards + rollouts) / rate + _SECONDS_PER_TUNED_RUN
    if dataset.dev_split is not None:
        dev = min(settings.dev_documents, len(dataset.documents)) + len(dataset.judgements(dataset.dev_split))
        total += settings.epochs * dev / rate
    return total


def texts_per_second(model: SentenceTransformer, dataset: RetrievalDataset) -> float:
    """The speed of the encoder on a sample of the documents."""
    from maw.retrieval.data.texts import TextStore
    from maw.retrieval.ranking.dense import encode

    sample, warm_up = (64, 8) if model.device.type == "cpu" else (1024, 1024)
    documents = dataset.documents
    texts = documents.texts if isinstance(documents, TextStore) else list(documents.values())
    texts = texts[:: max(1, len(texts) // sample)][:sample]
    encode(model, texts[:warm_up], "document")
    start = time.perf_counter()
    encode(model, texts, "document")
    return len(texts) / (time.perf_counter() - start)
