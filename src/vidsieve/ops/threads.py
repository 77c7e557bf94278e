"""Let this thread compute alone. torch.set_num_threads is no substitute: it changes what other threads do too.

Torch spreads a loop over all cores from 32 768 numbers on, and a product from a few hundred thousand. To wake the
others, and to wait for them, takes longer than what is little more than that, and a thousand times as long where other
work has the cores.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import torch


@contextmanager
def alone() -> Iterator[None]:
    """Keep torch's loops to this thread. Does nothing where torch has another library than OpenMP for them."""
    limit = _loop_threads()
    before = torch.get_num_threads()  # which makes this thread know of its number first
    try:
        limit(1)
        yield
    finally:
        limit(before)


@cache
def _loop_threads() -> Callable[[int], None]:
    set_threads: Any = _of_torch("omp_set_num_threads")
    if set_threads is None:
        return lambda threads: None
    set_threads.argtypes, set_threads.restype = [ctypes.c_int], None
    return cast(Callable[[int], None], set_threads)


@cache
def product_threads() -> Callable[[int], int]:
    """Get what limits the threads of products for calls from this thread, 0 for no limit, and returns the one before.

    oneMKL's mkl_set_num_threads_local; nothing where torch has another library.
    """
    set_threads: Any = _of_torch("MKL_Set_Num_Threads_Local")
    if set_threads is None:
        return lambda threads: 0
    set_threads.argtypes, set_threads.restype = [ctypes.c_int], ctypes.c_int
    return cast(Callable[[int], int], set_threads)


def _of_torch(name: str) -> Any:
    """Find a function among the libraries that torch is linked to; None if none has it."""
    return getattr(ctypes.PyDLL(torch._C.__file__), name, None)
