from __future__ import annotations

import pytest
import torch

from maw import MAWError
from maw.views import MAXIMAL_CONDITION, frame_views, ones_views, random_views, spectral_views, triangular_factors

HEADS, CHANNELS, WIDTH = 3, 7, 23
SCALING = 0.31
DEPTHS = [1, 3, 6, 7, 8, 11, 14, 19, 97]


def projections(heads=HEADS, channels=CHANNELS, width=WIDTH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, heads, channels, width, generator=generator).unbind()


def spectral(depth, seed=0):
    return spectral_views(*projections(), depth, scaling=SCALING, seed=seed)


def frame(depth, seed=0):
    return frame_views(HEADS, CHANNELS, depth, scaling=SCALING, seed=seed)


def total(views):
    return torch.einsum("hdc,hde->hce", views.query_views, views.key_views)


@pytest.mark.parametrize("make", [spectral, frame])
@pytest.mark.parametrize("depth", DEPTHS)
def test_uniform_weights_reproduce_the_hosts_logits(make, depth):
    views = make(depth)
    assert views.query_views.shape == views.key_views.shape == (HEADS, depth, CHANNELS)
    assert views.query_views.dtype == views.key_views.dtype == torch.float32
    identity = torch.eye(CHANNELS).expand(HEADS, CHANNELS, CHANNELS)
    form = SCALING * total(views)
    if depth < CHANNELS:
        assert views.constant.shape == (HEADS, CHANNELS, CHANNELS)
        form = form + views.constant
        torch.testing.assert_close(views.constant, SCALING * (identity - total(views)), rtol=0, atol=1e-6)
        assert (torch.linalg.matrix_rank(views.constant.double(), atol=1e-4) == CHANNELS - depth).all()
    else:
        assert views.constant is None
        torch.testing.assert_close(total(views), identity, rtol=0, atol=1e-6)
    torch.testing.assert_close(form, SCALING * identity, rtol=0, atol=1e-6)


@pytest.mark.parametrize("depth", DEPTHS)
def test_spectral_depths_are_singular_components_of_the_heads_form(depth):
    query_weight, key_weight = (weight.double() for weight in projections())
    views = spectral(depth)
    f, g = views.query_views.double(), views.key_views.double()
    for h in range(HEADS):
        shared = f[h, CHANNELS:]
        assert torch.equal(shared, g[h, CHANNELS:])
        remainder = torch.eye(CHANNELS, dtype=torch.float64) - shared.T @ shared
        u, sigma, vh = torch.linalg.svd(query_weight[h].T @ remainder @ key_weight[h])
        for d in range(min(depth, CHANNELS)):
            component = query_weight[h].T @ torch.outer(f[h, d], g[h, d]) @ key_weight[h]
            expected = sigma[d] * torch.outer(u[:, d], vh[d])
            torch.testing.assert_close(component, expected, rtol=0, atol=1e-5 * float(sigma[0]))
            assert abs(float(torch.linalg.matrix_norm(component, 2)) / float(sigma[d]) - 1) < 1e-4


@pytest.mark.parametrize("depth", [3, 7])
def test_up_to_c_depths_the_components_are_those_of_the_plain_form(depth):
    query_weight, key_weight = (weight.double() for weight in projections())
    views = spectral(depth)
    form = query_weight.mT @ key_weight
    u, sigma, vh = torch.linalg.svd(form)
    best = u[:, :, :depth] * sigma[:, None, :depth] @ vh[:, :depth]
    kept = query_weight.mT @ total(views).double() @ key_weight
    torch.testing.assert_close(kept, best, rtol=0, atol=1e-5 * float(sigma.max()))


@pytest.mark.parametrize("depth", [8, 11, 14, 19, 97])
def test_shared_rows_stay_below_the_identity(depth):
    shared = spectral(depth).query_views[:, CHANNELS:].double()
    assert shared.shape[1] == depth - CHANNELS
    gram = shared.mT @ shared
    assert torch.linalg.eigvalsh(gram).max() <= 1 - 1e-6
    # rows of mean squared norm C / D, so that each depth carries as much as any other
    mean_square = shared.square().sum(dim=-1).mean(dim=-1)
    torch.testing.assert_close(mean_square, torch.full_like(mean_square, CHANNELS / depth), rtol=1e-6, atol=0)
    assert not torch.allclose(shared[0], shared[1])


def test_query_and_key_sides_are_balanced():
    query_weight, key_weight = projections()
    views = spectral(CHANNELS)
    # sqrt(sigma) on both sides: the projected directions have the same length
    left = torch.einsum("hdc,hcm->hdm", views.query_views, query_weight).norm(dim=-1)
    right = torch.einsum("hdc,hcm->hdm", views.key_views, key_weight).norm(dim=-1)
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [spectral, frame])
def test_seeds_repeat_and_differ_and_every_head_has_its_own_draw(make):
    views, again, other = make(19), make(19), make(19, seed=1)
    assert torch.equal(views.query_views, again.query_views)
    assert torch.equal(views.key_views, again.key_views)
    assert not torch.allclose(views.query_views, other.query_views)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(views.query_views[first], views.query_views[second])


def test_random_numbers_of_others_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    spectral(19), frame(19), random_views(2, 3, 5, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_frame_uses_the_same_rows_on_both_sides_without_sharing_memory():
    views = frame(11)
    assert torch.equal(views.query_views, views.key_views)
    views.query_views[0, 0, 0] += 1
    assert not torch.equal(views.query_views, views.key_views)


def test_random_is_a_control_that_is_not_exact():
    views = random_views(HEADS, CHANNELS, 11, seed=3)
    assert views.kind == "random"
    assert views.constant is None
    assert not torch.allclose(total(views), torch.eye(CHANNELS).expand(HEADS, -1, -1), atol=0.2)
    assert not torch.allclose(views.query_views, views.key_views)
    assert not torch.allclose(views.query_views[0], views.query_views[1])
    assert torch.equal(views.key_views, random_views(HEADS, CHANNELS, 11, seed=3).key_views)
    many = random_views(5, 31, 101).query_views.square().sum(dim=-1).mean()
    assert abs(float(many) - 31 / 101) < 0.02


def test_ones():
    views = ones_views(HEADS, CHANNELS, 11)
    assert (views.kind, views.constant) == ("ones", None)
    assert views.query_views.shape == (HEADS, 11, CHANNELS)
    assert (views.query_views == 1).all()
    assert (views.key_views == 1).all()
    assert views.query_views.data_ptr() != views.key_views.data_ptr()


def test_kinds_are_reported():
    assert (spectral(5).kind, frame(5).kind) == ("spectral", "frame")


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("damage", ["scaled", "duplicate", "zero"])
def test_ill_conditioned_projections_are_an_error(side, damage):
    weights = [weight.clone() for weight in projections()]
    if damage == "scaled":
        weights[side][1, 2] *= 1e-6
    elif damage == "duplicate":
        weights[side][1, 2] = weights[side][1, 3]
    else:
        weights[side][1, 2] = 0.0
    with pytest.raises(MAWError, match=r"condition number at most 10000, got .*frame"):
        spectral_views(*weights, 5, scaling=SCALING)


@pytest.mark.parametrize("side", [0, 1])
def test_projections_that_are_not_finite_are_an_error(side):
    weights = [weight.clone() for weight in projections()]
    weights[side][1, 2, 3] = float("nan")
    with pytest.raises(MAWError, match=r"finite|condition number"):
        spectral_views(*weights, 5, scaling=SCALING)


def test_condition_just_below_the_limit_still_starts_exactly():
    weights = [weight.clone() for weight in projections()]
    weights[0][1, 2] *= 1e-3
    assert torch.linalg.cond(triangular_factors(weights[0])).max() < MAXIMAL_CONDITION
    views = spectral_views(*weights, CHANNELS, scaling=SCALING)
    torch.testing.assert_close(total(views), torch.eye(CHANNELS).expand(HEADS, -1, -1), rtol=0, atol=1e-4)


def test_heads_wider_than_the_model_are_an_error():
    weights = projections(width=CHANNELS - 1)
    with pytest.raises(MAWError, match=r"M=6, C=7.*frame"):
        spectral_views(*weights, 5, scaling=SCALING)


def test_model_width_equal_to_channels_is_enough():
    weights = projections(width=CHANNELS)
    views = spectral_views(*weights, CHANNELS, scaling=SCALING)
    torch.testing.assert_close(total(views), torch.eye(CHANNELS).expand(HEADS, -1, -1), rtol=0, atol=1e-4)


def test_triangular_factors_have_the_weights_gram_matrix():
    weight, _ = projections()
    factors = triangular_factors(weight)
    assert factors.dtype == torch.float64
    torch.testing.assert_close(factors.triu(), factors)
    torch.testing.assert_close(factors.mT @ factors, weight.double() @ weight.double().mT)


def test_half_precision_weights_are_computed_in_float64():
    weights = [weight.bfloat16() for weight in projections()]
    views = spectral_views(*weights, 11, scaling=SCALING)
    torch.testing.assert_close(total(views), torch.eye(CHANNELS).expand(HEADS, -1, -1), rtol=0, atol=1e-6)


def test_weights_that_require_gradients_give_plain_views():
    weights = [weight.requires_grad_() for weight in projections()]
    views = spectral_views(*weights, 3, scaling=SCALING)
    assert not any(tensor.requires_grad for tensor in views[:3])
