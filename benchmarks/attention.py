"""Speed and memory of MAW's attention alone: plain attention, MAW, and the 5D tensor as written.

    python benchmarks/attention.py [--device cuda] [--output FILE.json] [--commit COMMIT]

Depth weights are given and forming W is included. For every shape the outputs and gradients are compared with the
float64 reference first, on fewer texts and tokens where the reference would not fit; nothing is reported if they
disagree. Figures are medians of at least 20 calls in this process (3 of the literal form); ratios are to plain
attention. On a GPU the "graph" columns are the same calls replayed from a CUDA graph: the device's own time, which is
what a call costs wherever Python runs ahead of the device.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measuring import (
    add_arguments,
    extra_bytes,
    extra_bytes_elsewhere,
    finish,
    graph_ms,
    median_ms,
    print_extra_bytes,
    ratio_table,
)
from torch import Tensor

from maw import reference
from maw.config import Kernels
from maw.operations import TORCH, choose_operations

SHAPES = {"cpu": [(8, 12, 256, 32)], "cuda": [(4, 12, 8192, 64), (64, 12, 256, 64), (64, 12, 256, 32)]}
DEPTH = 64
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
LEAVES = ("query", "key", "value", "query_views", "key_views", "depth_weight")


def draw(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """q, k, v as an encoder has them, in its type; views and weights in float32."""
    b, h, s, c = shape
    generator = torch.Generator().manual_seed(0)
    drawn = {
        name: torch.randn(b, s, h, c, generator=generator).to(device, dtype).transpose(1, 2) for name in LEAVES[:3]
    }
    drawn |= {name: torch.randn(h, DEPTH, c, generator=generator).to(device) for name in LEAVES[3:5]}
    drawn["depth_weight"] = torch.randn(b, DEPTH, generator=generator).softmax(dim=-1).to(device)
    return drawn


def scale(shape: tuple[int, ...]) -> float:
    return shape[-1] ** 1.5  # logits of a few nats


def methods(shape: tuple[int, ...], device: torch.device) -> dict[str, Callable[..., Tensor]]:
    def plain(query: Tensor, key: Tensor, value: Tensor, **views: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)

    def maw(kernels: Kernels) -> Callable[..., Tensor]:
        def attend(query: Tensor, key: Tensor, value: Tensor, **views: Tensor) -> Tensor:
            operations = choose_operations(kernels, query)
            transformed = operations.transform_query(query, **views, scale=scale(shape))
            return F.scaled_dot_product_attention(transformed, key, value, scale=1.0)

        return attend

    def literal(query: Tensor, key: Tensor, value: Tensor, **views: Tensor) -> Tensor:
        views = {name: tensor.to(query.dtype) for name, tensor in views.items()}
        return reference.depth_attention(query, key, value, **views, scale=scale(shape))

    found = {"plain attention": plain, "MAW": maw("auto")}
    if device.type == "cuda":
        found["MAW without Triton"] = maw("torch")
    if shape[0] * shape[1] * shape[2] ** 2 * DEPTH < 5e9:
        found["literal 5D"] = literal
    return found


def check(shape: tuple[int, ...], device: torch.device) -> dict[str, float]:
    """Errors of MAW against float64: at most twice the literal form's own in the same type, or 1e-5 in float32.

    The two differ in order: a gradient of w or the views is one long sum here and many short ones there.
    """
    small = (min(shape[0], 2), shape[1], min(shape[2], 256), shape[3])
    tensors = draw(small, DTYPE[device.type], device)
    probe = torch.randn(small, device=device)

    def run(method: Callable[..., Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
        given = {name: tensor.to(dtype or tensor.dtype).clone().requires_grad_() for name, tensor in tensors.items()}
        output = method(**given)
        return [output, *torch.autograd.grad(output, list(given.values()), probe.to(output.dtype))]

    found = methods(small, device)
    exact = run(found["literal 5D"], torch.float64)
    errors = {}
    for name, actual, bound, truth in zip(
        ("output", *LEAVES), run(found["MAW"]), run(found["literal 5D"]), exact, strict=True
    ):
        error, allowed = (float((tensor - truth).norm().detach() / truth.norm().detach()) for tensor in (actual, bound))
        if not error <= max(2 * allowed, 1e-5 if actual.dtype == DTYPE["cpu"] else 0.0):
            raise SystemExit(f"at {shape} MAW's {name} is off by {error}, the literal form by {allowed}: no report")
        errors[name] = error
    return errors


def measure(shape: tuple[int, ...], device: torch.device) -> dict[str, dict[str, float]]:
    rows = {}
    for name, method in methods(shape, device).items():
        runs = 3 if name == "literal 5D" else 30
        tensors = draw(shape, DTYPE[device.type], device)
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
        probe = torch.randn_like(tensors["query"])

        def forward(method=method, tensors=tensors) -> None:
            with torch.no_grad():
                method(**tensors)

        def both(method=method, leaves=leaves, probe=probe) -> None:
            torch.autograd.grad(method(**leaves), list(leaves.values()), probe, allow_unused=True)

        rows[name] = {
            "forward ms": median_ms(forward, device, runs),
            "fwd + bwd ms": median_ms(both, device, runs),
        }
        if device.type == "cuda":
            rows[name]["extra MiB"] = extra_bytes(both, device) / 2**20
            if name != "literal 5D":
                rows[name] |= {"graph forward ms": graph_ms(forward), "graph fwd + bwd ms": graph_ms(both)}
        else:
            arguments = (__file__, "--memory", name, "--shape", *map(str, shape))
            rows[name]["extra MiB"] = extra_bytes_elsewhere(*arguments) / 2**20
    return rows


def measure_entropy(shape: tuple[int, ...], device: torch.device) -> dict[str, dict[str, float]]:
    """Mean entropy of 8 sampled slices a text, and of all D."""
    tensors = draw(shape, DTYPE[device.type], device)
    given = [tensors[name] for name in ("query", "key", "query_views", "key_views")]
    indices = {
        "8 sampled slices": torch.randint(DEPTH, (shape[0], 8), device=device),
        f"all {DEPTH} slices": torch.arange(DEPTH, device=device).expand(shape[0], -1),
    }
    rows = {}
    for kernels in ("auto", "torch") if device.type == "cuda" else ("torch",):
        entropy = choose_operations(kernels, given[0]).slice_entropy
        for name, index in indices.items():

            def function(entropy=entropy, index=index) -> Tensor:
                return entropy(*given, index, scale=scale(shape))

            sample = slice(0, 1)
            exact = TORCH.slice_entropy(
                *(tensor[sample].double() if tensor.shape[0] == shape[0] else tensor.double() for tensor in given),
                index[sample],
                scale=scale(shape),
            )
            error = float((function()[sample] - exact).abs().max())
            if not error < 1e-3:
                raise SystemExit(f"at {shape} the entropy of {name} ({kernels}) is off by {error}: no report")
            slow = kernels == "torch" and device.type == "cuda"
            rows[f"{name}{', PyTorch' if slow else ''}"] = {"ms": median_ms(function, device, 3 if slow else 20)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--shape", type=int, nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.memory:
        shape = tuple(arguments.shape)
        tensors, method = draw(shape, torch.float32, device), methods(shape, device)[arguments.memory]
        with torch.no_grad():
            # libraries are loaded before the baseline is read
            method(**{name: tensor[..., :1, :] if tensor.ndim == 4 else tensor for name, tensor in tensors.items()})
            print_extra_bytes(lambda: method(**tensors))
        return
    results = {}
    for shape in SHAPES[device.type]:
        errors = check(shape, device)
        title = f"B{shape[0]} H{shape[1]} S{shape[2]} C{shape[3]} D{DEPTH}, {DTYPE[device.type]}"
        rows = measure(shape, device)
        ratio_table(f"{title}; largest error against float64 {max(errors.values()):.1e}", rows, "plain attention")
        entropy = measure_entropy(shape, device)
        ratio_table(f"{title}: entropy reward", entropy, next(iter(entropy)))
        results[title] = {"attention": rows, "entropy": entropy, "errors": errors}
    finish({"shapes": results}, device, arguments)


if __name__ == "__main__":
    main()
