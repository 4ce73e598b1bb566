"""Launching a Triton kernel without looking at its arguments anew each time.

`kernel[grid](...)` inspects every argument in Python to find the compiled form that fits, which takes longer than most
of our kernels run. A `Plan` is a kernel with everything but its tensors; it is made once for each shape (`lru_cache`
in the files that own the kernels), keeps the compiled form of each combination of types, and hands the tensors straight
to it. Pointers are compiled for as multiples of 16 bytes; where one is not, Triton finds the form itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.runtime.jit import JITFunction

__all__ = ["PLANS", "Plan", "rows_together"]

PLANS = 4096
"""How many plans of one kernel are kept."""


class Plan:
    """A Triton kernel with grid, numbers and compile-time constants: `plan(*tensors)` launches it on their device.

    Args:
        kernel: a function under `triton.jit` that takes tensors, then `numbers`, then `constants`, in this order.
        grid: three numbers.
        numbers: what may differ from shape to shape without another compiled form.
        num_warps: warps a program.
        constants: the rest of the signature.

    Raises:
        TypeError: the constants are not those of the signature, in its order.

    Under Triton's interpreter the kernel is called as it is.
    """

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        numbers: tuple[float, ...],
        *,
        num_warps: int = 4,
        **constants: Any,
    ) -> None:
        self.kernel, self.grid, self.numbers = kernel, grid, numbers
        self.num_warps, self.constants = num_warps, constants
        expected = tuple(kernel.arg_names[-len(constants) :])
        if expected != tuple(constants):
            raise TypeError(f"{kernel.__name__}: constants must be {expected} in this order, got {(*constants,)}")
        self.rest = (*numbers, *constants.values())
        self.compiled: dict[Any, Any] = {}

    def __call__(self, first: Tensor, *others: Tensor | None) -> None:
        """Launch on the current stream of the first tensor's device; a tensor may be None."""
        if not isinstance(self.kernel, JITFunction):
            self.kernel[self.grid](first, *others, *self.numbers, **self.constants)
            return
        device = first.get_device()
        if device != torch.cuda.current_device():
            with torch.cuda.device(device):
                self(first, *others)
            return
        pointers, types = first.data_ptr(), [device, first.dtype]
        for tensor in others:
            if tensor is None:
                types.append(None)
            else:
                pointers |= tensor.data_ptr()
                types.append(tensor.dtype)
        types = tuple(types)
        compiled = self.compiled.get(types)
        if compiled is None or pointers & 15 or _has_hooks():
            compiled = self.kernel[self.grid](first, *others, *self.numbers, num_warps=self.num_warps, **self.constants)
            if not pointers & 15:
                self.compiled[types] = compiled
            return
        stream = torch._C._cuda_getCurrentRawStream(device)
        function, metadata = compiled.function, compiled.packed_metadata
        compiled.run(*self.grid, stream, function, metadata, None, None, None, first, *others, *self.rest)


def rows_together(tensor: Tensor) -> Tensor:
    """The tensor with the channels of a row side by side, as the kernels read them."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _has_hooks() -> bool:
    """Whether a profiler wants to hear of launches; Triton sees to that itself."""
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))
