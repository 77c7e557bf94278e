"""The attention that tokens receive, without its matrix in memory: once for the softmax's sums, once for the masses.

Of a query's scores, what the softmax needs is the logarithm of the sum of their exponentials, its level: found for
splits of the keys, then for all of them.
"""

import triton
import triton.language as tl

from vidsieve.ops.launch import COUNTS


@triton.jit
def _queries(
    query_ptr, columns_ptr, group, row, query_count, share, query_head, query_stride,
    WIDTH: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Queries `row` (BLOCK_M,) of a group of heads, and their columns, -1 beyond the last."""
    d = tl.arange(0, BLOCK_D)
    inside = row < share * query_count
    head = group * share + row // query_count
    column = tl.load(columns_ptr + row % query_count, mask=inside, other=-1)
    q = tl.load(
        query_ptr + head.to(tl.int64)[:, None] * query_head + column[:, None] * query_stride + d[None, :],
        mask=inside[:, None] & (d < WIDTH)[None, :], other=0.0,
    )  # fmt: skip
    return q, column


@triton.jit
def _keys(key_ptr, group, place, keys, key_head, key_stride, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Keys `place` (BLOCK_N,) of a group of heads."""
    d = tl.arange(0, BLOCK_D)
    at = tl.cast(group, tl.int64) * key_head + place.to(tl.int64)[:, None] * key_stride + d[None, :]
    return tl.load(key_ptr + at, mask=(place < keys)[:, None] & (d < WIDTH)[None, :], other=0.0)


@triton.jit
def _scores(
    q, k, column, place, seen_ptr, keys, past, scaling, softcap,
    PADDED: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores of queries (BLOCK_M,) for keys `place` (BLOCK_N,); -inf where they may not see."""
    score = tl.dot(q, k.T, input_precision=PRECISION) * scaling
    if SOFTCAP:
        score = softcap * (1.0 - 2.0 / (1.0 + tl.exp(2.0 * score / softcap)))
    sees = (column >= 0)[:, None] & (place < keys)[None, :] & (place[None, :] <= past + column[:, None])
    if PADDED:
        sees &= (tl.load(seen_ptr + place, mask=place < keys, other=0) != 0)[None, :]
    return tl.where(sees, score, -float("inf"))


@triton.jit(do_not_specialize=COUNTS)
def _softmax_kernel(
    query_ptr,  # (H, L, d)
    key_ptr,  # (G, keys, d)
    columns_ptr,  # (M,) int64
    seen_ptr,  # (keys,) bool; read if PADDED
    level_ptr,  # (splits, H * M) float32 out: of each query among the keys of a split, -inf where it sees none
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
    q, column = _queries(
        query_ptr, columns_ptr, group, row, query_count, share, query_head, query_stride, WIDTH, BLOCK_D
    )
    for at in range(0, SPLIT, BLOCK_N):
        place = split * SPLIT + at + tl.arange(0, BLOCK_N)
        k = _keys(key_ptr, group, place, keys, key_head, key_stride, WIDTH, BLOCK_D)
        score = _scores(q, k, column, place, seen_ptr, keys, past, scaling, softcap, PADDED, SOFTCAP, PRECISION)
        now = tl.maximum(peak, tl.max(score, 1))
        level = tl.where(now > -float("inf"), now, 0.0)
        total = total * tl.exp(peak - level) + tl.sum(tl.exp(score - level[:, None]), 1)
        peak = now
    at = split * queries + group * share * query_count + row
    tl.store(level_ptr + at, peak + tl.log(tl.where(total > 0, total, 1.0)), mask=row < share * query_count)


@triton.jit(do_not_specialize=COUNTS)
def _level_kernel(
    part_ptr,  # (splits, H * M) float32
    level_ptr,  # (H * M,) float32 out: of each query among all keys, inf where it sees none
    queries,
    splits,
    SPLITS: tl.constexpr,  # read at a time: one after another, each would be waited for
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    peak = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for some in range(0, splits, SPLITS):
        split = some + tl.arange(0, SPLITS)  # (SPLITS,)
        known = (split < splits)[:, None] & (row < queries)[None, :]
        part = tl.load(part_ptr + split[:, None] * queries + row[None, :], mask=known, other=-float("inf"))
        now = tl.maximum(peak, tl.max(part, 0))
        level = tl.where(now > -float("inf"), now, 0.0)
        total = total * tl.exp(peak - level) + tl.sum(tl.exp(part - level[None, :]), 0)
        peak = now
    level = tl.where(total > 0, peak + tl.log(tl.where(total > 0, total, 1.0)), float("inf"))
    tl.store(level_ptr + row, level, mask=row < queries)


@triton.jit(do_not_specialize=COUNTS)
def _received_kernel(
    query_ptr,  # (H, L, d)
    key_ptr,  # (G, keys, d)
    columns_ptr,  # (M,) int64
    seen_ptr,  # (keys,) bool; read if PADDED
    level_ptr,  # (H * M,) float32
    mass_ptr,  # (portions, G, L) float32 out: what some of the queries of a group's heads add to the mean
    query_count,
    queries,
    keys,
    past,
    share,
    query_head, query_stride, key_head, key_stride,
    scaling,
    softcap,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    place = past + tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    group = tl.program_id(1)
    portion = tl.program_id(2)
    mass = tl.zeros((BLOCK_N,), tl.float32)
    k = _keys(key_ptr, group, place, keys, key_head, key_stride, WIDTH, BLOCK_D)
    for first in range(portion * BLOCK_M, share * query_count, tl.num_programs(2) * BLOCK_M):
        row = first + tl.arange(0, BLOCK_M)
        inside = row < share * query_count
        level = tl.load(level_ptr + group * share * query_count + row, mask=inside, other=float("inf"))
        q, column = _queries(
            query_ptr, columns_ptr, group, row, query_count, share, query_head, query_stride, WIDTH, BLOCK_D
        )
        score = _scores(q, k, column, place, seen_ptr, keys, past, scaling, softcap, PADDED, SOFTCAP, PRECISION)
        mass += tl.sum(tl.exp(score - level[:, None]), 0)
    mass_ptr += (portion * tl.num_programs(1) + group) * (keys - past)
    tl.store(mass_ptr + place - past, mass / queries, mask=place < keys)
