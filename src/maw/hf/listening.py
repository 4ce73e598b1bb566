"""Hear what the MAW layers of a model are given while it encodes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from maw.module import DepthAttention

__all__ = ["listening"]


@contextmanager
def listening(
    layers: Sequence[DepthAttention], hear: Callable[[DepthAttention, Tensor, Tensor, Tensor | None], None]
) -> Generator[None]:
    """Until it ends, call `hear(layer, query, key, mask)` before every forward of these layers, without gradient.

    A compiled model runs as it was written meanwhile: its graphs would not hear.

    Args:
        layers: the layers.
        hear: gets the layer, q (B, H, Q, C), k (B, Hkv, K, C) and the mask (B, K), or None without one.

    >>> from maw.config import MAWConfig
    >>> from maw.views import frame_views
    >>> layer, heard = DepthAttention(MAWConfig(depth=5), frame_views(2, 4, 5, scaling=0.5)).eval(), []
    >>> with listening([layer], lambda layer, query, key, mask: heard.append(query.shape)):
    ...     _ = layer(*torch.zeros(3, 1, 2, 7, 4))
    >>> heard
    [torch.Size([1, 2, 7, 4])]
    """

    def before(layer: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        given: dict[str, Any] = dict(zip(("query", "key", "value", "mask"), arguments, strict=False)) | options
        with torch.no_grad(), torch.autocast(given["query"].device.type, enabled=False):
            hear(layer, given["query"], given["key"], given.get("mask"))

    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
        yield
