from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maw import MAWError, functional, reference

HEADS, CHANNELS = 3, 8
DIFFERENTIABLE = ("query", "key", "value", "query_views", "key_views", "depth_weight", "constant")


def draw(depth, *, batch=2, heads=HEADS, queries=5, keys=7, channels=CHANNELS, dtype=torch.float64, seed=0):
    """Arguments of the size they have in an encoder: views with f^T g summing to about the identity."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    arguments = {
        "query": normal(batch, heads, queries, channels) * 1.5,
        "key": normal(batch, heads, keys, channels) * 1.5,
        "value": normal(batch, heads, keys, channels),
        "query_views": normal(heads, depth, channels) / depth**0.5,
        "key_views": normal(heads, depth, channels) / depth**0.5,
        "depth_weight": normal(batch, depth).softmax(dim=-1),
        "constant": normal(heads, channels, channels) / channels,
    }
    return {name: tensor.to(dtype) for name, tensor in arguments.items()}


def draw_mask(batch=2, keys=7):
    mask = torch.ones(batch, keys, dtype=torch.bool)
    mask[0, keys - keys // 3 :] = False
    mask[-1, 0] = False
    return mask


def host_scale(depth, channels=CHANNELS):
    return depth * channels**1.5


@pytest.mark.parametrize("depth", [1, 5, 8, 19, 64])
@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
@pytest.mark.parametrize("constant", [False, True], ids=["no constant", "constant"])
@pytest.mark.parametrize("scale", [1.0, None], ids=["scale 1", "host scale"])
def test_equals_the_reference_in_float64_with_gradients(depth, masked, constant, scale):
    shared = {"mask": draw_mask() if masked else None, "scale": host_scale(depth) if scale is None else scale}
    names = DIFFERENTIABLE if constant else DIFFERENTIABLE[:-1]
    outputs, gradients = [], []
    for module in (functional, reference):
        arguments = {name: tensor.requires_grad_() for name, tensor in draw(depth).items() if name in names}
        output = module.depth_attention(**arguments, **shared)
        outputs.append(output.detach())
        probe = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view_as(output)
        gradients.append(torch.autograd.grad((output * probe).sum(), list(arguments.values())))
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    for name, actual, expected in zip(names, *gradients, strict=True):
        # relative to the largest entry: single entries may cancel to nothing
        error = (actual - expected).abs().max() / expected.abs().max()
        assert error < 1e-10, f"gradient of {name}: {error:.1e}"


@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    queries=st.integers(1, 6),
    keys=st.integers(1, 6),
    channels=st.integers(1, 6),
    depth=st.integers(1, 9),
    seed=st.integers(0, 99),
    masked=st.booleans(),
)
def test_equals_the_reference_at_any_size(batch, heads, queries, keys, channels, depth, seed, masked):
    arguments = draw(depth, batch=batch, heads=heads, queries=queries, keys=keys, channels=channels, seed=seed)
    mask = None
    if masked:
        mask = torch.rand(batch, keys, generator=torch.Generator().manual_seed(seed)) < 0.5
        mask[:, seed % keys] = True
    shared = {"mask": mask, "scale": host_scale(depth, channels)}
    expected = reference.depth_attention(**arguments, **shared)
    torch.testing.assert_close(functional.depth_attention(**arguments, **shared), expected, rtol=0, atol=1e-12)


def test_gradcheck():
    arguments = draw(3, batch=1, heads=2, queries=2, keys=3, channels=2)
    tensors = [arguments[name].requires_grad_() for name in DIFFERENTIABLE]
    mask = torch.tensor([[True, False, True]])

    def function(*tensors):
        named = dict(zip(DIFFERENTIABLE, tensors, strict=True))
        return functional.depth_attention(**named, mask=mask, scale=2.0)

    assert torch.autograd.gradcheck(function, tensors)


@pytest.mark.parametrize("constant", [False, True])
def test_query_transform_is_equation_7(constant):
    arguments = draw(5)
    matrix = arguments["constant"] if constant else None
    transform = functional.query_transform(
        arguments["query_views"], arguments["key_views"], arguments["depth_weight"], constant=matrix, scale=3.0
    )
    assert transform.shape == (2, HEADS, CHANNELS, CHANNELS)
    for b in range(2):
        for h in range(HEADS):
            expected = sum(
                arguments["depth_weight"][b, d]
                * torch.outer(arguments["query_views"][h, d], arguments["key_views"][h, d])
                for d in range(5)
            )
            expected = 3.0 / CHANNELS**2 * expected + (matrix[h] if constant else 0)
            torch.testing.assert_close(transform[b, h], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_query_transform_is_formed_in_float32(dtype):
    arguments = draw(64, channels=67, dtype=dtype)
    views = (arguments["query_views"], arguments["key_views"], arguments["depth_weight"])
    scale = 64 * 67**2 / 67**0.5 * 67**0.5  # beyond float16's range
    expected = functional.query_transform(*(tensor.double() for tensor in views), scale=scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        transform = functional.query_transform(*views, scale=scale)
    assert transform.dtype == torch.float32
    assert (transform - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("depth", [5, 8, 19, 64])
@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
def test_low_precision_error_is_at_most_twice_the_references(dtype, depth, masked):
    shared = {"mask": draw_mask(keys=13) if masked else None, "scale": host_scale(depth)}
    names = ("query", "key", "value", "query_views", "key_views", "depth_weight")
    probe = torch.randn(2, HEADS, 11, CHANNELS, dtype=torch.float64)

    def run(module, arguments):
        tensors = {name: arguments[name].detach().clone().requires_grad_() for name in names}
        output = module.depth_attention(**tensors, constant=arguments["constant"], **shared)
        assert output.dtype == arguments["query"].dtype
        gradients = torch.autograd.grad((output * probe.to(output.dtype)).sum(), list(tensors.values()))
        return [tensor.double() for tensor in (output.detach(), *gradients)]

    # Root mean square over several draws: the largest error of a single draw is one softmax row's accident.
    squares = {name: torch.zeros(2, dtype=torch.float64) for name in ("output", *names)}
    for seed in range(5):
        low = draw(depth, queries=11, keys=13, dtype=dtype, seed=seed)
        exact = run(reference, {name: tensor.double() for name, tensor in low.items()})
        plain, fast = run(reference, low), run(functional, low)
        for name, truth, theirs, ours in zip(squares, exact, plain, fast, strict=True):
            squares[name] += torch.stack([(theirs - truth).square().mean(), (ours - truth).square().mean()])
    for name, (theirs, ours) in squares.items():
        assert ours.sqrt() <= 2 * theirs.sqrt(), f"{name}: {float((ours / theirs).sqrt()):.2f} times the reference's"


def test_nothing_holds_queries_keys_and_depths_at_once(tensor_recorder):
    sizes = {"queries": 29, "keys": 31, "depth": 37}
    product = 29 * 31 * 37
    shared = {"mask": draw_mask(keys=31), "scale": 1.0}

    def record(module):
        arguments = {name: tensor.requires_grad_() for name, tensor in draw(**sizes, heads=3, channels=5).items()}
        with tensor_recorder() as recorder:
            module.depth_attention(**arguments, **shared).square().sum().backward()
        return recorder

    assert record(reference).largest >= product
    recorder = record(functional)
    assert recorder.largest < product
    assert not [shape for shape in recorder.shapes if {29, 31, 37} <= set(shape)]


@pytest.mark.parametrize("garbage", [1e4, -1e4, 3e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_keys_have_no_influence_bit_for_bit(garbage, dtype):
    arguments, mask = draw(5, dtype=dtype), draw_mask()
    expected = functional.depth_attention(**arguments, mask=mask, scale=20.0)
    hidden = ~mask[:, None, :, None]
    noise = torch.randn_like(arguments["key"]) * garbage
    for name in ("key", "value"):
        arguments[name] = torch.where(hidden, noise, arguments[name])
    assert torch.equal(functional.depth_attention(**arguments, mask=mask, scale=20.0), expected)


def test_masked_keys_get_exactly_zero_gradient():
    arguments = {name: tensor.requires_grad_() for name, tensor in draw(5).items()}
    mask = draw_mask()
    functional.depth_attention(**arguments, mask=mask, scale=20.0).square().sum().backward()
    for name in ("key", "value"):
        gradient = arguments[name].grad.permute(0, 2, 1, 3)
        assert (gradient[~mask] == 0).all()
        assert (gradient[mask] != 0).any()


def test_texts_do_not_influence_each_other():
    arguments, mask = draw(5), draw_mask()
    together = functional.depth_attention(**arguments, mask=mask, scale=20.0)
    shared = {name: arguments.pop(name) for name in ("query_views", "key_views", "constant")}
    for b in range(2):
        own = {name: tensor[b : b + 1] for name, tensor in arguments.items()}
        alone = functional.depth_attention(**own, **shared, mask=mask[b : b + 1], scale=20.0)
        torch.testing.assert_close(alone[0], together[b], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("query", (3, 5, 8)),
        ("key", (2, 3, 7, 9)),
        ("value", (2, 3, 6, 8)),
        ("query_views", (1, 5, 8)),
        ("key_views", (3, 6, 8)),
        ("depth_weight", (1, 5)),
        ("constant", (8, 8)),
    ],
)
def test_shape_errors_are_the_references(name, shape):
    arguments = draw(5) | {name: torch.ones(shape, dtype=torch.float64)}
    messages = []
    for module in (functional, reference):
        with pytest.raises(MAWError, match=f"^{name} must have") as caught:
            module.depth_attention(**arguments)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_a_row_without_a_real_key_is_an_error():
    with pytest.raises(MAWError, match="row 0 has no real key"):
        functional.depth_attention(**draw(5), mask=torch.zeros(2, 7, dtype=torch.bool))
