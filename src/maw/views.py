"""View vectors f, g and how they start (method.md section 3).

Views are *exact-start* when uniform depth weights reproduce the host's logits, `sum_d f[h,d]^T g[h,d] = I`, or,
where D < C, when the constant makes up the rest. Everything is computed in float64 and stored in float32.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from maw.errors import MAWError

__all__ = [
    "MAXIMAL_CONDITION",
    "Views",
    "frame_views",
    "ones_views",
    "random_views",
    "spectral_views",
    "triangular_factors",
]

MAXIMAL_CONDITION = 1e4
"""Above this condition number of R, `auto` takes frame views: R^-1 would lose the exact start."""


class Views(NamedTuple):
    """View vectors, the constant that completes them where D < C, and which kind they are."""

    query_views: Float[Tensor, "H D C"]
    key_views: Float[Tensor, "H D C"]
    constant: Float[Tensor, "H C C"] | None
    kind: Literal["spectral", "frame", "random", "ones"]


def triangular_factors(weight: Float[Tensor, "H C M"]) -> Float[Tensor, "H C C"]:
    """R of W^T = Q R for each head's projection W (C, M), in float64.

    Raises:
        MAWError: M < C, so the heads' channels are linearly dependent and R is not square, or W is not finite.
    """
    heads, channels, width = weight.shape
    if width < channels:
        raise MAWError(
            f"spectral views need model width M >= channels per head C, got M={width}, C={channels}: use views='frame'"
        )
    if not bool(torch.isfinite(weight).all()):
        raise MAWError(
            "the encoder's query or key projection is not finite: its weights are damaged, or training diverged"
        )
    return torch.linalg.qr(weight.detach().cpu().double().mT, mode="r").R.reshape(heads, channels, channels)


def spectral_views(
    query_weight: Float[Tensor, "H C M"],
    key_weight: Float[Tensor, "H C M"],
    depth: int,
    *,
    scaling: float,
    seed: int = 0,
) -> Views:
    """Singular components of each head's own form x^T W_q^T W_k y.

    With W_q^T = Q1 R1, W_k^T = Q2 R2 and R1 (I - F^T F) R2^T = U σ V^T,

        f_d = R1^-1 U_d sqrt(σ_d),   g_d = R2^-1 V_d sqrt(σ_d),

    so for D <= C depth d is the d-th spectral component of the head's attention. D > C: F holds D - C rows of seeded
    orthonormal frames, each of squared norm C / D, that serve both sides. D <= C: F is empty and the D leading
    components are kept; for D < C the constant is `scaling * (I - sum_d f_d^T g_d)`.

    Args:
        query_weight: the query projection of each head, (H, C, M).
        key_weight: the key projection of the key head that each query head uses, (H, C, M).
        depth: D.
        scaling: the host's factor on its logits, 1/sqrt(C) in BERT.
        seed: seed of F.

    Returns:
        exact-start views.

    Raises:
        MAWError: M < C, or a projection whose R has a condition number above `MAXIMAL_CONDITION`.

    Source: method.md section 3.

    >>> views = spectral_views(torch.randn(2, 4, 8), torch.randn(2, 4, 8), depth=6, scaling=0.5)
    >>> total = torch.einsum("hdc,hde->hce", views.query_views, views.key_views)
    >>> torch.allclose(total, torch.eye(4).expand(2, 4, 4), atol=1e-4)
    True
    """
    heads, channels, _ = query_weight.shape
    left, right = triangular_factors(query_weight), triangular_factors(key_weight)
    condition = float(torch.maximum(torch.linalg.cond(left), torch.linalg.cond(right)).max())
    if not condition <= MAXIMAL_CONDITION:
        raise MAWError(
            f"spectral views need projections of condition number at most {MAXIMAL_CONDITION:g}, got {condition:.3g}: "
            "use views='frame' or 'auto'"
        )
    identity = torch.eye(channels, dtype=torch.float64)
    extra = torch.stack([_frame(depth - channels, channels, depth, _generator(seed, head)) for head in range(heads)])
    u, sigma, vh = torch.linalg.svd(left @ (identity - extra.mT @ extra) @ right.mT)
    root = sigma.sqrt()[:, :, None]
    query_spectral = root * torch.linalg.solve_triangular(left, u, upper=True).mT
    key_spectral = root * torch.linalg.solve_triangular(right, vh.mT, upper=True).mT
    leading = min(depth, channels)
    return _completed(
        torch.cat([query_spectral[:, :leading], extra], dim=1),
        torch.cat([key_spectral[:, :leading], extra], dim=1),
        scaling,
        "spectral",
    )


def frame_views(heads: int, channels: int, depth: int, *, scaling: float, seed: int = 0) -> Views:
    """Exact-start views that need no weights: f = g, the rows of a seeded matrix with orthonormal columns (D >= C).

    D < C: D orthonormal rows, completed by the constant. One draw per head.

    Source: method.md section 3.

    >>> frame_views(2, 4, 9, scaling=0.5).query_views.shape
    torch.Size([2, 9, 4])
    """
    rows = torch.stack([_orthonormal(depth, channels, _generator(seed, head)) for head in range(heads)])
    return _completed(rows, rows, scaling, "frame")


def random_views(heads: int, channels: int, depth: int, *, seed: int = 0) -> Views:
    """A control, not exact-start: independent Gaussian f and g with rows of norm near sqrt(C / D).

    Source: method.md section 3.

    >>> random_views(2, 4, 9).constant is None
    True
    """
    draws = [
        torch.randn(2, depth, channels, generator=_generator(seed, head), dtype=torch.float64) / depth**0.5
        for head in range(heads)
    ]
    both = torch.stack(draws, dim=1).float()
    return Views(both[0].clone(), both[1].clone(), None, "random")


def ones_views(heads: int, channels: int, depth: int) -> Views:
    """The specification's snippet: f = g = 1, so all slices are equal (recipe `literal`).

    >>> ones_views(2, 4, 9).query_views.unique().tolist()
    [1.0]
    """
    return Views(torch.ones(heads, depth, channels), torch.ones(heads, depth, channels), None, "ones")


def _completed(query_views: Tensor, key_views: Tensor, scaling: float, kind: Literal["spectral", "frame"]) -> Views:
    depth, channels = query_views.shape[1:]
    query_views, key_views = query_views.float(), key_views.float()
    constant = None
    if depth < channels:
        total = torch.einsum("hdc,hde->hce", query_views.double(), key_views.double())
        constant = (scaling * (torch.eye(channels, dtype=torch.float64) - total)).float()
    return Views(query_views.contiguous(), key_views.clone().contiguous(), constant, kind)


def _generator(seed: int, head: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 10_007 + head)


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Float[Tensor, "n C"]:
    """Orthonormal columns where rows >= columns, else orthonormal rows."""
    draw = torch.randn(max(rows, columns), min(rows, columns), generator=generator, dtype=torch.float64)
    orthonormal = torch.linalg.qr(draw).Q
    return orthonormal if rows >= columns else orthonormal.mT


def _frame(rows: int, channels: int, depth: int, generator: torch.Generator) -> Float[Tensor, "n C"]:
    """F: `rows` rows of mean squared norm C / D, so that F^T F stays below the identity."""
    if rows <= 0:
        return torch.zeros(0, channels, dtype=torch.float64)
    return _orthonormal(rows, channels, generator) * (max(rows, channels) / depth) ** 0.5
