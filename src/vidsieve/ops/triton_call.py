"""Launching a kernel: on the device of its first argument, without asking Triton anew which compiled version fits."""

import os
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_compiled: dict[tuple[object, ...], tuple[Any, list[Any]]] = {}  # and the constants each takes after its arguments


@torch.compiler.disable  # type: ignore[untyped-decorator]
def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Run `kernel` on the device of its first argument.

    Asking Triton anew which of its compiled versions fits costs the host more than the launch. So that is remembered by
    what it depends on: types, alignment, whether a number is 1, a multiple of 16 or wide.
    """
    if INTERPRETED:
        kernel[grid](*args, **options)
        return
    device = args[0].device.index
    with nullcontext() if device == torch.cuda.current_device() else torch.cuda.device(device):
        key = id(kernel), device, *map(_kind, args), *options.items()
        if key not in _compiled:
            compiled = kernel[grid](*args, **options)
            _compiled[key] = compiled, [options[name] for name in kernel.arg_names[len(args) :]]
        else:
            compiled, constants = _compiled[key]
            compiled[*grid, 1, 1](*args, *constants)


def _kind(x: Any) -> object:
    if isinstance(x, Tensor):
        return x.dtype, x.data_ptr() % 16 == 0
    if isinstance(x, int):
        return x == 1, x % 16 == 0, x.bit_length() > 31
    return type(x)


def cdiv(n: int, block: int) -> int:
    """How many blocks cover n. Triton's own takes the host longer than an allocation does."""
    return -(-n // block)


def covering(n: int) -> int:
    """The smallest power of two that n fits into."""
    return 1 << (n - 1).bit_length()


def rows_of(x: Tensor) -> Tensor:
    """`x` (n, D) as a kernel reads it: the features of a row next to one another."""
    if INTERPRETED and x.dtype == torch.bfloat16:
        x = x.float()  # the interpreter multiplies the bit patterns of bf16; products of bf16 are exact in float32
    return x if x.stride(-1) == 1 else x.contiguous()


def precision(x: Tensor) -> str:
    """Of products of such features on tensor cores."""
    return "tf32x3" if x.dtype == torch.float32 else "ieee"
