"""When a training saves a checkpoint, and where its best one is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from maw.retrieval.training.batches import Batches
from maw.retrieval.training.checkpoints import checkpoint, remove_checkpoints

__all__ = ["Checkpoints"]


class Checkpoints(TrainerCallback):
    """When to save between evaluations, and the way back to the best checkpoint.

    Args:
        folder: the training's folder.
        every: save after every so many steps too; None is after every epoch alone.
        steps_per_epoch: the last step of an epoch is saved with the epoch, after evaluation, not before.
        batches: told which epoch begins.
    """

    def __init__(self, folder: Path, every: int | None, steps_per_epoch: int, batches: Batches) -> None:
        self.folder = folder
        self.every = every
        self.steps_per_epoch = steps_per_epoch
        self.batches = batches

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The best checkpoint is where this training's folder is now; what a killed process left beside it goes."""
        best = None if state.best_global_step is None else checkpoint(self.folder, state.best_global_step)
        if best is not None:
            state.best_model_checkpoint = str(best)
        if state.is_world_process_zero:
            remove_checkpoints(self.folder, keep=(checkpoint(self.folder, state.global_step), best))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The order of this epoch."""
        self.batches.set_epoch(state.global_step // self.steps_per_epoch)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save after every so many steps, and log what there is up to there."""
        if self.every and state.global_step % self.every == 0 and state.global_step % self.steps_per_epoch:
            control.should_save = control.should_log = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log what there is before the epoch is saved."""
        control.should_log = True
