"""What holds for every shape, mask and type: of the function, of one layer, and of the reward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maw import MAWConfig, functional, reference
from maw.entropy import normalised_slice_entropy
from maw.interpolation import interpolated_mean_entropy
from maw.module import DepthAttention
from maw.operations import TORCH
from maw.views import frame_views, random_views

DTYPES = {
    # largest error of one output against float64, where values and views have entries near 1
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2e-2,
    torch.bfloat16: 2e-1,
}


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def masks(draw, texts, tokens):
    """Any mask with a real token in every row, or none."""
    if draw(st.booleans()):
        return None
    rows = draw(st.lists(st.lists(st.booleans(), min_size=tokens, max_size=tokens), min_size=texts, max_size=texts))
    mask = torch.tensor(rows, dtype=torch.bool).view(texts, tokens)
    for row in range(texts):
        mask[row, draw(st.integers(0, tokens - 1))] = True
    return mask


@st.composite
def functions(draw):
    """Arguments of `depth_attention`, in float64."""
    batch, heads, channels = draw(st.integers(0, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 9))
    queries, keys = draw(st.integers(0, 7)), draw(st.integers(1, 7))
    depth = draw(st.sampled_from([1, max(1, channels - 1), channels, channels + 1, 3 * channels]))
    seed = draw(st.integers(0, 999))
    return {
        "query": normal(seed, batch, heads, queries, channels),
        "key": normal(seed + 1, batch, heads, keys, channels),
        "value": normal(seed + 2, batch, heads, keys, channels),
        "query_views": normal(seed + 3, heads, depth, channels) / depth**0.5,
        "key_views": normal(seed + 4, heads, depth, channels) / depth**0.5,
        "depth_weight": normal(seed + 5, batch, depth).softmax(dim=-1),
        "constant": normal(seed + 6, heads, channels, channels) / channels if draw(st.booleans()) else None,
        "mask": draw(masks(batch, keys)),
        "scale": draw(st.sampled_from([1.0, depth * channels**1.5])),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(functions())
def test_the_function_is_the_reference(dtype, arguments):
    """D below, at and above C; as many queries as keys or not; one head, one token, one channel, no text, no query."""
    exact = reference.depth_attention(**arguments)
    given_tensors = {
        name: value.to(dtype) if isinstance(value, torch.Tensor) and name != "mask" else value
        for name, value in arguments.items()
    }
    output = functional.depth_attention(**given_tensors)
    assert output.dtype == dtype
    assert output.shape == exact.shape
    torch.testing.assert_close(output.double(), exact, rtol=0, atol=DTYPES[dtype])


@given(functions(), st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
def test_views_may_be_wider_than_the_tokens(arguments, dtype):
    """As in an encoder in half precision, whose MAW layers stay in float32; both forms then agree as well."""
    for name in ("query", "key", "value"):
        arguments[name] = arguments[name].to(dtype)
    for name in ("query_views", "key_views", "depth_weight", "constant"):
        arguments[name] = None if arguments[name] is None else arguments[name].float()
    output, slow = functional.depth_attention(**arguments), reference.depth_attention(**arguments)
    assert output.dtype == slow.dtype == dtype
    torch.testing.assert_close(output.double(), slow.double(), rtol=0, atol=DTYPES[dtype])


# One layer


@st.composite
def layers(draw):
    """A layer whose views and policy have left their start, with shared keys or not."""
    heads, channels = draw(st.sampled_from([(1, 3), (2, 4), (4, 2), (6, 1)]))
    depth = draw(st.sampled_from([1, 2, channels, 2 * channels + 1]))
    settings = {
        "selection": draw(st.sampled_from(["gumbel", "softmax", "hard", "uniform"])),
        "estimator": draw(st.sampled_from(["sampled", "exact"])),
        "group_size": draw(st.sampled_from([1, 2, 5])),
        "tau": draw(st.sampled_from([0.3, 5.0])),
    }
    seed = draw(st.integers(0, 999))
    views = draw(
        st.sampled_from([frame_views(heads, channels, depth, scaling=0.5), random_views(heads, channels, depth)])
    )
    torch.manual_seed(seed)
    layer = DepthAttention(MAWConfig(depth=depth, **settings), views, scaling=0.5).double()
    if settings["selection"] != "uniform":
        torch.nn.init.normal_(layer.selector.policy_network[-1].weight)
    key_heads = draw(st.sampled_from([count for count in range(1, heads + 1) if heads % count == 0]))
    return layer, key_heads


@st.composite
def batches(draw, layer_and_key_heads):
    layer, key_heads = layer_and_key_heads
    heads, _, channels = layer.query_views.shape
    texts, tokens, seed = draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.integers(0, 999))
    tensors = [
        3 * normal(seed + place, texts, of, tokens, channels) for place, of in enumerate((heads, key_heads, key_heads))
    ]
    return tensors, draw(masks(texts, tokens))


def real_outputs(output, mask):
    return output if mask is None else output.transpose(1, 2)[mask]


@given(st.data(), layers())
def test_padding_company_and_order_have_no_influence(data, made):
    """A text alone and without its padding is what it is among others, in any order, whatever stands in the padding."""
    layer, (tensors, mask) = made[0].eval(), data.draw(batches(made))
    together = layer(*tensors, mask)
    texts, _, tokens, _ = together.shape
    order = torch.tensor(data.draw(st.permutations(range(texts))))
    moved = layer(*(tensor[order] for tensor in tensors), None if mask is None else mask[order])
    torch.testing.assert_close(
        real_outputs(moved, None if mask is None else mask[order]),
        real_outputs(together[order], None if mask is None else mask[order]),
        rtol=0,
        atol=1e-11,
    )
    for text in range(texts):
        real = torch.ones(tokens, dtype=torch.bool) if mask is None else mask[text]
        alone = layer(*(tensor[text : text + 1][:, :, real] for tensor in tensors))
        torch.testing.assert_close(alone[0], together[text][:, real], rtol=0, atol=1e-11)
    if mask is not None:
        dirty = [torch.where(mask[:, None, :, None], tensor, 1e9) for tensor in tensors]
        assert torch.equal(real_outputs(layer(*dirty, mask), mask), real_outputs(together, mask))


@given(st.data(), layers())
def test_weights_sum_to_one_rewards_and_entropies_keep_their_range(data, made):
    layer, (tensors, mask) = made[0].train(), data.draw(batches(made))
    heads, depth, _ = layer.query_views.shape
    texts = len(tensors[0])
    (layer(*tensors, mask) * 0).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())
    if layer.config.selection == "uniform":
        assert layer.collect() == {}
        return
    weight = layer.weights(torch.randn(texts, layer.selector.value_network[0].in_features, dtype=torch.float64))
    torch.testing.assert_close(weight.sum(dim=-1), torch.ones(texts, dtype=torch.float64))
    assert ((weight >= 0) & (weight <= 1)).all()
    (record,) = layer.records
    assert ((record.reward >= -1 - 1e-12) & (record.reward <= 0)).all()
    collected = layer.collect()
    assert all(value.isfinite().all() for value in collected.values())
    for name in ("policy_entropy", "clip_share", "depths_alive"):
        assert -1e-9 <= float(collected[name]) <= 1 + 1e-9
    torch.testing.assert_close(float(collected["depth_usage"].sum()), 1.0)
    arms = torch.arange(depth).expand(texts, depth)
    entropy = TORCH.slice_entropy(*tensors[:2], layer.query_views, layer.key_views, arms, scale=layer.scale, mask=mask)
    assert entropy.shape == (texts, heads, depth)
    assert ((entropy >= -1e-12) & (entropy <= 1 + 1e-12)).all()


# The reward


@given(
    st.data(),
    st.integers(1, 90),
    st.sampled_from([0.0, 1e-3, 1.0, 30.0, 3000.0]),
    st.integers(0, 999),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_the_interpolated_entropy_is_the_exact_one(data, tokens, spread, seed, dtype):
    u, t = (spread * normal(seed, 2, 1, 3, tokens)).to(dtype), normal(seed + 1, 2, 1, 3, tokens).to(dtype)
    mask = data.draw(masks(2, tokens))
    found = interpolated_mean_entropy(u, t, mask, nodes=128)
    exact = normalised_slice_entropy(u.double(), t.double(), mask)
    real = torch.ones(2, tokens, dtype=torch.bool) if mask is None else mask
    exact = exact.masked_fill(~real[:, None, None, :], 0.0).sum(dim=-1) / real.sum(dim=-1)[:, None, None]
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-4)
    assert ((found >= -1e-5) & (found <= 1 + 1e-5)).all()
