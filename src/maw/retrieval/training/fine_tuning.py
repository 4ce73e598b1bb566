"""Fine-tuning a dense retriever on Sentence Transformers' trainer, with MAW's auxiliary loss where there is MAW.

Loss: in-batch contrastive (multiple negatives ranking) on (query, relevant document, hard negatives...) rows, over the
batch of all processes together (`losses`, `batches`). A training that was killed goes on from its last whole checkpoint
to the weights it would have had (`trainer`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from torch import nn
from transformers import PrinterCallback, ProgressCallback

from maw.console import Console
from maw.errors import MAWError
from maw.hf.attach import carried, maw_layers
from maw.hf.calibration import calibrating
from maw.hf.weights import in_full
from maw.io.failures import saying_that_the_disk_is_full
from maw.progress import showing
from maw.retrieval.evaluation.development import METRIC, DevEvaluator
from maw.retrieval.identity import document_prompt, encoder_fingerprint, query_prompt, set_prompts
from maw.retrieval.models import limit_length
from maw.retrieval.similarity import similarity_of, similarity_scale
from maw.retrieval.training.batches import Batches, TrainingTexts
from maw.retrieval.training.checkpoints import (
    check_identity,
    last_checkpoint,
    shorten_log,
    step_of,
)
from maw.retrieval.training.losses import AuxiliaryLoss, contrastive_loss
from maw.retrieval.training.relevance import Relevance, text_hashes
from maw.retrieval.training.rows import find_negatives, with_negatives
from maw.retrieval.training.saving import Checkpoints
from maw.retrieval.training.settings import TrainingSettings
from maw.retrieval.training.steps import Progress
from maw.retrieval.training.trainer import Trainer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from maw.retrieval.data.dataset import RetrievalDataset

__all__ = ["count_parameters", "train"]

CALIBRATION_PAIRS = 128
"""So many training pairs tell a selector what its states are like."""


def train(
    model: SentenceTransformer,
    dataset: RetrievalDataset,
    folder: Path,
    settings: TrainingSettings,
    *,
    negatives: Mapping[str, Sequence[str]] | None = None,
    log_file: Path | None = None,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Fine-tune `model` in place on the train split and leave it at its best checkpoint on dev.

    With `MAWConfig.calibrate` it first encodes `CALIBRATION_PAIRS` pairs, from which the selectors start
    (`maw.hf.calibration`).

    Weights in half precision are put into float32 first, or small steps would be lost, and stay in it: whoever saves
    them chooses their type (`maw.hf.weights.set_weights_type`).

    Under `torchrun` or `accelerate launch` every process trains on its share of one batch, with its own dropout and
    depth noise, and ends with the same weights.

    Args:
        model: the encoder, with or without MAW, with or without LoRA.
        dataset: needs a train split; its `dev_split` chooses the best epoch, without one the last epoch stays.
        folder: checkpoints and TensorBoard logs go here; a training that was killed there is resumed.
        settings: how to train.
        negatives: query id -> ids of its hard negatives, best first; None finds those that the settings ask for.
        log_file: one JSON object a log entry; None is `folder/log.jsonl`.
        show_progress: whether to show how far it is where nobody does yet (`maw.progress.showing`).

    Returns:
        steps, pairs, `prompts`, the similarity and its scale in the loss, processes, the best dev metric, whether it
        was resumed, the seed of every draw, the selectors' last logged statistics (`selector`, None without) and what
        `maw.collapse` found (`findings`).

    Raises:
        MAWError: no training pairs, a batch larger than the training set, negatives without `hard_negatives`, a
            checkpoint of another training in the folder, or a loss that is not finite.
    """
    in_full(model)
    set_prompts(model, settings.query_prompt, settings.document_prompt)
    prompts = {"query": query_prompt(model) or "", "document": document_prompt(model) or ""}
    scale = similarity_scale(model, settings.similarity_scale)
    compared = {"similarity": similarity_of(model), "similarity_scale": scale}
    pairs = dataset.training_pairs(settings.positives_per_query, settings.seed)
    has_dev = dataset.dev_split is not None
    arguments = _arguments(model, folder, settings, has_dev=has_dev)
    rank, processes = arguments.process_index, arguments.world_size  # known from here on
    _check_batch(dataset.name, len(pairs), settings.batch_size, processes)
    if negatives is not None and not settings.hard_negatives:
        raise MAWError("negatives are given, but hard_negatives is 0: say how many of them a pair gets")
    if negatives is None:
        negatives = find_negatives(dataset, settings, model, folder / "negatives")
    rows, drawn_negatives = with_negatives(dataset, pairs, negatives or {}, settings.hard_negatives, settings.seed)
    texts = TrainingTexts(dataset.queries, dataset.documents, rows)
    batches = _batches(texts, dataset, settings, rank, processes)
    _schedule(arguments, settings, len(batches))
    limit_length(model, settings.max_length)
    model.model_card_data.generate_widget_examples = False  # our own card is written where the model is saved
    if settings.gradient_checkpointing:
        _checkpoint_layers(model)
    log_file = folder / "log.jsonl" if log_file is None else log_file
    checkpoint, data = _resume(folder, log_file, arguments, _identity(model, dataset, batches, settings))
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    loss = contrastive_loss(
        model,
        scale=scale,
        mini_batch_size=settings.mini_batch_size,
        gather=processes > 1,
        relevance=batches.relevance,
    )
    if checkpoint is None:  # else it holds what came of it
        _calibrate(model, _texts_of(dataset, pairs, CALIBRATION_PAIRS), settings)
    trainer = Trainer(
        model=model,
        args=arguments,
        loss=AuxiliaryLoss(loss, model),
        evaluator=DevEvaluator(dataset, settings.dev_documents, settings.seed) if has_dev else None,
        callbacks=[Checkpoints(folder, settings.save_steps, len(batches), batches)],
        batches=batches,
        log_file=log_file,
        data=data,
        probe_texts=_texts_of(dataset, pairs, 4),
    )
    if checkpoint is None:
        trainer.note({**compared, **({"prompts": prompts} if any(prompts.values()) else {})})
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress)
    seeds = [settings.seed + 1_000_003 * process for process in range(processes)]
    if rank > 0:  # the trainer seeds all processes alike, which would give them the same noise
        torch.manual_seed(seeds[rank])
    with showing(Console()) if show_progress else nullcontext(), saying_that_the_disk_is_full(folder):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.check_loss()
    trainer.finish()
    for layer in maw_layers(model):
        layer.collect()  # the model keeps nothing of its training
    if has_dev and trainer.state.best_model_checkpoint is None:
        raise MAWError(
            f"training in {folder} ended without a best checkpoint, though there is a dev split: see its log"
        )
    model.eval()
    trainer.accelerator.wait_for_everyone()  # all have read the best checkpoint before anybody deletes it
    drawn = {"order": True, "positives": True, "negatives": settings.hard_negatives, "dev_documents": has_dev}
    return {
        "steps": trainer.state.global_step,
        "pairs": len(rows),
        **({"drawn_negatives": drawn_negatives} if settings.hard_negatives else {}),
        "prompts": prompts,
        "processes": processes,
        **compared,
        f"dev_{METRIC}": trainer.state.best_metric,
        "resumed": checkpoint is not None,
        "selector": trainer.selector,
        "findings": [finding.to_dict() for finding in trainer.watch.found.values()],
        "seeds": {"training": seeds, **{name: settings.seed for name, is_drawn in drawn.items() if is_drawn}},
    }


def _batches(
    texts: TrainingTexts, dataset: RetrievalDataset, settings: TrainingSettings, rank: int, processes: int
) -> Batches:
    """This process's share of all batches, which know what is relevant to which query."""
    hashes = text_hashes(texts)
    relevance = Relevance(texts, dataset.judgements("train"), hashes) if settings.mask_relevant else None
    return Batches(
        texts,
        settings.batch_size * processes,
        seed=settings.seed,
        process=rank,
        processes=processes,
        relevance=relevance,
        hashes=hashes,
    )


def _arguments(
    model: SentenceTransformer, folder: Path, settings: TrainingSettings, *, has_dev: bool
) -> SentenceTransformerTrainingArguments:
    layers = [layer for layer in carried(model) if any(p.requires_grad for p in layer.parameters())]
    on_gpu = model.device.type == "cuda"
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        learning_rate_mapping={r"\.maw\.": layers[0].config.learning_rate} if layers else {},
        weight_decay=settings.weight_decay,
        bf16=on_gpu and torch.cuda.is_bf16_supported(),
        use_cpu=model.device.type == "cpu",
        seed=settings.seed,
        data_seed=settings.seed,
        logging_nan_inf_filter=False,
        eval_strategy="epoch" if has_dev else "no",
        save_strategy="epoch",
        load_best_model_at_end=has_dev,
        metric_for_best_model=f"eval_dev_{METRIC}" if has_dev else None,
        greater_is_better=True,
        report_to=["tensorboard"],
        disable_tqdm=True,
        dataloader_pin_memory=on_gpu,
        dataloader_drop_last=True,  # says nothing of our own batches, whose shares are equal
    )
    if arguments.n_gpu > 1:  # several in one process would be replicas without what MAW's layers remember
        arguments._n_gpu = 1
    if arguments.device.type == "cpu":  # its index keeps Transformers 5.17 from loading an optimiser's state
        vars(arguments)["_setup_devices"] = torch.device("cpu")
    return arguments


def _schedule(arguments: SentenceTransformerTrainingArguments, settings: TrainingSettings, batches: int) -> None:
    """Warm up and log by the number of steps there will be; every tenth at least, so that `maw.collapse` sees early."""
    steps = settings.epochs * batches
    arguments.warmup_steps = math.ceil(settings.warmup_share * steps)
    arguments.logging_steps = min(10, max(1, steps // 20))


def _identity(
    model: SentenceTransformer, dataset: RetrievalDataset, batches: Batches, settings: TrainingSettings
) -> dict[str, Any]:
    """What decides the weights that a training ends with."""
    data = hashlib.sha256(batches.hashes.tobytes())
    data.update(b"" if batches.relevance is None else batches.relevance.pairs.tobytes())
    for row in batches.texts.rows:
        data.update("\0".join(row).encode())
    packages = ("torch", "transformers", "sentence-transformers", "maw-attention")
    no_part = ("save_steps", "dtype")
    known = ("negative_files", "query_prompt", "document_prompt")  # by the rows and the encoder
    return {
        "settings": {name: value for name, value in asdict(settings).items() if name not in no_part + known},
        "encoder": encoder_fingerprint(model),
        "maw": [layer.config.to_dict() for layer in carried(model)],
        "data": [data.hexdigest(), dict(dataset.checksums)],
        "drop_own": dataset.drop_own,
        "processes": batches.processes,
        "device": model.device.type,
        **{name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _resume(
    folder: Path, log_file: Path, arguments: SentenceTransformerTrainingArguments, identity: dict[str, Any]
) -> tuple[Path | None, str]:
    """The checkpoint to go on from, and the checksum of what this process had trained on there.

    What was begun after it is forgotten, in the folder and in the log.
    """
    from accelerate.utils import broadcast_object_list

    found: list[Any] = [None, None]
    if arguments.process_index == 0:
        folder.mkdir(parents=True, exist_ok=True)
        log_file.parent.mkdir(parents=True, exist_ok=True)
        checkpoint = last_checkpoint(folder)
        check_identity(folder, identity, checkpoint)
        step = None if checkpoint is None else step_of(checkpoint)
        found = [checkpoint, shorten_log(log_file, step, arguments.world_size)]
    checkpoint, data = broadcast_object_list(found)
    return checkpoint, data[arguments.process_index]


def _texts_of(dataset: RetrievalDataset, pairs: Sequence[tuple[str, str]], number: int) -> tuple[list[str], list[str]]:
    """Queries and documents of so many pairs, evenly spaced over the training set."""
    number = min(number, len(pairs))
    some = [pairs[place * len(pairs) // number] for place in range(number)]
    return [dataset.queries[query] for query, _ in some], [dataset.documents[document] for _, document in some]


def _calibrate(model: SentenceTransformer, texts: tuple[list[str], list[str]], settings: TrainingSettings) -> None:
    """The same in every process: all encode the same texts, as training does, by the same weights."""
    if any(layer.config.calibrate and layer.config.selection != "uniform" for layer in maw_layers(model)):
        with calibrating(model):
            at_once = settings.mini_batch_size or settings.batch_size
            for encode, some in zip((model.encode_query, model.encode_document), texts, strict=True):
                encode(some, batch_size=at_once, show_progress_bar=False)


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


def count_parameters(model: nn.Module) -> Mapping[str, int]:
    """How many parameters are trained, and how many there are (an adapter's untouched originals not counted)."""
    named = [(name, p) for name, p in model.named_parameters() if ".original_module." not in name]
    return {
        "trainable_parameters": sum(p.numel() for _, p in named if p.requires_grad),
        "total_parameters": sum(p.numel() for _, p in named),
    }
