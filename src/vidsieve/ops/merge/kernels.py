"""Merging along time: the token before each and how alike the two are, where runs begin, and means of what merged;
and the kept token nearest to each."""

import triton
import triton.language as tl

from vidsieve.ops.launch import COUNTS
from vidsieve.ops.limits import NOISE, TIE
from vidsieve.ops.measurement.gram import _inverse

_NOISE: tl.constexpr = tl.constexpr(NOISE)
_TIE: tl.constexpr = tl.constexpr(TIE)


@triton.jit(do_not_specialize=COUNTS)
def _temporal_kernel(
    x_ptr,  # (N, D), rows `stride` apart
    norm_ptr,  # (N,) float32, length of each row
    offsets_ptr,  # (S + 1,) int64
    at_ptr,  # (N,) int64, places in the whole video; read unless WHOLE
    slot_ptr,  # (N whole,) int32, the token at each place of the whole video, -1 if it is gone; read unless WHOLE
    before_ptr,  # (N,) int64 out
    cosine_ptr,  # (N,) float32 out
    segments,
    per_frame,  # tokens of a frame of the whole video
    stride,
    WHOLE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program a token. Eq. 14."""
    i = tl.program_id(0).to(tl.int64)
    begin = i * 0
    for first in range(0, segments, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        bound = tl.load(offsets_ptr + s, mask=s < segments, other=0)
        begin = tl.maximum(begin, tl.max(tl.where(bound <= i, bound, 0), 0))
    if WHOLE:
        before = i - per_frame
    else:
        at = tl.load(at_ptr + i)
        before = i * 0 - 1
        last = at - per_frame
        while last >= 0:
            place = last - tl.arange(0, BLOCK_T).to(tl.int64) * per_frame
            # Earlier places hold earlier tokens, so the latest is the largest.
            before = tl.max(tl.load(slot_ptr + place, mask=place >= 0, other=-1), 0).to(tl.int64)
            last = tl.where(before >= 0, -1, last - BLOCK_T * per_frame)
    cosine = -2.0
    if before >= begin:
        d = tl.arange(0, BLOCK_D)
        acc = tl.zeros((BLOCK_D,), tl.float32)
        for k in range(0, D, BLOCK_D):
            x = tl.load(x_ptr + i * stride + k + d, mask=d < D - k, other=0.0).to(tl.float32)
            acc += x * tl.load(x_ptr + before * stride + k + d, mask=d < D - k, other=0.0).to(tl.float32)
        norm = tl.load(norm_ptr + i)
        norm_before = tl.load(norm_ptr + before)
        lengths = norm * norm_before
        alike = (norm == norm_before).to(tl.float32)
        cosine = tl.where(lengths > 0, tl.sum(acc, 0) / tl.where(lengths > 0, lengths, 1.0), alike)
        cosine = tl.where(cosine < 1.0 - _NOISE, cosine, 1.0)
    tl.store(before_ptr + i, tl.where(before >= begin, before, -1))
    tl.store(cosine_ptr + i, cosine)


@triton.jit(do_not_specialize=COUNTS)
def _begin_kernel(
    value_ptr,  # (N,) float32
    index_ptr,  # (N,) int64 out: places of values below the threshold, in order
    row_ptr,  # (N,) int64 out: of each place its row there, or -1
    link_ptr,  # (N,) int64 out: -1
    count_ptr,  # (1,) int64 out
    n,
    threshold,
    BLOCK: tl.constexpr,
):
    """One program for all tokens: the rows count on from one another."""
    done = 0
    for at in range(0, n, BLOCK):
        i = at + tl.arange(0, BLOCK)
        found = (i < n) & (tl.load(value_ptr + i, mask=i < n, other=0.0) < threshold)
        row = done + tl.cumsum(found.to(tl.int32), 0) - 1
        tl.store(row_ptr + i, tl.where(found, row, -1).to(tl.int64), mask=i < n)
        tl.store(link_ptr + i, tl.full((BLOCK,), -1, tl.int64), mask=i < n)
        tl.store(index_ptr + row, i.to(tl.int64), mask=found)
        done += tl.sum(found.to(tl.int32), 0)
    tl.store(count_ptr, tl.cast(done, tl.int64))


@triton.jit(do_not_specialize=COUNTS)
def _follow_runs_kernel(
    row_ptr,  # (N,) int64, -1 for tokens that begin no run
    before_ptr,  # (N,) int64
    source_ptr,  # (N,) int64 out
    link_ptr,  # (N,) int64 out: the next token of the run; -1 on entry
    n,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    source = tl.load(row_ptr + i, mask=i < n, other=0)
    before = tl.load(before_ptr + i, mask=i < n, other=-1)
    on = (source < 0) & (before >= 0)
    tl.store(link_ptr + before, i.to(tl.int64), mask=on)
    left = tl.max(on.to(tl.int32), 0)
    while left > 0:
        source = tl.where(on, tl.load(row_ptr + before, mask=on, other=0), source)
        before = tl.load(before_ptr + before, mask=on, other=-1)
        on &= (source < 0) & (before >= 0)
        left = tl.max(on.to(tl.int32), 0)
    tl.store(source_ptr + i, source, mask=i < n)


@triton.jit(do_not_specialize=COUNTS)
def _mean_kernel(
    x_ptr,  # (L, D), rows `stride` apart
    index_ptr,  # (M,) int64, the first row of each mean
    link_ptr,  # (N,) int64, of the rows from `begin` on the next of the same mean, -1 if none; others stand alone
    weight_ptr,  # (N,); read if WEIGHTED
    out_ptr,  # (M, D) out
    stride,
    begin,
    n,
    D: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    acc = tl.zeros((BLOCK_D,), tl.float32)
    total = 0.0
    i = tl.load(index_ptr + row) - begin  # counted from there
    going = tl.full((), 1, tl.int32)
    while going > 0:
        merges = (i >= 0) & (i < n)
        following = tl.load(link_ptr + i, mask=merges, other=-1)
        weight = 1.0
        if WEIGHTED:
            weight = tl.load(weight_ptr + i, mask=merges, other=1).to(tl.float32)
        acc += weight * tl.load(x_ptr + (begin + i) * stride + d, mask=d < D, other=0.0).to(tl.float32)
        total += weight
        i = following
        going = (following >= 0).to(tl.int32)
    tl.store(out_ptr + row * D + d, acc / total, mask=d < D)


@triton.jit(do_not_specialize=COUNTS)
def _nearest_kept_kernel(
    x_ptr,  # (N, D) features, rows `stride` apart
    norm_ptr,  # (N,) float32, length of each row
    segment_ptr,  # (N,) int64
    rows_ptr,  # (S + 1,) int64, rows of `kept` before each segment
    kept_ptr,  # (K,) int64, sorted
    source_ptr,  # (N,) int64 out: row of `kept` nearest to each token in its segment, -1 where it kept none
    n,
    stride,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A tile of tokens against the kept tokens of the segments it touches. Eq. 11."""
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    d = tl.arange(0, BLOCK_D)
    segment = tl.load(segment_ptr + i, mask=i < n, other=0)
    low = tl.load(rows_ptr + segment, mask=i < n, other=1)  # rows of `kept` in this token's segment
    high = tl.load(rows_ptr + segment + 1, mask=i < n, other=1)
    best = tl.full((BLOCK_N,), -4.0, tl.float32)
    source = tl.full((BLOCK_N,), -1, tl.int64)
    first = tl.min(tl.where(i < n, low, 1 << 60), 0)
    last = tl.max(tl.where(i < n, high, 0), 0)
    for at in range(first, last, BLOCK_K):
        row = at + tl.arange(0, BLOCK_K)  # (BLOCK_K,)
        kept = tl.load(kept_ptr + row, mask=row < last, other=0)
        acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for k in range(0, D, BLOCK_D):
            inside = d[None, :] < D - k
            xi = tl.load(
                x_ptr + i.to(tl.int64)[:, None] * stride + k + d[None, :], mask=(i < n)[:, None] & inside, other=0.0
            )
            xk = tl.load(
                x_ptr + kept[:, None] * stride + k + d[None, :], mask=(row < last)[:, None] & inside, other=0.0
            )
            acc = tl.dot(xi, xk.T, acc, input_precision=PRECISION)
        acc *= _inverse(norm_ptr, i, i < n)[:, None] * _inverse(norm_ptr, kept, row < last)[None, :]
        acc = tl.where(acc == acc, acc, 0.0)
        acc = tl.where((row[None, :] >= low[:, None]) & (row[None, :] < high[:, None]), acc, -4.0)
        here = tl.max(acc, 1)
        tied = acc >= (here - _TIE * tl.abs(here))[:, None]
        choice = tl.min(tl.where(tied, row[None, :].to(tl.int64), 1 << 60), 1)
        better = here > best + _TIE * tl.abs(best)
        source = tl.where(better & (here > -3.0), choice, source)
        best = tl.where(better, here, best)
    tl.store(source_ptr + i, source, mask=i < n)
