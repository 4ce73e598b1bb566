"""What MAW costs a whole encoder: training steps and encoding, with and without it, in one run.

    python benchmarks/encoder.py [--device cuda] [--output FILE.json] [--commit COMMIT]

Encoders have random weights and the sizes of BERT-base and MiniLM. A training step is forward, in-batch contrastive
loss, the selector's GRPO loss with 8 sampled depths and entropy reward, backward and AdamW, in bfloat16 autocast on a
CUDA device. Host and MAW take turns, and the ratio is that of their medians. On a CUDA device a turn is several calls
with one wait at the end, as a training or an encoding waits once in many, and "device ms" is the time its kernels run:
what a call costs where the processor keeps ahead of the device. Half of the cases have padded texts. Before anything is
timed a freshly attached MAW must give the host's vectors.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from measuring import add_arguments, device_ms, extra_bytes, finish, ratio_table
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import maw
from maw.auxiliary import scale_gradient
from maw.hf.attach import maw_layers

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
# sizes, tokens, texts, whether texts are of different lengths
CASES = {
    "cuda": {
        "BERT-base, S256 B64": (BASE, 256, 64, False),
        "MiniLM, S128 B256": (MINILM, 128, 256, False),
        "BERT-base, S256 B64, padded": (BASE, 256, 64, True),
        "MiniLM, S128 B256, padded": (MINILM, 128, 256, True),
    },
    "cpu": {"MiniLM, S64 B32": (MINILM, 64, 32, False)},
}
CALLS = {"cuda": 8, "cpu": 1}
"""Calls between two waits for the device."""

VARIANTS = {"host": None, "MAW, last layer": [-1], "MAW, all layers": "all"}


def build(sizes: dict[str, int], layers: object, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    model = BertModel(BertConfig(**sizes, vocab_size=8000), add_pooling_layer=False)
    if layers is not None:
        model = maw.attach(model, maw.MAWConfig(layers=layers)).model
    return model.to(device)


class Texts(NamedTuple):
    """A batch of token ids."""

    tokens: Tensor
    mask: Tensor | None
    """(B, S), 1 where there is a token; None where all texts are of one length."""


def draw(texts: int, length: int, device: torch.device, *, padded: bool) -> Texts:
    tokens = torch.randint(1000, 8000, (texts, length), device=device)
    if not padded:
        return Texts(tokens, None)
    lengths = torch.randint(length // 4, length + 1, (texts, 1), device=device)
    return Texts(tokens, (torch.arange(length, device=device) < lengths).long())


def embed(model: nn.Module, texts: Texts) -> Tensor:
    hidden = model(input_ids=texts.tokens, attention_mask=texts.mask).last_hidden_state.float()
    if texts.mask is None:
        return F.normalize(hidden.mean(dim=1), dim=-1)
    return F.normalize((hidden * texts.mask[..., None]).sum(dim=1), dim=-1)


def check(models: dict[str, nn.Module], texts: Texts) -> float:
    """The largest difference of a freshly attached MAW from its host, in float32."""
    few = Texts(texts.tokens[:4], None if texts.mask is None else texts.mask[:4])
    with torch.no_grad():
        host, *others = (embed(model.eval(), few) for model in models.values())
    error = max(float((other - host).abs().max()) for other in others)
    if not error < 1e-5:
        raise SystemExit(f"freshly attached MAW changes the vectors by {error}: no report")
    return error


def training_step(model: nn.Module, texts: Texts) -> Callable[[], None]:
    model.train()
    device = texts.tokens.device
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=on_gpu)
    half = len(texts.tokens) // 2
    target = torch.arange(half, device=device)
    layers = maw_layers(model)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=on_gpu):
            for layer in layers:
                layer.gradient_scale.texts = 0
            vectors = embed(model, texts)
            loss = F.cross_entropy(20 * vectors[:half] @ vectors[half:].T, target)
            if layers:
                loss = scale_gradient(loss, [layer.gradient_scale for layer in layers])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def encoding(model: nn.Module, texts: Texts) -> Callable[[], None]:
    model.eval()
    device = texts.tokens.device

    def encode() -> None:
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            embed(model, texts)

    return encode


def take_turns(calls: dict[str, Callable[[], None]], device: torch.device, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds a call, each method in turn: the median and the fastest; on a CUDA device also what is its own."""
    together = CALLS[device.type]
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 3):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(together):
                call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn >= 3:
                times[name].append(1e3 * (time.perf_counter() - start) / together)
    rows = {name: {"ms": statistics.median(values), "fastest ms": min(values)} for name, values in times.items()}
    if device.type == "cuda":
        for name, call in calls.items():
            rows[name] |= {"device ms": device_ms(call), "peak MiB": extra_bytes(call, device) / 2**20}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    results = {}
    for case, (sizes, length, number, padded) in CASES[device.type].items():
        texts = draw(number, length, device, padded=padded)
        models = {name: build(sizes, layers, device) for name, layers in VARIANTS.items()}
        error = check(models, texts)
        results[case] = {"error": error}
        for what, make in (("encoding", encoding), ("training step", training_step)):
            calls = {name: make(model, texts) for name, model in models.items()}
            results[case][what] = take_turns(calls, device, arguments.rounds)
            ratio_table(f"{case}: {what}", results[case][what], "host")
    finish({"cases": results}, device, arguments)


if __name__ == "__main__":
    main()
