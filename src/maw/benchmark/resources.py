"""How long something took, how much memory it held at its peak, and on what machine."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

__all__ = ["Cost", "describe_environment", "measure"]


@dataclass
class Cost:
    """Wall-clock seconds, and bytes at the peak: of the device on a GPU, of this process on a CPU."""

    seconds: float = 0.0
    peak_bytes: int = 0


@contextmanager
def measure(device: torch.device, every: float = 0.05) -> Generator[Cost]:
    """Measure the block; the `Cost` is filled in when it ends.

    On a CPU the process's resident memory is sampled, since the system's own peak never falls between variants.
    """
    cost, done = Cost(), threading.Event()
    process = psutil.Process()

    def sample() -> None:
        while True:
            cost.peak_bytes = max(cost.peak_bytes, process.memory_info().rss)
            if done.wait(every):
                return

    on_gpu = device.type == "cuda"
    sampler = threading.Thread(target=sample, daemon=True)
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        sampler.start()
    start = time.perf_counter()
    try:
        yield cost
    finally:
        if on_gpu:
            torch.cuda.synchronize(device)
            cost.peak_bytes = torch.cuda.max_memory_allocated(device)
        cost.seconds = time.perf_counter() - start
        if not on_gpu:
            done.set()
            sampler.join()


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions, hardware and, in a git checkout, the commit of this library."""
    packages = ("torch", "transformers", "sentence-transformers", "peft", "accelerate", "ir-measures", "numpy")
    environment: dict[str, Any] = {name: _version(name) for name in packages}
    environment["maw"] = _version("maw-attention")
    environment["python"] = platform.python_version()
    environment["system"] = f"{platform.system()} {platform.machine()}"
    environment["threads"] = torch.get_num_threads()
    environment["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    environment["commit"] = _commit()
    return environment


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit this library was imported from, `-dirty` if its files differ from it; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        tracked = subprocess.run(
            ["git", "ls-files", "--error-unmatch", __file__], cwd=folder, capture_output=True, check=False
        )
    except OSError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 and tracked.returncode == 0 else None
