"""Speed and memory of MAW's attention: the 5D tensor as written, the identity (7), and plain attention.

    python benchmarks/attention.py [--output FILE.json]

The outputs and gradients of the shapes measured are compared with the reference first; nothing is reported if they
disagree. Every figure is the median of several runs in this process; ratios are to the literal 5D form.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from maw import functional, reference
from maw.benchmark.resources import describe_environment

SHAPE = {"B": 8, "H": 12, "S": 256, "C": 32, "D": 64}
TOLERANCE = 2e-5  # float32, outputs of size 1; the float64 tests hold 1e-12


def draw(dtype: torch.dtype, device: torch.device, seed: int = 0) -> dict[str, Tensor]:
    b, h, s, c, d = SHAPE.values()
    generator = torch.Generator().manual_seed(seed)
    shapes = {"query": (b, h, s, c), "key": (b, h, s, c), "value": (b, h, s, c)}
    shapes |= {"query_views": (h, d, c), "key_views": (h, d, c)}
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    drawn["depth_weight"] = torch.randn(b, d, generator=generator).softmax(dim=-1)
    return {name: tensor.to(device, dtype) for name, tensor in drawn.items()}


def methods(scale: float) -> dict[str, Callable[..., Tensor]]:
    def plain(query: Tensor, key: Tensor, value: Tensor, **views: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)

    def literal(**tensors: Tensor) -> Tensor:
        return reference.depth_attention(**tensors, scale=scale)

    def identity(**tensors: Tensor) -> Tensor:
        return functional.depth_attention(**tensors, scale=scale)

    return {"literal": literal, "functional": identity, "plain attention": plain}


def check(scale: float, device: torch.device) -> float:
    """The largest difference between functional and reference at the shape that is timed."""
    tensors = draw(torch.float32, device)
    with torch.no_grad():
        found = {name: method(**tensors) for name, method in methods(scale).items() if name != "plain attention"}
    error = float((found["functional"] - found["literal"]).abs().max())
    if not error <= TOLERANCE:
        raise SystemExit(f"functional and reference differ by {error} at {SHAPE}: nothing is reported")
    return error


def seconds(method: Callable[..., Tensor], device: torch.device, *, backward: bool, runs: int) -> float:
    tensors = draw(torch.float32, device)
    if backward:
        tensors = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    times = []
    for _ in range(runs + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.set_grad_enabled(backward):
            output = method(**tensors)
            if backward:
                output.sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def extra_bytes(name: str, device: torch.device) -> int:
    """Memory that one forward adds at its peak, in a process of its own (a process's peak never falls)."""
    command = [sys.executable, __file__, "--memory", name, "--device", str(device)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(answer.stdout)


def measure_memory(name: str, device: torch.device, scale: float) -> None:
    tensors = draw(torch.float32, device)
    small = {key: tensor[..., :1, :] if tensor.ndim == 4 else tensor for key, tensor in tensors.items()}
    method = methods(scale)[name]
    with torch.no_grad():
        method(**small)  # libraries and kernels are loaded before the baseline is read
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            method(**tensors)
            print(torch.cuda.max_memory_allocated() - before)
            return
        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        method(**tensors)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    scale = SHAPE["C"] ** 1.5 * SHAPE["D"]
    if arguments.memory:
        measure_memory(arguments.memory, device, scale)
        return
    error = check(scale, device)
    rows = {}
    for name, method in methods(scale).items():
        runs = 3 if name == "literal" else 20
        rows[name] = {
            "forward_ms": 1e3 * seconds(method, device, backward=False, runs=runs),
            "forward_backward_ms": 1e3 * seconds(method, device, backward=True, runs=runs),
            "extra_MiB": extra_bytes(name, device) / 2**20,
        }
    print(f"{SHAPE}, float32, {device}; functional differs from the reference by at most {error:.1e}")
    print(
        f"{'':16} {'forward':>12} {'fwd + bwd':>12} {'extra memory':>14} {'forward: literal / this':>24} {'memory share':>13}"
    )
    for name, row in rows.items():
        faster = rows["literal"]["forward_ms"] / row["forward_ms"]
        share = row["extra_MiB"] / rows["literal"]["extra_MiB"]
        print(
            f"{name:16} {row['forward_ms']:9.2f} ms {row['forward_backward_ms']:9.2f} ms {row['extra_MiB']:10.1f} MiB "
            f"{faster:24.1f} {share:12.2%}"
        )
    if arguments.output:
        results = {"shape": SHAPE, "error": error, "rows": rows, "environment": describe_environment(device)}
        arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
