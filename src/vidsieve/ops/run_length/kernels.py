"""Differences of groups of pixels along time, and the walks over them for many thresholds at once."""

import triton
import triton.language as tl

from vidsieve.ops.launch import COUNTS
from vidsieve.ops.limits import MOST, NON_FINITE, WIDTHS

_MOST: tl.constexpr = tl.constexpr(MOST)
_NON_FINITE: tl.constexpr = tl.constexpr(NON_FINITE)
_WIDTHS: tl.constexpr = tl.constexpr(WIDTHS)


@triton.jit(do_not_specialize=COUNTS)
def _differences_kernel(
    x_ptr,  # (T, P, C), frames and places `frame_stride` and `place_stride` apart
    difference_ptr,  # (P, T, T) float32 out, eq. 18: of each frame to those before it; the rest is not written
    nonfinite_ptr,  # (T * P,) int32 out
    frames,
    per_frame,  # P
    frame_stride,
    place_stride,
    C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program a place and a tile of frames by earlier frames, whose sums it holds for every column of a block."""
    tiles = tl.cdiv(frames, BLOCK_T)
    place = (tl.program_id(0) // (tiles * tiles)).to(tl.int64)
    tile = tl.program_id(0) % (tiles * tiles)
    later = tile // tiles
    earlier = tile % tiles
    if earlier <= later:
        t = later * BLOCK_T + tl.arange(0, BLOCK_T)
        s = earlier * BLOCK_T + tl.arange(0, BLOCK_T)
        c = tl.arange(0, BLOCK_C)[None, None, :]
        x_ptr += place * place_stride
        this_ptr = x_ptr + t.to(tl.int64)[:, None, None] * frame_stride + c
        that_ptr = x_ptr + s.to(tl.int64)[None, :, None] * frame_stride + c
        difference = tl.zeros((BLOCK_T, BLOCK_T, BLOCK_C), tl.float32)
        odd = tl.zeros((BLOCK_T, 1, BLOCK_C), tl.int32)
        for k in tl.range(0, C, BLOCK_C, num_stages=3):  # loads run ahead of the sums
            inside = c < C - k
            this = tl.load(this_ptr + k, mask=(t < frames)[:, None, None] & inside, other=0.0).to(tl.float32)
            that = tl.load(that_ptr + k, mask=(s < frames)[None, :, None] & inside, other=0.0).to(tl.float32)
            difference += tl.abs(this - that)
            if earlier == later:
                odd |= (~(tl.abs(this) <= _MOST)).to(tl.int32)
        before = (s[None, :] < t[:, None]) & (t < frames)[:, None]
        row_ptr = difference_ptr + place * frames * frames + t[:, None] * frames + s[None, :]
        tl.store(row_ptr, tl.sum(difference, 2) / C, mask=before)
        if earlier == later:
            nonfinite = tl.where(tl.max(tl.max(odd, 2), 1) > 0, _NON_FINITE, 0)
            tl.store(nonfinite_ptr + t.to(tl.int64) * per_frame + place, nonfinite, mask=t < frames)


@triton.jit
def _last_bits(counts_ptr, total, DONE: tl.constexpr, SECTIONS: tl.constexpr):
    """Of the least threshold after so many sweeps, eq. 20, the bits: at first of inf."""
    section = SECTIONS - 1 - tl.arange(0, SECTIONS)
    bits = (SECTIONS - 1) * _WIDTHS[0]
    for sweep in tl.static_range(DONE):
        count = tl.load(counts_ptr + sweep * SECTIONS + tl.arange(0, SECTIONS))
        bits = tl.maximum(bits - _WIDTHS[sweep] * tl.max(tl.where(count <= total, section, 0), 0), 0)
    return bits


@triton.jit(do_not_specialize=COUNTS)
def _count_kernel(
    difference_ptr,  # (P, T, T) float32
    counts_ptr,  # (sweeps, BLOCK) int32: kept groups for each threshold; those of this sweep are added up from 0
    frames,
    total,
    DONE: tl.constexpr,  # sweeps before this one
    BLOCK: tl.constexpr,  # thresholds
):
    """One program a place. Eq. 19, and a sweep of eq. 20."""
    lane = tl.arange(0, BLOCK)
    bits = _last_bits(counts_ptr, total, DONE, BLOCK) - (BLOCK - 1 - lane) * _WIDTHS[DONE]
    threshold = tl.maximum(bits, 0).to(tl.float32, bitcast=True)
    difference_ptr += tl.program_id(0).to(tl.int64) * frames * frames
    last = tl.zeros((BLOCK,), tl.int32)
    count = tl.full((BLOCK,), 1, tl.int32)
    for t in range(1, frames):
        new = tl.load(difference_ptr + t * frames + last) > threshold
        last = tl.where(new, t, last)
        count += new.to(tl.int32)
    tl.atomic_add(counts_ptr + DONE * BLOCK + lane, count, sem="relaxed")


@triton.jit(do_not_specialize=COUNTS)
def _scores_kernel(
    difference_ptr,  # (P, T, T) float32
    counts_ptr,  # (sweeps, SECTIONS) int32; read if DONE
    score_ptr,  # (T, P) float32 out: inf of groups that exceed the threshold, the difference to the last one of others
    frames,
    per_frame,  # P
    total,
    threshold,  # read unless DONE
    DONE: tl.constexpr,  # sweeps that found the threshold
    SECTIONS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a block of places. Eq. 19."""
    if DONE > 0:
        threshold = _last_bits(counts_ptr, total, DONE, SECTIONS).to(tl.float32, bitcast=True)
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    difference_ptr += p.to(tl.int64) * frames * frames
    score_ptr += p
    last = tl.zeros((BLOCK,), tl.int32)
    tl.store(score_ptr, tl.full((BLOCK,), float("inf"), tl.float32), mask=p < per_frame)
    for t in range(1, frames):
        difference = tl.load(difference_ptr + t * frames + last, mask=p < per_frame, other=0.0)
        new = difference > threshold
        last = tl.where(new, t, last)
        score = tl.where(new, float("inf"), tl.where(difference == difference, difference, 0.0))
        tl.store(score_ptr + tl.cast(t, tl.int64) * per_frame, score, mask=p < per_frame)
