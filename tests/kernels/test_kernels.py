"""The Triton kernels against PyTorch in float64: on a CUDA device where there is one, else in Triton's interpreter.

The rule for low precision: the error against float64 is at most twice that of the PyTorch path in the same type.
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from torch import Tensor

import maw
from maw import MAWError
from maw.kernels import LARGEST_HEAD, use_triton
from maw.module import DepthAttention
from maw.operations import TORCH, choose_operations
from maw.views import frame_views

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
HALF = pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not GPU, reason="the interpreter has no bfloat16 product"))
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
    from maw.kernels import transform

    monkeypatch.setattr(transform, "ROWS", 64)  # a text is split over programs
    monkeypatch.setattr(transform, "PROGRAMS", 2)  # and a program serves several texts
    test_transform_and_its_gradients(torch.float32, 150, 16, 5, True)


def test_frozen_views_get_no_gradient():
    tensors = draw(9, 16, 5, torch.float32)
    del tensors["key"]
    tensors["depth_weight"].requires_grad_()
    operations().transform_query(**tensors).sum().backward()
    assert tensors["depth_weight"].grad is not None
    assert tensors["query_views"].grad is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
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


@pytest.mark.parametrize("depth", [5, 19])
def test_gumbel_weights_and_group_follow_from_the_noise(depth, monkeypatch):
    logits = torch.randn(BATCH, depth, device=DEVICE).requires_grad_()
    noise = torch.rand(BATCH, 4, depth, device=DEVICE) + 0.1
    monkeypatch.setattr(Tensor, "exponential_", lambda self: self.copy_(noise))
    weights, depth_index, log_probability = operations().gumbel_and_group(logits, tau=2.0, group_size=3)
    expected = ((logits - noise[:, 0].log()) / 2.0).softmax(dim=-1)
    torch.testing.assert_close(weights, expected)
    policy = logits.detach().softmax(dim=-1)
    assert (depth_index == (policy[:, None] / noise[:, 1:]).argmax(dim=-1)).all()
    torch.testing.assert_close(log_probability, policy.log().gather(1, depth_index))
    probe = torch.randn_like(weights)
    torch.testing.assert_close(*(torch.autograd.grad(w, logits, probe)[0] for w in (weights, expected)))


def test_groups_are_drawn_from_the_policy():
    logits = torch.tensor([[0.0, 1.0, 2.0, -30.0, 0.5]], device=DEVICE)
    draws = 4000 if GPU else 400
    _, depth_index, _ = operations().gumbel_and_group(logits, tau=1.0, group_size=draws)
    share = torch.bincount(depth_index[0], minlength=5) / draws
    torch.testing.assert_close(share, logits.softmax(dim=-1)[0], rtol=0, atol=4 / draws**0.5)


@pytest.mark.parametrize("advantage", ["std", "none", "leave-one-out"])
@pytest.mark.parametrize("group", [1, 2, 5])
def test_group_loss_and_its_gradients(advantage, group):
    depth = 7
    logits, before = torch.randn(2, 6, depth, device=DEVICE)  # far from the policy that was sampled: some are clipped
    reward, value = torch.randn(6, group, device=DEVICE), torch.randn(6, device=DEVICE)
    reward[0] = 0.5
    index = torch.randint(depth, (6, group), device=DEVICE)
    sampled = before.log_softmax(dim=-1).gather(1, index)
    settings = {"auxiliary_weight": 0.3, "value_weight": 0.7, "kl_weight": 0.2, "entropy_weight": 0.1, "clip": 0.2}
    probe, found = torch.randn(6, device=DEVICE), []
    for function, dtype in ((operations().group_loss, torch.float32), (TORCH.group_loss, torch.float64)):
        leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (logits, value)]
        rest = (index, reward.to(dtype), sampled.to(dtype))
        outcome = function(*leaves, *rest, advantage=advantage, **settings)
        found.append((*outcome, *torch.autograd.grad(outcome.loss, leaves, probe.to(dtype))))
    assert found[1][2].sum() > 0
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual.detach().double(), expected.detach().double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [4, 19])
def test_a_whole_layer_gives_what_it_gives_in_pytorch(depth):
    """Output and gradients of training, auxiliary loss included, with the random numbers of both alike."""
    outcomes = []
    for kernels in ("torch", "triton"):
        torch.manual_seed(0)
        config = maw.MAWConfig(depth=depth, kernels=kernels, estimator="exact", auxiliary_weight=1.0)
        layer = DepthAttention(config, frame_views(HEADS, 16, depth, scaling=0.25)).to(DEVICE)
        torch.nn.init.normal_(layer.selector.policy_network[-1].weight)
        query, key, value = (draw(37, 16, depth, torch.float32)["query"] for _ in range(3))
        output = layer(query.requires_grad_(), key, value, ragged(37))
        real = ragged(37)[:, None, :, None]
        output.masked_fill(~real, 0.0).square().sum().backward()
        gradients = {name: p.grad for name, p in layer.named_parameters()} | {"query": query.grad}
        outcomes.append({"output": output.masked_fill(~real, 0.0), **gradients, **layer.collect()})
    for name, expected in outcomes[0].items():
        torch.testing.assert_close(outcomes[1][name], expected, rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


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
