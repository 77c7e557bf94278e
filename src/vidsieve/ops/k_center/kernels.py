"""Distances of groups of pixels within blocks, the traversals of the blocks, and the nearest of what is kept."""

import triton
import triton.language as tl

from vidsieve.ops.k_center.blocks import BLOCK_FRAMES, SHRINK
from vidsieve.ops.launch import COUNTS
from vidsieve.ops.limits import MOST, NON_FINITE

_FRAMES: tl.constexpr = tl.constexpr(BLOCK_FRAMES)
_MOST: tl.constexpr = tl.constexpr(MOST)
_NON_FINITE: tl.constexpr = tl.constexpr(NON_FINITE)
_SHRINK: tl.constexpr = tl.constexpr(SHRINK)


@triton.jit
def _block(block, frames, per_frame, count):
    """Of a block: its first frame, first place, number of places, and number of groups. count: runs of places."""
    begin = (block // count) * _FRAMES
    run = (block % count).to(tl.int64)
    first = run * per_frame // count
    places = (run + 1) * per_frame // count - first
    return begin, first, places, tl.minimum(frames - begin, _FRAMES) * places


@triton.jit(do_not_specialize=COUNTS)
def _distances_kernel(
    x_ptr,  # (T, P, C), frames and places `frame_stride` and `place_stride` apart
    distance_ptr,  # (blocks, LENGTH, LENGTH) float32 out, eq. 24; of what is no group it is not written
    nonfinite_ptr,  # (T * P,) int32 out
    frames,
    per_frame,  # P
    count,  # runs of places
    first,  # the block of the first program
    frame_stride,
    place_stride,
    C: tl.constexpr,
    LENGTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
    HALF: tl.constexpr,  # whether to multiply in bfloat16, which the values are
):
    """One program a block and a tile of its groups by groups that come no later, which it writes on both sides."""
    TILES: tl.constexpr = LENGTH // BLOCK
    here = tl.program_id(0) // (TILES * TILES)
    later = (tl.program_id(0) % (TILES * TILES)) // TILES
    earlier = tl.program_id(0) % TILES
    begin, place, places, groups = _block(here + first, frames, per_frame, count)
    if (earlier <= later) & (later * BLOCK < groups):
        i = later * BLOCK + tl.arange(0, BLOCK)
        j = earlier * BLOCK + tl.arange(0, BLOCK)
        c = tl.arange(0, BLOCK_C)[None, :]
        at_i = (begin + i // places).to(tl.int64) * frame_stride + (place + i % places).to(tl.int64) * place_stride
        at_j = (begin + j // places).to(tl.int64) * frame_stride + (place + j % places).to(tl.int64) * place_stride
        product = tl.zeros((BLOCK, BLOCK), tl.float32)
        square_i = tl.zeros((BLOCK,), tl.float32)
        square_j = tl.zeros((BLOCK,), tl.float32)
        odd = tl.zeros((BLOCK,), tl.int32)
        for k in range(0, C, BLOCK_C):
            a = tl.load(x_ptr + at_i[:, None] + k + c, mask=(i < groups)[:, None] & (c < C - k), other=0.0)
            b = tl.load(x_ptr + at_j[:, None] + k + c, mask=(j < groups)[:, None] & (c < C - k), other=0.0)
            wide_a, wide_b = a.to(tl.float32), b.to(tl.float32)
            odd |= tl.max((~(tl.abs(wide_a) <= _MOST)).to(tl.int32), 1)
            wide_a, wide_b = wide_a * _SHRINK, wide_b * _SHRINK
            square_i += tl.sum(wide_a * wide_a, 1)
            square_j += tl.sum(wide_b * wide_b, 1)
            if HALF:  # bfloat16 holds what is shrunk as it is
                wide_a, wide_b = wide_a.to(tl.bfloat16), wide_b.to(tl.bfloat16)
            product = tl.dot(wide_a, tl.trans(wide_b), product, input_precision=PRECISION)
        distance = square_i[:, None] + square_j[None, :] - 2 * product
        distance = tl.where((distance > 0) & (distance < float("inf")), distance, 0.0)
        distance_ptr += here.to(tl.int64) * LENGTH * LENGTH
        both = (i < groups)[:, None] & (j < groups)[None, :]
        tl.store(distance_ptr + i[:, None] * LENGTH + j[None, :], distance, mask=both)
        tl.store(distance_ptr + j[None, :] * LENGTH + i[:, None], distance, mask=both & (earlier < later))
        if earlier == later:
            group = (begin + i // places).to(tl.int64) * per_frame + place + i % places
            tl.store(nonfinite_ptr + group, odd * _NON_FINITE, mask=i < groups)


@triton.jit(do_not_specialize=COUNTS)
def _traverse_kernel(
    distance_ptr,  # (blocks, LENGTH, LENGTH) float32
    radius_ptr,  # (T * P,) float32 out, eq. 25, of the groups that are picked
    frames,
    per_frame,
    count,
    first,
    total,  # groups that are kept in all
    SHARE: tl.constexpr,
    LENGTH: tl.constexpr,
):
    """One program a block, whose picks follow one another."""
    begin, place, places, groups = _block(tl.program_id(0) + first, frames, per_frame, count)
    every = tl.cast(frames, tl.int64) * per_frame
    most = tl.minimum(groups, (SHARE * tl.cast(total, tl.int64) * groups + every - 1) // every)
    distance_ptr += tl.program_id(0).to(tl.int64) * LENGTH * LENGTH
    j = tl.arange(0, LENGTH)
    group = (begin + j // places).to(tl.int64) * per_frame + place + j % places
    nearest = tl.load(distance_ptr + j, mask=j < groups, other=-1.0)
    nearest = tl.where((j == 0) | (j >= groups), -1.0, nearest)
    radius = tl.where(j == 0, float("inf"), -1.0)
    for _ in range(1, most):
        best = tl.max(nearest, 0)
        pick = tl.min(tl.where(nearest == best, j, LENGTH), 0)
        row = tl.load(distance_ptr + pick * LENGTH + j, mask=j < groups, other=-1.0)
        radius = tl.where(j == pick, best, radius)
        nearest = tl.where(j == pick, -1.0, tl.minimum(nearest, row))
    tl.store(radius_ptr + group, radius, mask=j < groups)


@triton.jit(do_not_specialize=COUNTS)
def _nearest_kernel(
    distance_ptr,  # (blocks, LENGTH, LENGTH) float32
    rows_ptr,  # int64 (T * P,), the row of each group among those that are kept, -1 of others
    source_ptr,  # int64 (T * P,) out
    frames,
    per_frame,
    count,
    first,
    LENGTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a block and BLOCK of its groups. Eq. 26."""
    TILES: tl.constexpr = LENGTH // BLOCK
    here = tl.program_id(0) // TILES
    begin, place, places, groups = _block(here + first, frames, per_frame, count)
    i = (tl.program_id(0) % TILES) * BLOCK + tl.arange(0, BLOCK)
    distance_ptr += here.to(tl.int64) * LENGTH * LENGTH
    best = tl.full((BLOCK,), float("inf"), tl.float32)
    nearest = tl.full((BLOCK,), -1, tl.int64)
    for k in range(0, groups, BLOCK):
        j = k + tl.arange(0, BLOCK)
        group = (begin + j // places).to(tl.int64) * per_frame + place + j % places
        row = tl.load(rows_ptr + group, mask=j < groups, other=-1)
        inside = (i < groups)[:, None] & (row >= 0)[None, :]
        apart = tl.load(distance_ptr + i[:, None] * LENGTH + j[None, :], mask=inside, other=float("inf"))
        least = tl.min(apart, 1)
        # Rows rise with the groups, so the least of them is the earlier of equals.
        of_least = tl.min(tl.where((apart == least[:, None]) & inside, row[None, :], 1 << 62), 1)
        nearest = tl.where(least < best, of_least, nearest)
        best = tl.minimum(best, least)
    group = (begin + i // places).to(tl.int64) * per_frame + place + i % places
    own = tl.load(rows_ptr + group, mask=i < groups, other=-1)
    tl.store(source_ptr + group, tl.where(own >= 0, own, nearest), mask=i < groups)
