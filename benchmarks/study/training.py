"""One run of the study: load, train, measure, write."""

from __future__ import annotations

import argparse
import functools
import hashlib
import logging
import shutil
import tempfile
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import data as study_data
import numpy as np
import torch
from choosing import CONTROLS
from finer import refine
from plan import Run
from recipes import BEGAN, SHORTLIST
from scores import measure
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel, set_seed

from maw.benchmark.resources import describe_environment
from maw.benchmark.variants import VARIANTS
from maw.commands import quiet_libraries
from maw.config import MAWConfig
from maw.hf.attach import attach, carried, maw_layers
from maw.hf.lora import lora_config
from maw.io.atomic import write_json
from maw.retrieval.identity import fingerprint
from maw.retrieval.models import load_encoder
from maw.retrieval.training.fine_tuning import count_parameters, train
from maw.retrieval.training.settings import TrainingSettings

__all__ = ["do_run", "maw_config", "quiet", "training_settings"]

POSITIVES = 5
"""At most so many relevant documents a query: NFCorpus has 43 on average."""


def quiet() -> None:
    quiet_libraries()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


@functools.cache
def environment(device: torch.device) -> dict[str, Any]:
    return describe_environment(device)


def encoder(run: Run, asked: argparse.Namespace, device: torch.device) -> SentenceTransformer:
    """The encoder that was trained before, or a small one that never was, with the same tokens."""
    model = load_encoder(asked.model, device=device, max_length=study_data.LENGTH)
    if run.encoder == "scratch":
        from sentence_transformers.sentence_transformer.modules import Pooling

        sizes = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
        set_seed(run.seed)
        model[0].model = BertModel(BertConfig(vocab_size=len(model.tokenizer), **sizes)).to(device)
        model[1] = Pooling(256, pooling_mode="mean").to(device)
    return model


def do_run(run: Run, asked: argparse.Namespace, device: torch.device, **changes: Any) -> None:
    """Do it and write `runs/NAME.npz`, then `runs/NAME.json`.

    Args:
        run: what to do.
        asked: the command's arguments.
        device: where.
        changes: to `training_settings`.
    """
    start = time.time()
    model = encoder(run, asked, device)
    result: dict[str, Any] = {
        "name": run.name,
        "run": asdict(run),
        "weights": None,
        "parameters": count_parameters(model),
    }
    if run.variant != "untuned":
        result |= _train(model, run, asked, training_settings(run, **changes))
    trained = time.time()
    per_query, selection = measure(model, asked.data, device, trained_on=run.train, everything=everywhere(run))
    arrays = {split: np.array(list(values.values()), dtype=np.float32) for split, values in per_query.items()}
    folder = asked.output / "runs"
    scores = folder / f"{run.name}.npz"
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as file:
        np.savez_compressed(file, **{name.replace("/", "|"): array for name, array in arrays.items()})
    Path(file.name).rename(scores)
    digest = hashlib.sha256()
    for split in sorted(arrays):
        digest.update(split.encode() + arrays[split].tobytes())
    result |= {
        "means": {split: float(np.mean(list(values.values()))) for split, values in per_query.items()},
        "queries": {
            split: hashlib.sha256("\0".join(values).encode()).hexdigest()[:16] for split, values in per_query.items()
        },
        "scores": digest.hexdigest(),
        "selection": selection,
        "seconds": {"training": trained - start, "measuring": time.time() - trained},
        "peak MiB": torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None,
        "environment": environment(device) | ({"commit": asked.commit} if asked.commit else {}),
    }
    write_json(folder / f"{run.name}.json", result)


def everywhere(run: Run) -> bool:
    """Whether a run is measured elsewhere, too; of `final`, the twins and what the third round chose."""
    if run.phase == "final":
        return run.variant not in CONTROLS and run.option in ("", *SHORTLIST)
    return run.phase in ("main", "default", "confirmation")


def maw_config(run: Run) -> MAWConfig | None:
    """The run's settings of MAW."""
    changes = {name: value for name, value in run.maw.items() if name not in ("weights per", "encoder")}
    return VARIANTS[run.variant].maw_config({"seed": run.seed, **BEGAN, **changes})


def freeze(model: SentenceTransformer) -> None:
    """Leave MAW or a control to be trained; without one, the last layer's query and key projections."""
    projections = [part for name, part in model.named_modules() if name.endswith(("self.query", "self.key"))]
    trained = {parameter for part in carried(model) or projections[-2:] for parameter in part.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter in trained)


def training_settings(run: Run, *, mask_relevant: bool = False, positives: int | None = POSITIVES) -> TrainingSettings:
    """How a run is trained.

    The study's runs have what is judged relevant to a query among its negatives, as every training had when it was
    made; `benchmarks/false_negatives.py` measures what `mask_relevant` changes.
    """
    return TrainingSettings(
        learning_rate=run.learning_rate,
        epochs=run.epochs,
        batch_size=run.batch_size,
        max_length=study_data.LENGTH,
        positives_per_query=positives,
        seed=run.seed,
        mask_relevant=mask_relevant,
    )


def _train(
    model: SentenceTransformer, run: Run, asked: argparse.Namespace, settings: TrainingSettings
) -> dict[str, Any]:
    config, weights_per = maw_config(run), run.maw.get("weights per")
    set_seed(run.seed)
    if config is not None:
        attach(model, config)
    for layer in maw_layers(model) if weights_per else []:
        refine(layer, weights_per)
    if VARIANTS[run.variant].tuning == "lora":
        model.add_adapter(lora_config(model))
    if run.maw.get("encoder") == "frozen":
        freeze(model)
    found: dict[str, Any] = {"parameters": count_parameters(model)}
    if config is not None:
        settings_of_maw = {name: value for name, value in config.to_dict().items() if name != "seed"}
        found["maw"] = settings_of_maw | {"weights per": weights_per or "text"}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory(dir=asked.output) as folder:
        outcome = train(model, study_data.training_set(run.train, asked.data), Path(folder), settings)
        shutil.rmtree(folder, ignore_errors=True)
        Path(folder).mkdir()
    kept = ("steps", "pairs", "selector", "findings")
    return found | {"outcome": {name: outcome[name] for name in kept}, "weights": fingerprint(model)}
