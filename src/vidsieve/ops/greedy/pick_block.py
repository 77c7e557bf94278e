"""A block of picks of a long segment: its candidates, and the picks among them; for the rest see long_segments.py."""

import triton
import triton.language as tl

from vidsieve.ops.greedy.short_segments import _EXHAUSTED, DPP, MAX_MIN, _lowered, _relevance, _score

_TAKEN: tl.constexpr = tl.constexpr(4.0)  # the state of what is picked in this block: above all others


@triton.jit
def _at_least(score, count, fewest, low, high):
    """A level in (low, high) that `fewest` to `count` scores reach, or nearly; inf where even the best are more."""
    level = float("inf")
    tries = 0
    while tries < 24:
        middle = low + (high - low) * 0.5
        reach = tl.sum((score >= middle).to(tl.int32), 0)
        if reach <= count:
            level = middle
            high = middle
            tries = tl.where(reach >= fewest, 24, tries + 1)
        else:
            low = middle
            tries += 1
    return level


@triton.jit
def _candidates(
    score_ptr, order_ptr, candidate_ptr, begin, n, budget, done, member,
    RULE: tl.constexpr, BLOCK_ALL: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """Find the M best tokens, in their order; returns how many, and the best score among the others.

    Where no token adds anything any more, the rest of the budget is spread evenly at once; returns 0 then.
    """
    j = tl.arange(0, BLOCK_ALL)  # (BLOCK_ALL,)
    score = tl.load(score_ptr + begin + j, mask=j < n, other=-float("inf"))
    best = tl.max(score, 0)
    lowest = tl.min(tl.where(score == -float("inf"), best, score), 0)
    found = 0
    bound = best
    if (RULE == DPP) & (best < 0.0):
        left = budget - done
        level = _at_least(score, left, left, lowest - 1e-3, best + 1e-3)
        chosen = score >= level
        edge = tl.max(tl.where(chosen, -float("inf"), score), 0)
        tied = (score >= _lowered(edge)) & (score < level) & (score > -float("inf"))
        room = left - tl.sum(chosen.to(tl.int32), 0)
        chosen |= tied & (tl.cumsum(tied.to(tl.int32), 0) <= room)
        step = done + tl.cumsum(chosen.to(tl.int32), 0) - 1
        tl.store(order_ptr + begin + j, step, mask=chosen & (member == 0))
    else:
        level = _at_least(score, CANDIDATES, CANDIDATES * 3 // 4, lowest, best + 1e-3 * tl.abs(best) + 1e-30)
        tied = score >= _lowered(best)
        if level > _lowered(best):  # more tie for the best than there is room for: the first of them
            candidate = tied & (tl.cumsum(tied.to(tl.int32), 0) <= CANDIDATES)
        else:
            candidate = score >= level
        bound = tl.max(tl.where(candidate, -float("inf"), score), 0)
        slot = tl.cumsum(candidate.to(tl.int32), 0) - 1
        tl.store(candidate_ptr + slot, j, mask=candidate)
        found = tl.sum(candidate.to(tl.int32), 0)
    return found, bound


@triton.jit
def _whole(x):
    """float32 as int32 in the same order, whose reductions within a warp are one instruction."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _unwhole(bits):
    """The float32 that `_whole` made this of."""
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _pick_block(
    state_ptr, r_ptr, common_ptr, rest_ptr, step_ptr, solve_ptr, token, begin, budget, done, found, bound, tokens,
    trade, RULE: tl.constexpr, HELD: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """Pick among the candidates for as long as the best of them beats the bound; stores each one's step of the block.

    For eq. 6 also how the rows c of the picks follow from what candidates and tokens have in common: an elimination,
    whose row of the moment goes from those who hold it to all through memory, the shortest way between warps.
    """
    m = tl.arange(0, CANDIDATES)  # (M,)
    state = tl.load(state_ptr + begin + token, mask=m < found, other=_TAKEN, cache_modifier=".cg")
    r = _relevance(r_ptr, begin + token, m < found)
    common_at = common_ptr + m[:, None] * CANDIDATES + m[None, :]
    known = (m < found)[:, None] & (m < found)[None, :]
    if HELD:
        common = tl.load(common_at, mask=known, other=0.0)
    else:
        rest_ptr += m.to(tl.int64)[:, None] * tokens + begin + token[None, :]
        common = tl.load(rest_ptr, mask=known, other=0.0)
        tl.store(common_at, common)
    # Of each candidate, the row in terms of the rows of all; made of `common` to be laid out as that is.
    solve = tl.where(m[:, None] == m[None, :], 1.0, common * 0.0)
    step = tl.full((CANDIDATES,), -1, tl.int32)
    # Before the first pick, max-min scores by another state than after it.
    most = tl.minimum(1 if (RULE == MAX_MIN and done == 0) else CANDIDATES, budget - done)
    count = 0
    sure = True
    if RULE == DPP or not HELD:
        tl.debug_barrier()  # what was stored is read from here on, and what was loaded overwritten
    while sure & (count < most):
        score = tl.where(state < _TAKEN, _score(state, r, token, trade, RULE), -float("inf"))
        best = _unwhole(tl.max(_whole(score), 0))
        # The first pick of a block has fresh scores everywhere, ties included; a later one must beat the stale bound.
        sure = (count == 0) | (_lowered(best) > bound)
        if RULE == DPP:
            sure &= best >= 0.0
        if sure:
            at = tl.min(tl.where(score >= _lowered(best), m, CANDIDATES), 0)
            here = m == at
            if RULE == DPP:
                row_ptr = common_ptr + (count % 2) * 2 * CANDIDATES
                tl.store(row_ptr + m[None, :] + 0 * m[:, None], common, mask=here[:, None])
                tl.store(row_ptr + CANDIDATES + m[None, :] + 0 * m[:, None], solve, mask=here[:, None])
                tl.debug_barrier()
                held = tl.sum(tl.where(here, state.to(tl.int32, bitcast=True), 0), 0).to(tl.float32, bitcast=True)
                scale = tl.rsqrt(tl.maximum(held, _EXHAUSTED))
                e = tl.load(row_ptr + m) * scale  # (M,) row c at the candidates
                across = tl.load(row_ptr + m) * scale  # the same for another layout: loading is quicker than turning
                row = tl.load(row_ptr + CANDIDATES + m) * scale
                solve = tl.where(here[:, None], row[None, :], solve - across[:, None] * row[None, :])
                common -= across[:, None] * e[None, :]
                state = tl.maximum(state - e * e, 0.0)
            else:
                state = tl.maximum(state, tl.load(common_ptr + at * CANDIDATES + m))
            state = tl.where(here | (score == -float("inf")), _TAKEN, state)
            step = tl.where(here, count, step)
            count += 1
    tl.store(step_ptr + m, step)
    if RULE == DPP:
        tl.store(solve_ptr + m[:, None] * CANDIDATES + m[None, :], solve)
