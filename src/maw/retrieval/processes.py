"""Which of several processes this is, by the environment of what started them, and waiting for one another."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from maw.errors import MAWError

if TYPE_CHECKING:
    import torch

__all__ = ["first_process_first", "leave", "own_share", "process_index", "processes"]

PATIENCE = timedelta(days=7)
"""How long the others wait for what the first process does alone; it may go through a whole corpus."""


PLACES = (
    ("RANK", "WORLD_SIZE"),  # torchrun, accelerate launch --multi_gpu
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # mpirun, of Open MPI
    ("PMI_RANK", "PMI_SIZE"),  # mpirun, of Intel MPI and MPICH
)
"""Where the environment says which of how many processes this is; the first pair that is there counts."""


def own_share() -> tuple[int, int]:
    """This process's number and how many there are, as its launcher says in the environment; (0, 1) without one.

    Raises:
        MAWError: the environment contradicts itself, or `accelerate launch` was asked for several processes and
            started one, as it does without `--multi_gpu`.
    """
    names = next((pair for pair in PLACES if any(name in os.environ for name in pair)), PLACES[0])
    number, total = names
    try:
        rank, processes = int(os.environ.get(number, "0")), int(os.environ.get(total, "1"))
    except ValueError as error:
        raise MAWError(f"{number} and {total} in the environment must be whole numbers: {error}") from error
    if not 0 <= rank < processes:
        raise MAWError(f"{number} must be from 0 to {total} - 1, got {rank} of {processes}")
    alone = not any(name in os.environ for name in names)
    if alone and "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
        raise MAWError(
            "accelerate launch was asked for several processes and started one: write accelerate launch --multi_gpu "
            "--num_processes N, which starts N on the CPU too (with --device cpu), or use torchrun; "
            "for one process unset MASTER_ADDR"
        )
    return rank, processes


def process_index() -> int:
    """This process's number, 0 for the first or only one."""
    return own_share()[0]


def processes() -> int:
    """How many processes work together."""
    return own_share()[1]


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

    # sets up the process group where nobody has; as long a wait as Transformers' arguments have
    PartialState(cpu=device.type == "cpu", timeout=timedelta(minutes=30))
    if not dist.is_initialized():
        raise MAWError(f"{processes()} processes on {device.type} were not brought together: start them with torchrun")
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
