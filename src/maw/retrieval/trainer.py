"""Sentence Transformers' trainer, made to stop where it would go on silently, and to log what MAW's selectors did.

What `maw.collapse` finds goes into the JSON log once in a training; an alarm is a warning, too.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainer
from torch import Tensor
from transformers import ProgressCallback

from maw.collapse import Finding, Watch
from maw.errors import MAWError
from maw.hf.attach import maw_layers
from maw.retrieval.probe import probe

__all__ = ["Progress", "Trainer", "logged_findings"]

PROBE_EVERY = 25
"""Steps between two probes of the model, at least; the trained model is probed in any case."""

logger = logging.getLogger(__name__)


def logged_findings(log_file: Path) -> list[Finding]:
    """What was found so far in a training, by its JSON log; nothing where there is none."""
    if not log_file.is_file():
        return []
    entries = (json.loads(line) for line in log_file.read_text(encoding="utf-8").splitlines())
    return [Finding(**found) for entry in entries for found in entry.get("findings", [])]


class Trainer(SentenceTransformerTrainer):
    """Sentence Transformers' trainer that stops on NaN and logs what MAW's selectors did."""

    log_file: Path
    unchecked: tuple[int, Tensor] | None = None
    watch: Watch
    probe_texts: Sequence[str] = ()
    probed: int | None = None
    selector: dict[str, float] | None = None

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One step; a loss that is not finite ends the training with an error, one step later.

        By then the device has computed it, so that nothing waits.
        """
        self.check_loss()
        loss = super().training_step(*args, **kwargs)
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

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As Sentence Transformers does, but never after a loss that is not finite."""
        self.check_loss()
        super()._save_checkpoint(*args, **kwargs)

    def _load_best_model(self) -> None:
        """As Sentence Transformers does, but a checkpoint that does not load is an error, not a line in the log."""
        best = str(self.state.best_model_checkpoint)
        self._load_from_checkpoint(best)
        self.model.model_card_data.set_best_model_step(int(best.rpartition("-")[2]))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the statistics of all MAW layers: scalars to every log, vectors to the JSON log only.

        They are means over all processes; the first process alone writes.
        """
        statistics = []
        if "loss" in logs:
            statistics = [statistic for layer in maw_layers(self.model) if (statistic := layer.collect())]
            statistics = [self.accelerator.reduce(statistic, reduction="mean") for statistic in statistics]
        if statistics:
            for name in statistics[0]:
                value = torch.stack([statistic[name] for statistic in statistics])
                if value.ndim == 1:
                    logs[name] = round(float(value.mean()), 6)
            self.selector = {name: logs[name] for name in statistics[0] if name in logs}
        super().log(logs, start_time)
        if not self.is_world_process_zero():
            return
        entry: dict[str, Any] = {"step": self.state.global_step, **self.state.log_history[-1]}
        if statistics:
            entry["depth_usage"] = [round(float(x), 6) for x in statistics[-1]["depth_usage"]]
        found = self.watch.selectors(self.state.global_step, statistics)
        if "loss" in logs and (self.probed is None or self.state.global_step >= self.probed + PROBE_EVERY):
            found += self.probe()
        self._write(entry, found)

    def probe(self) -> list[Finding]:
        """Look at the model on a few texts; the findings that are new. A model without MAW has none."""
        if len(self.probe_texts) < 2 or not maw_layers(self.model):
            return []
        self.probed = self.state.global_step
        return self.watch.probed(self.probed, probe(self.model, self.probe_texts))

    def finish(self) -> None:
        """Look at the trained model, the best one where there is a dev split, and log what is found."""
        if self.is_world_process_zero() and (found := self.probe()):
            self._write({"step": self.state.global_step}, found)

    def _write(self, entry: dict[str, Any], found: Sequence[Finding]) -> None:
        for finding in found:
            logger.log(logging.WARNING if finding.level == "alarm" else logging.INFO, "%s", finding)
        if found:
            entry["findings"] = [finding.to_dict() for finding in found]
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({name.removeprefix("eval_"): value for name, value in entry.items()}) + "\n")


class Progress(ProgressCallback):
    """The trainer's progress bar with the loss beside it instead of printed dictionaries."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """The loss."""
        if state.is_world_process_zero and self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")
