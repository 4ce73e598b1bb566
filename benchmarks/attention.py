"""Speed and memory of MAW's attention: the 5D tensor as written, the identity (7), and plain attention.

    python benchmarks/attention.py [--output FILE.json]

The outputs and gradients of the shapes measured are compared with the reference first; nothing is reported if they
disagree. Every figure is the median of several runs in this process; ratios are to the literal 5D form.
"""

from __future__ import annotations

import argparse
import json
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
    """The largest float32 error of functional, which may be at most twice the reference's own, both against float64."""
    tensors = {
        name: tensor[:1] if tensor.shape[0] == SHAPE["B"] else tensor
        for name, tensor in draw(torch.float32, device).items()
    }
    exact = {name: tensor.double() for name, tensor in tensors.items()}
    with torch.no_grad():
        truth = reference.depth_attention(**exact, scale=scale)
        error, bound = (
            float((methods(scale)[name](**tensors) - truth).abs().max()) for name in ("functional", "literal")
        )
        double = float((functional.depth_attention(**exact, scale=scale) - truth).abs().max())
    if not (error <= 2 * bound and double <= 1e-12):
        raise SystemExit(
            f"at {SHAPE} functional is off by {error} in float32 (reference: {bound}) and by {double} in float64: "
            "nothing is reported"
        )
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


def peak_resident_bytes() -> int:
    """The process's largest resident size so far; Linux's own figure, since getrusage counts the parent's in."""
    status = Path("/proc/self/status")
    if not status.is_file():
        raise SystemExit("memory on a CPU is read from /proc/self/status: run this on Linux, or with --device cuda")
    return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))


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
        before = peak_resident_bytes()
        method(**tensors)
        print(peak_resident_bytes() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    scale = SHAPE["C"] ** 1.5  # logits of a few nats
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
    print(f"{SHAPE}, float32, {device}; largest float32 error {error:.1e}")
    print(f"{'':16} {'forward':>12} {'fwd + bwd':>12} {'extra memory':>14} {'literal / this':>15} {'memory share':>13}")
    for name, row in rows.items():
        faster = rows["literal"]["forward_ms"] / row["forward_ms"]
        share = row["extra_MiB"] / rows["literal"]["extra_MiB"]
        print(
            f"{name:16} {row['forward_ms']:9.2f} ms {row['forward_backward_ms']:9.2f} ms {row['extra_MiB']:10.1f} MiB "
            f"{faster:15.1f} {share:12.2%}"
        )
    if arguments.output:
        results = {"shape": SHAPE, "error": error, "rows": rows, "environment": describe_environment(device)}
        arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
