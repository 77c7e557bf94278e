"""The selections in float64, one pick and one token at a time; equation numbers: docs/method.md."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from vidsieve.ops.definitions import GreedyProblem, HybridProblem, MMRProblem, TopProblem
from vidsieve.ops.limits import EXHAUSTED, TIE
from vidsieve.ops.measurement.reference import unit_rows


def first_best(score: Tensor) -> int:
    best = score.max()
    return int((score >= best - TIE * best.abs()).nonzero()[0])


def radical_inverse(i: int) -> float:
    """The binary digits of i mirrored at the point, in [0, 1): van der Corput, evenly spread at any length."""
    return int(f"{i:b}"[::-1], 2) / (1 << i.bit_length()) if i else 0.0


def _segments(offsets: Tensor, budget: Tensor) -> list[tuple[int, int, int]]:
    bounds = offsets.tolist()
    return [(begin, end, k) for (begin, end), k in zip(pairwise(bounds), budget.tolist(), strict=True) if k]


def conditional_dpp(problem: GreedyProblem) -> Tensor:
    """Eq. 5-8: Chen et al. 2018, algorithm 1, on S; the condition weighs the choice (eq. 7, 7b)."""
    x, relevance, offsets, budget, *_, head = problem
    relevance = torch.ones(len(x), device=x.device) if relevance is None else relevance
    at_first, early = (relevance, torch.zeros_like(budget)) if head is None else head
    order = torch.full((len(x),), -1, dtype=torch.int32, device=x.device)
    for (begin, end, k), few in zip(_segments(offsets, budget), early[budget > 0].tolist(), strict=True):
        unit = unit_rows(x[begin:end])
        similarity = unit @ unit.mT  # (n, n)
        residual = (unit.norm(dim=-1) > 0).double()  # (n,)
        fill = torch.tensor([-1 - radical_inverse(i) for i in range(end - begin)], device=x.device).double()
        rows: list[Tensor] = []  # c of eq. 6, one (n,) a pick
        open_ = torch.ones(end - begin, dtype=torch.bool, device=x.device)
        for step in range(k):
            r = (at_first if step < few else relevance)[begin:end].double()  # eq. 7b
            gain = torch.where(residual > EXHAUSTED, r**2 * residual, fill)  # eq. 7
            j = first_best(gain.masked_fill(~open_, -math.inf))
            order[begin + j], open_[j] = step, False
            if residual[j] > EXHAUSTED:
                e = similarity[j].clone()
                for c in rows:
                    e -= c[j] * c
                e /= residual[j].sqrt()  # eq. 6
                rows.append(e)
                residual = (residual - e**2).clamp(min=0)  # eq. 8
    return order


def mmr(problem: MMRProblem) -> Tensor:
    """Eq. 9."""
    (x, relevance, offsets, budget, *_), trade = problem
    relevance = torch.ones(len(x), device=x.device) if relevance is None else relevance
    order = torch.full((len(x),), -1, dtype=torch.int32, device=x.device)
    for begin, end, k in _segments(offsets, budget):
        unit, r = unit_rows(x[begin:end]), relevance[begin:end].double()
        closest = torch.full_like(r, -1.0)
        open_ = torch.ones(end - begin, dtype=torch.bool, device=x.device)
        for step in range(k):
            score = trade * r - (1 - trade) * closest
            j = first_best(score.masked_fill(~open_, -math.inf))
            order[begin + j], open_[j] = step, False
            closest = torch.maximum(closest, unit @ unit[j])
    return order


def hybrid(problem: HybridProblem) -> Tensor:
    greedy, trade, threshold = problem
    small = greedy.offsets.diff() <= threshold
    exact = conditional_dpp(greedy._replace(budget=greedy.budget.where(small, 0), head=None))
    return torch.maximum(exact, mmr(MMRProblem(greedy._replace(budget=greedy.budget.where(~small, 0)), trade)))


def max_min(problem: GreedyProblem) -> Tensor:
    """Eq. 10."""
    x, _, offsets, budget, *_ = problem
    order = torch.full((len(x),), -1, dtype=torch.int32, device=x.device)
    for begin, end, k in _segments(offsets, budget):
        unit = unit_rows(x[begin:end])
        similarity = unit @ unit.mT
        closest = similarity.fill_diagonal_(-2.0).max(dim=1).values  # of each to its nearest other
        open_ = torch.ones(end - begin, dtype=torch.bool, device=x.device)
        for step in range(k):
            j = first_best((-closest).masked_fill(~open_, -math.inf))
            order[begin + j], open_[j] = step, False
            row = unit @ unit[j]
            closest = row if step == 0 else torch.maximum(closest, row)
    return order


def top(problem: TopProblem) -> Tensor:
    score, offsets, budget = problem
    order = torch.full((len(score),), -1, dtype=torch.int32, device=score.device)
    for begin, end, k in _segments(offsets, budget):
        ranked = sorted(range(begin, end), key=lambda i: (-float(score[i]), i))
        for step, i in enumerate(ranked[:k]):
            order[i] = step
    return order


def log_det(x: Tensor, relevance: Tensor, kept: Tensor) -> float:
    """log det of L restricted to `kept`, eq. 5; -inf where it is singular."""
    unit = unit_rows(x[kept]) * relevance[kept].double()[:, None]
    return float(torch.linalg.slogdet(unit @ unit.mT).logabsdet)
