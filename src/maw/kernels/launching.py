"""Launching a compiled Triton kernel without binding its arguments anew each time.

`function[grid](...)` of Triton looks at every argument in Python to find the compiled form that fits, which takes
longer than most of our kernels run. What it looks at is little: `_kind` below. `Launch` keeps the compiled form of each
combination of kinds and hands the arguments straight to it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

__all__ = ["Launch"]


class Launch:
    """A Triton kernel, launched as `launch(grid, *arguments, num_warps=4, **constants)`.

    Args:
        kernel: a function under `triton.jit` whose compile-time constants come last, in the order of its signature.

    `grid` has three entries. Under Triton's interpreter the kernel is called as it is.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.compiled: dict[Any, Any] = {}
        self.names = tuple(kernel.arg_names)

    def __call__(self, grid: tuple[int, int, int], *arguments: Any, num_warps: int = 4, **constants: Any) -> None:
        """Launch on the current stream of the first argument's device, which must be the current one."""
        if not isinstance(self.kernel, JITFunction):
            self.kernel[grid](*arguments, **constants)
            return
        values = tuple(constants.values())
        key = (torch.cuda.current_device(), num_warps, values, *[_kind(argument) for argument in arguments])
        compiled = self.compiled.get(key)
        if compiled is None:
            if self.names[len(arguments) :] != tuple(constants):
                raise TypeError(f"{self.names[len(arguments) :]} must be given in this order, got {tuple(constants)}")
            self.compiled[key] = self.kernel[grid](*arguments, num_warps=num_warps, **constants)
        else:
            compiled[grid](*arguments, *values)


def _kind(argument: Any) -> Any:
    """What Triton compiles an argument for: type and, of pointers and whole numbers, divisibility by 16."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if type(argument) is int:
        return argument == 1, argument % 16 == 0, -(2**31) <= argument < 2**31
    return None if argument is None else type(argument)
