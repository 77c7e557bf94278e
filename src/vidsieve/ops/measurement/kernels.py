"""One pass over the features for all that the later stages need to know of a token alone, and scores made of it."""

import triton
import triton.language as tl

from vidsieve.ops.launch import COUNTS
from vidsieve.ops.limits import GOLDEN, LEAST, MOST, NOISE, NON_FINITE, NONFINITE_PROMPT, OUT_OF_RANGE, SILVER, STAYS

_NOISE: tl.constexpr = tl.constexpr(NOISE)
_STAYS: tl.constexpr = tl.constexpr(STAYS)
_GOLDEN: tl.constexpr = tl.constexpr(GOLDEN)
_SILVER: tl.constexpr = tl.constexpr(SILVER)
_LEAST: tl.constexpr = tl.constexpr(LEAST)
_MOST: tl.constexpr = tl.constexpr(MOST)
_NON_FINITE: tl.constexpr = tl.constexpr(NON_FINITE)
_OUT_OF_RANGE: tl.constexpr = tl.constexpr(OUT_OF_RANGE)
_NONFINITE_PROMPT: tl.constexpr = tl.constexpr(NONFINITE_PROMPT)


@triton.jit
def _fault(norm, infinite, largest):
    """Name the fault of rows of this length, so many NaN or inf, and this largest of the other entries."""
    zero = (norm == 0.0) & (largest == 0.0)
    nonfinite = tl.where(zero | ((norm >= _LEAST) & (norm <= _MOST)), 0, _OUT_OF_RANGE)
    return tl.where(infinite > 0, _NON_FINITE, nonfinite)


@triton.jit
def _unit_kernel(
    y_ptr,  # (M, D), rows `stride` apart
    out_ptr,  # (M, D) float32: each row at length 1, or zero; NaN if it is not finite
    stride,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,  # covers D
):
    i = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    y = tl.load(y_ptr + i * stride + d, mask=d < D, other=0.0).to(tl.float32)
    norm = tl.sqrt_rn(tl.sum(y * y, 0))
    finite = tl.abs(y) < float("inf")
    nonfinite = _fault(norm, tl.sum((~finite).to(tl.int32), 0), tl.max(tl.where(finite, tl.abs(y), 0.0), 0))
    tl.store(out_ptr + i * D + d, tl.where(nonfinite > 0, float("nan"), y / tl.maximum(norm, 1e-30)), mask=d < D)


@triton.jit(do_not_specialize=COUNTS)
def _direction_kernel(
    unit_ptr,  # (V * M, D) float32
    mean_ptr,  # (V, D) float32 out: the mean of M rows; written if not SPLIT
    split_ptr,  # (V, D, 16) out, of the features' type: columns that add up to the mean; written if SPLIT
    m,
    D: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    video = tl.program_id(1)
    unit_ptr += video * m * D
    mean_ptr += video * D
    split_ptr += video * D * 16
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    mean = tl.zeros((BLOCK_D,), tl.float32)
    for i in range(m):
        mean += tl.load(unit_ptr + i * D + d, mask=d < D, other=0.0)
    mean /= m
    if SPLIT:  # three numbers of 8 bits or more hold one of 24
        w = tl.arange(0, 16)[None, :]
        high = mean.to(split_ptr.dtype.element_ty)
        rest = mean - high.to(tl.float32)
        middle = rest.to(split_ptr.dtype.element_ty)
        low = (rest - middle.to(tl.float32)).to(split_ptr.dtype.element_ty)
        columns = tl.where(w == 0, high[:, None], tl.where(w == 1, middle[:, None], low[:, None]))
        columns = tl.where(w < 3, columns, tl.zeros_like(columns))
        tl.store(split_ptr + d[:, None] * 16 + w, columns, mask=(d < D)[:, None])
    else:
        tl.store(mean_ptr + d, mean, mask=d < D)


@triton.jit(do_not_specialize=COUNTS)
def _from_products_kernel(
    x_ptr,  # (N, D), rows `stride` apart; read where a length does not tell what it is of
    square_ptr,  # (PARTS, N) float32: what each part of the features adds to the squared length
    along_ptr,  # (PARTS, N) float32: and to the product with the direction; read if COSINE
    norm_ptr,  # (N,) float32 out
    nonfinite_ptr,  # (N,) int32 out: which fault a token has
    cosine_ptr,  # (N,) float32 out, eq. 4 before normalisation; written if COSINE
    n,
    stride,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    COSINE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    square = tl.zeros((BLOCK,), tl.float32)
    along = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(PARTS):
        square += tl.load(square_ptr + part * n + i, mask=i < n, other=0.0)
        if COSINE:
            along += tl.load(along_ptr + part * n + i, mask=i < n, other=0.0)
    norm = tl.sqrt_rn(square)
    tl.store(norm_ptr + i, norm, mask=i < n)
    odd = (i < n) & ~((norm >= _LEAST) & (norm <= _MOST))
    nonfinite = tl.zeros((BLOCK,), tl.int32)
    if tl.max(odd.to(tl.int32), 0) > 0:
        d = tl.arange(0, BLOCK_D)
        infinite = tl.zeros((BLOCK,), tl.int32)
        largest = tl.zeros((BLOCK,), tl.float32)
        for k in range(0, D, BLOCK_D):
            inside = odd[:, None] & (d < D - k)[None, :]
            x = tl.load(x_ptr + i.to(tl.int64)[:, None] * stride + k + d[None, :], mask=inside, other=0.0)
            x = tl.abs(x.to(tl.float32))
            finite = x < float("inf")
            infinite += tl.sum((~finite).to(tl.int32), 1)
            largest = tl.maximum(largest, tl.max(tl.where(finite, x, 0.0), 1))
        nonfinite = _fault(norm, infinite, largest)
    if COSINE:
        cosine = along / tl.maximum(norm, 1e-30)
        nonfinite += tl.where(cosine == cosine, 0, _NONFINITE_PROMPT)
        tl.store(cosine_ptr + i, cosine, mask=i < n)
    tl.store(nonfinite_ptr + i, nonfinite, mask=i < n)


@triton.jit(do_not_specialize=COUNTS)
def _measure_kernel(
    x_ptr,  # (N, D), rows `stride` apart, of V videos
    mean_ptr,  # (N / share, D) float32; read if PERSISTENCE
    direction_ptr,  # (V, D) float32; read if COSINE
    norm_ptr,  # (N,) float32 out: length of each token
    nonfinite_ptr,  # (N,) int32 out: which fault a token has
    persistence_ptr,  # (N,) float32 out, eq. 1
    cosine_ptr,  # (N,) float32 out, eq. 4 before normalisation
    n,
    tokens,  # of each video
    per_frame,  # tokens of a frame
    share,  # tokens that have a row of `mean` in common
    stride,
    D: tl.constexpr,
    PERSISTENCE: tl.constexpr,
    COSINE: tl.constexpr,
    BLOCK_N: tl.constexpr,  # divides `tokens` and `share`
    BLOCK_D: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    d = tl.arange(0, BLOCK_D)  # (BLOCK_D,)
    video = tl.program_id(0) * BLOCK_N // tokens
    mean_ptr += tl.program_id(0) * BLOCK_N // share * D
    direction_ptr += video * D
    row_ptr = x_ptr + i.to(tl.int64)[:, None] * stride + d[None, :]
    before_ptr = x_ptr + (i - per_frame).to(tl.int64)[:, None] * stride + d[None, :]
    has_before = (i % tokens >= per_frame) & (i < n)
    xx = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    infinite = tl.zeros((BLOCK_N, BLOCK_D), tl.int32)
    largest = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    xq = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    cc = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    bb = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    cb = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    mm = tl.zeros((BLOCK_D,), tl.float32)
    for k in range(0, D, BLOCK_D):
        inside = d < D - k
        x = tl.load(row_ptr + k, mask=(i < n)[:, None] & inside[None, :], other=0.0).to(tl.float32)
        xx += x * x
        finite = tl.abs(x) < float("inf")
        infinite += (~finite).to(tl.int32)
        largest = tl.maximum(largest, tl.where(finite, tl.abs(x), 0.0))
        if COSINE:
            xq += x * tl.load(direction_ptr + k + d, mask=inside, other=0.0)[None, :]
        if PERSISTENCE:
            mean = tl.load(mean_ptr + k + d, mask=inside, other=0.0)
            before = tl.load(before_ptr + k, mask=has_before[:, None] & inside[None, :], other=0.0).to(tl.float32)
            c = x - mean[None, :]
            b = before - mean[None, :]
            cc += c * c
            bb += b * b
            cb += c * b
            mm += mean * mean
    norm = tl.sqrt_rn(tl.sum(xx, 1))
    tl.store(norm_ptr + i, norm, mask=i < n)
    nonfinite = _fault(norm, tl.sum(infinite, 1), tl.max(largest, 1))
    if COSINE:
        cosine = tl.sum(xq, 1) / tl.maximum(norm, 1e-30)
        nonfinite += tl.where(cosine == cosine, 0, _NONFINITE_PROMPT)
        tl.store(cosine_ptr + i, cosine, mask=i < n)
    tl.store(nonfinite_ptr + i, nonfinite, mask=i < n)
    if PERSISTENCE:
        # Squared lengths below this are what rounding leaves of a token that equals the mean: a zero row.
        still = _NOISE * _NOISE * tl.sum(mm, 0)
        c2 = tl.sum(cc, 1)
        b2 = tl.sum(bb, 1)
        c2 = tl.where(c2 <= still, 0.0, c2)
        b2 = tl.where(b2 <= still, 0.0, b2)
        cosine = tl.sum(cb, 1) / tl.maximum(tl.sqrt_rn(c2) * tl.sqrt_rn(b2), 1e-38)
        cosine = tl.where((c2 == 0.0) | (b2 == 0.0), (c2 == b2).to(tl.float32), cosine)
        tl.store(persistence_ptr + i, tl.where(has_before, cosine, 0.0), mask=i < n)


@triton.jit(do_not_specialize=COUNTS)
def _min_max_kernel(
    score_ptr,  # (N,) float32
    out_ptr,  # (N,) float32: eq. 4
    n,
    epsilon,
    BLOCK: tl.constexpr,
):
    """One program a video of N tokens."""
    score_ptr += tl.program_id(0).to(tl.int64) * n
    out_ptr += tl.program_id(0).to(tl.int64) * n
    low = tl.full((BLOCK,), float("inf"), tl.float32)
    high = tl.full((BLOCK,), -float("inf"), tl.float32)
    for at in range(0, n, BLOCK):
        i = at + tl.arange(0, BLOCK)
        low = tl.minimum(low, tl.load(score_ptr + i, mask=i < n, other=float("inf")))
        high = tl.maximum(high, tl.load(score_ptr + i, mask=i < n, other=-float("inf")))
    least = tl.min(low, 0)
    span = tl.max(high, 0) - least + epsilon
    for at in range(0, n, BLOCK):
        i = at + tl.arange(0, BLOCK)
        score = tl.load(score_ptr + i, mask=i < n, other=0.0)
        tl.store(out_ptr + i, (score - least + epsilon) / span, mask=i < n)


@triton.jit
def _stays(persistence_at, per_frame, inside, has_next):
    """How much tokens resemble their place in the frame before or after, in [0, 1]."""
    before = tl.load(persistence_at, mask=inside, other=0.0)
    after = tl.load(persistence_at + per_frame, mask=inside & has_next, other=0.0)
    return tl.minimum(tl.maximum(tl.maximum(before, after), 0.0), 1.0)


@triton.jit(do_not_specialize=COUNTS)
def _transience_kernel(
    persistence_ptr,  # (N,) float32
    out_ptr,  # (N,) float32 out: eq. 4b
    n,
    tokens,  # of each video
    per_frame,
    first,  # frames of the video before these
    floor,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = i % tokens
    stays = _stays(persistence_ptr + i, per_frame, i < n, at + per_frame < tokens)
    seen = at % per_frame == (at // per_frame + first) % per_frame
    tl.store(out_ptr + i, tl.where(seen, 1.0, 1.0 - (1.0 - floor) * stays), mask=i < n)


@triton.jit(do_not_specialize=COUNTS)
def _contrast_kernel(
    persistence_ptr,  # (N,) float32
    out_ptr,  # (N,) float32 out: eq. 4c
    tokens,  # of each video
    per_frame,
    first,  # frames of the video before these
    floor,
    knee,
    spread,
    BLOCK: tl.constexpr,
):
    """One program a frame."""
    frame = tl.program_id(0)
    begin = frame.to(tl.int64) * per_frame
    number = frame % (tokens // per_frame)  # in its video
    has_next = (number + 1) * per_frame < tokens
    total = tl.zeros((BLOCK,), tl.float32)
    for at in range(0, per_frame, BLOCK):
        i = at + tl.arange(0, BLOCK)
        total += _stays(persistence_ptr + begin + i, per_frame, i < per_frame, has_next)
    mean = tl.sum(total, 0) / per_frame
    for at in range(0, per_frame, BLOCK):
        i = at + tl.arange(0, BLOCK)
        stays = _stays(persistence_ptr + begin + i, per_frame, i < per_frame, has_next)
        ratio = (stays + _STAYS) / (mean + _STAYS)
        place = (i.to(tl.int64) * _GOLDEN + (number + first).to(tl.int64) * _SILVER) & 0xFFFFFFFF
        least = floor * (1.0 - spread * (place.to(tl.float32) * 2.0**-32))
        weight = 1.0 - (1.0 - least) * tl.minimum(ratio / knee, 1.0)
        tl.store(out_ptr + begin + i, tl.where(i == (number + first) % per_frame, 1.0, weight), mask=i < per_frame)
