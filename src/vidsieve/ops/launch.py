"""Launching a kernel: on the device of its first argument, without asking Triton anew which compiled version fits."""

import os
import warnings
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.runtime import driver

# Arguments that kernels are not compiled anew for. Triton makes another version for 1 and for multiples of 16, which it
# should know of strides; but counts are now this and now that, from one video to the next.
COUNTS = [
    *("n", "m", "tokens", "segments", "frames", "per_frame", "max_frames", "count", "total", "picks", "begin"),
    *("length", "reach", "c_rows", "threshold", "queries", "query_count", "keys", "past", "share", "splits", "first"),
]

# What calls a compiled kernel below is not an interface that Triton promises, so only these are called that way.
KNOWN_TRITON = ((3, 6), (3, 7))

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class _Compiled(NamedTuple):
    """A compiled version of a kernel, and what Triton looks up to call it. stream_of: gets that of a device."""

    kernel: Any
    run: Any
    function: Any
    metadata: Any
    constants: tuple[Any, ...]
    stream_of: Any


_compiled: dict[tuple[object, ...], _Compiled] = {}


class PreparedKernel:
    """A kernel with its constants, launched with tensors alone: again and again, as by each layer of a tower.

    Of what `_launch` looks at, only the device, the types and the alignment of the tensors can differ from one launch
    to the next. Where no version is known by these, or another device is current, it launches as `launch` does.
    """

    def __init__(self, kernel: Any, **options: Any) -> None:
        self._kernel, self._options = kernel, options
        self._versions: dict[tuple[object, ...], _Compiled] = {}

    def __call__(self, grid: tuple[int, int, int], *tensors: Tensor) -> None:
        """Run the kernel on the device of the first tensor."""
        if torch.compiler.is_compiling():
            _launch_uncompiled(self._kernel, grid, *tensors, **self._options)
            return
        device = tensors[0].device.index
        key: tuple[object, ...] = (device,)
        addresses: tuple[int, ...] = ()
        for x in tensors:
            address = x.data_ptr()
            addresses += (address,)
            key += x.dtype, address % 16 == 0
        version = self._versions.get(key)
        if version is not None and device == torch.cuda.current_device():
            _run(version, device, grid, addresses)
        elif (version := _launch(self._kernel, grid, *tensors, **self._options)) is not None:
            self._versions[key] = version


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Run `kernel` on the device of its first argument."""
    if torch.compiler.is_compiling():
        _launch_uncompiled(kernel, grid, *args, **options)
    else:
        _launch(kernel, grid, *args, **options)


def _launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> _Compiled | None:
    """The same without a look at who calls. Returns what may be called the next time; None if nothing may.

    Asking Triton anew which of its compiled versions fits costs the host more than the launch. So that is remembered by
    what it depends on: types, alignment, whether a number is 1, a multiple of 16 or wide. And what is compiled is
    called as Triton calls it, with addresses in place of tensors, which it would ask for them one by one.
    """
    if INTERPRETED:
        kernel[grid](*args, **options)
        return None
    device = args[0].device.index
    if device != torch.cuda.current_device():
        with torch.cuda.device(device):
            return _launch(kernel, grid, *args, **options)
    key: list[object] = [id(kernel), device, *options, *options.values()]
    values: list[Any] = []
    for x in args:
        if isinstance(x, Tensor):
            address = x.data_ptr()
            values += (address,)
            key += x.dtype, address % 16 == 0
        else:
            values += (x,)
            key += ((x == 1) + 2 * (x % 16 == 0) + 4 * (x.bit_length() > 31) if isinstance(x, int) else type(x),)
    found = _compiled.get(tuple(key))
    if found is not None:
        _run(found, device, (*grid, *(1, 1)[len(grid) - 1 :]), values)
        return found
    compiled = kernel[grid](*args, **options)
    if not _knows(triton.__version__):
        return None
    constants = tuple(options[name] for name in kernel.arg_names[len(args) :])
    handles = compiled.run, compiled.function, compiled.packed_metadata
    found = _Compiled(compiled, *handles, constants, driver.active.get_current_stream)
    return _compiled.setdefault(tuple(key), found)


def _run(version: _Compiled, device: int, grid: tuple[int, ...], values: Iterable[Any]) -> None:
    """Call what is compiled, on the current device, with addresses in place of tensors."""
    compiled, run, function, metadata, constants, stream_of = version
    if knobs.runtime.launch_enter_hook.calls or knobs.runtime.launch_exit_hook.calls:  # a profiler wants to know more
        compiled[grid](*values, *constants)
        return
    run(*grid, stream_of(device), function, metadata, None, None, None, *values, *constants)


@cache  # so that it is said once
def _knows(version: str) -> bool:
    """Whether compiled kernels of this version of Triton can be called without it; says so where they cannot."""
    if tuple(int(part) for part in version.split(".")[:2]) in KNOWN_TRITON:
        return True
    tried = " and ".join(f"{major}.{minor}" for major, minor in KNOWN_TRITON)
    warnings.warn(
        f"vidsieve knows how to call the kernels of Triton {tried} directly, got {version}: each launch goes through "
        "Triton's own dispatcher, which costs the host more. Results are the same.",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


# A wrapper that costs the host a tenth of a launch.
_launch_uncompiled = torch.compiler.disable(_launch)  # type: ignore[no-untyped-call]


def unavailable() -> str:
    """Why the kernels cannot run here; empty where they can."""
    if INTERPRETED or torch.cuda.is_available():
        return ""
    return "Triton needs a CUDA device (or TRITON_INTERPRET=1 for the interpreter)"


def cdiv(n: int, block: int) -> int:
    """How many blocks cover n. Triton's own takes the host longer than an allocation does."""
    return -(-n // block)


def covering(n: int) -> int:
    """The smallest power of two that n fits into."""
    return 1 << (n - 1).bit_length()


def multiprocessors(x: Tensor) -> int:
    """Those of the device of `x`; the interpreter runs one program after another, and counts as one."""
    return _multiprocessors(x.device.index) if x.is_cuda else 1


@cache  # asking costs the host as much as a launch
def _multiprocessors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def rows_of(x: Tensor) -> Tensor:
    """`x` (n, D) as a kernel reads it: the features of a row next to one another."""
    if INTERPRETED and x.dtype == torch.bfloat16:
        x = x.float()  # the interpreter multiplies the bit patterns of bf16; products of bf16 are exact in float32
    return x if x.stride(-1) == 1 else x.contiguous()


def precision(x: Tensor) -> str:
    """Of products of such features on tensor cores."""
    return "tf32x3" if x.dtype == torch.float32 else "ieee"
