"""Sentence Transformers' trainer, made to stop where it would go on silently, to go on where it was stopped, to clip
MAW's gradients apart from the encoder's, and to log what MAW's selectors did.

To go on exactly: every checkpoint is whole or does not count (`checkpoints`); with it a log entry is due,
so that no mean over steps is half done; evaluation leaves the random state as it was; and the samples that MAW keeps
for later updates are part of it. Everything else (weights, optimiser, schedule, the random states of every process) is
in the checkpoints of Transformers' trainer already.

What `maw.collapse` finds goes into the JSON log once in a training; an alarm is a warning, too.
"""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader

from maw.collapse import USAGES, Finding, Watch
from maw.errors import MAWError
from maw.hf.attach import carried
from maw.hf.training_state import check_maw_is_trained
from maw.io.failures import saying_that_the_disk_is_full, saying_what_cannot_be_written
from maw.retrieval.identity import document_prompt, query_prompt
from maw.retrieval.training.batches import Batches, Collator, chained
from maw.retrieval.training.checkpoints import (
    checkpoint,
    log_entry,
    mark_whole,
    remove_checkpoint,
    remove_checkpoints,
)
from maw.retrieval.training.losses import AuxiliaryLoss
from maw.retrieval.training.preprocessing import preprocessing
from maw.retrieval.training.probe import probe

if TYPE_CHECKING:
    from maw.module import DepthAttention

__all__ = ["Trainer", "logged_findings"]

PROBE_EVERY = 25
PROBE_GROWTH = 0.25
"""Steps between two probes of the model, at least: so many, and this share of the steps before the first of them, so
that looking costs a long training less. The trained model is probed in any case."""

OF_THE_TRAINER = ("loss", "grad_norm", "learning_rate", "epoch", "step", "masked_candidates")
"""What a log entry has beside the selectors' statistics."""

logger = logging.getLogger(__name__)


def logged_findings(log_file: Path) -> list[Finding]:
    """What was found so far in a training, by its JSON log; nothing where there is none."""
    if not log_file.is_file():
        return []
    entries = map(log_entry, log_file.read_text(encoding="utf-8", errors="replace").splitlines())
    try:
        return [Finding(**found) for entry in entries if entry is not None for found in entry.get("findings", [])]
    except TypeError as error:
        raise MAWError(f"{log_file} is damaged: its findings are none. Delete the line that has them") from error


class Trainer(SentenceTransformerTrainer):
    """Sentence Transformers' trainer that stops on NaN, resumes exactly, and logs what MAW's selectors did.

    Args:
        batches: what is trained on, this process's share.
        log_file: one JSON object a log entry, written by the first process.
        data: the checksum of what this process has trained on so far.
        probe_texts: queries and documents that the model is looked at on (`maw.retrieval.training.probe`); with fewer
            than two texts it is not.
        options: those of `SentenceTransformerTrainer`; `loss` is an `AuxiliaryLoss`.
    """

    loss: AuxiliaryLoss

    def __init__(
        self,
        *,
        batches: Batches,
        log_file: Path,
        data: str = "",
        probe_texts: tuple[Sequence[str], Sequence[str]] = ((), ()),
        **options: Any,
    ) -> None:
        if not hasattr(SentenceTransformerTrainer, "_clip_grad_norm"):
            raise MAWError(
                "this version of Transformers clips gradients elsewhere, so that MAW's would shorten the encoder's "
                "steps: install the version that constraints.txt names"
            )
        super().__init__(**options)
        check_maw_is_trained(self.model)
        self.data_collator.preprocess_fn = preprocessing(self.model)
        self.data_collator.prompts = _prompts(self.model, batches)
        self.batches = batches
        self.log_file = log_file
        self.data = data
        self.unchecked: tuple[int, Tensor] | None = None
        self.clipped_apart: tuple[list[Tensor], list[Tensor]] | None = None
        self.probe_texts = probe_texts
        self.probed: int | None = None
        self.watch = Watch(logged_findings(log_file))

    def get_train_dataloader(self) -> DataLoader:
        """Our own batches: they are shares of one batch already, so nothing is left for others to cut."""
        loader = DataLoader(
            self.batches.texts,
            batch_sampler=self.batches,
            collate_fn=Collator(self.batches.texts, self.data_collator, self.batches.relevance),
            pin_memory=self.args.dataloader_pin_memory,
        )
        return prepare_data_loader(
            loader, self.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """One step; a loss that is not finite ends the training with an error, one step later.

        By then the device has computed it, so that nothing waits.
        """
        self.check_loss()
        self.data = chained(self.data, inputs.pop("rows"))
        with _progress(self.loss.layers(), self.state.global_step / max(1, self.state.max_steps)):
            loss = super().training_step(model, inputs, *args, **kwargs)
        self.unchecked = self.state.global_step + 1, loss.detach()
        return loss

    def check_loss(self) -> None:
        """Raise if the latest loss is not finite."""
        if self.unchecked is None:
            return
        (step, loss), self.unchecked = self.unchecked, None
        if not math.isfinite(float(loss)):
            raise MAWError(
                f"training diverged: the loss is {float(loss)} at step {step}. "
                "Lower the learning rate, or resume from the last checkpoint with other settings"
            )

    def _clip_grad_norm(self, model: Any) -> Tensor:
        """Clip the gradients of the encoder and of MAW apart, each by its own norm; returns the norm of all, as it was.

        By one norm MAW's gradients, which can be larger than an adapter's, would shorten the encoder's steps; its dense
        twin's are not shortened.
        """
        self.accelerator.unscale_gradients()
        if self.clipped_apart is None:
            own = dict.fromkeys(parameter for module in carried(self.model) for parameter in module.parameters())
            self.clipped_apart = [p for p in self.model.parameters() if p not in own], list(own)
        with_gradient = [[p for p in part if p.grad is not None] for part in self.clipped_apart]
        norms = [clip_grad_norm_(part, self.args.max_grad_norm) for part in with_gradient if part]
        return torch.stack(norms).norm() if norms else torch.tensor(0.0)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As Sentence Transformers does; training draws what it would have drawn without, and all processes agree."""
        with _random_states_kept():
            metrics = super().evaluate(*args, **kwargs)
        return broadcast_object_list([metrics])[0]

    # Checkpoints

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As Sentence Transformers does, whole or not at all, and never after a loss that is not finite.

        Of the checkpoints, the best and the latest stay.
        """
        self.check_loss()
        folder, state = Path(str(self.args.output_dir)), self.state
        path = checkpoint(folder, state.global_step)
        if self.is_world_process_zero():
            remove_checkpoint(path)
        self.accelerator.wait_for_everyone()
        with saying_that_the_disk_is_full(path):
            super()._save_checkpoint(*args, **kwargs)
            if samples := self.loss.samples():
                save_file({name: tensor.contiguous() for name, tensor in samples.items()}, self._samples_file(path))
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            mark_whole(path, self.args.world_size)
            best = None if state.best_global_step is None else checkpoint(folder, state.best_global_step)
            remove_checkpoints(folder, keep=(path, best))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The model's folder, by the first process, without a model card: checkpoints are for going on."""
        if self.args.should_save:
            self.model.save_pretrained(str(output_dir or self.args.output_dir), create_model_card=False)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As Transformers does, and the samples that MAW had kept."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (file := self._samples_file(Path(checkpoint))).is_file():
            self.loss.restore_samples(load_file(file))

    def _samples_file(self, path: Path) -> Path:
        return path / f"maw_samples_{self.args.process_index}.safetensors"

    def _load_best_model(self) -> None:
        """As Sentence Transformers does, but a checkpoint that does not load is an error, not a line in the log."""
        best = str(self.state.best_model_checkpoint)
        self._load_from_checkpoint(best)
        self.model.model_card_data.set_best_model_step(int(best.rpartition("-")[2]))

    # The log

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the statistics of all MAW layers: scalars to every log, vectors to the JSON log only.

        They are means over all processes, as is `masked_candidates`, how many candidates of a query the loss left out
        because they are relevant to it; the first process alone writes. `depth_usage` and `weight_usage` are lists
        with one list a layer, `data` the checksum of what each process has trained on so far.
        """
        statistics, data = [], []
        if "loss" in logs:
            collected = [statistic for layer in self.loss.layers() if (statistic := layer.collect())]
            statistics = [self._of_all_processes(statistic) for statistic in collected]
            data = gather_object([self.data])
        if statistics:
            for name in statistics[0]:
                value = torch.stack([statistic[name] for statistic in statistics])
                if value.ndim == 1:
                    logs[name] = round(float(value.mean()), 6)
        if "loss" in logs and (masked := self.loss.masked_candidates()) is not None:
            logs["masked_candidates"] = round(float(self.accelerator.reduce(masked, reduction="mean")), 6)
        super().log(logs, start_time)
        if not self.is_world_process_zero():
            return
        entry: dict[str, Any] = {"step": self.state.global_step, **self.state.log_history[-1]}
        if statistics:
            for name in USAGES:
                usage = [statistic[name].tolist() for statistic in statistics]
                entry[name] = [[round(share, 6) for share in layer] for layer in usage]
        if data:
            entry["data"] = data
        found = self.watch.selectors(self.state.global_step, statistics, steps=self.state.max_steps)
        if "loss" in logs and self._probe_is_due():
            found += self.probe()
        self._write(entry, found)

    def _of_all_processes(self, statistic: dict[str, Tensor]) -> dict[str, Tensor]:
        """The means over processes, on the CPU; copied at once, for each copy waits for the device."""
        flat = torch.cat([value.flatten() for value in statistic.values()])
        means = self.accelerator.reduce(flat, reduction="mean").cpu().split([v.numel() for v in statistic.values()])
        return {name: mean.view_as(value) for (name, value), mean in zip(statistic.items(), means, strict=True)}

    @property
    def selector(self) -> dict[str, float] | None:
        """The selectors' last logged statistics, of a training that was stopped and went on too; None without any."""
        for entry in reversed(self.state.log_history):
            if "policy_entropy" in entry:
                return {name: value for name, value in entry.items() if name not in OF_THE_TRAINER}
        return None

    def _probe_is_due(self) -> bool:
        return self.probed is None or self.state.global_step >= self.probed * (1 + PROBE_GROWTH) + PROBE_EVERY

    def probe(self) -> list[Finding]:
        """Look at the model on a few texts; the findings that are new. A model without MAW has none."""
        if sum(map(len, self.probe_texts)) < 2 or not self.loss.layers():
            return []
        self.probed = self.state.global_step
        return self.watch.probed(self.probed, probe(self.model, *self.probe_texts))

    def finish(self) -> None:
        """Look at the trained model, the best one where there is a dev split, and log what is found."""
        if self.is_world_process_zero() and (found := self.probe()):
            self._write({"step": self.state.global_step}, found)

    def note(self, entry: dict[str, Any]) -> None:
        """Write what is known before the first step into the JSON log."""
        if self.is_world_process_zero():
            self._write({"step": 0, **entry}, [])

    def _write(self, entry: dict[str, Any], found: Sequence[Finding]) -> None:
        for finding in found:
            logger.log(logging.WARNING if finding.level == "alarm" else logging.INFO, "%s", finding)
        if found:
            entry["findings"] = [finding.to_dict() for finding in found]
        with saying_what_cannot_be_written(self.log_file), self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({name.removeprefix("eval_"): value for name, value in entry.items()}) + "\n")


def _prompts(model: Any, batches: Batches) -> dict[str, str]:
    """What stands before the texts of each column of `Collator`, as where the model is used."""
    query, *documents = batches.texts.columns
    prompts = {query: query_prompt(model), **dict.fromkeys(documents, document_prompt(model))}
    return {column: prompt for column, prompt in prompts.items() if prompt}


@contextmanager
def _progress(layers: Sequence[DepthAttention], share: float) -> Generator[None]:
    """How far training is, for the layers' `tau`. Whatever looks at the model between steps sees it as it is saved."""
    for layer in layers:
        layer.progress = share
    try:
        yield
    finally:
        for layer in layers:
            layer.progress = 1.0


@contextmanager
def _random_states_kept() -> Generator[None]:
    """Python's, NumPy's and PyTorch's generators end as they began."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        yield
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
