"""The tokens that stay, moved next to one another: each one program a segment or a row."""

import triton
import triton.language as tl

from vidsieve.ops.greedy.short_segments import _picks_before
from vidsieve.ops.launch import COUNTS


@triton.jit(do_not_specialize=COUNTS)
def _compact_kernel(
    order_ptr,  # (N,) int32, -1 where not picked
    offsets_ptr,  # (S + 1,) int64
    budget_ptr,  # (S,) int64, the picks in each segment
    kept_ptr,  # (K,) int64 out: the picked tokens, in their own order
    source_ptr,  # (N,) int64 out: row among the kept, -1 where not picked
    total,
    segments,  # of each video, as are the tokens and the picks; both are counted within a video
    tokens,
    picks,
    BLOCK: tl.constexpr,
):
    segment = tl.program_id(0)
    video = (segment // segments).to(tl.int64)
    begin = tl.load(offsets_ptr + segment)
    n = (tl.load(offsets_ptr + segment + 1) - begin).to(tl.int32)
    before = _picks_before(budget_ptr, segment, 1, 128)
    for at in range(0, n, BLOCK):
        i = at + tl.arange(0, BLOCK)
        picked = tl.load(order_ptr + begin + i, mask=i < n, other=-1) >= 0
        row = before + tl.cumsum(picked.to(tl.int32), 0) - 1
        tl.store(kept_ptr + row, begin + i - video * tokens, mask=picked & (row < total))
        tl.store(source_ptr + begin + i, tl.where(picked, row - video * picks, -1), mask=i < n)
        before += tl.sum(picked.to(tl.int32), 0)


@triton.jit(do_not_specialize=[*COUNTS, "longest"])
def _compact_rows_kernel(
    left_ptr,  # (B, n) int64, below 0 where it goes: of the columns from `begin` on
    index_ptr,  # (B, M) int64 out
    valid_ptr,  # (B, M) int64 out
    slot_ptr,  # (B, L) int64 out
    n,
    begin,
    length,
    longest,
    PADDED: tl.constexpr,  # whether rows may keep less than `longest`
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    left_ptr += row * n
    slot_ptr += row * length
    index_ptr += row * longest
    valid_ptr += row * longest
    done = 0
    if PADDED:
        done = longest - length
        for at in range(0, n, BLOCK):
            i = at + tl.arange(0, BLOCK)
            done += tl.sum((tl.load(left_ptr + i, mask=i < n, other=0) < 0).to(tl.int32), 0)
        for at in range(0, done, BLOCK):
            i = at + tl.arange(0, BLOCK)
            tl.store(index_ptr + i, tl.zeros((BLOCK,), tl.int64), mask=i < done)
            tl.store(valid_ptr + i, tl.zeros((BLOCK,), tl.int64), mask=i < done)
    for at in range(0, length, BLOCK):
        j = at + tl.arange(0, BLOCK)
        i = j - begin
        stays = (j < length) & (tl.load(left_ptr + i, mask=(i >= 0) & (i < n), other=0) >= 0)
        new = done + tl.cumsum(stays.to(tl.int32), 0) - 1
        tl.store(slot_ptr + j, new, mask=j < length)
        tl.store(index_ptr + new, j.to(tl.int64), mask=stays)
        tl.store(valid_ptr + new, tl.full((BLOCK,), 1, tl.int64), mask=stays)
        done += tl.sum(stays.to(tl.int32), 0)
