"""The seven steps as written in method.md section 1: one function a step, every intermediate kept.

This is the definition that everything else is compared with. It stores the 5D tensor, so it is slow and large by
design; use `maw.functional` for the same values. Only tests, benchmarks and `maw.inspection` import it.

Readings of the specification made here:
- Each depth has its own query and key view vector, so slices differ. Views of ones with scale 1 are the
  specification's snippet, in which all slices are equal (recipe `literal`).
- Step 1 makes a column (..., Q, 1) and step 2 a row (..., 1, K), as the printed shapes say; the printed
  `unsqueeze(-1)` of step 1 does not broadcast.
- Means are over the C channels of a head.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from maw.shapes import check_arguments

__all__ = [
    "SevenSteps",
    "attend",
    "attention_probabilities",
    "depth_attention",
    "depth_last",
    "expand_key",
    "expand_query",
    "mix_depths",
    "score_slices",
    "seven_steps",
]


class SevenSteps(NamedTuple):
    """Every intermediate of the seven steps, in order."""

    query_expanded: Float[Tensor, "B H D Q 1"]
    key_expanded: Float[Tensor, "B H D 1 K"]
    score: Float[Tensor, "B H Q K D"]
    depth_weight: Float[Tensor, "B D"]
    logit: Float[Tensor, "B H Q K"]
    attention: Float[Tensor, "B H Q K"]
    output: Float[Tensor, "B H Q C"]


def expand_query(query: Float[Tensor, "B H Q C"], query_views: Float[Tensor, "H D C"]) -> Float[Tensor, "B H D Q 1"]:
    """Step 1, equation (1): u[b,h,d,i,0] = mean_c( f[h,d,c] * q[b,h,i,c] )."""
    return (query[:, :, None, :, :] * query_views[None, :, :, None, :]).mean(dim=-1, keepdim=True)


def expand_key(key: Float[Tensor, "B H K C"], key_views: Float[Tensor, "H D C"]) -> Float[Tensor, "B H D 1 K"]:
    """Step 2, equation (2): t[b,h,d,0,j] = mean_c( g[h,d,c] * k[b,h,j,c] )."""
    return (key[:, :, None, :, :] * key_views[None, :, :, None, :]).mean(dim=-1)[:, :, :, None, :]


def score_slices(
    query_expanded: Float[Tensor, "B H D Q 1"], key_expanded: Float[Tensor, "B H D 1 K"]
) -> Float[Tensor, "B H D Q K"]:
    """Step 3, equation (3): score = u @ t, one rank-1 slice per depth."""
    return query_expanded @ key_expanded


def depth_last(score: Float[Tensor, "B H D Q K"]) -> Float[Tensor, "B H Q K D"]:
    """Step 4: the depth axis moves to the end."""
    return score.permute(0, 1, 3, 4, 2)


def mix_depths(
    score: Float[Tensor, "B H Q K D"],
    depth_weight: Float[Tensor, "B D"],
    *,
    scale: float = 1.0,
    constant_logit: Float[Tensor, "B H Q K"] | None = None,
) -> Float[Tensor, "B H Q K"]:
    """Step 5, equation (4): logit = scale * sum_d w[b,d] * score[..,d] [+ q constant k^T]."""
    logit = scale * (score * depth_weight[:, None, None, None, :]).sum(dim=-1)
    return logit if constant_logit is None else logit + constant_logit


def attention_probabilities(
    logit: Float[Tensor, "B H Q K"], mask: Bool[Tensor, "B K"] | None = None
) -> Float[Tensor, "B H Q K"]:
    """Step 6, equation (5): softmax over keys, masked keys at -inf."""
    if mask is not None:
        logit = logit.masked_fill(~mask[:, None, None, :], float("-inf"))
    return logit.softmax(dim=-1)


def attend(attention: Float[Tensor, "B H Q K"], value: Float[Tensor, "B H K C"]) -> Float[Tensor, "B H Q C"]:
    """Step 7, equation (6): out = p @ v."""
    return attention @ value


def seven_steps(
    query: Float[Tensor, "B H Q C"],
    key: Float[Tensor, "B H K C"],
    value: Float[Tensor, "B H K C"],
    query_views: Float[Tensor, "H D C"],
    key_views: Float[Tensor, "H D C"],
    depth_weight: Float[Tensor, "B D"],
    *,
    constant: Float[Tensor, "H C C"] | None = None,
    mask: Bool[Tensor, "B K"] | None = None,
    scale: float = 1.0,
) -> SevenSteps:
    """All seven steps, every intermediate by name.

    Args:
        query: q, the encoder's own queries, (B, H, Q, C).
        key: k, (B, H, K, C).
        value: v, (B, H, K, C).
        query_views: f, (H, D, C).
        key_views: g, (H, D, C).
        depth_weight: w, one row of weights per input, (B, D).
        constant: added to the logits as q constant k^T, (H, C, C); `scale` does not multiply it.
        mask: (B, K), True where there is a token.
        scale: factor on the mixed scores.

    Returns:
        The intermediates and the output, (B, H, Q, C). Views, weights and constant may be wider than q, k and v, which
        then widen the intermediates; the output has the type of q.

    Raises:
        MAWError: shapes, types or devices that do not fit, or a row without a real key.

    Source: method.md (1) to (6).

    >>> import torch
    >>> q = k = v = torch.ones(1, 1, 2, 3)
    >>> steps = seven_steps(q, k, v, torch.ones(1, 4, 3), torch.ones(1, 4, 3), torch.full((1, 4), 0.25))
    >>> steps.score.shape, steps.attention[0, 0, 0].tolist()
    (torch.Size([1, 1, 2, 2, 4]), [0.5, 0.5])
    """
    check_arguments(query, key, value, query_views, key_views, depth_weight, constant, mask)
    query_expanded = expand_query(query, query_views)
    key_expanded = expand_key(key, key_views)
    score = depth_last(score_slices(query_expanded, key_expanded))
    constant_logit = None if constant is None else query @ constant.to(query.dtype) @ key.mT
    logit = mix_depths(score, depth_weight, scale=scale, constant_logit=constant_logit)
    attention = attention_probabilities(logit, mask)
    output = attend(attention.to(value.dtype), value)
    return SevenSteps(query_expanded, key_expanded, score, depth_weight, logit, attention, output)


def depth_attention(
    query: Float[Tensor, "B H Q C"],
    key: Float[Tensor, "B H K C"],
    value: Float[Tensor, "B H K C"],
    query_views: Float[Tensor, "H D C"],
    key_views: Float[Tensor, "H D C"],
    depth_weight: Float[Tensor, "B D"],
    *,
    constant: Float[Tensor, "H C C"] | None = None,
    mask: Bool[Tensor, "B K"] | None = None,
    scale: float = 1.0,
) -> Float[Tensor, "B H Q C"]:
    """The output of `seven_steps`: same arguments, errors and source.

    >>> import torch
    >>> q = k = v = torch.ones(1, 1, 2, 3)
    >>> depth_attention(q, k, v, torch.ones(1, 4, 3), torch.ones(1, 4, 3), torch.full((1, 4), 0.25)).shape
    torch.Size([1, 1, 2, 3])
    """
    return seven_steps(
        query, key, value, query_views, key_views, depth_weight, constant=constant, mask=mask, scale=scale
    ).output
