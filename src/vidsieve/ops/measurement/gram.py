"""Cosines within each segment on tensor cores: S, one row a token, `longest` columns.

What bounds a Gram matrix of many rows is how often a row is read. Segments of up to 256 tokens are read once, by one
program that holds all their products; to have work for every multiprocessor, programs share the features of a segment,
and the products are the sum of what each found (`parts` planes). Lengths, and cosines to the prompt, come of the same
reading, so these are products of features as they are, made cosines where they are used. Longer segments go tile by
tile.
"""

import triton
import triton.language as tl

from vidsieve.ops.launch import COUNTS


@triton.jit
def _inverse(norm_ptr, i, mask):
    """1 / length of tokens i, 0 for a zero token."""
    norm = tl.load(norm_ptr + i, mask=mask, other=0.0)
    return tl.where(norm > 0, 1.0 / tl.where(norm > 0, norm, 1.0), 0.0)


@triton.jit(do_not_specialize=[*COUNTS, "longest"])
def _segment_gram_kernel(
    x_ptr,  # (N, D) features, rows `stride` apart
    split_ptr,  # (V, D, 16) columns that add up to a direction; read if COSINE
    offsets_ptr,  # (S + 1,) int64
    product_ptr,  # (parts, N, longest) float32 out: planes whose sum are the products within each segment
    square_ptr,  # (parts, N) float32 out: their diagonals
    along_ptr,  # (parts, N) float32 out: products with the direction; written if COSINE
    longest,
    stride,
    tokens,  # N
    segments,  # of each video
    D: tl.constexpr,
    COSINE: tl.constexpr,
    SHARE: tl.constexpr,  # features a program multiplies
    TWICE: tl.constexpr,  # whether segments may have more than BLOCK tokens; they have at most twice as many
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program a segment and share of the features: rows in two halves, whose three products are all there are."""
    begin = tl.load(offsets_ptr + tl.program_id(0))
    n = (tl.load(offsets_ptr + tl.program_id(0) + 1) - begin).to(tl.int32)
    split_ptr += tl.program_id(0) // segments * (D * 16)
    part = tl.program_id(1)
    product_ptr += (part.to(tl.int64) * tokens + begin) * longest
    square_ptr += part.to(tl.int64) * tokens + begin
    along_ptr += part.to(tl.int64) * tokens + begin
    i = tl.arange(0, BLOCK)  # (BLOCK,)
    j = BLOCK + i
    d = tl.arange(0, BLOCK_D)
    xi_ptr = x_ptr + (begin + i)[:, None] * stride + d[None, :]
    xj_ptr = x_ptr + (begin + j)[:, None] * stride + d[None, :]
    w = tl.arange(0, 16)
    ii = tl.zeros((BLOCK, BLOCK), tl.float32)
    along_i = tl.zeros((BLOCK, 16), tl.float32)
    along_j = tl.zeros((BLOCK, 16), tl.float32)
    if TWICE:
        ij = tl.zeros((BLOCK, BLOCK), tl.float32)
        jj = tl.zeros((BLOCK, BLOCK), tl.float32)
    for k in range(part * SHARE, part * SHARE + SHARE, BLOCK_D):
        inside = d[None, :] < D - k
        xi = tl.load(xi_ptr + k, mask=(i < n)[:, None] & inside, other=0.0)
        ii = tl.dot(xi, xi.T, ii, input_precision=PRECISION)
        if TWICE:
            xj = tl.load(xj_ptr + k, mask=(j < n)[:, None] & inside, other=0.0)
            ij = tl.dot(xi, xj.T, ij, input_precision=PRECISION)
            jj = tl.dot(xj, xj.T, jj, input_precision=PRECISION)
        if COSINE:
            split = tl.load(split_ptr + (k + d)[:, None] * 16 + w[None, :], mask=(d < D - k)[:, None], other=0.0)
            along_i = tl.dot(xi, split, along_i, input_precision=PRECISION)
            if TWICE:
                along_j = tl.dot(xj, split, along_j, input_precision=PRECISION)
    rows = product_ptr + i[:, None] * longest
    tl.store(rows + i[None, :], ii, mask=(i < n)[:, None] & (i < n)[None, :])
    tl.store(square_ptr + i, tl.sum(tl.where(i[:, None] == i[None, :], ii, 0.0), 1), mask=i < n)
    if COSINE:
        tl.store(along_ptr + i, tl.sum(along_i, 1), mask=i < n)
    if TWICE:
        tl.store(rows + j[None, :], ij, mask=(i < n)[:, None] & (j < n)[None, :])
        rows = product_ptr + j[:, None] * longest
        tl.store(rows + i[None, :], ij.T, mask=(j < n)[:, None] & (i < n)[None, :])
        tl.store(rows + j[None, :], jj, mask=(j < n)[:, None] & (j < n)[None, :])
        tl.store(square_ptr + j, tl.sum(tl.where(i[:, None] == i[None, :], jj, 0.0), 1), mask=j < n)
        if COSINE:
            tl.store(along_ptr + j, tl.sum(along_j, 1), mask=j < n)


@triton.jit
def _tile_of(offsets_ptr, row, segments, BLOCK: tl.constexpr, BLOCK_S: tl.constexpr):
    """Where the segment begins that has the tile in this row of tiles, its tokens, and which of its tiles that is.

    Rows of tiles are those of one segment after another; beyond the last, a segment of no token.
    """
    begin, n, first, seen = 0, 0, 0, 0
    for at in range(0, segments, BLOCK_S):
        s = at + tl.arange(0, BLOCK_S)  # (BLOCK_S,)
        low = tl.load(offsets_ptr + s, mask=s < segments, other=0).to(tl.int32)
        high = tl.load(offsets_ptr + s + 1, mask=s < segments, other=0).to(tl.int32)
        tiles = tl.cdiv(high - low, BLOCK)
        before = seen + tl.cumsum(tiles, 0) - tiles
        here = (before <= row) & (row < before + tiles)  # true of one segment at most
        begin += tl.sum(tl.where(here, low, 0), 0)
        n += tl.sum(tl.where(here, high - low, 0), 0)
        first += tl.sum(tl.where(here, before, 0), 0)
        seen += tl.sum(tiles, 0)
    return begin, n, row - first


@triton.jit(do_not_specialize=[*COUNTS, "longest"])
def _gram_kernel(
    x_ptr,  # (N, D) features, rows `stride` apart
    norm_ptr,  # (N,) float32, length of each row
    offsets_ptr,  # (S + 1,) int64
    s_ptr,  # (N, longest) float32 out: row i holds the cosines of token i to its segment, in segment order
    segments,
    longest,
    reach,  # tiles of the longest segment
    stride,
    D: tl.constexpr,
    ALIGNED: tl.constexpr,  # whether `longest` is a multiple of 16
    BLOCK: tl.constexpr,  # tokens of a tile
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program a pair of tiles (a <= b) of a segment: S is symmetric, so the mirror image is stored beside it.

    Rows of tiles are counted through all segments, so that slots for segments there might have been cost next to
    nothing, and programs that run at a time read neighbouring rows, which a cache can hold.
    """
    if ALIGNED:
        longest = longest // 16 * 16  # the same, as the compiler sees
    begin, n, a = _tile_of(offsets_ptr, tl.program_id(0) // reach, segments, BLOCK, BLOCK_S)
    b = a + tl.program_id(0) % reach
    if b * BLOCK < n:
        i = a * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
        j = b * BLOCK + tl.arange(0, BLOCK)
        d = tl.arange(0, BLOCK_D)
        xi_ptr = x_ptr + (begin + i).to(tl.int64)[:, None] * stride + d[None, :]
        xj_ptr = x_ptr + (begin + j).to(tl.int64)[:, None] * stride + d[None, :]
        acc = tl.zeros((BLOCK, BLOCK), tl.float32)
        for k in range(0, D, BLOCK_D):
            inside = d[None, :] < D - k
            xi = tl.load(xi_ptr + k, mask=(i < n)[:, None] & inside, other=0.0)
            xj = tl.load(xj_ptr + k, mask=(j < n)[:, None] & inside, other=0.0)
            acc = tl.dot(xi, xj.T, acc, input_precision=PRECISION)
        acc *= _inverse(norm_ptr, begin + i, i < n)[:, None] * _inverse(norm_ptr, begin + j, j < n)[None, :]
        acc = tl.where(acc == acc, acc, 0.0)  # NaN features are reported elsewhere, here they must not spread
        inside = (i < n)[:, None] & (j < n)[None, :]
        tl.store(s_ptr + (begin + i).to(tl.int64)[:, None] * longest + j[None, :], acc, mask=inside)
        if a != b:
            tl.store(s_ptr + (begin + j).to(tl.int64)[None, :] * longest + i[:, None], acc, mask=inside)
