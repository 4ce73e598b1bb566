"""What MAW costs a whole encoder: training steps and encoding, with and without it, in one run.

    python benchmarks/encoder.py [--device cuda] [--output FILE.json]

Encoders have random weights and the sizes of BERT-base and MiniLM. A training step is forward, in-batch contrastive
loss, the selector's GRPO loss with 8 sampled depths and entropy reward, backward and AdamW, in bfloat16 autocast on a
CUDA device; wall-clock time, so launches count. Host and MAW take turns, step by step, and the ratio is that of their
medians. Before anything is timed a freshly attached MAW must give the host's vectors.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from measuring import finish, ratio_table
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import maw
from maw.auxiliary import scale_gradient
from maw.hf.attach import maw_layers

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
# sizes, tokens, texts
CASES = {
    "cuda": {"BERT-base, S256 B64": (BASE, 256, 64), "MiniLM, S128 B256": (MINILM, 128, 256)},
    "cpu": {"MiniLM, S64 B32": (MINILM, 64, 32)},
}
VARIANTS = {"host": None, "MAW, last layer": [-1], "MAW, all layers": "all"}


def build(sizes: dict[str, int], layers: object, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    model = BertModel(BertConfig(**sizes, vocab_size=8000), add_pooling_layer=False)
    if layers is not None:
        model = maw.attach(model, maw.MAWConfig(layers=layers)).model
    return model.to(device)


def embed(model: nn.Module, tokens: Tensor) -> Tensor:
    return F.normalize(model(input_ids=tokens).last_hidden_state.float().mean(dim=1), dim=-1)


def check(models: dict[str, nn.Module], tokens: Tensor) -> float:
    """The largest difference of a freshly attached MAW from its host, in float32."""
    with torch.no_grad():
        host, *others = (embed(model.eval(), tokens[:4]) for model in models.values())
    error = max(float((other - host).abs().max()) for other in others)
    if not error < 1e-5:
        raise SystemExit(f"freshly attached MAW changes the vectors by {error}: no report")
    return error


def training_step(model: nn.Module, tokens: Tensor) -> Callable[[], None]:
    model.train()
    on_gpu = tokens.device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=on_gpu)
    half = len(tokens) // 2
    layers = maw_layers(model)

    def step() -> None:
        with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=on_gpu):
            for layer in layers:
                layer.gradient_scale.texts = 0
            vectors = embed(model, tokens)
            loss = F.cross_entropy(20 * vectors[:half] @ vectors[half:].T, torch.arange(half, device=tokens.device))
            if layers:
                loss = scale_gradient(loss, [layer.gradient_scale for layer in layers])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def encoding(model: nn.Module, tokens: Tensor) -> Callable[[], None]:
    model.eval()

    def encode() -> None:
        with torch.inference_mode(), torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=tokens.is_cuda):
            embed(model, tokens)

    return encode


def take_turns(calls: dict[str, Callable[[], None]], device: torch.device, rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds and peak memory of each, one call of each in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    peaks = dict.fromkeys(calls, 0.0)
    for turn in range(rounds + 3):
        for name, call in calls.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
                peaks[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
            if turn >= 3:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {"ms": statistics.median(values)} | ({"peak MiB": peaks[name]} if device.type == "cuda" else {})
        for name, values in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    results = {}
    for case, (sizes, length, texts) in CASES[device.type].items():
        tokens = torch.randint(1000, 8000, (texts, length), device=device)
        models = {name: build(sizes, layers, device) for name, layers in VARIANTS.items()}
        error = check(models, tokens)
        results[case] = {"error": error}
        for what, make in (("encoding", encoding), ("training step", training_step)):
            calls = {name: make(model, tokens) for name, model in models.items()}
            results[case][what] = take_turns(calls, device, arguments.rounds)
            ratio_table(f"{case}: {what}", results[case][what], "host")
    finish({"cases": results}, device, arguments.output)


if __name__ == "__main__":
    main()
