"""What may sit in MAW's place in a layer, to ask whether an effect needs MAW.

Every control starts as the host itself, sees what MAW sees, and is trained at MAW's learning rate:

    ia3-key         q diag(s), one trained factor s a head and channel; (IA)^3's scaling of keys
    linear-gate     q * (1 + B (A state + a) + b), as many parameters as MAW; state as the selector's
    logit-dropout   dropout on the logits in training: noise without depths or parameters

Further controls are settings of MAW itself: `selection="uniform"` (trained views, no selection), `views="random"`.

Source: method.md section 5; Liu et al. 2022, Few-Shot Parameter-Efficient Fine-Tuning ((IA)^3).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from maw.config import MAWConfig
from maw.errors import MAWError
from maw.random_numbers import drawing_apart
from maw.selector import Selector, token_mean
from maw.shapes import repeat_heads

__all__ = ["Control", "IA3Key", "LinearGate", "LogitDropout", "make_control"]


class Control(nn.Module, ABC):
    """A layer's attention as `maw.DepthAttention` is called, without depths.

    Args:
        config: the settings it was made by.
        heads: H.
        channels: C.
        scaling: the host's factor on its logits.
    """

    def __init__(self, config: MAWConfig, heads: int, channels: int, *, scaling: float) -> None:
        super().__init__()
        self.config = config
        self.heads, self.channels, self.scaling = heads, channels, scaling

    @abstractmethod
    def forward(
        self,
        query: Float[Tensor, "B H Q C"],
        key: Float[Tensor, "B Hkv K C"],
        value: Float[Tensor, "B Hkv K C"],
        mask: Bool[Tensor, "B K"] | None = None,
        *,
        attend: Callable[..., Any],
        apart: bool = False,
    ) -> Any:
        """What `attend`, the host's attention, makes of a changed query or of logits with something added.

        `apart` is as in `maw.DepthAttention`.
        """

    def extra_repr(self) -> str:
        """Heads and channels."""
        return f"heads={self.heads}, channels={self.channels}"


class IA3Key(Control):
    """(IA)^3's trained scaling of keys, as it acts on the logits: q_i diag(s) k_j^T.

    >>> control = IA3Key(MAWConfig(mechanism="ia3-key"), 2, 4, scaling=0.5)
    >>> control(torch.ones(1, 2, 3, 4), torch.ones(1), torch.ones(1), attend=lambda query: query.unique().tolist())
    [1.0]
    """

    def __init__(self, config: MAWConfig, heads: int, channels: int, *, scaling: float) -> None:
        super().__init__(config, heads, channels, scaling=scaling)
        self.factor = nn.Parameter(torch.ones(heads, 1, channels))

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Any = None, *, attend: Any, apart: bool = False
    ) -> Any:
        """The host's attention on scaled queries, which is that on scaled keys."""
        return attend((query * self.factor).to(query.dtype))


class LinearGate(Control):
    """A gate on the query, linear in the selector's state: q * (1 + B (A state + a) + b); B and b start at zero.

    As many inner channels as give it the parameters of MAW at `config.depth`, selector and view vectors, as nearly as
    whole channels can (each has 2 S + 1 parameters, S = H C). It begins with raw states where MAW begins calibrated.

    >>> control = LinearGate(MAWConfig(mechanism="linear-gate", depth=4), 2, 4, scaling=0.5)
    >>> control(torch.ones(1, 2, 3, 4), torch.ones(1), torch.ones(1), attend=lambda query: query.unique().tolist())
    [1.0]
    """

    def __init__(self, config: MAWConfig, heads: int, channels: int, *, scaling: float) -> None:
        super().__init__(config, heads, channels, scaling=scaling)
        size = heads * channels
        with torch.random.fork_rng(devices=[]):
            selector = sum(parameter.numel() for parameter in Selector(size, config.depth).parameters())
        wanted = selector + 2 * size * config.depth
        inner = max(1, round((wanted - size) / (2 * size + 1)))
        self.down, self.up = nn.Linear(size, inner), nn.Linear(inner, size)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Any = None, *, attend: Any, apart: bool = False
    ) -> Any:
        """The host's attention on gated queries."""
        with torch.autocast(query.device.type, enabled=False):  # the host's attention keeps the caller's own
            state = token_mean(query, mask).to(self.down.weight.dtype)
            gate = 1 + self.up(self.down(state)).unflatten(-1, (self.heads, 1, self.channels))
            gated = (query * gate).to(query.dtype)
        return attend(gated)


class LogitDropout(Control):
    """Dropout on attention logits in training; nothing in evaluation.

    A share p of the logits becomes 0, the others grow by 1 / (1 - p); so a logit's noise has p / (1 - p) times its
    square as variance. `config.logit_dropout` is p. A host's own position bias is no part of what is dropped.

    >>> control = LogitDropout(MAWConfig(mechanism="logit-dropout"), 2, 4, scaling=0.5).eval()
    >>> control(torch.ones(1, 2, 3, 4), torch.ones(1), torch.ones(1), attend=lambda query: query.unique().tolist())
    [1.0]
    """

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Any = None, *, attend: Any, apart: bool = False
    ) -> Any:
        """The host's attention, with the difference that dropout makes added to its logits."""
        if not self.training or not self.config.logit_dropout:
            return attend(query)
        with torch.autocast(query.device.type, enabled=False):  # in 16 bits the difference would be mostly rounding
            wide = torch.promote_types(query.dtype, torch.float32)
            logit = self.scaling * query.to(wide) @ repeat_heads(key, query.shape[1]).to(wide).mT
            with drawing_apart(query.device) if apart and not torch.compiler.is_compiling() else nullcontext():
                added = F.dropout(logit, self.config.logit_dropout) - logit
        return attend(query, added=added.to(query.dtype))


CONTROLS: dict[str, type[Control]] = {"ia3-key": IA3Key, "linear-gate": LinearGate, "logit-dropout": LogitDropout}


def make_control(config: MAWConfig, heads: int, channels: int, *, scaling: float) -> Control:
    """The control that `config.mechanism` names.

    Raises:
        MAWError: it names none.

    >>> type(make_control(MAWConfig(mechanism="ia3-key"), 2, 4, scaling=0.5)).__name__
    'IA3Key'
    """
    if config.mechanism not in CONTROLS:
        raise MAWError(f"controls are {', '.join(CONTROLS)}, got mechanism={config.mechanism!r}")
    return CONTROLS[config.mechanism](config, heads, channels, scaling=scaling)
