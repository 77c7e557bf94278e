"""The greedy selections for long segments: exact, in blocks of picks, by a team of programs a segment.

The score of a token never rises as picks are made. So when the M best tokens are known with fresh scores, and the best
score among the others (the bound), one program can go on picking among those M alone for as long as the best of them
beats the bound: no other token can. Only then is the rest brought up to date, for all picks of the block at once, by
the whole team. That is lazy greedy (Minoux 1978), a block at a time; the picks are those of the one-by-one algorithm.
docs/method.md, "Long segments".

A round: every program finds the M candidates. The first picks among them (pick_block.py), and meanwhile the others
work out what each candidate has in common with every token beyond the picks so far, an (M, n) matrix. When it is known
who was picked, how the rows c of the picks follow from that matrix is known too, and the team lowers all states.
Rows of S come from S where it is held, else from the features; then what is common to candidates is read off the
matrix, and the first program waits for it. Programs are shared among the segments in proportion to their length, on the
device; a team of more than one meets at a barrier between phases, so all programs of a launch must be resident at once.
"""

import triton
import triton.language as tl

from vidsieve.ops.greedy.pick_block import _candidates, _pick_block
from vidsieve.ops.greedy.short_segments import DPP, HYBRID, MAX_MIN, MMR, _initial, _picks_before, _relevance, _score
from vidsieve.ops.launch import COUNTS
from vidsieve.ops.measurement.gram import _inverse


@triton.jit
def _meet(barrier_ptr, arrived, team, wait):
    """Come here; and if to `wait`, until all programs of the team have: what each wrote before is then visible."""
    tl.debug_barrier()
    if team > 1:
        tl.atomic_add(barrier_ptr, 1, sem="acq_rel", scope="gpu")
        if wait:
            while tl.atomic_add(barrier_ptr, 0, sem="acquire", scope="gpu") < arrived:
                pass
            tl.debug_barrier()


@triton.jit
def _filled(done):
    """Columns of c after `done` picks: whole sectors, the last of which ends with zeros."""
    return tl.multiple_of((done + 7) // 8 * 8, 8)


@triton.jit
def _weighing(r_ptr, first_ptr, done, early, HEAD: tl.constexpr):
    """Where the relevance lies that the pick after `done` others is chosen by. It is one for all picks of a block."""
    weigh_ptr = r_ptr
    if HEAD:
        if done < early:
            weigh_ptr = first_ptr
    return weigh_ptr


@triton.jit
def _reach(budget, done, early, HEAD: tl.constexpr):
    """How many picks are made when the block after `done` ends at the latest: it must not go beyond the early ones."""
    reach = budget
    if HEAD:
        reach = tl.where(done < early, tl.minimum(early, budget), budget)
    return reach


@triton.jit
def _common(
    s_ptr, c_ptr, common_ptr, begin, token, known, done, longest, width, member, team,
    RULE: tl.constexpr, CANDIDATES: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """This program's rows of what `_rest` is between candidates: the first program waits for it, so all share it."""
    m = tl.arange(0, CANDIDATES)  # (M,)
    u = tl.arange(0, BLOCK_K)
    for i in range(member, tl.sum(known.to(tl.int32), 0), team):
        one = tl.sum(tl.where(m == i, token, 0), 0)
        row = tl.load(s_ptr + (begin + one).to(tl.int64) * longest + token, mask=known, other=0.0)
        if RULE == DPP:
            acc = tl.zeros((CANDIDATES, BLOCK_K), tl.float32)
            cm_ptr = c_ptr + token.to(tl.int64)[:, None] * width + u[None, :]
            ci_ptr = c_ptr + one.to(tl.int64) * width + u
            filled = _filled(done)
            for at in range(0, filled, BLOCK_K):
                old = at + u < filled
                cm = tl.load(cm_ptr + at, mask=known[:, None] & old[None, :], other=0.0)
                acc += cm * tl.load(ci_ptr + at, mask=old, other=0.0)[None, :]
            row -= tl.sum(acc, 1)
        tl.store(common_ptr + i * CANDIDATES + m, row)


@triton.jit
def _rest(
    x_ptr, s_ptr, norm_ptr, c_ptr, rest_ptr, begin, n, token, found, done, longest, width, stride, tokens, member, team,
    RULE: tl.constexpr, HELD: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """This program's columns of what S between candidates and tokens holds beyond the `done` picks so far."""
    m = tl.arange(0, CANDIDATES)
    d = tl.arange(0, BLOCK_D)
    u = tl.arange(0, BLOCK_K)
    known = (m < found)[:, None]
    for tile in range(member, tl.cdiv(n, BLOCK_N), team):
        j = tile * BLOCK_N + tl.arange(0, BLOCK_N)  # (J,)
        inside = j < n
        if HELD:
            s_at = s_ptr + (begin + token).to(tl.int64)[:, None] * longest + j[None, :]
            rest = tl.load(s_at, mask=known & inside[None, :], other=0.0)  # (M, J)
        else:
            rest = tl.zeros((CANDIDATES, BLOCK_N), tl.float32)
            xm_ptr = x_ptr + (begin + token).to(tl.int64)[:, None] * stride + d[None, :]
            xj_ptr = x_ptr + (begin + j).to(tl.int64)[:, None] * stride + d[None, :]
            for k in range(0, D, BLOCK_D):
                valid = d[None, :] < D - k
                xm = tl.load(xm_ptr + k, mask=known & valid, other=0.0)
                xj = tl.load(xj_ptr + k, mask=inside[:, None] & valid, other=0.0)
                rest = tl.dot(xm, xj.T, rest, input_precision=PRECISION)
            rest *= _inverse(norm_ptr, begin + token, m < found)[:, None]
            rest *= _inverse(norm_ptr, begin + j, inside)[None, :]
            rest = tl.where(rest == rest, rest, 0.0)
        if RULE == DPP:
            cm_ptr = c_ptr + token.to(tl.int64)[:, None] * width + u[None, :]
            cj_ptr = c_ptr + j.to(tl.int64)[:, None] * width + u[None, :]
            filled = _filled(done)
            for at in range(0, filled, BLOCK_K):
                old = (at + u < filled)[None, :]
                cm = tl.load(cm_ptr + at, mask=known & old, other=0.0)
                cj = tl.load(cj_ptr + at, mask=inside[:, None] & old, other=0.0)
                rest -= tl.dot(cm, cj.T, input_precision=EXACT)
        tl.store(rest_ptr + m.to(tl.int64)[:, None] * tokens + begin + j[None, :], rest, mask=inside[None, :])


@triton.jit
def _apply(
    state_ptr, r_ptr, score_ptr, c_ptr, rest_ptr, solve_ptr, token, step, begin, j, inside, done, count, width, tokens,
    trade,
    RULE: tl.constexpr, EXACT: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """Bring states and scores of tokens j up to date with the `count` picks that follow `done` earlier ones."""
    m = tl.arange(0, CANDIDATES)
    rest_ptr += begin + j[None, :]
    rest = tl.load(rest_ptr + m.to(tl.int64)[:, None] * tokens, mask=inside[None, :], other=0.0)
    state = tl.load(state_ptr + begin + j, mask=inside, other=0.0)
    picked = (step >= 0)[:, None]
    if RULE == DPP:
        solve = tl.load(solve_ptr + m[:, None] * CANDIDATES + m[None, :])
        c = tl.dot(tl.where(picked, solve, 0.0), rest, input_precision=EXACT)  # (M, J) rows c of eq. 6
        state = tl.maximum(state - tl.sum(c * c, 0), 0.0)
        row_ptr = c_ptr + j.to(tl.int64)[None, :] * width + done
        tl.store(row_ptr + step[:, None], c, mask=picked & inside[None, :])
        # Whole sectors are read, so the last one ends with zeros until the next block.
        pad = tl.arange(0, 8)[:, None]
        zero = tl.zeros((8, j.shape[0]), tl.float32)
        tl.store(row_ptr + count + pad, zero, mask=(done + count + pad < _filled(done + count)) & inside[None, :])
    else:
        best = tl.max(tl.where(picked, rest, -2.0), 0)
        state = best if (RULE == MAX_MIN and done == 0) else tl.maximum(state, best)
    tl.store(state_ptr + begin + j, state, mask=inside)
    score = tl.load(score_ptr + begin + j, mask=inside, other=0.0)
    gone = (score == -float("inf")) | (tl.max((picked & (token[:, None] == j[None, :])).to(tl.int32), 0) > 0)
    score = tl.where(gone, -float("inf"), _score(state, _relevance(r_ptr, begin + j, inside), j, trade, RULE))
    tl.store(score_ptr + begin + j, score, mask=inside)


@triton.jit(do_not_specialize=COUNTS)
def _long_segments_kernel(
    x_ptr,  # (N, D) features, rows `stride` apart; read where S is not held
    s_ptr,  # (N, longest) float32 cosines, where held
    norm_ptr,  # (N,) float32, length of each token
    state_ptr,  # (N,) float32 scratch; on entry the cosine to the nearest other token, read by MAX_MIN
    r_ptr,  # (N,) float32 relevance
    first_ptr,  # (N,) float32 relevance of the first picks; read if HEAD
    early_ptr,  # (S,) int64, how many those are; read if HEAD
    offsets_ptr,  # (S + 1,) int64
    budget_ptr,  # (S,) int64
    score_ptr,  # (N,) float32 scratch: what each token would add, -inf once picked
    c_ptr,  # float32 scratch: of each segment n rows of `width` columns, c of eq. 6 as one row a token
    order_ptr,  # (N,) int32 out; -1 on entry where no program comes, in segments without budget
    candidate_ptr,  # (programs, CANDIDATES) int32 scratch
    common_ptr,  # (S, CANDIDATES, CANDIDATES) float32 scratch
    rest_ptr,  # (CANDIDATES, N) float32 scratch: what S between candidates and tokens holds beyond the earlier picks
    step_ptr,  # (S, CANDIDATES) int32 scratch: when a candidate was picked in this block, -1 if not
    solve_ptr,  # (S, CANDIDATES, CANDIDATES) float32 scratch: rows c of this block's picks in terms of `rest`
    barrier_ptr,  # (S, 2) int32, -1 on entry: where a team meets, and where its first waits for the others
    tokens,  # N
    segments,
    longest,
    c_rows,  # tokens for which a segment has room in c
    stride,
    trade,
    threshold,  # read by HYBRID
    SHARED: tl.constexpr,  # whether there are as many programs as segments or more, to be shared among them
    RULE: tl.constexpr,
    HEAD: tl.constexpr,  # whether the first picks of DPP are weighed otherwise
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
        width = _filled(budget)  # of a row of c
        c_ptr += tl.multiple_of(_picks_before(budget_ptr, segment, 8, 128) * c_rows, 8)
        candidate_ptr += tl.program_id(0) * CANDIDATES
        common_ptr += segment * CANDIDATES * CANDIDATES
        step_ptr += segment * CANDIDATES
        solve_ptr += segment * CANDIDATES * CANDIDATES
        barrier_ptr += segment * 2
        early = 0
        if HEAD:
            early = tl.load(early_ptr + segment).to(tl.int32)
        if RULE != HYBRID:
            _long_segments(
                x_ptr, s_ptr, norm_ptr, state_ptr, r_ptr, first_ptr, score_ptr, c_ptr, order_ptr, candidate_ptr,
                common_ptr, rest_ptr, step_ptr, solve_ptr, barrier_ptr, begin, n, budget, early, width, tokens, longest,
                stride, trade, member, team, RULE, HEAD, HELD, D, PRECISION, EXACT, BLOCK_ALL, BLOCK_N, BLOCK_D,
                BLOCK_K, CANDIDATES,
            )  # fmt: skip
        elif n <= threshold:
            _long_segments(
                x_ptr, s_ptr, norm_ptr, state_ptr, r_ptr, first_ptr, score_ptr, c_ptr, order_ptr, candidate_ptr,
                common_ptr, rest_ptr, step_ptr, solve_ptr, barrier_ptr, begin, n, budget, early, width, tokens, longest,
                stride, trade, member, team, DPP, HEAD, HELD, D, PRECISION, EXACT, BLOCK_ALL, BLOCK_N, BLOCK_D,
                BLOCK_K, CANDIDATES,
            )  # fmt: skip
        else:
            _long_segments(
                x_ptr, s_ptr, norm_ptr, state_ptr, r_ptr, first_ptr, score_ptr, c_ptr, order_ptr, candidate_ptr,
                common_ptr, rest_ptr, step_ptr, solve_ptr, barrier_ptr, begin, n, budget, early, width, tokens, longest,
                stride, trade, member, team, MMR, HEAD, HELD, D, PRECISION, EXACT, BLOCK_ALL, BLOCK_N, BLOCK_D,
                BLOCK_K, CANDIDATES,
            )  # fmt: skip


@triton.jit
def _long_segments(
    x_ptr, s_ptr, norm_ptr, state_ptr, r_ptr, first_ptr, score_ptr, c_ptr, order_ptr, candidate_ptr, common_ptr,
    rest_ptr, step_ptr, solve_ptr, barrier_ptr, begin, n, budget, early, width, tokens, longest, stride, trade, member,
    team,
    RULE: tl.constexpr, HEAD: tl.constexpr, HELD: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    EXACT: tl.constexpr, BLOCK_ALL: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
    CANDIDATES: tl.constexpr,
):  # fmt: skip
    """Pick `budget` of the n tokens from `begin` on, as one of the team of programs that does."""
    m = tl.arange(0, CANDIDATES)
    tiles = tl.cdiv(n, BLOCK_N)
    for tile in range(member, tiles, team):
        j = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        state = _initial(norm_ptr, state_ptr, begin + j, j < n, RULE)
        tl.store(state_ptr + begin + j, state, mask=j < n)
        weigh_ptr = _weighing(r_ptr, first_ptr, 0, early, HEAD)
        score = _score(state, _relevance(weigh_ptr, begin + j, j < n), j, trade, RULE)
        tl.store(score_ptr + begin + j, score, mask=j < n)
        tl.store(order_ptr + begin + j, -1, mask=j < n)
    arrived = team - 1
    shared = -1
    _meet(barrier_ptr, arrived, team, True)
    done = 0
    while done < budget:
        # What this reads is written between the two meetings below, so every program finds the same.
        found, bound = _candidates(
            score_ptr, order_ptr, candidate_ptr, begin, n, budget, done, member, RULE, BLOCK_ALL, CANDIDATES,
        )  # fmt: skip
        if found == 0:
            done = budget
        else:
            tl.debug_barrier()
            token = tl.load(candidate_ptr + m, mask=m < found, other=0)
            if HELD:
                _common(
                    s_ptr, c_ptr, common_ptr, begin, token, m < found, done, longest, width, member, team,
                    RULE, CANDIDATES, 128,
                )  # fmt: skip
                shared += team
                _meet(barrier_ptr + 1, shared, team, member == 0)
            else:  # a look at features takes so long that what candidates have in common had better come of it
                _rest(
                    x_ptr, s_ptr, norm_ptr, c_ptr, rest_ptr, begin, n, token, found, done, longest, width, stride,
                    tokens, member, team, RULE, HELD, D, PRECISION, EXACT, BLOCK_N, BLOCK_D, BLOCK_K, CANDIDATES,
                )  # fmt: skip
                arrived += team
                _meet(barrier_ptr, arrived, team, True)
            if member == 0:
                _pick_block(
                    state_ptr, _weighing(r_ptr, first_ptr, done, early, HEAD), common_ptr, rest_ptr, step_ptr,
                    solve_ptr, token, begin, _reach(budget, done, early, HEAD), done, found, bound, tokens, trade,
                    RULE, HELD, CANDIDATES,
                )  # fmt: skip
            if HELD and (member > 0) | (team == 1):  # meanwhile
                _rest(
                    x_ptr, s_ptr, norm_ptr, c_ptr, rest_ptr, begin, n, token, found, done, longest, width, stride,
                    tokens, tl.maximum(member - 1, 0), tl.maximum(team - 1, 1),
                    RULE, HELD, D, PRECISION, EXACT, BLOCK_N, BLOCK_D, BLOCK_K, CANDIDATES,
                )  # fmt: skip
            arrived += team
            _meet(barrier_ptr, arrived, team, True)
            step = tl.load(step_ptr + m, cache_modifier=".cg")
            count = tl.sum((step >= 0).to(tl.int32), 0)
            if member == 0:
                tl.store(order_ptr + begin + token, done + step, mask=step >= 0)
            if done + count < budget:
                for tile in range(member, tiles, team):
                    j = tile * BLOCK_N + tl.arange(0, BLOCK_N)
                    _apply(
                        state_ptr, _weighing(r_ptr, first_ptr, done + count, early, HEAD), score_ptr, c_ptr, rest_ptr,
                        solve_ptr, token, step, begin, j, j < n, done, count, width, tokens, trade,
                        RULE, EXACT, CANDIDATES,
                    )  # fmt: skip
                arrived += team
                _meet(barrier_ptr, arrived, team, True)
            done += count
