"""Depth weights and a group of sampled depths from the policy's logits in one launch, by noise that is given.

w = softmax((logits - log E_0) / tau)          -log E is Gumbel noise where E is exponential
d_m = argmax_d pi_d / E_md,  m = 1..G          the first of D clocks with rates pi to ring: d_m is drawn from pi
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["gumbel_and_group"]


@triton.jit
def _select(
    logits,
    noise,
    depth_weight,
    depth_index,
    log_probability,
    stride,
    tau,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    text = tl.program_id(0)
    depth = tl.arange(0, BLOCK_D)
    inside = depth < DEPTH
    noise += text.to(tl.int64) * (GROUP + 1) * DEPTH
    logit = tl.load(logits + text * stride + depth, mask=inside, other=-float("inf"))
    noisy = (logit - tl.log(tl.load(noise + depth, mask=inside, other=1.0))) / tau
    noisy = tl.exp(noisy - tl.max(noisy, axis=0))
    tl.store(depth_weight + text * DEPTH + depth, noisy / tl.sum(noisy, axis=0), mask=inside)
    largest = tl.max(logit, axis=0)
    policy = tl.exp(logit - largest)
    log_policy = logit - largest - tl.log(tl.sum(policy, axis=0))
    for member in range(GROUP):
        clock = tl.load(noise + (member + 1) * DEPTH + depth, mask=inside, other=1.0)
        chosen = tl.argmax(policy / clock, axis=0)
        tl.store(depth_index + text * GROUP + member, chosen.to(tl.int64))
        own = tl.sum(tl.where(depth == chosen, log_policy, 0.0), axis=0)
        tl.store(log_probability + text * GROUP + member, own)


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, noise: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor]:
        batch, depth = logits.shape
        group = noise.shape[1] - 1
        depth_weight = logits.new_empty(batch, depth)
        depth_index = logits.new_empty(batch, group, dtype=torch.int64)
        log_probability = logits.new_empty(batch, group)
        _select[(batch,)](
            logits,
            noise,
            depth_weight,
            depth_index,
            log_probability,
            logits.stride(0),
            tau,
            DEPTH=depth,
            GROUP=group,
            BLOCK_D=triton.next_power_of_2(depth),
            num_warps=1,
        )
        ctx.tau = tau
        ctx.save_for_backward(depth_weight)
        ctx.mark_non_differentiable(depth_index, log_probability)
        return depth_weight, depth_index, log_probability

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return torch._softmax_backward_data(grads[0], weight, -1, weight.dtype) / ctx.tau, None, None


def gumbel_and_group(
    logits: Float[Tensor, "B D"], *, tau: float, group_size: int
) -> tuple[Float[Tensor, "B D"], Int[Tensor, "B G"], Float[Tensor, "B G"]]:
    """The same distribution as `maw.operations.gumbel_and_group`, from other random numbers.

    Args:
        logits: policy logits, (B, D), float32.
        tau: temperature of the weights.
        group_size: G.
    """
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    noise = logits.new_empty(logits.shape[0], group_size + 1, logits.shape[1]).exponential_()
    return _Select.apply(logits, noise, tau)
