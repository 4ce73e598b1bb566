"""Launching a compiled Triton kernel without looking at its arguments anew each time.

`kernel[grid](...)` inspects every argument in Python to find the compiled form that fits, which takes longer than most
of our kernels run. `Launch` keeps the compiled form of each combination of types, numbers and constants, and hands the
arguments straight to it. Pointers are compiled for as multiples of 16; where one is not, Triton finds the form itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.runtime.jit import JITFunction

__all__ = ["Launch"]


class Launch:
    """A Triton kernel, launched as `launch(grid, tensors, numbers, **constants)` on the tensors' device.

    Args:
        kernel: a function under `triton.jit` that takes tensors, then numbers, then compile-time constants.

    `grid` has three entries; a tensor may be None. Under Triton's interpreter the kernel is called as it is.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.compiled: dict[Any, Any] = {}

    def __call__(
        self,
        grid: tuple[int, int, int],
        tensors: tuple[Tensor, *tuple[Tensor | None, ...]],
        numbers: tuple[float, ...],
        *,
        num_warps: int = 4,
        **constants: Any,
    ) -> None:
        """Launch on the current stream; the first tensor must be there."""
        if not isinstance(self.kernel, JITFunction):
            self.kernel[grid](*tensors, *numbers, **constants)
            return
        device = tensors[0].get_device()
        if device != torch.cuda.current_device():
            with torch.cuda.device(device):
                self(grid, tensors, numbers, num_warps=num_warps, **constants)
            return
        pointers, types = 0, []
        for tensor in tensors:
            if tensor is None:
                types.append(None)
            else:
                pointers |= tensor.data_ptr()
                types.append(tensor.dtype)
        key = (device, num_warps, numbers, *types, *constants.values())
        compiled = self.compiled.get(key)
        if compiled is not None and not pointers % 16 and not _has_hooks():
            stream = torch._C._cuda_getCurrentRawStream(device)
            arguments = (*tensors, *numbers, *constants.values())
            compiled.run(*grid, stream, compiled.function, compiled.packed_metadata, None, None, None, *arguments)
            return
        self._check_order(len(tensors) + len(numbers), constants)
        compiled = self.kernel[grid](*tensors, *numbers, num_warps=num_warps, **constants)
        if not pointers % 16:
            self.compiled[key] = compiled

    def _check_order(self, given: int, constants: dict[str, Any]) -> None:
        expected = tuple(self.kernel.arg_names[given:])
        if expected != tuple(constants):
            raise TypeError(f"{self.kernel.__name__}: constants must be {expected} in this order, got {(*constants,)}")


def _has_hooks() -> bool:
    """Whether a profiler wants to hear of launches; Triton sees to that itself."""
    hooks = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return any(getattr(hook, "calls", hook) for hook in hooks)
