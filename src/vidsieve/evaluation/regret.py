"""Judging a selection: each pick's gain against the best gain of its own path, in float64 (method.md, eq. 13)."""

from itertools import pairwise

import torch
from torch import Tensor

from vidsieve.methods.relevance import EPSILON
from vidsieve.ops.greedy.eager import radical_inverse
from vidsieve.ops.limits import EXHAUSTED

HELD = 2048  # tokens; for longer segments rows of S are computed as they are needed


def relevance64(x: Tensor, prompt: Tensor | None) -> Tensor:
    """Eq. 4 in float64: (N,)."""
    if prompt is None:
        return torch.ones(len(x), dtype=torch.float64, device=x.device)
    score = unit64(x) @ unit64(prompt).mean(0)
    low, high = score.aminmax()
    return (score - low + EPSILON) / (high - low + EPSILON)


def unit64(x: Tensor) -> Tensor:
    """Rows of x (N, D) in float64 and of length one, a zero row staying zero."""
    x = x.double()
    unit: Tensor = x / x.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    return unit


def regret(unit: Tensor, r: Tensor, bounds: list[int], order: Tensor, trade: float | None = None) -> float:
    """The largest shortfall of a pick along the path that `order` (N,) took, over all segments.

    unit (N, D) and r (N,) float64.  trade: None for the gains of the DPP (eq. 7), else the weight of MMR (eq. 9).
    """
    worst = torch.zeros((), dtype=torch.float64, device=unit.device)
    for begin, end in pairwise(bounds):
        steps = order[begin:end]
        path = steps.argsort(stable=True)[int((steps < 0).sum()) :]  # (k,), in the order of the picks
        if len(path):
            segment = (unit[begin:end], r[begin:end], path)
            worst = torch.maximum(worst, _dpp(*segment) if trade is None else _mmr(*segment, trade))
    return float(worst)


def _dpp(unit: Tensor, r: Tensor, path: Tensor) -> Tensor:
    """Eq. 6 to 8, along a given path."""
    similarity = unit @ unit.mT if len(unit) <= HELD else None
    residual = unit.square().sum(1).sign()
    rows = unit.new_empty(len(path), len(unit))
    open_ = torch.zeros_like(r)  # -inf where picked
    fill = -1 - radical_inverse(len(r), r.device)
    shortfalls = []
    for step in range(len(path)):
        j = path[step : step + 1]  # (1,), so that nothing here waits for a device
        score = torch.where(residual > EXHAUSTED, r**2 * residual, fill) + open_
        shortfalls.append(score.max() - score[j][0])
        row = similarity[j][0] if similarity is not None else unit @ unit[j][0]
        left = residual[j]
        e = (row - rows[:step, j][:, 0] @ rows[:step]) * left.clamp(min=EXHAUSTED).rsqrt()
        e = torch.where(left > EXHAUSTED, e, 0)
        rows[step] = e
        residual = (residual - e * e).clamp(min=0)
        open_[j] = -torch.inf
    return torch.stack(shortfalls).max()


def _mmr(unit: Tensor, r: Tensor, path: Tensor, trade: float) -> Tensor:
    """Eq. 9, along a given path, all steps at once."""
    similarity = unit @ unit[path].mT  # (n, k)
    first = torch.full_like(r[:, None], -1.0)
    closest = torch.cat([first, similarity.cummax(1).values[:, :-1]], dim=1)
    score = trade * r[:, None] - (1 - trade) * closest  # (n, k)
    step = torch.arange(len(path), device=path.device)
    picked = path.new_full((len(r),), len(path)).scatter_(0, path, step)  # (n,)
    best = score.masked_fill(picked[:, None] < step, -torch.inf).amax(0)
    return (best - score[path, step]).max()
