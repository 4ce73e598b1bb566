"""Which of several processes this is, as `torchrun` and `accelerate launch` say it, and waiting for one another."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["first_process_first", "leave", "process_index", "processes"]

PATIENCE = timedelta(days=7)
"""How long the others wait for what the first process does alone; it may go through a whole corpus."""


def process_index() -> int:
    """This process's number, 0 for the first or only one."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many processes work together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def first_process_first(device: torch.device) -> Generator[None]:
    """The first process does what is inside alone, the others afterwards, so that they find what it left on disk.

    Args:
        device: what the processes work on; it decides how they talk to one another.
    """
    if processes() == 1:
        yield
        return
    import torch.distributed as dist
    from accelerate import PartialState

    PartialState(cpu=device.type == "cpu")  # sets up the process group where nobody has
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    if process_index() > 0:
        dist.barrier(group)
    yield
    if process_index() == 0:
        dist.barrier(group)
    dist.destroy_process_group(group)


def leave() -> None:
    """Wait for all processes and part."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
