"""The Triton kernels against PyTorch in float64: on a CUDA device where there is one, else in Triton's interpreter.

The rule for low precision: the error against float64 is at most twice that of the PyTorch path in the same type.
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import maw
from maw import MAWError
from maw.auxiliary import scale_gradient
from maw.kernels import LARGEST_DEPTH, LARGEST_HEAD, use_triton
from maw.module import DepthAttention
from maw.operations import TORCH, choose_operations
from maw.views import frame_views

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
HALF = pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not GPU, reason="the interpreter has no bfloat16 product"))
SLOW = () if GPU else pytest.mark.slow  # in the interpreter
DTYPES = [torch.float32, torch.float16, HALF]
BATCH, HEADS = 3, 2


def operations(channels: int = 16):
    found = choose_operations("triton", torch.empty(1, 1, 1, channels, device=DEVICE))
    assert found is not TORCH
    return found


def draw(tokens, channels, depth, dtype, batch=BATCH, heads=HEADS) -> dict[str, Tensor]:
    """Tensors as an encoder has them: heads are a transposed view, views and weights are float32."""
    drawn = {name: torch.randn(batch, tokens, heads, channels).transpose(1, 2).to(dtype) for name in ("query", "key")}
    drawn |= {name: torch.randn(heads, depth, channels) for name in ("query_views", "key_views")}
    drawn["depth_weight"] = torch.randn(batch, depth).softmax(dim=-1)
    drawn["constant"] = torch.randn(heads, channels, channels)
    return {name: tensor.to(DEVICE) for name, tensor in drawn.items()}


def ragged(tokens: int, batch: int = BATCH) -> Tensor:
    """Right padding, left padding, a hole, and one text of a single token."""
    mask = torch.ones(batch, tokens, dtype=torch.bool, device=DEVICE)
    mask[0, tokens // 2 :] = False
    mask[1, : tokens // 3] = False
    mask[2] = False
    mask[2, tokens // 2] = True
    return mask


def double(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().double() for name, tensor in tensors.items()}


def error(actual: Tensor, exact: Tensor) -> float:
    assert torch.isfinite(actual).all()
    return float((actual.detach().double() - exact.detach()).norm() / exact.detach().norm())


@pytest.fixture(autouse=True)
def _poison(monkeypatch):
    """Memory that a kernel must write holds NaN before it does."""

    def poisoned(allocate):
        def function(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return function

    for place, name in ((torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(place, name, poisoned(getattr(place, name)))


NAMES = ("query", "query_views", "key_views", "depth_weight")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("tokens", "channels", "depth", "with_constant"), [(37, 20, 5, True), (70, 16, 19, False), (1, 32, 1, True)]
)
def test_transform_and_its_gradients(dtype, tokens, channels, depth, with_constant):
    tensors = draw(tokens, channels, depth, dtype)
    probe = torch.randn_like(tensors["query"])

    def run(function, given):
        given = {name: tensor.clone().requires_grad_(name in NAMES) for name, tensor in given.items() if name != "key"}
        if not with_constant:
            given["constant"] = None
        output = function(**given, scale=depth * channels**2 / channels**0.5)
        gradients = torch.autograd.grad(output, [given[name] for name in NAMES], probe.to(output.dtype))
        return (output, *gradients)

    exact = run(TORCH.transform_query, double(tensors))
    torch_path = run(TORCH.transform_query, tensors)
    for name, actual, plain, truth in zip(
        ("output", *NAMES), run(operations().transform_query, tensors), torch_path, exact, strict=True
    ):
        assert actual.dtype == plain.dtype
        assert actual.shape == plain.shape
        assert error(actual, truth) <= 2 * max(error(plain, truth), 1e-7), name


def test_many_texts_and_long_texts_share_their_gradients_in_order(monkeypatch):
    from maw.kernels import transform, transform_backward

    for place in (transform, transform_backward):
        monkeypatch.setattr(place, "ROWS", 64)  # a text is split over programs
    monkeypatch.setattr(transform_backward, "PROGRAMS", 2)  # and a program serves several texts
    test_transform_and_its_gradients(torch.float32, 150, 16, 5, True)


def test_a_query_that_begins_anywhere_in_memory():
    tensors = draw(37, 16, 5, torch.float32)
    del tensors["key"], tensors["constant"]
    expected = operations().transform_query(**tensors)
    for offset in (1, 4):  # the form for multiples of 16 bytes is compiled by now
        wide = torch.randn(BATCH, HEADS, 37, 16 + offset, device=DEVICE)
        wide[..., offset:] = tensors["query"]
        found = operations().transform_query(**tensors | {"query": wide[..., offset:]})
        torch.testing.assert_close(found, expected)


def test_a_plan_wants_its_constants_in_order():
    from maw.kernels.launching import Plan
    from maw.kernels.token_mean import _sum_rows

    with pytest.raises(TypeError, match=r"HEADS.*in this order"):
        Plan(_sum_rows, (1, 1, 1), (1, 1, 1, 1, 1), CHANNELS=4, HEADS=1, BLOCK_Q=64, BLOCK_C=16)


def test_frozen_views_get_no_gradient():
    tensors = draw(9, 16, 5, torch.float32)
    del tensors["key"]
    tensors["depth_weight"].requires_grad_()
    operations().transform_query(**tensors).sum().backward()
    assert tensors["depth_weight"].grad is not None
    assert tensors["query_views"].grad is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("masked", [pytest.param(False, marks=SLOW), True])
@pytest.mark.parametrize(("tokens", "channels", "depth", "all_arms"), [(37, 20, 5, True), (70, 16, 19, False)])
def test_entropy_of_slices(dtype, masked, tokens, channels, depth, all_arms):
    tensors = draw(tokens, channels, depth, dtype)
    mask = ragged(tokens) if masked else None
    index = torch.arange(depth, device=DEVICE).expand(BATCH, -1)
    if not all_arms:
        index = torch.randint(depth, (BATCH, 3), device=DEVICE)
    for scale in (0.0, channels**1.5, 30.0 * channels**1.5):
        given = [tensors[name] for name in ("query", "key", "query_views", "key_views")]
        found = operations().slice_entropy(*given, index, scale=scale, mask=mask)
        exact = TORCH.slice_entropy(*(tensor.double() for tensor in given), index, scale=scale, mask=mask)
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-4)


def test_entropy_with_fewer_key_heads():
    tensors = draw(21, 16, 5, torch.float32, heads=6)
    tensors["key"] = tensors["key"][:, :2]
    index = torch.randint(5, (BATCH, 3), device=DEVICE)
    given = [tensors[name] for name in ("query", "key", "query_views", "key_views")]
    found = operations().slice_entropy(*given, index, scale=64.0)
    given[1] = given[1].repeat_interleave(3, dim=1)
    torch.testing.assert_close(found, TORCH.slice_entropy(*given, index, scale=64.0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_token_mean_ignores_what_is_no_token(dtype, masked):
    query = draw(70, 20, 5, dtype)["query"].requires_grad_()
    mask = ragged(70) if masked else None
    given = query
    if masked:
        given = torch.where(mask[:, None, :, None], query, torch.nan)
    found = operations().token_mean(given, mask)
    exact = TORCH.token_mean(query.double(), mask)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-6)
    probe = torch.randn_like(found)
    expected = torch.autograd.grad(exact, query, probe.double())[0]
    actual = torch.autograd.grad(found, query, probe)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-6)


def give_both_the_same_noise(monkeypatch, depth: int, group: int) -> None:
    """Exponential numbers that depend on the shape alone, one row for the weights and G for the group."""
    noise = torch.rand(BATCH, group + 1, depth, generator=torch.Generator().manual_seed(1)).to(DEVICE) + 0.1
    rows = {(BATCH, depth): noise[:, 0], (BATCH, group, depth): noise[:, 1:], tuple(noise.shape): noise}
    monkeypatch.setattr(Tensor, "exponential_", lambda self: self.copy_(rows[tuple(self.shape)]))


def layer_outcome(config: maw.MAWConfig, masked: bool, dtype=torch.float32) -> dict[str, Tensor]:
    """Output, gradients of a training loss and of the auxiliary loss together, and what was recorded."""
    torch.manual_seed(0)
    layer = DepthAttention(config, frame_views(HEADS, 16, config.depth, scaling=0.25)).to(DEVICE)
    for network in (layer.selector.policy_network, layer.selector.value_network):
        torch.nn.init.normal_(network[-1].weight)
    query, key, value = (draw(37, 16, config.depth, dtype)["query"] for _ in range(3))
    mask = ragged(37) if masked else None
    real = torch.ones(BATCH, 37, dtype=torch.bool, device=DEVICE) if mask is None else mask
    output = layer(query.requires_grad_(), key, value, mask).masked_fill(~real[:, None, :, None], 0.0)
    scale_gradient(output.float().square().sum(), [layer.gradient_scale]).mul(0.7).backward()
    gradients = {name: p.grad for name, p in layer.named_parameters()} | {"query": query.grad}
    # advantages of a group sum to zero, so its policy loss is a rounding: on the scale of its terms
    record = {name: value for name, value in layer.records[0].record()._asdict().items() if isinstance(value, Tensor)}
    record["policy_loss"] = 1 + record["policy_loss"]
    return {"output": output, **gradients, **record}


@pytest.mark.parametrize(
    ("depth", "masked", "selection", "advantage", "group"),
    [
        (4, False, "gumbel", "std", 8),
        (4, False, "gumbel", "std", 9),
        (19, False, "gumbel", "leave-one-out", 9),
        (19, True, "gumbel", "std", 2),
        (19, True, "gumbel", "leave-one-out", 3),
        (4, True, "softmax", "none", 1),
        (19, False, "gumbel", "none", 2),
    ],
)
def test_a_layer_in_one_step_gives_what_it_gives_in_pytorch(monkeypatch, depth, masked, selection, advantage, group):
    give_both_the_same_noise(monkeypatch, depth, group)
    settings = {"selection": selection, "advantage": advantage, "group_size": group, "tau": 2.0, "kl_weight": 0.2}
    settings["noise"] = 0.3 if group == 3 else 1.0
    settings["depth_baseline"] = group in (1, 9)
    settings |= {"entropy_weight": 0.1, "auxiliary_weight": 1.0, "value_weight": 0.7, "depth": depth}
    expected, actual = (
        layer_outcome(maw.MAWConfig(kernels=kernels, **settings), masked) for kernels in ("torch", "triton")
    )
    assert expected.keys() == actual.keys()
    for name, truth in expected.items():
        torch.testing.assert_close(actual[name], truth, rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    "changes",
    [
        {"estimator": "exact", "depth_baseline": False},
        {"estimator": "exact", "depth_baseline": True},
        {"selection": "hard"},
        {"selection": "uniform"},
    ],
)
def test_a_layer_composed_of_kernels_gives_what_it_gives_in_pytorch(monkeypatch, changes):
    give_both_the_same_noise(monkeypatch, 5, 8)
    outcomes = []
    for kernels in ("torch", "triton"):
        config = maw.MAWConfig(depth=5, kernels=kernels, auxiliary_weight=1.0, **changes)
        torch.manual_seed(0)
        layer = DepthAttention(config, frame_views(HEADS, 16, 5, scaling=0.25)).to(DEVICE)
        query, key, value = (draw(37, 16, 5, torch.float32)["query"] for _ in range(3))
        layer(query.requires_grad_(), key, value, ragged(37)).square().sum().backward()
        outcomes.append({name: p.grad for name, p in layer.named_parameters()} | {"query": query.grad})
    for name, truth in outcomes[0].items():
        torch.testing.assert_close(outcomes[1][name], truth, rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("selection", ["gumbel", "softmax", "hard"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_layer_in_evaluation(selection, grad):
    outputs = []
    for kernels in ("torch", "triton"):
        torch.manual_seed(0)
        config = maw.MAWConfig(depth=19, kernels=kernels, selection=selection, tau=0.5)
        layer = DepthAttention(config, frame_views(HEADS, 16, 19, scaling=0.25)).to(DEVICE).eval()
        torch.nn.init.normal_(layer.selector.policy_network[-1].weight)
        query, key, value = (draw(37, 16, 19, torch.float32)["query"] for _ in range(3))
        with torch.set_grad_enabled(grad):
            outputs.append(layer(query, key, value, ragged(37)).masked_fill(~ragged(37)[:, None, :, None], 0.0))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("draws", [pytest.param(4000 if GPU else 400, marks=SLOW)])
def test_groups_are_drawn_from_the_policy(draws):
    config = maw.MAWConfig(depth=5, kernels="triton", group_size=draws)
    layer = DepthAttention(config, frame_views(1, 16, 5, scaling=0.25)).to(DEVICE)
    logits = torch.tensor([0.0, 1.0, 2.0, -30.0, 0.5], device=DEVICE)
    with torch.no_grad():
        layer.selector.policy_network[-1].bias.copy_(logits)
    query = draw(4, 16, 5, torch.float32, batch=1, heads=1)["query"]
    layer(query, query, query)
    share = torch.bincount(layer.records[0].depth_index[0], minlength=5) / draws
    torch.testing.assert_close(share, logits.softmax(dim=-1), rtol=0, atol=4 / draws**0.5)


def test_a_checkpointed_layer_draws_the_same_noise_and_is_recorded_once():
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        config = maw.MAWConfig(depth=5, kernels="triton", auxiliary_weight=1.0, group_size=4)
        layer = DepthAttention(config, frame_views(HEADS, 16, 5, scaling=0.25)).to(DEVICE)
        query = draw(37, 16, 5, torch.float32)["query"].requires_grad_()
        torch.manual_seed(1)
        given = (layer, query, query, query)
        output = checkpoint(*given, use_reentrant=False) if checkpointed else layer(*given[1:])
        output.square().sum().backward()
        assert len(layer.records) == 1
        gradients.append([query.grad, *(p.grad for p in layer.parameters())])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_layer_that_is_all_half_precision_trains():
    gradients = []
    for kernels in ("torch", "triton"):
        torch.manual_seed(0)
        config = maw.MAWConfig(depth=5, kernels=kernels, auxiliary_weight=1.0)
        layer = DepthAttention(config, frame_views(HEADS, 16, 5, scaling=0.25)).to(DEVICE, torch.float16)
        query, key, value = (draw(37, 16, 5, torch.float16)["query"] for _ in range(3))
        layer(query.requires_grad_(), key, value).float().square().sum().backward()
        gradients.append({name: p.grad for name, p in layer.named_parameters()})
    for name, expected in gradients[0].items():
        assert gradients[1][name].dtype == torch.float16
        assert torch.isfinite(gradients[1][name]).all(), name
        assert expected.shape == gradients[1][name].shape


def test_the_rule():
    query = torch.empty(1, 1, 1, 16)
    assert choose_operations("torch", query) is TORCH
    assert not use_triton("auto", query)  # on the CPU, whatever Triton's interpreter could do
    with pytest.raises(MAWError, match=f"more than {LARGEST_HEAD}.*kernels='auto'"):
        use_triton("triton", torch.empty(1, 1, 1, LARGEST_HEAD + 1))
    with pytest.raises(MAWError, match=f"{LARGEST_DEPTH + 1} view vectors, more than {LARGEST_DEPTH}"):
        use_triton("triton", query, LARGEST_DEPTH + 1)
    with pytest.raises(MAWError, match="float64"):
        use_triton("triton", query.double())


def test_asked_for_on_the_cpu_without_the_interpreter_is_an_error(monkeypatch):
    monkeypatch.delitem(os.environ, "TRITON_INTERPRET", raising=False)
    with pytest.raises(MAWError, match="on cpu, not on a CUDA device"):
        use_triton("triton", torch.empty(1, 1, 1, 16))


@pytest.mark.gpu
def test_auto_is_triton_on_a_gpu():
    assert use_triton("auto", torch.empty(1, 1, 1, 64, device="cuda"))
    assert not use_triton("auto", torch.empty(1, 1, 1, LARGEST_HEAD + 1, device="cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("batch", "heads", "tokens", "channels"), [(64, 12, 256, 64), (256, 12, 128, 32), (4, 12, 8192, 64)]
)
def test_at_full_size(batch, heads, tokens, channels):
    depth = 64
    tensors = draw(tokens, channels, depth, torch.bfloat16, batch=batch, heads=heads)
    tensors.pop("constant")
    key = tensors.pop("key")
    scale = depth * channels**2 / channels**0.5
    probe = torch.randn_like(tensors["query"])
    results = []
    for function, given in (
        (operations(channels).transform_query, tensors),
        (TORCH.transform_query, tensors),
        (TORCH.transform_query, {name: tensor.double() for name, tensor in tensors.items()}),
    ):
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in given.items()}
        output = function(**leaves, scale=scale)
        results.append((output, *torch.autograd.grad(output, list(leaves.values()), probe.to(output.dtype))))
    for actual, plain, exact in zip(*results, strict=True):
        assert error(actual, exact) <= 2 * error(plain, exact)
    del results
    views = tensors["query_views"], tensors["key_views"]
    index = torch.randint(depth, (batch, 2), device="cuda")
    mask = ragged(tokens, batch)
    found = operations(channels).slice_entropy(tensors["query"], key, *views, index, scale=channels**1.5, mask=mask)
    exact = TORCH.slice_entropy(tensors["query"], key, *views, index, scale=channels**1.5, mask=mask)
    torch.testing.assert_close(found, exact, rtol=0, atol=2e-4)
