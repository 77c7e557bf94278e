"""The attention that tokens receive, without its matrix in memory: once for the softmax's sums, once for the masses."""

import triton
import triton.language as tl


@triton.jit
def _scores(
    query_ptr, key_ptr, columns_ptr, seen_ptr, group, row, place, query_count, keys, past, share,
    query_head, query_stride, key_head, key_stride, scaling, softcap,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Scores of queries `row` (BLOCK_M,) of a group of heads for keys `place` (BLOCK_N,); -inf where it may not see."""
    d = tl.arange(0, BLOCK_D)
    inside = row < share * query_count
    head = group * share + row // query_count
    column = tl.load(columns_ptr + row % query_count, mask=inside, other=0)
    q = tl.load(
        query_ptr + head.to(tl.int64)[:, None] * query_head + column[:, None] * query_stride + d[None, :],
        mask=inside[:, None] & (d < WIDTH)[None, :], other=0.0,
    )  # fmt: skip
    k = tl.load(
        key_ptr + tl.cast(group, tl.int64) * key_head + place.to(tl.int64)[:, None] * key_stride + d[None, :],
        mask=(place < keys)[:, None] & (d < WIDTH)[None, :], other=0.0,
    )  # fmt: skip
    score = tl.dot(q, k.T, input_precision=PRECISION) * scaling
    if SOFTCAP:
        score = softcap * (1.0 - 2.0 / (1.0 + tl.exp(2.0 * score / softcap)))
    sees = inside[:, None] & (place < keys)[None, :] & (place[None, :] <= past + column[:, None])
    if PADDED:
        sees &= (tl.load(seen_ptr + place, mask=place < keys, other=0) != 0)[None, :]
    return tl.where(sees, score, -float("inf"))


@triton.jit
def _softmax_kernel(
    query_ptr,  # (H, L, d)
    key_ptr,  # (G, keys, d)
    columns_ptr,  # (M,) int64
    seen_ptr,  # (keys,) bool; read if PADDED
    peak_ptr,  # (splits, H * M) float32 out: of each query the largest score among the keys of a split
    total_ptr,  # (splits, H * M) float32 out: and the sum of exp(score - peak)
    query_count,  # M
    queries,  # H * M
    keys,
    past,
    share,  # heads of a group
    query_head, query_stride, key_head, key_stride,
    scaling,
    softcap,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,  # keys of a program
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # of the group's queries
    group = tl.program_id(1)
    split = tl.program_id(2)
    peak = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for at in range(0, SPLIT, BLOCK_N):
        place = split * SPLIT + at + tl.arange(0, BLOCK_N)
        score = _scores(
            query_ptr, key_ptr, columns_ptr, seen_ptr, group, row, place, query_count, keys, past, share,
            query_head, query_stride, key_head, key_stride, scaling, softcap,
            WIDTH, PADDED, SOFTCAP, PRECISION, BLOCK_D,
        )  # fmt: skip
        now = tl.maximum(peak, tl.max(score, 1))
        level = tl.where(now > -float("inf"), now, 0.0)
        total = total * tl.exp(peak - level) + tl.sum(tl.exp(score - level[:, None]), 1)
        peak = now
    at = split * queries + group * share * query_count + row
    tl.store(peak_ptr + at, peak, mask=row < share * query_count)
    tl.store(total_ptr + at, total, mask=row < share * query_count)


@triton.jit
def _received_kernel(
    query_ptr,  # (H, L, d)
    key_ptr,  # (G, keys, d)
    columns_ptr,  # (M,) int64
    seen_ptr,  # (keys,) bool; read if PADDED
    peak_ptr,  # (splits, H * M) float32
    total_ptr,  # (splits, H * M) float32
    mass_ptr,  # (G, L) float32 out: what a group's heads add to the mean
    query_count,
    queries,
    keys,
    past,
    share,
    splits,
    query_head, query_stride, key_head, key_stride,
    scaling,
    softcap,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLITS: tl.constexpr,  # read at a time: one after another, each would be waited for
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    place = past + tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    group = tl.program_id(1)
    mass = tl.zeros((BLOCK_N,), tl.float32)
    for first in range(0, share * query_count, BLOCK_M):
        row = first + tl.arange(0, BLOCK_M)
        inside = row < share * query_count
        peak = tl.full((BLOCK_M,), -float("inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        for some in range(0, splits, SPLITS):
            split = some + tl.arange(0, SPLITS)  # (SPLITS,)
            at = split[:, None] * queries + group * share * query_count + row[None, :]
            known = (split < splits)[:, None] & inside[None, :]
            part = tl.load(peak_ptr + at, mask=known, other=-float("inf"))
            sums = tl.load(total_ptr + at, mask=known, other=0.0)
            now = tl.maximum(peak, tl.max(part, 0))
            level = tl.where(now > -float("inf"), now, 0.0)
            total = total * tl.exp(peak - level) + tl.sum(sums * tl.exp(part - level[None, :]), 0)
            peak = now
        score = _scores(
            query_ptr, key_ptr, columns_ptr, seen_ptr, group, row, place, query_count, keys, past, share,
            query_head, query_stride, key_head, key_stride, scaling, softcap,
            WIDTH, PADDED, SOFTCAP, PRECISION, BLOCK_D,
        )  # fmt: skip
        level = tl.where(peak > -float("inf"), peak, 0.0)
        weight = tl.exp(score - level[:, None]) / tl.where(total > 0, total, 1.0)[:, None]
        mass += tl.sum(weight, 0)
    tl.store(mass_ptr + group * (keys - past) + place - past, mass / queries, mask=place < keys)
