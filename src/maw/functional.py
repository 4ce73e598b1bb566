"""MAW without the 5D tensor: method.md (7).

Because depth weights are per input, the mixed logits are a bilinear form in q and k,

    logit[b,h] = q[b,h] @ W[b,h] @ k[b,h]^T,   W[b,h] = scale / C^2 * sum_d w[b,d] f[h,d]^T g[h,d] + constant[h],   (7)

so MAW is a C x C transform of the query followed by ordinary attention. Nothing here holds an axis for Q, for K and
for D at once, and the cost does not depend on D beyond forming W.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from maw.shapes import check_arguments

__all__ = ["depth_attention", "query_transform", "transform_query"]


def query_transform(
    query_views: Float[Tensor, "H D C"],
    key_views: Float[Tensor, "H D C"],
    depth_weight: Float[Tensor, "B D"],
    *,
    constant: Float[Tensor, "H C C"] | None = None,
    scale: float = 1.0,
) -> Float[Tensor, "B H C C"]:
    """W of (7): W[b,h] = scale / C^2 * sum_d w[b,d] f[h,d]^T g[h,d] + constant[h].

    W is formed in float32 at least, whatever autocast says: `scale` may be D * C^2 / sqrt(C), beyond float16's range.
    The C x C products of the views are formed first, so that mixing them is one matrix product over depths.

    Args:
        query_views: f, (H, D, C).
        key_views: g, (H, D, C).
        depth_weight: w, (B, D).
        constant: (H, C, C), not multiplied by `scale`.
        scale: factor on the mixed scores.

    Returns:
        W, (B, H, C, C), in float32 or float64.

    Source: method.md (7).

    >>> views = torch.eye(3)[None]
    >>> query_transform(views, views, torch.full((2, 3), 1 / 3), scale=27.0).shape
    torch.Size([2, 1, 3, 3])
    """
    channels = query_views.shape[-1]
    dtype = torch.promote_types(query_views.dtype, torch.float32)
    with torch.autocast(query_views.device.type, enabled=False):
        outer = torch.einsum("hdc,hde->dhce", query_views.to(dtype), key_views.to(dtype))
        transform = (depth_weight.to(dtype) * (scale / channels**2)) @ outer.flatten(1)
        transform = transform.unflatten(1, outer.shape[1:])
        return transform if constant is None else transform + constant.to(dtype)


def transform_query(
    query: Float[Tensor, "B H Q C"],
    query_views: Float[Tensor, "H D C"],
    key_views: Float[Tensor, "H D C"],
    depth_weight: Float[Tensor, "B D"],
    *,
    constant: Float[Tensor, "H C C"] | None = None,
    scale: float = 1.0,
) -> Float[Tensor, "B H Q C"]:
    """q W, the query whose plain attention is MAW's; W is rounded once, to the type of q.

    Arguments as in `query_transform`. Source: method.md (7).

    >>> views = torch.eye(3)[None]
    >>> transform_query(torch.ones(1, 1, 2, 3), views, views, torch.full((1, 3), 1 / 3), scale=27.0)[0, 0].tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    transform = query_transform(query_views, key_views, depth_weight, constant=constant, scale=scale)
    return query @ transform.to(query.dtype)


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
    """The seven steps' output: softmax_j( q W k^T ) @ v with W of (7), masked keys at -inf.

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
        (B, H, Q, C), in the dtype of `query`.

    Raises:
        MAWError: shapes, types or devices that do not fit, or a row without a real key.

    Source: method.md (7). Equal to `maw.reference.depth_attention`.

    >>> q = k = v = torch.ones(1, 1, 2, 3)
    >>> depth_attention(q, k, v, torch.ones(1, 4, 3), torch.ones(1, 4, 3), torch.full((1, 4), 0.25)).shape
    torch.Size([1, 1, 2, 3])
    """
    check_arguments(query, key, value, query_views, key_views, depth_weight, constant, mask)
    transformed = transform_query(query, query_views, key_views, depth_weight, constant=constant, scale=scale)
    attention_mask = None if mask is None else mask[:, None, None, :]
    return F.scaled_dot_product_attention(transformed, key, value, attention_mask, scale=1.0)
