from __future__ import annotations

import functools
import os
from collections.abc import Callable

import hypothesis
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels then run on the CPU, where they are asked for by name

if "PYTEST_XDIST_WORKER" in os.environ:  # each of several processes of tests, and what it starts, has one core
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

# MKL sums in an order that depends on where a tensor lies in memory, on some processors, unless it is told not to
os.environ.setdefault("MKL_CBWR", "AUTO")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # `maw train` would set it for all tests that follow

hypothesis.settings.register_profile("maw", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("maw")

# The tensors here are tiny: a second thread costs more than it gives, and very much more on a busy machine.
torch.set_num_threads(1)


class TensorRecorder(TorchDispatchMode):
    """The shape of every tensor that an operation returns while this is active, backward included."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.shapes.extend(tuple(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        return result

    @property
    def largest(self) -> int:
        return max(torch.Size(shape).numel() for shape in self.shapes)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def build_pydocs() -> Callable:
    """`maw.retrieval.data.pydocs.build` that reads the standard library at its first call only."""
    from maw.retrieval.data import pydocs

    return functools.cache(pydocs.build)


@pytest.fixture
def pydocs_read_once(build_pydocs: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this process loads "pydocs" it gets what is in memory: any two builds are equal (`test_pydocs.py`)."""
    monkeypatch.setattr("maw.retrieval.data.pydocs.build", build_pydocs)


@pytest.fixture
def tensor_recorder() -> Callable[[], TensorRecorder]:
    return TensorRecorder
