"""Who is merged with whom, and means of what merged, in float64, one token at a time; equations: docs/method.md."""

from itertools import pairwise

import torch
from torch import Tensor

from vidsieve.ops.definitions import (
    FollowRunsProblem,
    MergeAmongProblem,
    MergeProblem,
    MergeRunsProblem,
    NearestKeptProblem,
    TemporalProblem,
)
from vidsieve.ops.greedy.reference import first_best
from vidsieve.ops.limits import NOISE
from vidsieve.ops.measurement.reference import unit_rows


def nearest_kept(problem: NearestKeptProblem) -> Tensor:
    """Eq. 11."""
    x, offsets, kept = problem
    assigned_to = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
    bounds = offsets.tolist()
    for begin, end in pairwise(bounds):
        rows = ((kept >= begin) & (kept < end)).nonzero()[:, 0]
        if len(rows):
            unit = unit_rows(x[begin:end])
            similarity = unit @ unit[kept[rows] - begin].mT  # (n, k)
            for i in range(end - begin):
                assigned_to[begin + i] = rows[first_best(similarity[i])]
            assigned_to[kept[rows]] = rows
    return assigned_to


def temporal(problem: TemporalProblem) -> tuple[Tensor, Tensor]:
    """The token before each, and the cosine to it: eq. 14."""
    x, _, offsets, frames, at = problem
    unit = unit_rows(x)
    places = [(size, place) for size in frames for place in range(size)]  # of every token of the whole video
    where = range(len(x)) if at is None else at.tolist()
    before = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
    cosine = torch.full((len(x),), -2.0, device=x.device)
    for begin, end in pairwise(offsets.tolist()):
        latest: dict[tuple[int, int], int] = {}
        for i in range(begin, end):
            j = latest.get(places[where[i]])
            latest[places[where[i]]] = i
            if j is None:
                continue
            before[i] = j
            if bool(unit[i].any()) and bool(unit[j].any()):
                c = float(unit[i] @ unit[j])
                cosine[i] = c if c < 1 - NOISE else 1.0
            else:
                cosine[i] = float(bool(unit[i].any()) == bool(unit[j].any()))
    return before, cosine


def merge_runs(problem: MergeRunsProblem) -> tuple[Tensor, ...]:
    """Eq. 14."""
    cosine, before, threshold, longest = problem
    found = (cosine < threshold).nonzero().flatten()
    row = torch.full((len(cosine),), -1, dtype=torch.int64, device=cosine.device)
    row[found] = torch.arange(len(found), device=cosine.device)
    index = torch.cat([found, row.new_zeros(len(cosine) - len(found))])
    return index, row.new_tensor([len(found)]), row, *follow_runs(FollowRunsProblem(row, before, longest))


def follow_runs(problem: FollowRunsProblem) -> tuple[Tensor, Tensor]:
    """The run of eq. 14 that each token belongs to, and who follows it there."""
    row, before, _ = problem
    assigned_to: list[int] = []
    next_member = [-1] * len(row)
    for i, (own, j) in enumerate(zip(row.tolist(), before.tolist(), strict=True)):
        assigned_to.append(own if own >= 0 or j < 0 else assigned_to[j])
        if own < 0 <= j:
            next_member[j] = i
    return torch.tensor(assigned_to, device=row.device), torch.tensor(next_member, device=row.device)


def merge_mean(problem: MergeProblem) -> Tensor:
    """Eq. 12, and 15 where tokens have weights."""
    x, assigned_to, kept, weight, _ = problem
    w = torch.ones(len(x), dtype=torch.float64, device=x.device) if weight is None else weight.double()
    weighted = x.double() * w.view(-1, *[1] * (x.ndim - 1))
    means = [weighted[assigned_to == row].sum(0) / w[assigned_to == row].sum() for row in range(len(kept))]
    return torch.stack(means).to(x.dtype)


def merge_among(problem: MergeAmongProblem) -> Tensor:
    """Eq. 12, and 15 where tokens have weights, amid tokens that stay as they are."""
    merge, index, begin = problem
    x, assigned_to, kept = merge[:3]
    merged = x.clone()
    merged[begin + kept] = merge_mean(merge._replace(x=x[begin : begin + len(assigned_to)]))
    return merged[index]
