"""The greedy selections for short segments: one program a segment, all but S and what does not fit of C in registers.

Long segments: long_segments.py. Meaning: reference.py; `rule` names which selection it is.
"""

import triton
import triton.language as tl

from vidsieve.ops.launch import COUNTS
from vidsieve.ops.limits import EXHAUSTED, TIE
from vidsieve.ops.measurement.gram import _inverse

DPP: tl.constexpr = tl.constexpr(0)
MMR: tl.constexpr = tl.constexpr(1)
MAX_MIN: tl.constexpr = tl.constexpr(2)
HYBRID: tl.constexpr = tl.constexpr(3)  # DPP in segments of up to `threshold` tokens, MMR in longer ones
_EXHAUSTED: tl.constexpr = tl.constexpr(EXHAUSTED)
_TIE: tl.constexpr = tl.constexpr(TIE)


@triton.jit
def _fill(j):
    """The score of exhausted tokens j of a segment: -1 less the binary digits of j mirrored at the point."""
    i = j.to(tl.uint32)
    i = ((i >> 1) & 0x55555555) | ((i & 0x55555555) << 1)
    i = ((i >> 2) & 0x33333333) | ((i & 0x33333333) << 2)
    i = ((i >> 4) & 0x0F0F0F0F) | ((i & 0x0F0F0F0F) << 4)
    i = ((i >> 8) & 0x00FF00FF) | ((i & 0x00FF00FF) << 8)
    i = (i >> 16) | (i << 16)
    return -1.0 - (i >> 8).to(tl.float32) * (1.0 / 16777216.0)


@triton.jit
def _score(state, r, j, trade, RULE: tl.constexpr):
    """How much each token j of a segment would add: eq. 7 (state: residual), 9 or 10 (state: cosine to the closest
    pick)."""
    if RULE == DPP:
        return tl.where(state > _EXHAUSTED, r * r * state, _fill(j))
    elif RULE == MMR:
        return trade * r - (1.0 - trade) * state
    else:
        return -state


@triton.jit
def _lowered(best):
    """The lowest score that ties with `best`."""
    return best - _TIE * tl.abs(best)


@triton.jit
def _relevance(r_ptr, i, mask):
    """Relevance of tokens i; NaN, which comes of NaN features and is reported elsewhere, must not break the order."""
    r = tl.load(r_ptr + i, mask=mask, other=0.0)
    return tl.where(r == r, r, 0.0)


@triton.jit
def _initial(norm_ptr, nearest_ptr, i, mask, RULE: tl.constexpr):
    """The rule's state of tokens i before the first pick."""
    if RULE == DPP:
        return (tl.load(norm_ptr + i, mask=mask, other=0.0) > 0).to(tl.float32)
    elif RULE == MMR:
        return tl.where(mask, -1.0, -1.0)
    else:
        return tl.load(nearest_ptr + i, mask=mask, other=0.0)


@triton.jit
def _picks_before(budget_ptr, segment, UNIT: tl.constexpr, BLOCK: tl.constexpr):
    """Total budget of the segments before `segment`, each rounded up to a multiple of UNIT."""
    total = tl.zeros((BLOCK,), tl.int64)
    for at in range(0, segment, BLOCK):
        s = at + tl.arange(0, BLOCK)
        budget = tl.load(budget_ptr + s, mask=s < segment, other=0)
        total += (budget + UNIT - 1) // UNIT * UNIT
    return tl.sum(total, 0)


@triton.jit
def _row(s_ptr, i, j, mask, longest, plane, PARTS: tl.constexpr):
    """Row i of S, or of the planes of products that add up to it before they are scaled, at columns j."""
    row_ptr = s_ptr + i * longest + j
    row = tl.load(row_ptr, mask=mask, other=0.0)
    for part in tl.static_range(1, PARTS):
        row += tl.load(row_ptr + part * plane, mask=mask, other=0.0)
    return row


@triton.jit
def _scaled(row, scale_i, scale_j):
    """Products of token i with tokens j as cosines; NaN features are reported elsewhere, here they must not spread."""
    row *= scale_i * scale_j
    return tl.where(row == row, row, 0.0)


@triton.jit(do_not_specialize=[*COUNTS, "longest", "plane"])  # wide pieces of a row would be exchanged among threads
def _greedy_kernel(
    s_ptr,  # (N, longest) float32 cosines; if PARTS > 0, that many planes whose sum are products
    norm_ptr,  # (N,) float32 lengths of the tokens
    nearest_ptr,  # (N,) float32 cosine to the nearest other token; read by MAX_MIN
    r_ptr,  # (N,) float32 relevance
    first_ptr,  # (N,) float32 relevance of the first picks; read if HEAD
    early_ptr,  # (S,) int64, how many those are; read if HEAD
    offsets_ptr,  # (S + 1,) int64
    budget_ptr,  # (S,) int64
    c_ptr,  # (K, longest) float32 scratch: rows c of eq. 6
    order_ptr,  # (N,) int32 out, -1 where never picked
    longest,
    plane,  # N * longest
    trade,
    threshold,  # read by HYBRID
    RULE: tl.constexpr,
    HEAD: tl.constexpr,  # whether the first picks of DPP are weighed otherwise
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,  # rows of c in registers: of the first picks
    BLOCK_N: tl.constexpr,  # a power of two that covers `longest`
    BLOCK_K: tl.constexpr,  # rows of c read at a time
):
    segment = tl.program_id(0)
    begin = tl.load(offsets_ptr + segment)
    n = (tl.load(offsets_ptr + segment + 1) - begin).to(tl.int32)
    budget = tl.load(budget_ptr + segment).to(tl.int32)
    c_ptr += _picks_before(budget_ptr, segment, 1, 128) * longest
    early = 0
    if HEAD:
        early = tl.load(early_ptr + segment).to(tl.int32)
    if RULE != HYBRID:
        _greedy(
            s_ptr, norm_ptr, nearest_ptr, r_ptr, first_ptr, c_ptr, order_ptr, begin, n, budget, early, longest, plane,
            trade, RULE, HEAD, PARTS, ROWS, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    elif n <= threshold:
        _greedy(
            s_ptr, norm_ptr, nearest_ptr, r_ptr, first_ptr, c_ptr, order_ptr, begin, n, budget, early, longest, plane,
            trade, DPP, HEAD, PARTS, ROWS, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    else:
        _greedy(
            s_ptr, norm_ptr, nearest_ptr, r_ptr, first_ptr, c_ptr, order_ptr, begin, n, budget, early, longest, plane,
            trade, MMR, HEAD, PARTS, ROWS, BLOCK_N, BLOCK_K,
        )  # fmt: skip


@triton.jit
def _greedy(
    s_ptr, norm_ptr, nearest_ptr, r_ptr, first_ptr, c_ptr, order_ptr, begin, n, budget, early, longest, plane, trade,
    RULE: tl.constexpr, HEAD: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Pick `budget` of the n tokens from `begin` on."""
    j = tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    inside = j < n
    r = _relevance(r_ptr, begin + j, inside)
    at_first = r
    if HEAD:
        at_first = _relevance(first_ptr, begin + j, inside)
    state = _initial(norm_ptr, nearest_ptr, begin + j, inside, RULE)
    order = tl.full((BLOCK_N,), -1, tl.int32)
    scale = _inverse(norm_ptr, begin + j, inside)
    u = tl.arange(0, BLOCK_K)  # (BLOCK_K,)
    v = tl.arange(0, ROWS)  # (ROWS,)
    first = tl.zeros((ROWS, BLOCK_N), tl.float32)  # rows c
    for step in range(budget):
        weight = r
        if HEAD:
            weight = tl.where(step < early, at_first, r)
        score = tl.where(inside & (order < 0), _score(state, weight, j, trade, RULE), -float("inf"))
        pick = tl.min(tl.where(score >= _lowered(tl.max(score, 0)), j, BLOCK_N), 0)
        here = j == pick
        order = tl.where(here, step, order)
        e = _row(s_ptr, begin + pick, j, inside, longest, plane, PARTS)
        norm = tl.load(norm_ptr + begin + pick)
        if PARTS > 0:
            e = _scaled(e, tl.where(norm > 0, 1.0 / tl.where(norm > 0, norm, 1.0), 0.0), scale)
        if RULE == DPP:
            # From memory, for every thread needs them all and knows those of its own tokens only.
            first_pick = tl.load(c_ptr + v * longest + pick, mask=v < step, other=0.0)  # (ROWS,)
            e -= tl.sum(first * first_pick[:, None], 0)
            residual = (norm > 0).to(tl.float32) - tl.sum(first_pick * first_pick, 0)  # eq. 8 for the pick
            for at in range(ROWS, step, BLOCK_K):
                row = (at + u < step)[:, None] & inside[None, :]
                c = tl.load(c_ptr + (at + u)[:, None] * longest + j[None, :], mask=row, other=0.0)
                c_pick = tl.load(c_ptr + (at + u) * longest + pick, mask=at + u < step, other=0.0)
                e -= tl.sum(c * c_pick[:, None], 0)
                residual -= tl.sum(c_pick * c_pick, 0)
            # An exhausted pick spans nothing new; its row would be rounding divided by rounding.
            e = tl.where(residual > _EXHAUSTED, e * tl.rsqrt(tl.maximum(residual, _EXHAUSTED)), 0.0)
            state = tl.maximum(state - e * e, 0.0)
            first = tl.where((v == step)[:, None], e[None, :], first)
            tl.store(c_ptr + step * longest + j, e, mask=inside)
            tl.debug_barrier()  # the row just stored is read by other threads in the next step
        else:
            state = e if (RULE == MAX_MIN and step == 0) else tl.maximum(state, e)
    tl.store(order_ptr + begin + j, order, mask=inside)


@triton.jit(do_not_specialize=["longest", "plane"])
def _nearest_other_kernel(
    s_ptr,  # (N, longest) float32 cosines; if PARTS > 0, that many planes whose sum are products
    norm_ptr,  # (N,) float32 lengths of the tokens
    offsets_ptr,  # (S + 1,) int64
    segment_ptr,  # (N,) int64
    out_ptr,  # (N,) float32: cosine to the nearest other token of the segment, -2 where it is alone
    longest,
    plane,
    PARTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    segment = tl.load(segment_ptr + i)
    begin = tl.load(offsets_ptr + segment)
    n = tl.load(offsets_ptr + segment + 1) - begin
    j = tl.arange(0, BLOCK_N)
    row = _row(s_ptr, i, j, j < n, longest, plane, PARTS)
    if PARTS > 0:
        scale = _inverse(norm_ptr, i + tl.arange(0, 1), tl.arange(0, 1) < 1)
        row = _scaled(row, tl.sum(scale, 0), _inverse(norm_ptr, begin + j, j < n))
    tl.store(out_ptr + i, tl.max(tl.where((j < n) & (j != i - begin), row, -2.0), 0))
