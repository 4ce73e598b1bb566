"""How far a training is."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback

from maw.progress import counted

__all__ = ["Progress"]


class Progress(TrainerCallback):
    """Says how far the training is (`maw.progress`): steps, their rate and the time left."""

    def __init__(self) -> None:
        self.open = ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the steps that are left."""
        if state.is_world_process_zero:
            self.tell = self.open.enter_context(counted("training steps", state.max_steps, done=state.global_step))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One more."""
        if state.is_world_process_zero:
            self.tell(1)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """It is done."""
        self.open.close()
