"""Fine-tuning a dense retriever on Sentence Transformers' trainer, with MAW's auxiliary loss where there is MAW.

Loss: in-batch contrastive (multiple negatives ranking) on (query, relevant document) pairs. MAW layers add the
gradient of their GRPO loss themselves (`maw.auxiliary`); `AuxiliaryLoss` sees to its weight, and the trainer logs it.
"""

from __future__ import annotations

import math
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor, nn
from transformers import PrinterCallback, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint

from maw.auxiliary import scale_gradient
from maw.collapse import Watch
from maw.errors import MAWError
from maw.hf.attach import maw_layers
from maw.retrieval.encoding import dense_runs
from maw.retrieval.evaluation import evaluate
from maw.retrieval.trainer import Progress, Trainer, logged_findings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from maw.retrieval.datasets import RetrievalDataset

__all__ = [
    "AuxiliaryLoss",
    "DevEvaluator",
    "TrainingSettings",
    "count_parameters",
    "remove_checkpoints",
    "train",
]

METRIC = "nDCG@10"


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; a MAW variant and its dense twin share one value of this. Batches are those of one process."""

    learning_rate: float = 5e-5
    epochs: int = 3
    batch_size: int = 64
    max_length: int = 128
    warmup_share: float = 0.1
    weight_decay: float = 0.01
    similarity_scale: float = 20.0
    positives_per_query: int | None = None
    dev_documents: int = 2000
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_length", "dev_documents"):
            if getattr(self, name) < 1:
                raise MAWError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "similarity_scale"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise MAWError(f"{name} must be above 0, got {getattr(self, name)}")


class AuxiliaryLoss(nn.Module):
    """A training loss whose backward also trains the selectors of the model's MAW layers.

    The wrapped loss is returned unchanged (plus, with `updates` > 1, the loss of earlier samples); the gradient that
    arrives at it scales the auxiliary gradients, so loss scaling, gradient accumulation and mini-batches of any
    size weigh both alike.

    Args:
        loss: a Sentence Transformers loss.
        model: the model it trains.
    """

    def __init__(self, loss: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.model = model

    def forward(self, features: Any, labels: Tensor | None = None) -> Tensor:
        """The wrapped loss."""
        layers = [layer for layer in maw_layers(self.model) if layer.training and torch.is_grad_enabled()]
        for layer in layers:
            layer.gradient_scale.texts = 0
        replayed = [loss for layer in layers if (loss := layer.replay_loss()) is not None]
        loss = self.loss(features, labels)
        if isinstance(loss, dict):
            loss = torch.stack(list(loss.values())).sum()
        if not layers:
            return loss
        return scale_gradient(loss, [layer.gradient_scale for layer in layers]) + sum(replayed)


class DevEvaluator(BaseEvaluator):
    """nDCG@10 on the dev split, over its relevant documents and seeded others up to `dev_documents`."""

    def __init__(self, dataset: RetrievalDataset, settings: TrainingSettings) -> None:
        super().__init__()
        self.primary_metric = f"dev_{METRIC}"
        self.queries, self.judged = dataset.evaluation_split("dev")
        documents = {document for grades in self.judged.values() for document in grades}
        others = sorted(set(dataset.documents) - documents)
        random.Random(settings.seed).shuffle(others)
        documents |= set(others[: max(0, settings.dev_documents - len(documents))])
        self.documents = {document: dataset.documents[document] for document in sorted(documents)}

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """The metric, under the name `primary_metric`."""
        runs = dense_runs(model, self.documents, {"dev": self.queries}, k=100)
        return {f"dev_{METRIC}": evaluate(self.judged, runs["dev"], [METRIC]).means[METRIC]}


def train(
    model: SentenceTransformer,
    dataset: RetrievalDataset,
    folder: Path,
    settings: TrainingSettings,
    *,
    log_file: Path | None = None,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Fine-tune `model` in place on the train split and leave it at its best checkpoint on dev.

    Under `torchrun` or `accelerate launch` every process trains on its share of the batches, with its own dropout and
    depth noise, and ends with the same weights.

    Args:
        model: the encoder, with or without MAW, with or without LoRA.
        dataset: needs a train split; a dev split chooses the best epoch, without one the last epoch stays.
        folder: checkpoints and TensorBoard logs go here; a training that was killed there is resumed.
        settings: how to train.
        log_file: one JSON object a log entry; None is `folder/log.jsonl`.
        show_progress: whether to draw a progress bar.

    Returns:
        steps, pairs, the best dev metric, whether it was resumed, the selectors' last logged statistics (`selector`,
        None without) and what `maw.collapse` found (`findings`, of the first process).

    Raises:
        MAWError: no training pairs, a batch larger than the training set, or a loss that is not finite.
    """
    pairs = dataset.training_pairs(settings.positives_per_query, settings.seed)
    has_dev = "dev" in dataset.splits
    arguments = _arguments(model, folder, settings, len(pairs), has_dev=has_dev, show_progress=show_progress)
    _check_batch(dataset.name, len(pairs), settings.batch_size, arguments.world_size)
    model.max_seq_length = settings.max_length
    model.model_card_data.generate_widget_examples = False  # our own card is written where the model is saved
    if settings.gradient_checkpointing:
        _checkpoint_layers(model)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = get_last_checkpoint(str(folder))
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(
            {
                "anchor": [dataset.queries[query] for query, _ in pairs],
                "positive": [dataset.documents[document] for _, document in pairs],
            }
        ),
        loss=AuxiliaryLoss(MultipleNegativesRankingLoss(model, scale=settings.similarity_scale), model),
        evaluator=DevEvaluator(dataset, settings) if has_dev else None,
    )
    trainer.log_file = folder / "log.jsonl" if log_file is None else log_file
    if checkpoint is None and trainer.is_world_process_zero():
        trainer.log_file.unlink(missing_ok=True)
    trainer.watch = Watch(logged_findings(trainer.log_file) if trainer.is_world_process_zero() else ())
    some = pairs[:: max(1, len(pairs) // 4)][:4]
    trainer.probe_texts = [dataset.queries[q] for q, _ in some] + [dataset.documents[d] for _, d in some]
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    if show_progress:
        trainer.add_callback(Progress)
    if arguments.process_index > 0:  # the trainer seeds all processes alike, which would give them the same noise
        torch.manual_seed(settings.seed + 1_000_003 * arguments.process_index)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.check_loss()
    trainer.finish()
    for layer in maw_layers(model):
        layer.collect()  # the model keeps nothing of its training
    if has_dev and trainer.state.best_model_checkpoint is None:
        raise MAWError(
            f"training in {folder} ended without a best checkpoint, though there is a dev split: see its log"
        )
    model.eval()
    return {
        "steps": trainer.state.global_step,
        "pairs": len(pairs),
        f"dev_{METRIC}": trainer.state.best_metric,
        "resumed": checkpoint is not None,
        "selector": trainer.selector,
        "findings": [finding.to_dict() for finding in trainer.watch.found.values()],
    }


def _arguments(
    model: SentenceTransformer,
    folder: Path,
    settings: TrainingSettings,
    pairs: int,
    *,
    has_dev: bool,
    show_progress: bool,
) -> SentenceTransformerTrainingArguments:
    layers = maw_layers(model)
    on_gpu = model.device.type == "cuda"
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        learning_rate_mapping={r"\.maw\.": layers[0].config.learning_rate} if layers else {},
        weight_decay=settings.weight_decay,
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        bf16=on_gpu and torch.cuda.is_bf16_supported(),
        use_cpu=model.device.type == "cpu",
        seed=settings.seed,
        data_seed=settings.seed,
        logging_nan_inf_filter=False,
        eval_strategy="epoch" if has_dev else "no",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=has_dev,
        metric_for_best_model=f"eval_dev_{METRIC}" if has_dev else None,
        greater_is_better=True,
        report_to=["tensorboard"],
        disable_tqdm=not show_progress,
        dataloader_pin_memory=on_gpu,
    )
    # how many processes there are is known from here on; with several, an incomplete last batch is dropped
    together = settings.batch_size * arguments.world_size
    steps = settings.epochs * (math.ceil(pairs / together) if arguments.world_size == 1 else pairs // together)
    arguments.warmup_steps = math.ceil(settings.warmup_share * steps)
    arguments.logging_steps = max(1, steps // 50)
    return arguments


def _check_batch(name: str, pairs: int, batch_size: int, processes: int) -> None:
    if pairs < batch_size * processes:
        several = "" if processes == 1 else f" in each of {processes} processes"
        raise MAWError(
            f"{name} has {pairs} training pairs, fewer than one batch of {batch_size}{several}: lower --batch-size"
        )


def _checkpoint_layers(model: SentenceTransformer) -> None:
    """Switch gradient checkpointing on, under the name that this version of Transformers gives it."""
    encoder: Any = model[0].model
    enable = getattr(encoder, "activation_checkpointing_enable", None) or encoder.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def remove_checkpoints(folder: Path) -> None:
    """Delete what a finished training no longer needs; its TensorBoard logs stay."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def count_parameters(model: nn.Module) -> Mapping[str, int]:
    """How many parameters are trained, and how many there are (an adapter's untouched originals not counted)."""
    named = [(name, p) for name, p in model.named_parameters() if ".original_module." not in name]
    return {
        "trainable_parameters": sum(p.numel() for _, p in named if p.requires_grad),
        "total_parameters": sum(p.numel() for _, p in named),
    }
