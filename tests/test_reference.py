from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maw import MAWError, reference

BATCH, HEADS, QUERIES, KEYS, DEPTH, CHANNELS = 2, 3, 5, 7, 11, 13
SCALE = 1.7


def draw(batch=BATCH, heads=HEADS, queries=QUERIES, keys=KEYS, depth=DEPTH, channels=CHANNELS, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "query": normal(batch, heads, queries, channels),
        "key": normal(batch, heads, keys, channels),
        "value": normal(batch, heads, keys, channels),
        "query_views": normal(heads, depth, channels) * 2,
        "key_views": normal(heads, depth, channels) * 2,
        "depth_weight": normal(batch, depth).softmax(dim=-1) * 5,
        "constant": normal(heads, channels, channels) / 5,
    }


def draw_mask(batch=BATCH, keys=KEYS):
    mask = torch.ones(batch, keys, dtype=torch.bool)
    mask[0, keys // 2 :] = False
    mask[1, 0] = False
    return mask


def plain_loops(query, key, value, query_views, key_views, depth_weight, constant=None, mask=None, scale=1.0):
    """Equations (1) to (6), one number at a time."""
    batch, heads, queries, channels = query.shape
    keys, depth = key.shape[2], query_views.shape[1]
    q, k, v, f, g, w = (x.tolist() for x in (query, key, value, query_views, key_views, depth_weight))
    steps = SimpleNamespace(
        query_expanded=torch.zeros(batch, heads, depth, queries, 1, dtype=torch.float64),
        key_expanded=torch.zeros(batch, heads, depth, 1, keys, dtype=torch.float64),
        score=torch.zeros(batch, heads, queries, keys, depth, dtype=torch.float64),
        logit=torch.zeros(batch, heads, queries, keys, dtype=torch.float64),
        attention=torch.zeros(batch, heads, queries, keys, dtype=torch.float64),
        output=torch.zeros(batch, heads, queries, channels, dtype=torch.float64),
    )
    for b in range(batch):
        for h in range(heads):
            u = [
                [sum(f[h][d][c] * q[b][h][i][c] for c in range(channels)) / channels for i in range(queries)]
                for d in range(depth)
            ]
            t = [
                [sum(g[h][d][c] * k[b][h][j][c] for c in range(channels)) / channels for j in range(keys)]
                for d in range(depth)
            ]
            steps.query_expanded[b, h, :, :, 0] = torch.tensor(u, dtype=torch.float64)
            steps.key_expanded[b, h, :, 0, :] = torch.tensor(t, dtype=torch.float64)
            for i in range(queries):
                row = []
                for j in range(keys):
                    total = 0.0
                    for d in range(depth):
                        steps.score[b, h, i, j, d] = u[d][i] * t[d][j]
                        total += w[b][d] * u[d][i] * t[d][j]
                    logit = scale * total
                    if constant is not None:
                        m = constant[h].tolist()
                        logit += sum(
                            q[b][h][i][c] * m[c][e] * k[b][h][j][e] for c in range(channels) for e in range(channels)
                        )
                    steps.logit[b, h, i, j] = logit
                    row.append(logit)
                real = [j for j in range(keys) if mask is None or bool(mask[b, j])]
                top = max(row[j] for j in real)
                total = sum(math.exp(row[j] - top) for j in real)
                for j in real:
                    p = math.exp(row[j] - top) / total
                    steps.attention[b, h, i, j] = p
                    for c in range(channels):
                        steps.output[b, h, i, c] += p * v[b][h][j][c]
    return steps


@pytest.fixture(scope="module", params=["mask", "no mask"])
def pair(request):
    arguments = draw() | {"scale": SCALE, "mask": draw_mask() if request.param == "mask" else None}
    return reference.seven_steps(**arguments), plain_loops(**arguments), arguments


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_step_1_query_expansion(pair):
    steps, expected, _ = pair
    assert steps.query_expanded.shape == (BATCH, HEADS, DEPTH, QUERIES, 1)
    close(steps.query_expanded, expected.query_expanded)


def test_step_2_key_expansion(pair):
    steps, expected, _ = pair
    assert steps.key_expanded.shape == (BATCH, HEADS, DEPTH, 1, KEYS)
    close(steps.key_expanded, expected.key_expanded)


def test_steps_3_and_4_scores_with_depth_last(pair):
    steps, expected, arguments = pair
    slices = reference.score_slices(steps.query_expanded, steps.key_expanded)
    assert slices.shape == (BATCH, HEADS, DEPTH, QUERIES, KEYS)
    assert steps.score.shape == (BATCH, HEADS, QUERIES, KEYS, DEPTH)
    close(steps.score, expected.score)
    close(slices[:, :, 4], steps.score[..., 4])
    assert torch.equal(reference.expand_query(arguments["query"], arguments["query_views"]), steps.query_expanded)


def test_every_slice_has_rank_one_and_slices_differ(pair):
    steps, _, _ = pair
    assert (torch.linalg.matrix_rank(reference.score_slices(steps.query_expanded, steps.key_expanded)) == 1).all()
    for d in range(1, DEPTH):
        assert not torch.allclose(steps.score[..., 0], steps.score[..., d])


def test_step_5_depth_mixture(pair):
    steps, expected, arguments = pair
    assert torch.equal(steps.depth_weight, arguments["depth_weight"])
    assert steps.logit.shape == (BATCH, HEADS, QUERIES, KEYS)
    close(steps.logit, expected.logit)


def test_step_6_softmax_over_real_keys(pair):
    steps, expected, arguments = pair
    close(steps.attention, expected.attention)
    close(steps.attention.sum(dim=-1), torch.ones(BATCH, HEADS, QUERIES, dtype=torch.float64))
    if arguments["mask"] is not None:
        assert (steps.attention.permute(0, 3, 1, 2)[~arguments["mask"]] == 0).all()


def test_step_7_values(pair):
    steps, expected, arguments = pair
    assert steps.output.shape == (BATCH, HEADS, QUERIES, CHANNELS)
    close(steps.output, expected.output)
    assert torch.equal(reference.depth_attention(**arguments), steps.output)


def test_fields_are_the_names_of_the_specification():
    names = ("query_expanded", "key_expanded", "score", "depth_weight", "logit", "attention", "output")
    assert reference.SevenSteps._fields == names


def test_scale_does_not_multiply_the_constant():
    arguments = draw()
    constant = arguments.pop("constant")
    without = reference.seven_steps(**arguments, scale=3.0).logit
    plain = reference.seven_steps(**arguments).logit
    close(without, 3.0 * plain)
    added = torch.einsum("bhic,hce,bhje->bhij", arguments["query"], constant, arguments["key"])
    close(reference.seven_steps(**arguments, constant=constant, scale=3.0).logit, without + added)


def test_literal_recipe_is_the_printed_snippet():
    arguments = draw()
    del arguments["constant"]
    query, key = arguments["query"], arguments["key"]
    weight = arguments["depth_weight"]
    arguments["query_views"] = arguments["key_views"] = torch.ones(HEADS, DEPTH, CHANNELS, dtype=torch.float64)
    steps = reference.seven_steps(**arguments)

    # spec/seven-steps.md, with step 1's second unsqueeze on the axis it means
    query_expanded = query.unsqueeze(2).unsqueeze(-2)
    query_expanded = query_expanded.expand(BATCH, HEADS, DEPTH, QUERIES, 1, CHANNELS).mean(dim=-1)
    key_expanded = key.unsqueeze(2).unsqueeze(3)
    key_expanded = key_expanded.expand(BATCH, HEADS, DEPTH, 1, KEYS, CHANNELS).mean(dim=-1)
    attn_5d = torch.matmul(query_expanded, key_expanded).permute(0, 1, 3, 4, 2)
    attn_4d = (attn_5d * weight.view(BATCH, 1, 1, 1, DEPTH)).sum(dim=-1)
    attn_weights = attn_4d.softmax(dim=-1)

    close(steps.query_expanded, query_expanded)
    close(steps.key_expanded, key_expanded)
    close(steps.score, attn_5d)
    close(steps.logit, attn_4d)
    close(steps.output, torch.matmul(attn_weights, arguments["value"]))
    assert (steps.score == steps.score[..., :1]).all()
    assert (torch.linalg.matrix_rank(steps.logit) == 1).all()


def test_single_key_rows_return_that_value():
    arguments = draw(keys=1)
    close(reference.depth_attention(**arguments), arguments["value"].expand(BATCH, HEADS, QUERIES, CHANNELS))
    arguments, mask = draw(), torch.zeros(BATCH, KEYS, dtype=torch.bool)
    mask[0, 3] = mask[1, 6] = True
    expected = torch.stack([arguments["value"][0, :, 3], arguments["value"][1, :, 6]])[:, :, None]
    close(reference.depth_attention(**arguments, mask=mask), expected.expand(-1, -1, QUERIES, -1))


def test_a_row_without_a_real_key_is_an_error():
    mask = draw_mask()
    mask[1] = False
    with pytest.raises(MAWError, match="mask: row 1 has no real key"):
        reference.depth_attention(**draw(), mask=mask)


WRONG = {
    "query": [(HEADS, QUERIES, CHANNELS), (1, BATCH, HEADS, QUERIES, CHANNELS)],
    "key": [
        (HEADS, KEYS, CHANNELS),
        (BATCH + 1, HEADS, KEYS, CHANNELS),
        (BATCH, HEADS + 1, KEYS, CHANNELS),
        (BATCH, 1, KEYS, CHANNELS),
        (BATCH, HEADS, KEYS, CHANNELS + 1),
    ],
    "value": [
        (HEADS, KEYS, CHANNELS),
        (BATCH + 1, HEADS, KEYS, CHANNELS),
        (BATCH, HEADS + 1, KEYS, CHANNELS),
        (BATCH, HEADS, KEYS + 1, CHANNELS),
    ],
    "query_views": [(DEPTH, CHANNELS), (HEADS + 1, DEPTH, CHANNELS), (HEADS, DEPTH, CHANNELS + 1)],
    "key_views": [(DEPTH, CHANNELS), (HEADS, DEPTH + 1, CHANNELS), (HEADS, DEPTH, CHANNELS + 1), (1, DEPTH, CHANNELS)],
    "depth_weight": [(DEPTH,), (BATCH + 1, DEPTH), (BATCH, DEPTH + 1), (1, DEPTH)],
    "constant": [(CHANNELS, CHANNELS), (HEADS + 1, CHANNELS, CHANNELS), (HEADS, CHANNELS, CHANNELS + 1)],
}


@pytest.mark.parametrize(("name", "shape"), [(name, shape) for name, shapes in WRONG.items() for shape in shapes])
def test_shape_errors_name_the_argument_and_the_shape(name, shape):
    with pytest.raises(MAWError) as caught:
        reference.seven_steps(**draw() | {name: torch.ones(shape, dtype=torch.float64)})
    assert str(caught.value).startswith(f"{name} must have")
    assert str(caught.value).endswith(f"got {shape}")


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(BATCH, KEYS),
        torch.ones(BATCH, KEYS, dtype=torch.long),
        torch.ones(BATCH, KEYS + 1, dtype=torch.bool),
        torch.ones(1, KEYS, dtype=torch.bool),
        torch.ones(BATCH, 1, 1, KEYS, dtype=torch.bool),
    ],
)
def test_mask_must_be_boolean_of_batch_and_keys(mask):
    with pytest.raises(MAWError, match=r"mask must be boolean of shape \(B=2, K=7\)") as caught:
        reference.depth_attention(**draw(), mask=mask)
    assert str(mask.dtype) in str(caught.value)
    assert str(tuple(mask.shape)) in str(caught.value)


@given(st.permutations(range(KEYS)), st.booleans())
def test_permuting_keys_with_values_changes_nothing(order, masked):
    arguments = draw() | {"mask": draw_mask() if masked else None}
    expected = reference.depth_attention(**arguments)
    for name in ("key", "value"):
        arguments[name] = arguments[name][:, :, order]
    if masked:
        arguments["mask"] = arguments["mask"][:, order]
    close(reference.depth_attention(**arguments), expected)


@given(st.permutations(range(DEPTH)))
def test_permuting_depths_changes_nothing(order):
    arguments = draw()
    expected = reference.depth_attention(**arguments)
    for name in ("query_views", "key_views", "depth_weight"):
        arguments[name] = arguments[name].index_select(-1 if name == "depth_weight" else 1, torch.tensor(order))
    close(reference.depth_attention(**arguments), expected)
