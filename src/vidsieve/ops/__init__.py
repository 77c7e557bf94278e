"""The numerical operations, each with one meaning and several implementations.

    reference   float64, loops, equation numbers: the truth that the others are tested against
    eager       batched torch, any device
    triton      kernels where one pays and torch elsewhere, on CUDA; never asks the device anything

`VIDSIEVE_OPS` chooses one for the process: `auto` (default: triton on CUDA, else eager), `reference`, `eager` or
`triton`. An implementation that was asked for and cannot run raises `KernelUnavailable`. `spy()` shows what ran.

Operations know tensors only. `offsets` (S + 1,) are the bounds of S contiguous segments, `longest` bounds their length,
`budget` (S,) is the picks each may make and `total` their sum; `known` is what `measure` found of x. The greedy
selections return the *order* of the picks, int32 (N,): the step at which a token was picked in its segment, -1 where it
was not.

Where `together` says so, the tokens may be those of several `videos` of one layout, one after another, and what is of a
video (its cuts, budgets, scale) is found for each: as many segments and picks in each. Only kernels do that.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from vidsieve.errors import KernelUnavailable, NonFiniteFeatures
from vidsieve.ops import eager, reference
from vidsieve.ops.eager_greedy import GRAM_LIMIT as GRAM_LIMIT
from vidsieve.ops.reference import BAD_PROMPT as BAD_PROMPT
from vidsieve.ops.reference import LEAST, MOST, NON_FINITE, OUT_OF_RANGE
from vidsieve.ops.reference import Measures as Measures

SEGMENTS = 65535  # that one launch takes

_calls: ContextVar[list[tuple[str, str]] | None] = ContextVar("vidsieve_ops_calls", default=None)


@cache
def _kernels() -> ModuleType | str:
    """The module of the Triton launchers, or why there is none."""
    try:
        launch = importlib.import_module("vidsieve.ops.triton_launch")
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    return launch.unavailable() or launch


def available() -> dict[str, str]:
    """The implementations and, for one that cannot run here, the reason."""
    kernels = _kernels()
    return {"reference": "", "eager": "", "triton": kernels if isinstance(kernels, str) else ""}


def _implementation(operation: str, x: Tensor, kernel: bool = True) -> ModuleType:
    """The module to run `operation` on `x`; `kernel` tells whether there is one for this case."""
    asked = os.environ.get("VIDSIEVE_OPS", "auto")
    module: ModuleType | str
    if asked == "reference":
        module = reference
    elif asked == "eager":
        module = eager
    elif asked == "triton":
        module = _kernels()
        if not kernel or x.dtype == torch.float64:
            module = f"{operation} has no kernel for this input ({x.dtype})"
    elif asked == "auto":
        kernels = _kernels() if x.is_cuda and kernel and x.dtype != torch.float64 else eager
        module = eager if isinstance(kernels, str) else kernels
    else:
        module = f"expected one of auto, {', '.join(available())}"
    if isinstance(module, str):
        raise KernelUnavailable(f"VIDSIEVE_OPS={asked} cannot run here: {module}. Unset it to use what can.")
    calls = _calls.get()
    if calls is not None:
        calls.append((operation, module.__name__.rpartition(".")[2].removesuffix("_launch")))
    return module


def together(x: Tensor, frames: int) -> bool:
    """Whether operations take several videos like x, of so many frames, at once; elsewhere nothing would be gained."""
    asked, kernels = os.environ.get("VIDSIEVE_OPS", "auto"), _kernels()
    chosen = asked == "triton" or (asked == "auto" and x.is_cuda)
    return chosen and x.dtype != torch.float64 and not isinstance(kernels, str) and frames < kernels.SLOTS


def _videos(videos: int) -> dict[str, int]:
    return {} if videos == 1 else {"videos": videos}


@contextmanager
def spy() -> Iterator[list[tuple[str, str]]]:
    """Record (operation, implementation) of every call made inside the block, in this thread."""
    calls: list[tuple[str, str]] = []
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


def raise_if_bad(bad: Tensor, whose: str = "video") -> None:
    """Raise `NonFiniteFeatures`, saying how many of how many, if any token is bad (N,). Waits for the device."""
    if not bad.count_nonzero():
        return
    found = bad.cpu()
    non_finite, out_of_range = (int((found & what).count_nonzero()) for what in (NON_FINITE, OUT_OF_RANGE))
    if non_finite:
        maker = "vision tower's dtype (fp16 overflows) and the input frames" if whose == "video" else "embeddings"
        raise NonFiniteFeatures(
            f"{non_finite} of {len(bad)} {whose} tokens hold NaN or inf; a selection among them would be arbitrary. "
            f"Check the {maker}."
        )
    if out_of_range:
        raise NonFiniteFeatures(
            f"{out_of_range} of {len(bad)} {whose} tokens have a length that float32 cannot square; expected 0, or "
            f"{LEAST:g} to {MOST:g}. Multiply all of them by one number: what is kept does not depend on it."
        )
    raise NonFiniteFeatures(
        "some prompt tokens hold NaN or inf, or have a length that float32 cannot square; relevance to them would be "
        "arbitrary. Check the embeddings."
    )


def _plain(x: Tensor) -> Tensor:
    """`x` for a decision, which has no gradient."""
    return x.detach() if x.requires_grad else x


def measure(
    x: Tensor,
    frames: tuple[int, ...],
    y: Tensor | None,
    persistence: bool,
    segments: tuple[Tensor, int] | None = None,
    questions: tuple[int, ...] = (),
) -> Measures:
    """What the later stages need to know of the tokens x (N, D), in one pass where there is a kernel.

    norm: lengths (N,).  bad: above 0 where a token holds NaN or inf, or its length is out of range, or y does or is:
    `reference` has the bits (N,).  persistence, if asked for: the centred cosine of each token to the one at its
    place in the previous frame (N,), 0 in the first frame; where two neighbouring frames differ in size, to the mean of
    the previous frame; method.md, eq. 1.
    cosine, given y (M, D): the mean cosine to its vectors (N,).
    products, given (offsets, longest) of the segments that a greedy selection will run in: what that implementation
    would have to read the features again for, where it can be had from the same pass.
    questions: of several videos of `frames` each, how many rows of y are of each.
    """
    regular = min(frames) == max(frames)
    module = _implementation("measure", x, kernel=regular or not persistence)
    more = (questions,) if len(questions) > 1 else ()
    y = None if y is None else _plain(y)
    return module.measure(_plain(x), frames, y, persistence, segments, *more)  # type: ignore[no-any-return]


def scene_cuts(
    persistence: Tensor, offsets: Tensor, threshold: float, max_frames: int | None, videos: int = 1
) -> Tensor:
    """Bounds of the scenes of T frames, the unused rest of the T slots empty at the end: int64 (T + 1,).

    A frame begins a scene where the mean persistence (N,) of its tokens is below `threshold`; scenes of more than
    `max_frames` frames are split evenly. offsets (T + 1,) are the bounds of the frames.
    """
    module = _implementation("scene_cuts", persistence)
    return module.scene_cuts(persistence, offsets, threshold, max_frames, **_videos(videos))  # type: ignore[no-any-return]


def novelty(persistence: Tensor, offsets: Tensor, at: Tensor | None = None) -> Tensor:
    """The sum of 1 - persistence over each segment, at least 0: float32 (S,). method.md eq. 2.

    at: int64 (N,), which of `persistence` each of the N tokens has, where those are not all.
    """
    return _implementation("novelty", persistence).novelty(persistence, offsets, at)  # type: ignore[no-any-return]


def apportion(weights: Tensor | None, offsets: Tensor, total: int, videos: int = 1) -> Tensor:
    """Share `total` picks among segments by weight: int64 (S,), sums to `total`, method.md eq. 3.

    weights (S,) non-negative, or None for a share by length. No segment gets more picks than it has tokens, and every
    non-empty one gets at least one where `total`, of at most offsets[-1], allows.
    """
    module = _implementation("apportion", offsets)
    return module.apportion(weights, offsets, total, **_videos(videos))  # type: ignore[no-any-return]


def conditional_dpp(
    x: Tensor, relevance: Tensor, offsets: Tensor, budget: Tensor, longest: int, total: int, known: Measures
) -> Tensor:
    """Greedy MAP of the DPP with kernel L = diag(r) S diag(r) in every segment: order int32 (N,).

    x (N, D).  relevance (N,) in [0, 1].  Chen, Zhang & Zhou 2018, algorithm 1; method.md eq. 5-8.
    """
    module = _implementation("conditional_dpp", x)
    return module.conditional_dpp(_plain(x), _plain(relevance), offsets, budget, longest, total, known)  # type: ignore[no-any-return]


def mmr(
    x: Tensor, relevance: Tensor, offsets: Tensor, budget: Tensor, longest: int, total: int, known: Measures,
    trade: float,
) -> Tensor:  # fmt: skip
    """Maximal marginal relevance in every segment, `trade` on relevance, the rest on novelty: order int32 (N,).

    Carbonell & Goldstein 1998; method.md eq. 9.
    """
    module = _implementation("mmr", x)
    return module.mmr(_plain(x), _plain(relevance), offsets, budget, longest, total, known, trade)  # type: ignore[no-any-return]


def hybrid(
    x: Tensor, relevance: Tensor, offsets: Tensor, budget: Tensor, longest: int, total: int, known: Measures,
    trade: float, threshold: int,
) -> Tensor:  # fmt: skip
    """`conditional_dpp` in segments of up to `threshold` tokens, `mmr` in longer ones: order int32 (N,)."""
    module = _implementation("hybrid", x)
    arguments = _plain(x), _plain(relevance), offsets, budget, longest, total, known, trade, threshold
    return module.hybrid(*arguments)  # type: ignore[no-any-return]


def max_min(x: Tensor, offsets: Tensor, budget: Tensor, longest: int, total: int, known: Measures) -> Tensor:
    """Farthest-first selection by cosine distance in every segment (DivPrune): order int32 (N,). method.md eq. 10."""
    module = _implementation("max_min", x)
    return module.max_min(_plain(x), offsets, budget, longest, total, known)  # type: ignore[no-any-return]


def nearest_kept(x: Tensor, offsets: Tensor, kept: Tensor) -> Tensor:
    """The row of `kept` (K,) most similar to each token within its segment: int64 (N,), -1 where it kept none."""
    return _implementation("nearest_kept", x).nearest_kept(_plain(x), offsets, kept)  # type: ignore[no-any-return]


def top(score: Tensor, offsets: Tensor, budget: Tensor) -> Tensor:
    """The `budget` highest scores of every segment, earlier tokens first among equals: order int32 (N,)."""
    return _implementation("top", offsets).top(_plain(score), offsets, budget)  # type: ignore[no-any-return]


def min_max(scores: Tensor, epsilon: float, videos: int = 1) -> Tensor:
    """Scores (N,) brought to (0, 1], the highest to 1; constant scores all to 1: float32 (N,). method.md, eq. 4."""
    module = _implementation("min_max", scores)
    return module.min_max(scores, epsilon, **_videos(videos))  # type: ignore[no-any-return]


def compact(
    order: Tensor, offsets: Tensor, budget: Tensor, longest: int, total: int, videos: int = 1
) -> tuple[Tensor, Tensor]:
    """The `total` tokens that order (N,) says were picked, sorted (total,), and each one's row among them or -1 (N,).

    Every segment has made exactly its budget (S,) of picks. Does not ask the device how many there are. Of several
    videos, both count from each one's first.
    """
    module = _implementation("compact", order)
    return module.compact(order, offsets, budget, longest, total, **_videos(videos))  # type: ignore[no-any-return]


def compact_rows(left: Tensor, longest: int, begin: int = 0, length: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """What stays of every row of L, on the right of rows of `longest`, which the most that a row has is known to be.

    left: int64 (B, N), below 0 where it goes, of the columns from `begin` on; all other columns stay.  length: L,
    N unless given.
    index: the column each new place takes, 0 on padding, int64 (B, M).  valid: 0 on padding, else 1, int64 (B, M).
    slot: the new place of each column that stays, int64 (B, L); of others it is undefined.
    """
    module = _implementation("compact_rows", left)
    return module.compact_rows(left, longest, begin, length or left.shape[1])  # type: ignore[no-any-return]


def passing(persistence: Tensor, frames: tuple[int, ...], floor: float) -> Tensor:
    """1 for tokens that nothing before or after resembles, `floor` for those that stay: float32 (N,). Eq. 4b."""
    module = _implementation("passing", persistence, kernel=min(frames) == max(frames))
    return module.passing(persistence, frames, floor)  # type: ignore[no-any-return]


def temporal(
    x: Tensor, norm: Tensor, offsets: Tensor, frames: tuple[int, ...], at: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Of each token, the one before it at its place in its segment: int64 (N,), -1 if none; method.md eq. 14.

    And the cosine of the two, float32 (N,), -2 if none. Two zero vectors are alike, and so are vectors within rounding
    of each other. frames: of the whole video, of which x are the tokens `at` (N,), or all where that is None.
    """
    module = _implementation("temporal", x, kernel=min(frames) == max(frames))
    return module.temporal(_plain(x), norm, offsets, frames, at)  # type: ignore[no-any-return]


def runs(cosine: Tensor, before: Tensor, threshold: float, longest: int) -> tuple[Tensor, ...]:
    """Where runs of `before` (N,) begin, for `cosine` (N,) is below `threshold` there, and who belongs to them.

    The places in order, int64 (N,), of which as many as there are say something; how many they are, int64 (1,); each
    token's row among them or -1, int64 (N,); and what `absorbed` makes of these rows.
    """
    return _implementation("runs", cosine).runs(cosine, before, threshold, longest)  # type: ignore[no-any-return]


def absorbed(row: Tensor, before: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """The first row (N,) that is not -1, going back from each token by `before` (N,): int64 (N,), -1 if there is none.

    And the token that goes back to each on its way there, int64 (N,), -1 if none: no two go back to the same.
    longest: a bound on the tokens of such a way.
    """
    return _implementation("absorbed", before).absorbed(row, before, longest)  # type: ignore[no-any-return]


def merge_mean(
    x: Tensor,
    source: Tensor,
    kept: Tensor,
    weight: Tensor | None = None,
    link: Tensor | None = None,
) -> Tensor:
    """Mean over the rows of x (N, ...) that share a source, each with one of the rows `kept` (K,): (K, ...).

    source: k for row kept[k] and what it absorbed, -1 for rows that are left out.  weight: (N,) of each row, 1 if None.
    link: (N,) the way from each kept row through what it absorbed, -1 at its end, where that is known.
    Accumulated in float32, or better. method.md eq. 12 and 15.
    """
    module = _implementation("merge_mean", x, kernel=not x.requires_grad)  # the torch version has a gradient
    return module.merge_mean(x, source, kept, weight, link)  # type: ignore[no-any-return]


def merge_among(
    x: Tensor,
    index: Tensor,
    begin: int,
    source: Tensor,
    kept: Tensor,
    weight: Tensor | None = None,
    link: Tensor | None = None,
) -> Tensor:
    """Rows `index` (M,), ascending, of x (L, D), of which the N from `begin` on merge: (M, D).

    Of those N, what `index` holds is `kept` (K,), counted from `begin`, and becomes means as in `merge_mean`.
    """
    module = _implementation("merge_among", x, kernel=not x.requires_grad)
    return module.merge_among(x, index, begin, source, kept, weight, link)  # type: ignore[no-any-return]


def received(
    query: Tensor,
    key: Tensor,
    columns: Tensor,
    seen: Tensor | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The attention each of L tokens receives, averaged over H heads and M queries: float32 (L,). method.md, eq. 16.

    query: (H, L, d) and key: (G, past + L, d), rotated, the heads in G groups that share keys.  columns: int64 (M,), of
    the queries.  seen: bool (past + L,), false on padding; None where there is none.  scaling: of the scores, 1 /
    sqrt(d) if None.  softcap: s becomes softcap * tanh(s / softcap) where given. Memory: docs/method.md.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    module = _implementation("received", query)
    return module.received(query, key, columns, seen, scaling, softcap)  # type: ignore[no-any-return]
