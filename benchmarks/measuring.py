"""Median times and peak memory of a callable, on a CPU or a CUDA device; the table and file that hold them."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from maw.benchmark.resources import describe_environment

__all__ = ["add_arguments", "device_ms", "extra_bytes", "finish", "median_ms", "print_extra_bytes", "ratio_table"]

PROJECT = Path(__file__).resolve().parents[1]


def median_ms(function: Callable[[], Any], device: torch.device, runs: int = 20) -> float:
    """Median milliseconds of a call after warming up; on a CUDA device by events, the cache emptied before each."""
    if device.type == "cuda":
        from triton.testing import do_bench

        function()
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        once = max(1e3 * (time.perf_counter() - start), 0.05)
        return do_bench(function, warmup=5 * once, rep=max(runs, 20) * once, return_mode="median")
    function()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def graph_ms(function: Callable[[], Any]) -> float:
    """Median milliseconds of a call replayed from a CUDA graph: what the device needs, without launches from Python."""
    from triton.testing import do_bench_cudagraph

    with torch.cuda.stream(torch.cuda.Stream()):
        return do_bench_cudagraph(function, rep=50, return_mode="median")


def device_ms(function: Callable[[], Any]) -> float:
    """Milliseconds that the kernels of one call run on a CUDA device."""
    from torch.profiler import ProfilerActivity, profile

    function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        function()
        torch.cuda.synchronize()
    kernels = [event for event in trace.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(kernel.device_time for kernel in kernels) / 1e3


def extra_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """Memory that a call adds at its peak on a CUDA device."""
    function()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def extra_bytes_elsewhere(*arguments: str) -> int:
    """What Python prints with these arguments: on a CPU a process's peak never falls, so each has its own."""
    answer = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True)
    return int(answer.stdout)


def print_extra_bytes(function: Callable[[], Any]) -> None:
    """Print the memory that a call adds at its peak to this process."""
    before = peak_resident_bytes()
    function()
    print(peak_resident_bytes() - before)


def peak_resident_bytes() -> int:
    """The process's largest resident size so far; Linux's own figure, since getrusage counts the parent's in."""
    status = Path("/proc/self/status")
    if not status.is_file():
        raise SystemExit("memory on a CPU is read from /proc/self/status: run this on Linux, or with --device cuda")
    return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def ratio_table(title: str, rows: Mapping[str, Mapping[str, float]], base: str) -> None:
    """Print each row's figures, and in brackets its ratio to the row `base`."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    print(f"\n{title}\n{'':26}" + "".join(f"{column:>24}" for column in columns))
    for name, row in rows.items():
        cells = []
        for column in columns:
            if column not in row:
                cells.append(f"{'-':>24}")
                continue
            share = row[column] / rows[base][column] if rows[base].get(column) else float("nan")
            cells.append(f"{row[column]:14.3f} ({share:6.3f}x)")
        print(f"{name:26}" + "".join(cells))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every benchmark takes."""
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    parser.add_argument("--commit", help="what was checked out, where this is a copy without its repository")


def finish(results: dict[str, Any], device: torch.device, arguments: argparse.Namespace) -> None:
    """Write the figures with the command that repeats them and their environment."""
    if arguments.output is not None:
        environment = describe_environment(device)
        environment["commit"] = arguments.commit or environment["commit"]
        document = {"command": command_line(sys.argv), "environment": environment, **results}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def command_line(words: Sequence[str]) -> str:
    """A benchmark's command as it was typed, without `--output` and `--commit`, which change no figure.

    Of files and folders outside the project only the last name is shown.
    """
    shown, value_follows = ["python", f"benchmarks/{Path(words[0]).name}"], False
    for word in words[1:]:
        name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if value_follows:
            value_follows = False
        elif len(name) > 2 and any(option.startswith(name) for option in ("--output", "--commit")):
            value_follows = not equals
        else:
            shown.append(name + equals + _without_place(value))
    return shlex.join(shown)


def _without_place(word: str) -> str:
    path = Path(word)
    if not path.is_absolute() and (len(path.parts) < 2 or not (".." in path.parts or path.exists())):
        return word
    place = Path(os.path.abspath(path))
    return place.relative_to(PROJECT).as_posix() if place.is_relative_to(PROJECT) else place.name
