"""The greedy selections for long segments: exact, in blocks of picks, by a team of programs a segment.

The score of a token never rises as picks are made. So when the M best tokens are known with fresh scores, and the best
score among the others (the bound), one program can go on picking among those M alone for as long as the best of them
beats the bound: no other token can. Only then is the rest brought up to date, for all picks of the block at once, by
the whole team. That is lazy greedy (Minoux 1978), a block at a time; the picks are those of the one-by-one algorithm.
docs/method.md, "Long segments".

A round: the first program finds the M candidates; the team computes what each pair of them has in common beyond the
picks so far; the first program picks among them; the team lowers the state of every token. Rows of S come from S where
it is held, else from the features. Programs are shared among the segments in proportion to their length, on the device;
a team of more than one meets at a barrier between phases, so all programs of a launch must be resident at once.
"""

import triton
import triton.language as tl

from vidsieve.ops.triton_gram import _inverse
from vidsieve.ops.triton_greedy import (
    _EXHAUSTED,
    DPP,
    HYBRID,
    MAX_MIN,
    MMR,
    _initial,
    _lowered,
    _picks_before,
    _relevance,
    _score,
)


@triton.jit
def _meet(barrier_ptr, arrived, team):
    """Wait until all programs of the team have come here; what each wrote before is then visible to all."""
    if team > 1:
        tl.debug_barrier()
        tl.atomic_add(barrier_ptr, 1, sem="acq_rel", scope="gpu")
        while tl.atomic_add(barrier_ptr, 0, sem="acquire", scope="gpu") < arrived:
            pass
    tl.debug_barrier()


@triton.jit
def _explained(c_ptr, width, rows, mask, pick, done, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    """What the rows c of eq. 6 before `done` say of S between tokens `rows` (BLOCK,) and token `pick`: (BLOCK,)."""
    u = tl.arange(0, BLOCK_K)
    row_ptr = c_ptr + rows.to(tl.int64)[:, None] * width + u[None, :]
    acc = tl.zeros((BLOCK, BLOCK_K), tl.float32)
    for at in range(0, done, BLOCK_K):
        old = at + u < done
        c_pick = tl.load(c_ptr + pick.to(tl.int64) * width + at + u, mask=old, other=0.0, cache_modifier=".cg")
        acc += tl.load(row_ptr + at, mask=mask[:, None] & old[None, :], other=0.0, cache_modifier=".cg") * c_pick
    return tl.sum(acc, 1)


@triton.jit
def _update(
    x_ptr, s_ptr, norm_ptr, state_ptr, c_ptr, pick_ptr, solve_ptr, begin, n, done, count, longest, width, stride,
    member, team,
    RULE: tl.constexpr, HELD: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, PICKS: tl.constexpr,
):  # fmt: skip
    """Bring the states of this program's tokens up to date with `count` picks that follow `done` earlier ones."""
    p = tl.arange(0, PICKS)  # (PICKS,)
    picked = tl.load(pick_ptr + done + p, mask=p < count, other=0, cache_modifier=".cg")  # tokens within the segment
    d = tl.arange(0, BLOCK_D)
    u = tl.arange(0, BLOCK_K)
    if RULE == DPP:
        solve = tl.load(solve_ptr + p[:, None] * PICKS + p[None, :], cache_modifier=".cg")  # (PICKS, PICKS)
        solve = tl.where((p < count)[:, None], solve, 0.0)
    for tile in range(member, tl.cdiv(n, BLOCK_N), team):
        j = tile * BLOCK_N + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
        both = (p < count)[:, None] & (j < n)[None, :]
        if HELD:
            rows = tl.load(s_ptr + (begin + picked).to(tl.int64)[:, None] * longest + j[None, :], mask=both, other=0.0)
        else:
            rows = tl.zeros((PICKS, BLOCK_N), tl.float32)
            xp_ptr = x_ptr + (begin + picked).to(tl.int64)[:, None] * stride + d[None, :]
            xj_ptr = x_ptr + (begin + j).to(tl.int64)[:, None] * stride + d[None, :]
            for k in range(0, D, BLOCK_D):
                valid = d[None, :] < D - k
                xp = tl.load(xp_ptr + k, mask=(p < count)[:, None] & valid, other=0.0)
                xj = tl.load(xj_ptr + k, mask=(j < n)[:, None] & valid, other=0.0)
                rows = tl.dot(xp, xj.T, rows, input_precision=PRECISION)
            rows *= _inverse(norm_ptr, begin + picked, p < count)[:, None]
            rows *= _inverse(norm_ptr, begin + j, j < n)[None, :]
            rows = tl.where(rows == rows, rows, 0.0)
        state = tl.load(state_ptr + begin + j, mask=j < n, other=0.0)
        if RULE == DPP:
            for at in range(0, done, BLOCK_K):
                old = (at + u < done)[None, :]
                c_pick = tl.load(
                    c_ptr + picked.to(tl.int64)[:, None] * width + (at + u)[None, :],
                    mask=(p < count)[:, None] & old, other=0.0, cache_modifier=".cg",
                )  # fmt: skip
                c = tl.load(
                    c_ptr + j.to(tl.int64)[:, None] * width + (at + u)[None, :], mask=(j < n)[:, None] & old, other=0.0
                )
                rows -= tl.dot(c_pick, c.T, input_precision=EXACT)
            rows = tl.dot(solve, rows, input_precision=EXACT)  # rows c of eq. 6
            state = tl.maximum(state - tl.sum(rows * rows, 0), 0.0)
            tl.store(c_ptr + j.to(tl.int64)[None, :] * width + (done + p)[:, None], rows, mask=both)
        else:
            best = tl.max(tl.where((p < count)[:, None], rows, -2.0), 0)
            state = best if (RULE == MAX_MIN and done == 0) else tl.maximum(state, best)
        tl.store(state_ptr + begin + j, state, mask=j < n)


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
    norm_ptr, state_ptr, r_ptr, order_ptr, candidate_ptr, begin, n, budget, done, trade,
    RULE: tl.constexpr, BLOCK_ALL: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """Find the M best tokens, in their order; returns how many, and the best score among the others.

    Where no token adds anything any more, the rest of the budget goes by relevance at once; returns 0 then.
    """
    j = tl.arange(0, BLOCK_ALL)  # (BLOCK_ALL,)
    state = tl.load(state_ptr + begin + j, mask=j < n, other=0.0, cache_modifier=".cg")
    r = _relevance(r_ptr, begin + j, j < n)
    order = tl.load(order_ptr + begin + j, mask=j < n, other=0, cache_modifier=".cg")
    score = tl.where((j < n) & (order < 0), _score(state, r, trade, RULE), -float("inf"))
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
        tl.store(order_ptr + begin + j, step, mask=chosen)
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
def _common(
    x_ptr, s_ptr, norm_ptr, c_ptr, candidate_ptr, common_ptr, begin, found, done, longest, width, stride, member, team,
    RULE: tl.constexpr, HELD: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """This program's rows of the M x M matrix of what S between candidates holds beyond the picks so far."""
    m = tl.arange(0, CANDIDATES)  # (M,)
    d = tl.arange(0, BLOCK_D)
    token = tl.load(candidate_ptr + m, mask=m < found, other=0, cache_modifier=".cg")
    xm_ptr = x_ptr + (begin + token).to(tl.int64)[:, None] * stride + d[None, :]
    for i in range(member, found, team):
        pick = tl.sum(tl.where(m == i, token, 0), 0)
        if HELD:
            row = tl.load(s_ptr + (begin + pick).to(tl.int64) * longest + token, mask=m < found, other=0.0)
        else:
            acc = tl.zeros((CANDIDATES, BLOCK_D), tl.float32)
            xp_ptr = x_ptr + (begin + pick).to(tl.int64) * stride + d
            for k in range(0, D, BLOCK_D):
                xm = tl.load(xm_ptr + k, mask=(m < found)[:, None] & (d[None, :] < D - k), other=0.0)
                acc += xm.to(tl.float32) * tl.load(xp_ptr + k, mask=d < D - k, other=0.0).to(tl.float32)[None, :]
            scale = tl.sum(_inverse(norm_ptr, begin + pick + tl.arange(0, 1), tl.arange(0, 1) < 1), 0)
            row = tl.sum(acc, 1) * scale * _inverse(norm_ptr, begin + token, m < found)
            row = tl.where(row == row, row, 0.0)
        if RULE == DPP:
            row -= _explained(c_ptr, width, token, m < found, pick, done, CANDIDATES, 128)
        tl.store(common_ptr + i * CANDIDATES + m, row)


@triton.jit
def _pick(
    state_ptr, r_ptr, order_ptr, candidate_ptr, common_ptr, pick_ptr, solve_ptr,
    begin, budget, done, found, bound, trade,
    RULE: tl.constexpr, CANDIDATES: tl.constexpr, PICKS: tl.constexpr,
):  # fmt: skip
    """Pick among the candidates for as long as the best of them beats the bound; returns how many were picked."""
    m = tl.arange(0, CANDIDATES)  # (M,)
    p = tl.arange(0, PICKS)  # (PICKS,)
    open_m = m < found
    token = tl.load(candidate_ptr + m, mask=open_m, other=0)
    state = tl.load(state_ptr + begin + token, mask=open_m, other=0.0, cache_modifier=".cg")
    r = _relevance(r_ptr, begin + token, open_m)
    ell = tl.zeros((PICKS, CANDIDATES), tl.float32)  # rows c of this block's picks, at the candidates
    solve = tl.zeros((PICKS, PICKS), tl.float32)  # what makes rows c of what S holds beyond the earlier picks
    # Before the first pick, max-min scores by another state than after it.
    most = tl.minimum(1 if (RULE == MAX_MIN and done == 0) else PICKS, budget - done)
    count = 0
    sure = True
    while sure & (count < most):
        score = tl.where(open_m, _score(state, r, trade, RULE), -float("inf"))
        best = tl.max(score, 0)
        # The first pick of a block has fresh scores everywhere, ties included; a later one must beat the stale bound.
        sure = (count == 0) | (_lowered(best) > bound)
        if RULE == DPP:
            sure &= best >= 0.0
        if sure:
            at = tl.min(tl.where(score >= _lowered(best), m, CANDIDATES), 0)
            here = m == at
            e = tl.load(common_ptr + at * CANDIDATES + m, mask=m < found, other=0.0, cache_modifier=".cg")  # (M,)
            if RULE == DPP:
                scale = tl.rsqrt(tl.maximum(tl.sum(tl.where(here, state, 0.0), 0), _EXHAUSTED))
                ell_pick = tl.sum(tl.where(here[None, :], ell, 0.0), 1)  # (PICKS,)
                e = (e - tl.sum(ell_pick[:, None] * ell, 0)) * scale
                # Eq. 6 is a triangular system; this is the next row of its inverse.
                row = ((p == count).to(tl.float32) - tl.sum(ell_pick[:, None] * solve, 0)) * scale
                tl.store(solve_ptr + count * PICKS + p, row)
                solve = tl.where((p == count)[:, None], row[None, :], solve)
                ell = tl.where((p == count)[:, None], e[None, :], ell)
                state = tl.maximum(state - e * e, 0.0)
            else:
                state = tl.maximum(state, e)
            open_m &= m != at
            picked = tl.sum(tl.where(here, token, 0), 0)
            tl.store(pick_ptr + done + count, picked)
            tl.store(order_ptr + begin + picked, done + count)
            count += 1
    return count


@triton.jit
def _lazy_greedy_kernel(
    x_ptr,  # (N, D) features, rows `stride` apart; read where S is not held
    s_ptr,  # (N, longest) float32 cosines, where held
    norm_ptr,  # (N,) float32, length of each token
    state_ptr,  # (N,) float32 scratch; on entry the cosine to the nearest other token, read by MAX_MIN
    r_ptr,  # (N,) float32 relevance
    offsets_ptr,  # (S + 1,) int64
    budget_ptr,  # (S,) int64
    c_ptr,  # float32 scratch: of each segment n rows of `width` columns, c of eq. 6 as one row a token
    order_ptr,  # (N,) int32 out; -1 on entry where no program comes, in segments without budget
    candidate_ptr,  # (S, CANDIDATES) int32 scratch
    common_ptr,  # (S, CANDIDATES, CANDIDATES) float32 scratch
    pick_ptr,  # (K + PICKS,) int32 scratch: picks in order, within their segment
    solve_ptr,  # (S, PICKS, PICKS) float32 scratch: the inverse of the triangle of this block's rows c at its picks
    count_ptr,  # (S, 2) int32 scratch: candidates, picks of the block
    barrier_ptr,  # (S,) int32, -1 on entry
    segments,
    longest,
    c_rows,  # tokens for which a segment has room in c
    stride,
    trade,
    threshold,  # read by HYBRID
    SHARED: tl.constexpr,  # whether there are as many programs as segments or more, to be shared among them
    RULE: tl.constexpr,
    HELD: tl.constexpr,
    D: tl.constexpr,
    PRECISION: tl.constexpr,  # of products of features
    EXACT: tl.constexpr,  # of products of rows c
    BLOCK_S: tl.constexpr,  # a power of two that covers S
    BLOCK_ALL: tl.constexpr,  # a power of two that covers `longest`
    BLOCK_N: tl.constexpr,  # tokens updated at a time
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,  # columns of c read at a time
    CANDIDATES: tl.constexpr,
    PICKS: tl.constexpr,  # most picks of a block
):
    segment = tl.program_id(0)
    member = 0
    team = 1
    if SHARED:
        s = tl.arange(0, BLOCK_S)
        live = (s < segments) & (tl.load(budget_ptr + s, mask=s < segments, other=0) > 0)
        length = tl.load(offsets_ptr + s + 1, mask=live, other=0) - tl.load(offsets_ptr + s, mask=live, other=0)
        spare = tl.num_programs(0) - tl.sum(live.to(tl.int32), 0)
        teams = live.to(tl.int64) + spare * length // tl.maximum(tl.sum(length, 0), 1)  # (BLOCK_S,)
        ends = tl.cumsum(teams, 0)
        segment = tl.sum((ends <= tl.program_id(0)).to(tl.int32), 0)
        here = s == segment
        team = tl.sum(tl.where(here, teams, 0), 0).to(tl.int32)
        member = (tl.program_id(0) - tl.sum(tl.where(here, ends - teams, 0), 0)).to(tl.int32)
    if segment < segments:
        begin = tl.load(offsets_ptr + segment)
        n = (tl.load(offsets_ptr + segment + 1) - begin).to(tl.int32)
        budget = tl.load(budget_ptr + segment).to(tl.int32)
        width = tl.multiple_of((budget + 7) // 8 * 8, 8)  # of a row of c: whole sectors
        pick_ptr += _picks_before(budget_ptr, segment, 1, 128)
        c_ptr += tl.multiple_of(_picks_before(budget_ptr, segment, 8, 128) * c_rows, 8)
        candidate_ptr += segment * CANDIDATES
        common_ptr += segment * CANDIDATES * CANDIDATES
        solve_ptr += segment * PICKS * PICKS
        count_ptr += segment * 2
        barrier_ptr += segment
        if RULE != HYBRID:
            _lazy_greedy(
                x_ptr, s_ptr, norm_ptr, state_ptr, r_ptr, c_ptr, order_ptr, candidate_ptr, common_ptr, pick_ptr,
                solve_ptr, count_ptr, barrier_ptr, begin, n, budget, width, longest, stride, trade, member, team,
                RULE, HELD, D, PRECISION, EXACT, BLOCK_ALL, BLOCK_N, BLOCK_D, BLOCK_K, CANDIDATES, PICKS,
            )  # fmt: skip
        elif n <= threshold:
            _lazy_greedy(
                x_ptr, s_ptr, norm_ptr, state_ptr, r_ptr, c_ptr, order_ptr, candidate_ptr, common_ptr, pick_ptr,
                solve_ptr, count_ptr, barrier_ptr, begin, n, budget, width, longest, stride, trade, member, team,
                DPP, HELD, D, PRECISION, EXACT, BLOCK_ALL, BLOCK_N, BLOCK_D, BLOCK_K, CANDIDATES, PICKS,
            )  # fmt: skip
        else:
            _lazy_greedy(
                x_ptr, s_ptr, norm_ptr, state_ptr, r_ptr, c_ptr, order_ptr, candidate_ptr, common_ptr, pick_ptr,
                solve_ptr, count_ptr, barrier_ptr, begin, n, budget, width, longest, stride, trade, member, team,
                MMR, HELD, D, PRECISION, EXACT, BLOCK_ALL, BLOCK_N, BLOCK_D, BLOCK_K, CANDIDATES, PICKS,
            )  # fmt: skip


@triton.jit
def _lazy_greedy(
    x_ptr, s_ptr, norm_ptr, state_ptr, r_ptr, c_ptr, order_ptr, candidate_ptr, common_ptr, pick_ptr, solve_ptr,
    count_ptr, barrier_ptr, begin, n, budget, width, longest, stride, trade, member, team,
    RULE: tl.constexpr, HELD: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
    BLOCK_ALL: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
    CANDIDATES: tl.constexpr, PICKS: tl.constexpr,
):  # fmt: skip
    """Pick `budget` of the n tokens from `begin` on, as one of the team of programs that does."""
    for tile in range(member, tl.cdiv(n, BLOCK_N), team):
        j = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        tl.store(state_ptr + begin + j, _initial(norm_ptr, state_ptr, begin + j, j < n, RULE), mask=j < n)
        tl.store(order_ptr + begin + j, -1, mask=j < n)
    arrived = team - 1
    _meet(barrier_ptr, arrived, team)
    done = 0
    while done < budget:
        bound = 0.0
        if member == 0:
            found, bound = _candidates(
                norm_ptr, state_ptr, r_ptr, order_ptr, candidate_ptr, begin, n, budget, done, trade,
                RULE, BLOCK_ALL, CANDIDATES,
            )  # fmt: skip
            tl.store(count_ptr, found)
        arrived += team
        _meet(barrier_ptr, arrived, team)
        found = tl.load(count_ptr, cache_modifier=".cg")
        if found == 0:
            done = budget
        else:
            _common(
                x_ptr, s_ptr, norm_ptr, c_ptr, candidate_ptr, common_ptr, begin, found, done,
                longest, width, stride, member, team, RULE, HELD, D, BLOCK_D, CANDIDATES,
            )  # fmt: skip
            arrived += team
            _meet(barrier_ptr, arrived, team)
            if member == 0:
                count = _pick(
                    state_ptr, r_ptr, order_ptr, candidate_ptr, common_ptr, pick_ptr, solve_ptr,
                    begin, budget, done, found, bound, trade, RULE, CANDIDATES, PICKS,
                )  # fmt: skip
                tl.store(count_ptr + 1, count)
            arrived += team
            _meet(barrier_ptr, arrived, team)
            count = tl.load(count_ptr + 1, cache_modifier=".cg")
            if done + count < budget:
                _update(
                    x_ptr, s_ptr, norm_ptr, state_ptr, c_ptr, pick_ptr, solve_ptr, begin, n, done, count,
                    longest, width, stride, member, team,
                    RULE, HELD, D, PRECISION, EXACT, BLOCK_N, BLOCK_D, BLOCK_K, PICKS,
                )  # fmt: skip
                arrived += team
                _meet(barrier_ptr, arrived, team)
            done += count
