"""The numerical operations, each with one meaning and several implementations.

    reference   float64, loops, equation numbers: the truth that the others are tested against
    eager       batched torch, any device

`VIDSIEVE_OPS` chooses one for the process: `auto` (default), `reference`, `eager` or `triton`. An implementation that
was asked for and cannot run raises `KernelUnavailable`; nothing falls back silently. `spy()` shows what ran.

Operations know tensors only. `offsets` (S + 1,) are the bounds of S contiguous segments, `budget` (S,) the picks each
may make. The greedy selections return the *order* of the picks, int32 (N,): the step at which a token was picked in its
segment, -1 where it was not.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

import torch
from torch import Tensor

from vidsieve.errors import KernelUnavailable, NonFiniteFeatures
from vidsieve.ops import eager, reference

_IMPLEMENTATIONS: dict[str, ModuleType] = {"reference": reference, "eager": eager}
_calls: ContextVar[list[tuple[str, str]] | None] = ContextVar("vidsieve_ops_calls", default=None)


def available() -> dict[str, str]:
    """The implementations and, for one that cannot run here, the reason."""
    return dict.fromkeys(_IMPLEMENTATIONS, "") | {"triton": "not part of this version"}


def _implementation(operation: str) -> ModuleType:
    asked = os.environ.get("VIDSIEVE_OPS", "auto")
    name = "eager" if asked == "auto" else asked
    if name not in _IMPLEMENTATIONS:
        reason = available().get(name, f"expected one of auto, {', '.join(available())}")
        raise KernelUnavailable(f"VIDSIEVE_OPS={asked} cannot run here: {reason}. Unset it to use what can.")
    calls = _calls.get()
    if calls is not None:
        calls.append((operation, name))
    return _IMPLEMENTATIONS[name]


@contextmanager
def spy() -> Iterator[list[tuple[str, str]]]:
    """Record (operation, implementation) of every call made inside the block, in this thread."""
    calls: list[tuple[str, str]] = []
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


def check_finite(x: Tensor) -> None:
    """Raise `NonFiniteFeatures`, saying how many of how many, if `x` holds NaN or inf. Waits for the device."""
    low, high = x.aminmax()  # both NaN if any entry is
    if not (torch.isfinite(low) & torch.isfinite(high)):
        bad = int((~torch.isfinite(x)).sum())
        raise NonFiniteFeatures(
            f"{bad} of {x.numel()} features are NaN or inf; a selection among them would be arbitrary. "
            "Check the vision tower's dtype (fp16 overflows) and the input frames."
        )


def persistence(x: Tensor, frames: tuple[int, ...]) -> Tensor:
    """Centred cosine of each token to the one at its place in the previous frame: float32 (N,), 0 in the first frame.

    x (N, D) in frames of `frames` tokens. Where two neighbouring frames differ in size, a token is compared with the
    mean of the previous frame. method.md, eq. 1.
    """
    return _implementation("persistence").persistence(x, frames)  # type: ignore[no-any-return]


def cosine_to(x: Tensor, y: Tensor) -> Tensor:
    """Mean cosine of each token x (N, D) to the vectors y (M, D): float32 (N,)."""
    return _implementation("cosine_to").cosine_to(x, y)  # type: ignore[no-any-return]


def apportion(weights: Tensor, lengths: Tensor, total: int) -> Tensor:
    """Share `total` picks among segments by weight: int64 (S,), sums to `total`, method.md eq. 3.

    weights (S,) non-negative.  lengths (S,) caps, summing to at least `total`. Every non-empty segment gets at least
    one pick where `total` allows.
    """
    return _implementation("apportion").apportion(weights, lengths, total)  # type: ignore[no-any-return]


def conditional_dpp(x: Tensor, relevance: Tensor, offsets: Tensor, budget: Tensor) -> Tensor:
    """Greedy MAP of the DPP with kernel L = diag(r) S diag(r) in every segment: order int32 (N,).

    x (N, D).  relevance (N,) in [0, 1].  Chen, Zhang & Zhou 2018, algorithm 1; method.md eq. 5-8.
    """
    return _implementation("conditional_dpp").conditional_dpp(x, relevance, offsets, budget)  # type: ignore[no-any-return]


def mmr(x: Tensor, relevance: Tensor, offsets: Tensor, budget: Tensor, trade: float) -> Tensor:
    """Maximal marginal relevance in every segment, `trade` on relevance, the rest on novelty: order int32 (N,).

    Carbonell & Goldstein 1998; method.md eq. 9.
    """
    return _implementation("mmr").mmr(x, relevance, offsets, budget, trade)  # type: ignore[no-any-return]


def max_min(x: Tensor, offsets: Tensor, budget: Tensor) -> Tensor:
    """Farthest-first selection by cosine distance in every segment (DivPrune): order int32 (N,). method.md eq. 10."""
    return _implementation("max_min").max_min(x, offsets, budget)  # type: ignore[no-any-return]


def nearest_kept(x: Tensor, offsets: Tensor, kept: Tensor) -> Tensor:
    """The row of `kept` (K,) most similar to each token within its segment: int64 (N,), -1 where it kept none."""
    return _implementation("nearest_kept").nearest_kept(x, offsets, kept)  # type: ignore[no-any-return]


def top(score: Tensor, offsets: Tensor, budget: Tensor) -> Tensor:
    """The `budget` highest scores of every segment, earlier tokens first among equals: order int32 (N,)."""
    return _implementation("top").top(score, offsets, budget)  # type: ignore[no-any-return]


def compact(mask: Tensor, total: int) -> Tensor:
    """Indices of the `total` true entries of mask (N,): int64 (total,), sorted, without asking the device how many."""
    position = mask.cumsum(0)
    slots = torch.where(mask, position - 1, total)
    out = mask.new_zeros(total + 1, dtype=torch.int64)
    return out.scatter_(0, slots, torch.arange(len(mask), device=mask.device))[:total]


def merge_mean(x: Tensor, source: Tensor, kept: int) -> Tensor:
    """Mean over the rows of x (N, ...) that share a source in [0, kept): (kept, ...), rows with source -1 left out."""
    return _implementation("merge_mean").merge_mean(x, source, kept)  # type: ignore[no-any-return]
