"""The conditional DPP on a CPU, pick by pick in numpy.

A pick is a dozen operations on a few hundred numbers, each of which takes numpy a microsecond and torch several. The
one product of a pick is torch's, as in `eager.py`: so both keep the same tokens. Meaning: reference.py.

One segment, as a short video is, goes without what several need: a look-up at one place instead of at an array of them
takes numpy a tenth of the time.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vidsieve.ops.limits import EXHAUSTED, TIE
from vidsieve.ops.threads import product_threads

WITHOUT_BLAS = (
    400  # products; fewer are torch's own in baddbmm and rounded otherwise, more are as in addmv at half the cost
)

ALONE = 1 << 19  # products; so many and fewer are made by one thread

Array = npt.NDArray[Any]


def conditional_dpp(
    r: Tensor,
    residual: Tensor,
    fill: Tensor,
    c: Tensor,
    picks: list[int],
    similarities: Callable[[Array, Array, Callable[[], Array], Array], Tensor],
    head: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Pick `picks` (descending) tokens from each of B segments of n: order int32 (B, n).

    r: relevance (B, n).  residual: (B, n), 1 or, of a token that is zero, 0.  fill: (n,), the scores of what adds
    nothing new.  c: (B, k, n) for what is computed here, as is `residual`.  similarities: of the first segments (A,), a
    pick of each (A,), what tells the scores (A, n) they were chosen by, and residuals (A, n), the rows of S (A, n).
    head: relevance (B, n) of the first picks, and how many (B, 1).
    """
    left, last, rows = residual.numpy(), fill.numpy(), c.numpy()
    always = weight = np.square(r.numpy())
    changes: set[int] = set()  # steps at which weights do
    if head is not None:
        at_first, early = np.square(head[0].numpy()), head[1].numpy()
        weight, changes = np.where(early > 0, at_first, always), set(early.ravel().tolist()) - {0}
    score, product = weight * left, np.empty_like(left)
    limit = left.dtype.type(EXHAUSTED)
    order, segments = np.full(left.shape, -1, np.int32), np.arange(len(picks))

    def scores() -> Array:
        """All of them: a token that adds nothing new ranks behind every other, and a pick is out."""
        return np.where(left > limit, score, np.where(order[segments] < 0, last, -np.inf))

    for step in range(picks[0]):
        if picks[len(segments) - 1] <= step:
            segments = segments[: sum(k > step for k in picks)]
            left, weight, score, product = (x[: len(segments)] for x in (left, weight, score, product))
            c = c[: len(segments)]
        if step in changes:
            weighed = np.where(step < early, at_first, always)[: len(segments)]
            weight = np.where(left > -np.inf, weighed, 1)
            np.multiply(weight, left, score)
        # Without a look at what is new: where only what is not new would be picked, another look is taken.
        pick = _first_of_best(score, segments)
        new = left[segments, pick] > limit
        if not new.all():
            pick = _first_of_best(scores(), segments)
            new = left[segments, pick] > limit
            weight[(left <= limit) & (left > -np.inf)] = 0  # it does not come back
        order[segments, pick] = step
        if step + 1 == picks[0]:
            break
        row = similarities(segments, pick, scores, left)
        at_pick = torch.from_numpy(rows[segments, :step, pick]).unsqueeze(2)  # (A, step, 1)
        e = _difference(torch.baddbmm, row.unsqueeze(1), at_pick.mT, c[:, :step], step * left.size).numpy()[:, 0]
        scale = 1 / np.sqrt(np.maximum(left[segments, pick], limit))
        if not new.all():  # what is not new spans nothing: its row would be rounding divided by rounding
            e[~new], scale[~new] = 0, 0
        now = np.multiply(e, scale[:, None], rows[: len(segments), step])
        np.subtract(left, np.multiply(now, now, product), left)
        left[segments, pick], weight[segments, pick] = -np.inf, 1  # a weight of 0 would make it NaN
        np.multiply(weight, left, score)
    return torch.from_numpy(order)


def conditional_dpp_of_one(
    r: Tensor,
    residual: Tensor,
    fill: Tensor,
    c: Tensor,
    picks: int,
    similarities: Callable[[int, Callable[[], Array], Array], Tensor],
    head: tuple[Tensor, int] | None = None,
) -> Tensor:
    """The same for one segment: order int32 (n,).

    r, residual: (n,).  c: (k, n).  similarities: of a pick, what tells the scores (n,) it was chosen by, and residuals
    (n,), the row of S (n,).  head: relevance (n,) of the first picks, and how many.
    """
    left, rows = residual.numpy(), c.numpy()
    early = 0 if head is None else head[1]
    weight = np.square((head[0] if head is not None and early else r).numpy())
    score, product = weight * left, np.empty_like(left)
    limit, tie = left.dtype.type(EXHAUSTED), left.dtype.type(TIE)
    order = np.full(left.shape, -1, np.int32)

    def scores() -> Array:
        return np.where(left > limit, score, np.where(order < 0, fill.numpy(), -np.inf))

    def first_of_best(score: Array) -> int:
        best = int(score.argmax())
        return int((score[: best + 1] >= score[best] - tie * abs(score[best])).argmax())

    for step in range(picks):
        if step and step == early:
            weight = np.where(left > -np.inf, np.square(r.numpy()), 1)
            np.multiply(weight, left, score)
        pick = first_of_best(score)
        if left[pick] <= limit:
            known = scores()
            pick = first_of_best(known)
            if left[pick] <= limit:  # nor will any other token add something new
                order[np.argsort(-known, kind="stable")[: picks - step]] = np.arange(step, picks)
                break
            weight[(left <= limit) & (left > -np.inf)] = 0
        order[pick] = step
        if step + 1 == picks:
            break
        row = similarities(pick, scores, left)
        at_pick = torch.from_numpy(rows[:step, pick].copy())
        if step * len(left) < WITHOUT_BLAS:
            e = torch.baddbmm(row[None, None], at_pick[None, None], c[None, :step], alpha=-1)[0, 0]
        else:
            e = _difference(torch.addmv, row, torch.from_numpy(rows[:step].T), at_pick, step * len(left))
        now = np.multiply(e.numpy(), 1 / np.sqrt(left[pick]), rows[step])
        np.subtract(left, np.multiply(now, now, product), left)
        left[pick], weight[pick] = -np.inf, 1
        np.multiply(weight, left, score)
    return torch.from_numpy(order)


def _difference(operation: Callable[..., Tensor], own: Tensor, left: Tensor, right: Tensor, products: int) -> Tensor:
    """Compute own - left @ right.

    Small ones in this thread alone: there is one for each pick.
    """
    if products > ALONE:
        return operation(own, left, right, alpha=-1)
    limit = product_threads()
    before = limit(1)
    try:
        return operation(own, left, right, alpha=-1)
    finally:
        limit(before)


def _first_of_best(score: Array, segments: Array) -> Array:
    """In each segment, the first token whose score (A, n) is that of the best or within TIE of it: (A,)."""
    highest = score[segments, score.argmax(1)]
    first: Array = (score >= (highest - TIE * np.abs(highest))[:, None]).argmax(1)
    return first
