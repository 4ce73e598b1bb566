"""Random numbers that leave the common stream as they found it.

An encoder with MAW is compared with the encoder without. Both are to get the same dropout from the same seed, or the
comparison is mostly one of dropout masks; so what MAW draws must not move the stream that the encoder draws from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import contextmanager

import torch

__all__ = ["drawing_apart"]


@contextmanager
def drawing_apart(device: torch.device) -> Generator[None]:
    """What is drawn on `device` within is decided by the common stream's state, but not taken from it.

    The same state gives the same numbers, so a seed, a resumed training and a checkpointed layer's second run do. It is
    for where others draw in between: two blocks with nothing drawn between them get the same numbers. On devices other
    than CPUs and CUDA's, and while a CUDA graph is recorded, numbers are the common stream's.

    >>> expected = torch.manual_seed(0) and torch.rand(2)
    >>> _ = torch.manual_seed(0)
    >>> with drawing_apart(torch.device("cpu")):
    ...     own = torch.rand(2)
    >>> torch.equal(torch.rand(2), expected), torch.equal(own, expected)
    (True, False)
    """
    generator = _common(device)
    if generator is None:
        yield
        return
    state = generator.get_state()
    digest = hashlib.blake2b(state.numpy().tobytes(), digest_size=7, person=b"maw").digest()
    generator.manual_seed(int.from_bytes(digest, "little"))
    try:
        yield
    finally:
        generator.set_state(state)


def _common(device: torch.device) -> torch.Generator | None:
    if device.type == "cpu":
        return torch.default_generator
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return None
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
