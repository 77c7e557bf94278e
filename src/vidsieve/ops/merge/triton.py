"""Who is merged with whom, and means of what merged, by kernels."""

import torch
from torch import Tensor

from vidsieve.ops.definitions import (
    FollowRunsProblem,
    MeasureProblem,
    MergeAmongProblem,
    MergeProblem,
    MergeRunsProblem,
    NearestKeptProblem,
    TemporalProblem,
)
from vidsieve.ops.launch import cdiv, covering, launch, precision, rows_of
from vidsieve.ops.measurement.triton import measure
from vidsieve.ops.merge.kernels import (
    _begin_kernel,
    _follow_runs_kernel,
    _mean_kernel,
    _nearest_kept_kernel,
    _temporal_kernel,
)


def nearest_kept(problem: NearestKeptProblem) -> Tensor:
    x, offsets, kept = problem
    x = rows_of(x)
    norm = measure(MeasureProblem(x, (len(x),))).norm
    segment = torch.searchsorted(offsets[1:], torch.arange(len(x), device=x.device), right=True)
    rows = torch.searchsorted(kept, offsets)  # (S + 1,) rows of `kept` before each segment
    assigned_to = torch.empty(len(x), dtype=torch.int64, device=x.device)
    launch(
        _nearest_kept_kernel, (cdiv(len(x), 64),),
        x, norm, segment, rows, kept, assigned_to, len(x), x.stride(0),
        D=x.shape[1], PRECISION=precision(x), BLOCK_N=64, BLOCK_K=64, BLOCK_D=32,
    )  # fmt: skip
    return assigned_to.scatter_(0, kept, torch.arange(len(kept), device=x.device))


def temporal(problem: TemporalProblem) -> tuple[Tensor, Tensor]:
    x, norm, offsets, frames, at = problem
    x = rows_of(x)
    n, d = x.shape
    before = torch.empty(n, dtype=torch.int64, device=x.device)
    cosine = torch.empty(n, dtype=torch.float32, device=x.device)
    slot = before
    if at is not None:
        at = at.contiguous()
        slot = torch.full((sum(frames),), -1, dtype=torch.int32, device=x.device)
        slot.index_copy_(0, at, torch.arange(n, dtype=torch.int32, device=x.device))
    segments = len(offsets) - 1
    launch(
        _temporal_kernel, (n,),
        x, norm, offsets, before if at is None else at, slot, before, cosine, segments, frames[0], x.stride(0),
        WHOLE=at is None, D=d, BLOCK_S=min(1024, covering(segments)),
        BLOCK_T=min(64, covering(len(frames))), BLOCK_D=min(1024, covering(d)),
    )  # fmt: skip
    return before, cosine


def merge_runs(problem: MergeRunsProblem) -> tuple[Tensor, ...]:
    cosine, before, threshold, _ = problem
    n = len(cosine)
    index, row, assigned_to, next_member = (torch.empty_like(before) for _ in range(4))
    count = before.new_empty(1)
    block = min(4096, covering(n))
    launch(
        _begin_kernel, (1,), cosine, index, row, next_member, count, n, threshold,
        BLOCK=block, num_warps=8 if block > 512 else 1,
    )  # fmt: skip
    launch(_follow_runs_kernel, (cdiv(n, 128),), row, before, assigned_to, next_member, n, BLOCK=128)
    return index, count, row, assigned_to, next_member


def follow_runs(problem: FollowRunsProblem) -> tuple[Tensor, Tensor]:
    row, before, _ = problem
    assigned_to, next_member = torch.empty_like(before), torch.full_like(before, -1)
    launch(
        _follow_runs_kernel, (cdiv(len(before), 128),), row, before, assigned_to, next_member, len(before), BLOCK=128
    )
    return assigned_to, next_member


def merge_mean(problem: MergeProblem) -> Tensor:
    x, kept = problem.x, problem.kept
    rows = problem._replace(x=x.reshape(len(x), -1))
    return merge_among(MergeAmongProblem(rows, kept, 0)).view(len(kept), *x.shape[1:])


def merge_among(problem: MergeAmongProblem) -> Tensor:
    (x, assigned_to, kept, weight, next_member), index, begin = problem
    x = x if x.stride(-1) == 1 else x.contiguous()
    m, d = len(index), x.shape[1]
    out = x.new_empty(m, d)
    block = min(1024, covering(d))
    if next_member is None:
        next_member = _next_members(assigned_to, kept)
    launch(
        _mean_kernel, (m, cdiv(d, block)),
        x, index, next_member, index if weight is None else weight, out,
        x.stride(0), begin, len(assigned_to), D=d, WEIGHTED=weight is not None, BLOCK_D=block,
    )  # fmt: skip
    return out


def _next_members(assigned_to: Tensor, kept: Tensor) -> Tensor:
    """The next row that is assigned to the same kept one (N,), which is the first of them; -1 for the last."""
    # A radix sort passes over the keys once a byte, so short ones are sorted sooner.
    key = (2 * assigned_to + 1).to(torch.int16 if len(kept) < 1 << 14 else torch.int32)
    key[kept] -= 1
    ordered, by = key.sort(stable=True)
    following = torch.where(ordered[1:] >> 1 == ordered[:-1] >> 1, by[1:], -1)
    return torch.full_like(assigned_to, -1).scatter_(0, by[:-1], following)
