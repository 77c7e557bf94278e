"""Merging along time: the token before each and how alike the two are, where runs begin, and means of what merged."""

import triton
import triton.language as tl

from vidsieve.ops.reference import NOISE

_NOISE: tl.constexpr = tl.constexpr(NOISE)


@triton.jit
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


@triton.jit
def _heads_kernel(
    begins_ptr,  # (N,) bool
    before_ptr,  # (N,) int64
    head_ptr,  # (N,) int64 out
    n,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    head = i.to(tl.int64)
    on = (i < n) & (tl.load(begins_ptr + i, mask=i < n, other=1) == 0)
    left = tl.max(on.to(tl.int32), 0)
    while left > 0:
        head = tl.where(on, tl.load(before_ptr + head, mask=on, other=0), head)
        on &= tl.load(begins_ptr + head, mask=on, other=1) == 0
        left = tl.max(on.to(tl.int32), 0)
    tl.store(head_ptr + i, head, mask=i < n)


@triton.jit
def _mean_kernel(
    x_ptr,  # (N, D), rows `stride` apart
    by_ptr,  # (N,) int64, rows in the order of their source
    bounds_ptr,  # (K + 1,) int64, of each source in that order
    weight_ptr,  # (N,); read if WEIGHTED
    out_ptr,  # (K, D) out
    stride,
    D: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    acc = tl.zeros((BLOCK_D,), tl.float32)
    total = 0.0
    for m in range(tl.load(bounds_ptr + row), tl.load(bounds_ptr + row + 1)):
        i = tl.load(by_ptr + m)
        weight = 1.0
        if WEIGHTED:
            weight = tl.load(weight_ptr + i).to(tl.float32)
        acc += weight * tl.load(x_ptr + i * stride + d, mask=d < D, other=0.0).to(tl.float32)
        total += weight
    tl.store(out_ptr + row * D + d, acc / total, mask=d < D)
