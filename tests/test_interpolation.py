from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import maw.interpolation
from maw import MAWError
from maw.entropy import normalised_slice_entropy
from maw.interpolation import NODES, interpolated_mean_entropy
from maw.operations import slice_entropy

BATCH, HEADS, GROUP = 2, 3, 5


def draw(tokens, spread, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    u, t = torch.randn(2, BATCH, HEADS, GROUP, tokens, generator=generator, dtype=torch.float64)
    return (u * spread).to(dtype), t.to(dtype)


def exact_mean(u, t, mask=None, scale=1.0):
    entropy = normalised_slice_entropy(u.double(), t.double(), mask, scale=scale)
    if mask is None:
        return entropy.mean(-1)
    real = mask[:, None, None, :]
    return entropy.masked_fill(~real, 0.0).sum(-1) / real.sum(-1)


@given(
    tokens=st.integers(1, 130),
    spread=st.sampled_from([0.0, 1e-6, 0.1, 1.0, 30.0, 1000.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 5),
    masked=st.booleans(),
)
def test_close_to_the_exact_mean(tokens, spread, dtype, seed, masked):
    u, t = draw(tokens, spread, seed, dtype)
    mask = None
    if masked:
        mask = torch.rand(BATCH, tokens, generator=torch.Generator().manual_seed(seed)) < 0.7
        mask[:, tokens // 2] = True
    found = interpolated_mean_entropy(u, t, mask, scale=1.7)
    assert found.dtype == dtype
    # Gaussian keys leave a few far out, which is harder than real text: see the test on the packaged encoder
    torch.testing.assert_close(found.double(), exact_mean(u, t, mask, 1.7), rtol=0, atol=1e-3)


def test_more_nodes_converge():
    u, t = draw(200, 30.0)
    errors = [
        float((interpolated_mean_entropy(u, t, nodes=nodes) - exact_mean(u, t)).abs().max()) for nodes in (16, 32, 64)
    ]
    assert errors[1] < errors[0] / 4
    assert errors[2] < errors[1] / 4


def test_texts_in_chunks_are_what_they_are_together(monkeypatch):
    u, t = draw(40, 3.0)
    together = interpolated_mean_entropy(u, t)
    monkeypatch.setattr(maw.interpolation, "CHUNK_ELEMENTS", 1)
    assert torch.equal(interpolated_mean_entropy(u, t), together)


def test_equal_keys_are_uniform_attention_and_one_key_is_none():
    u, _ = draw(7, 3.0)
    torch.testing.assert_close(interpolated_mean_entropy(u, torch.ones_like(u)), torch.ones_like(u[..., 0]))
    mask = torch.zeros(BATCH, 7, dtype=torch.bool)
    mask[:, 2] = True
    assert (interpolated_mean_entropy(u, u, mask) == 0).all()


def test_masked_tokens_have_no_influence_bit_for_bit():
    u, t = draw(70, 3.0)
    mask = torch.ones(BATCH, 70, dtype=torch.bool)
    mask[0, 40:] = False
    before = interpolated_mean_entropy(u, t, mask)
    u[0, ..., 40:], t[0, ..., 40:] = torch.nan, torch.inf
    assert torch.equal(interpolated_mean_entropy(u, t, mask), before)


def test_a_text_without_a_real_key_is_an_error():
    u, t = draw(5, 1.0)
    with pytest.raises(MAWError, match="row 0 has no real key"):
        interpolated_mean_entropy(u, t, torch.zeros(BATCH, 5, dtype=torch.bool))


def test_nothing_holds_queries_and_keys_at_once(tensor_recorder):
    tokens = 1500
    u, t = draw(tokens, 1.0)
    with tensor_recorder() as recorder:
        interpolated_mean_entropy(u, t)
    assert recorder.largest <= BATCH * HEADS * GROUP * tokens * NODES


@pytest.mark.parametrize(("tokens", "interpolated"), [(2 * NODES, False), (2 * NODES + 1, True)])
def test_long_texts_are_interpolated_and_short_ones_exact(tokens, interpolated):
    q, k = torch.randn(2, 1, 2, tokens, 4, dtype=torch.float64)
    f, g = 3 * torch.randn(2, 2, 3, 4, dtype=torch.float64)
    index = torch.tensor([[0, 2]])
    found = slice_entropy(q, k, f, g, index, scale=16.0)
    u = torch.einsum("hdc,bhic->bhdi", f, q)[:, :, [0, 2]] / 4
    t = torch.einsum("hdc,bhic->bhdi", g, k)[:, :, [0, 2]] / 4
    error = float((found - exact_mean(u, t, scale=16.0)).abs().max())
    assert (error > 1e-12) is interpolated
    assert error < 1e-3


@pytest.mark.parametrize(
    ("layers", "count"), [pytest.param([0], 1, id="first"), pytest.param("all", 6, id="all", marks=pytest.mark.slow)]
)
def test_the_reward_on_real_text_in_layers_of_the_packaged_encoder(layers, count):
    """The mean over heads, which is the reward, within 1e-4 of the exact one for every text and slice."""
    from sentence_transformers import SentenceTransformer

    from maw.module import DepthAttention
    from maw.retrieval.models import packaged_encoder

    model = SentenceTransformer(str(packaged_encoder()), device="cpu")
    maw.attach(model, maw.MAWConfig(layers=layers))
    texts = [
        " ".join((maw.attach.__doc__, maw.MAWConfig.__doc__)),
        pytest.__doc__ + str(st.integers.__doc__),
        "one word",
    ]
    seen = []

    def note(layer, arguments, keywords):
        seen.append((layer, *arguments))

    for layer in model.modules():
        if isinstance(layer, DepthAttention):
            layer.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        model(model.preprocess(texts))
        assert len(seen) == count
        for layer, query, key, _, mask in seen:
            channels = query.shape[-1]
            u = torch.einsum("hdc,bhic->bhdi", layer.query_views, query) / channels
            t = torch.einsum("hdc,bhic->bhdi", layer.key_views, key) / channels
            reward = interpolated_mean_entropy(u, t, mask, scale=layer.scale).mean(1)
            exact = exact_mean(u, t, mask, layer.scale).mean(1)
            torch.testing.assert_close(reward.double(), exact, rtol=0, atol=1e-4)
