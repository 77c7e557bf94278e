"""Cuts and budgets, each one program: as torch calls their launches would cost more than they do."""

import triton
import triton.language as tl

from vidsieve.ops.launch import COUNTS


@triton.jit
def _novelty_kernel(
    persistence_ptr,  # float32
    at_ptr,  # (N,) int64, where in it each token's is; read unless WHOLE
    offsets_ptr,  # (S + 1,) int64
    out_ptr,  # (S,) float32: eq. 2
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    segment = tl.program_id(0)
    begin = tl.load(offsets_ptr + segment)
    n = (tl.load(offsets_ptr + segment + 1) - begin).to(tl.int32)
    acc = tl.zeros((BLOCK,), tl.float32)
    for at in range(0, n, BLOCK):
        i = at + tl.arange(0, BLOCK)
        j = begin + i if WHOLE else tl.load(at_ptr + begin + i, mask=i < n, other=0)
        acc += 1.0 - tl.load(persistence_ptr + j, mask=i < n, other=1.0)
    tl.store(out_ptr + segment, tl.maximum(tl.sum(acc, 0), 0.0))


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def _smaller(a, b):
    return tl.minimum(a, b)


@triton.jit(do_not_specialize=COUNTS)
def _scene_cuts_kernel(
    persistence_ptr,  # (N,) float32
    frame_ptr,  # (T + 1,) int64 bounds of the frames
    similarity_ptr,  # (T,) float32 scratch
    out_ptr,  # (T + 1,) int64 out: bounds of the segments, the unused rest empty
    frames,
    threshold,
    max_frames,
    EVEN: tl.constexpr,  # else runs of `max_frames` frames, one after another
    BLOCK: tl.constexpr,  # a power of two that covers T + 1
    TOKENS: tl.constexpr,  # of each frame, read at a time
):
    """One program a video of T frames."""
    similarity_ptr += tl.program_id(0) * frames
    frame_ptr += tl.program_id(0) * frames
    out_ptr += tl.program_id(0) * frames
    t = tl.arange(0, BLOCK)
    first = tl.load(frame_ptr + t, mask=t < frames, other=0)
    n = tl.load(frame_ptr + t + 1, mask=t < frames, other=0) - first
    acc = tl.zeros((BLOCK, TOKENS), tl.float32)
    for at in range(0, tl.max(n, 0), TOKENS):
        i = at + tl.arange(0, TOKENS)
        acc += tl.load(persistence_ptr + first[:, None] + i[None, :], mask=i[None, :] < n[:, None], other=0.0)
    tl.store(similarity_ptr + t, tl.sum(acc, 1) / tl.maximum(n, 1).to(tl.float32), mask=t < frames)
    tl.debug_barrier()
    cut = (t == 0) | (tl.load(similarity_ptr + t, mask=t < frames, other=0.0) < threshold) | (t >= frames)
    next_cut = (tl.load(similarity_ptr + t + 1, mask=t + 1 < frames, other=0.0) < threshold) | (t + 1 >= frames)
    begin = tl.associative_scan(tl.where(cut, t, 0), 0, _larger)
    end = tl.associative_scan(tl.where(next_cut, t + 1, frames), 0, _smaller, reverse=True)
    length = tl.maximum(end - begin, 1)
    within = t - begin
    if EVEN:
        parts = (length + max_frames - 1) // max_frames
        cut |= within * parts // length != tl.maximum(within - 1, 0) * parts // length
    else:
        cut |= within % max_frames == 0
    cut &= t < frames
    last = tl.load(frame_ptr + frames)
    slot = tl.cumsum(cut.to(tl.int32), 0) - 1
    used = tl.sum(cut.to(tl.int32), 0)
    tl.store(out_ptr + slot, tl.load(frame_ptr + t, mask=cut, other=0), mask=cut)
    tl.store(out_ptr + t, tl.zeros((BLOCK,), tl.int64) + last, mask=(t >= used) & (t <= frames))


@triton.jit(do_not_specialize=COUNTS)
def _apportion_kernel(
    weights_ptr,  # (S,) floating point; read if WEIGHED
    offsets_ptr,  # (S + 1,) int64
    out_ptr,  # (S,) int64
    count,
    total,
    part,  # of its share by length that a segment gets whatever its weight is: float32,
    rest_of_part,  # and what float32 leaves of it
    WEIGHED: tl.constexpr,  # else by length
    BLOCK: tl.constexpr,  # a power of two that covers S
    STEP: tl.constexpr,
):
    """Eq. 3: Newton's method for the level in float64, bisection where it leaves the bracket; largest remainders.

    One program a video of S segments and `total` picks.
    """
    weights_ptr += tl.program_id(0) * count
    offsets_ptr += tl.program_id(0) * count
    out_ptr += tl.program_id(0) * count
    s = tl.arange(0, BLOCK)
    end = tl.load(offsets_ptr + s + 1, mask=s < count, other=0)
    n = (end - tl.load(offsets_ptr + s, mask=s < count, other=0)).to(tl.float64)
    w = tl.load(weights_ptr + s, mask=s < count, other=0.0).to(tl.float64) if WEIGHED else n
    largest = tl.max(w, 0)
    w = tl.maximum(w / tl.where(largest > 0, largest, 1.0), 1e-9)
    occupied = tl.sum((n > 0).to(tl.int32), 0)
    by_length = (total - occupied) * n / tl.maximum(tl.sum(n, 0), 1.0)  # float64
    floor = tl.where((n > 0) & (occupied <= total), tl.maximum(part * by_length + rest_of_part * by_length, 1.0), 0.0)
    low = tl.sum(floor * 0.0, 0)
    high = tl.max(n / w, 0)
    level = total / tl.sum(tl.where(n > 0, w, 0.0), 0)
    level = tl.where((level > low) & (level < high), level, high)
    tries = 0
    while tries < 100:
        share = level * w
        reached = tl.sum(tl.minimum(tl.maximum(share, floor), n), 0)
        slope = tl.sum(tl.where((share > floor) & (share < n), w, 0.0), 0)
        low = tl.where(reached < total, level, low)
        high = tl.where(reached < total, high, level)
        newton = level + (total - reached) / tl.maximum(slope, 1e-12)
        inside = (newton > low) & (newton <= high) & (tries % 4 != 3)
        near = (tl.abs(reached - total) < 1e-9) | (high - low <= 1e-15 * high)
        level = tl.where(near, level, tl.where(inside, newton, (low + high) * 0.5))
        tries = tl.where(near, 100, tries + 1)
    share = tl.minimum(tl.maximum(level * w, floor), n)
    whole = tl.floor(share + 1e-6)
    # Ranks by remainder, the earlier segment first among equals; counted against STEP segments at a time.
    remainder = tl.where((whole < n) & (s < count), tl.floor((share - whole) * 1e6 + 0.5), -1e12)
    tl.store(out_ptr + s, remainder.to(tl.int64), mask=s < count)
    tl.debug_barrier()
    rank = tl.zeros((BLOCK,), tl.int32)
    for at in range(0, count, STEP):
        t = at + tl.arange(0, STEP)
        other = tl.load(out_ptr + t, mask=t < count, other=-(10**13)).to(tl.float64)
        ahead = (other[:, None] > remainder[None, :]) | (
            (other[:, None] == remainder[None, :]) & (t[:, None] < s[None, :])
        )
        rank += tl.sum((ahead & (t < count)[:, None]).to(tl.int32), 0)  # within a thread, who holds its own columns
    tl.debug_barrier()
    missing = total - tl.sum(whole, 0)
    tl.store(out_ptr + s, whole.to(tl.int64) + (rank < missing).to(tl.int64), mask=s < count)
