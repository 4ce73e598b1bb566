"""One tensor, a row a text, in which the selector's kernels write what they found: few arguments, one allocation.

columns   0         depth weights w            D
          D         logits                     D
          2 D       gradient of the logits     D
          3 D       log pi of sampled depths   G
          3 D + G   sampled depths             G    as whole numbers in float32
          3 D + 2G  their rewards              G
          3 D + 3G  value, its gradient, auxiliary loss, policy loss, share of clipped ratios
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from maw.records import Record

__all__ = ["SINGLE", "Ledger"]

SINGLE = 5
"""Columns that hold one number a text, the last ones."""


class Ledger(NamedTuple):
    """What happened to the texts of one training forward, without gradient."""

    rows: Float[Tensor, "B W"]
    depth: int
    group: int

    @classmethod
    def empty(cls, like: Tensor, texts: int, depth: int, group: int) -> Ledger:
        """Rows that are yet to be written, in the type and on the device of `like`."""
        return cls(like.new_empty(texts, 3 * depth + 3 * group + SINGLE), depth, group)

    @property
    def width(self) -> int:
        """W."""
        return 3 * self.depth + 3 * self.group + SINGLE

    @property
    def index_column(self) -> int:
        """Where the sampled depths begin."""
        return 3 * self.depth + self.group

    @property
    def log_probability(self) -> Float[Tensor, "B G"]:
        """log pi of the sampled depths."""
        return self.rows[:, 3 * self.depth : self.index_column]

    @property
    def depth_index(self) -> Int[Tensor, "B G"]:
        """The sampled depths."""
        return self.rows[:, self.index_column : self.index_column + self.group].long()

    @property
    def reward(self) -> Float[Tensor, "B G"]:
        """Their rewards."""
        return self.rows[:, -SINGLE - self.group : -SINGLE]

    def record(self) -> Record:
        """The same, column by column."""
        value, _, loss, policy_loss, clip_share = self.rows[:, -SINGLE:].unbind(dim=1)
        logits = self.rows[:, self.depth : 2 * self.depth]
        return Record(logits, self.depth_index, self.reward, value, loss, policy_loss, clip_share, all_arms=False)
