"""Who is merged with whom, and means of what merged, in batched torch."""

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
from vidsieve.ops.limits import NOISE, TIE
from vidsieve.ops.pieces import PIECE_BYTES, unit_rows, working


def nearest_kept(problem: NearestKeptProblem) -> Tensor:
    x, offsets, kept = problem
    assigned_to = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
    bounds = offsets.tolist()
    first = torch.searchsorted(kept, offsets).tolist()  # rows of `kept` that fall into each segment
    for (begin, end), (a, b) in zip(pairwise(bounds), pairwise(first), strict=True):
        if a == b:
            continue
        target = unit_rows(x[kept[a:b]])  # (k, D)
        rows = max(1, PIECE_BYTES // (4 * x.shape[1]))
        for at in range(begin, end, rows):
            stop = min(at + rows, end)
            similarity = unit_rows(x[at:stop]) @ target.mT  # (n, k)
            best = similarity.amax(1, keepdim=True)
            tied = similarity >= best - TIE * best.abs()
            assigned_to[at:stop] = a + tied.int().argmax(1)
    assigned_to[kept] = torch.arange(len(kept), device=x.device)
    return assigned_to


def temporal(problem: TemporalProblem) -> tuple[Tensor, Tensor]:
    x, norm, offsets, frames, at = problem
    position = torch.arange(len(x), device=x.device)
    segment = torch.searchsorted(offsets[1:], position, right=True)
    chain = segment * ((max(frames) + 1) * max(frames)) + _place(frames, position if at is None else at)
    chain, order = chain.sort(stable=True)  # by segment, place and time
    before = torch.full_like(order, -1)
    before.index_copy_(0, order[1:], order[:-1].where(chain[1:] == chain[:-1], -1))
    that = before.clamp(min=0)
    dot = norm.new_empty(len(x))
    rows = max(1, PIECE_BYTES // (8 * x.shape[1]))
    for begin in range(0, len(x), rows):
        piece = slice(begin, begin + rows)
        torch.linalg.vecdot(x[piece].to(norm.dtype), x[that[piece]].to(norm.dtype), out=dot[piece])
    lengths = norm * norm[that]
    alike = (norm == norm[that]).to(norm.dtype)  # where one of them is zero: whether both are
    cosine = torch.where(lengths > 0, dot / lengths.where(lengths > 0, 1.0), alike)
    cosine = cosine.where(cosine < 1 - NOISE, 1.0).masked_fill(before < 0, -2.0)
    return before, cosine.float()


def _place(frames: tuple[int, ...], at: Tensor) -> Tensor:
    """What two tokens of a video share if they lie at the same place in frames of the same size: int64 (n,)."""
    if min(frames) == max(frames):
        return at % frames[0]
    lengths = torch.tensor(frames, device=at.device)
    size = torch.repeat_interleave(lengths, lengths, output_size=sum(frames))
    begin = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths, output_size=sum(frames))
    return size[at] * max(frames) + at - begin[at]


def merge_runs(problem: MergeRunsProblem) -> tuple[Tensor, ...]:
    cosine, before, threshold, longest = problem
    found = cosine < threshold
    count = found.cumsum(0)
    index = torch.nonzero_static(found, size=len(cosine))[:, 0]  # and then -1
    row = torch.where(found, count - 1, -1)
    return index, count[-1:], row, *follow_runs(FollowRunsProblem(row, before, longest))


def follow_runs(problem: FollowRunsProblem) -> tuple[Tensor, Tensor]:
    row, before, longest = problem
    n = len(row)
    at = torch.arange(n, device=row.device)
    joins = (row < 0) & (before >= 0)
    head = torch.where(joins, before, at)
    for _ in range((longest - 1).bit_length()):  # each doubles how far back it reaches
        head = head[head]
    next_member = row.new_full((n + 1,), -1)
    next_member.scatter_(0, torch.where(joins, before, n), at)  # who joins nobody goes to a place of its own
    return row[head], next_member[:n]


def merge_mean(problem: MergeProblem) -> Tensor:
    x, assigned_to, kept, weight, _ = problem
    # Summed in a fixed order, so that the same input gives the same bits on every run.
    ordered, by = assigned_to.sort(stable=True)
    bounds = torch.searchsorted(ordered, torch.arange(len(kept) + 1, device=x.device))
    flat = x[by].reshape(len(x), -1).to(working(x))
    if weight is None:
        mean = torch.segment_reduce(flat, "mean", offsets=bounds, axis=0, unsafe=True)
    else:
        w = weight[by].to(flat.dtype)[:, None]
        total, of = (torch.segment_reduce(y, "sum", offsets=bounds, axis=0, unsafe=True) for y in (flat * w, w))
        mean = total / of
    return mean.reshape(len(kept), *x.shape[1:]).to(x.dtype)


def merge_among(problem: MergeAmongProblem) -> Tensor:
    merge, index, begin = problem
    x, assigned_to, kept = merge[:3]
    mean = merge_mean(merge._replace(x=x[begin : begin + len(assigned_to)]))
    return x.index_select(0, index).index_copy(0, torch.searchsorted(index, kept + begin), mean)
