"""Choose which implementation of an operation runs, and record it for `spy`."""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from threading import Thread
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from vidsieve.errors import KernelUnavailable

Problem = TypeVar("Problem", bound=NamedTuple)
Result = TypeVar("Result")

SLOTS = 2048  # segments that one program apportions among

_calls: ContextVar[list[tuple[str, str]] | None] = ContextVar("vidsieve_ops_calls", default=None)


@cache
def _no_kernels() -> str:
    """Why the kernels cannot run here; empty where they can."""
    try:
        launch = importlib.import_module("vidsieve.ops.launch")
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    why: str = launch.unavailable()
    return why


def available() -> dict[str, str]:
    """The implementations and, for one that cannot run here, the reason."""
    return {"reference": "", "eager": "", "triton": _no_kernels()}


def start_hashing() -> None:
    """Have Triton hash its own library in a thread, while a model is loaded: its first kernel waits for that.

    Every key of its cache contains the hash, which takes a second, and Triton keeps it for the rest of the process.
    """
    if os.environ.get("VIDSIEVE_OPS", "auto") not in ("auto", "triton") or _no_kernels():
        return
    key = getattr(importlib.import_module("triton.runtime.cache"), "triton_key", None)
    if callable(key):  # a release that has no such function hashes when it must
        Thread(target=key, name="vidsieve-triton-key", daemon=True).start()


@cache  # a dictionary look-up: operations are called some ten times in a reduction
def _namesake(eager: Callable[[Problem], Result], implementation: str) -> Callable[[Problem], Result]:
    """What has the name of `eager` in the module `implementation` beside its own."""
    beside = importlib.import_module(eager.__module__.removesuffix("eager") + implementation)
    found: Callable[[Problem], Result] = getattr(beside, eager.__name__)
    return found


def choose(
    eager: Callable[[Problem], Result], x: Tensor, kernel: bool = True, videos: int = 1
) -> Callable[[Problem], Result]:
    """The implementation to run on `x` of the operation that `eager` is in batched torch: that, or its namesake.

    kernel: whether there is one for this case.  videos: of how many the tokens are.
    """
    name = _chosen(eager, x, kernel, videos)
    calls = _calls.get()
    if calls is not None:
        calls.append((eager.__name__, name))
    return eager if name == "eager" else _namesake(eager, name)


def choose_once(eager: Callable[[Problem], Result], x: Tensor) -> Callable[[Problem], Result]:
    """The same for many calls on tensors like `x`, of each of which `spy` is told."""
    name = _chosen(eager, x)
    implementation = eager if name == "eager" else _namesake(eager, name)

    def operation(problem: Problem) -> Result:
        calls = _calls.get()
        if calls is not None:
            calls.append((eager.__name__, name))
        return implementation(problem)

    return operation


def _chosen(eager: Callable[[Any], object], x: Tensor, kernel: bool = True, videos: int = 1) -> str:
    """The name of that implementation. Raises `KernelUnavailable` if what VIDSIEVE_OPS asks for cannot run."""
    asked, why = os.environ.get("VIDSIEVE_OPS", "auto"), ""
    name = asked
    if asked == "auto":
        name = "triton" if x.is_cuda and kernel and x.dtype != torch.float64 and not _no_kernels() else "eager"
    elif asked == "triton":
        why = _no_kernels()
        if not kernel or x.dtype == torch.float64:
            why = f"{eager.__name__} has no kernel for this input ({x.dtype})"
    elif asked not in ("reference", "eager"):
        why = f"expected one of auto, {', '.join(available())}"
    if why:
        raise KernelUnavailable(f"VIDSIEVE_OPS={asked} cannot run here: {why}. Unset it to use what can.")
    if videos > 1 and name != "triton":
        raise KernelUnavailable(
            f"{eager.__name__} takes several videos at once by a kernel only, and {name} runs here: expected 1 video, "
            f"got {videos}. Call it for one video after another where `ops.together` says no."
        )
    return name


def together(x: Tensor, frames: int) -> bool:
    """Whether operations take several videos like x, of so many frames, at once; elsewhere nothing would be gained."""
    asked = os.environ.get("VIDSIEVE_OPS", "auto")
    chosen = asked == "triton" or (asked == "auto" and x.is_cuda)
    return chosen and x.dtype != torch.float64 and not _no_kernels() and frames < SLOTS


@contextmanager
def spy() -> Iterator[list[tuple[str, str]]]:
    """Record (operation, implementation) of every call made inside the block, in this thread."""
    calls: list[tuple[str, str]] = []
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


def plain(problem: Problem, *names: str) -> Problem:
    """`problem` for a decision, which has no gradient: with the tensors `names` (or None) detached from theirs."""
    for name in names:
        x = getattr(problem, name)
        if x is not None and x.requires_grad:
            problem = problem._replace(**{name: x.detach()})
    return problem
