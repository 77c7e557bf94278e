"""The greedy selections in batched torch, for any device. Meaning: reference.py and docs/method.md.

Segments of equal length run as one batch, in pieces of bounded memory. There is a Python loop over picks and over
pieces, none over tokens. The grouping reads segment lengths and budgets on the host: free on CPU, one wait on a GPU.
On a CPU, the picks of `conditional_dpp` are made by on_host.py if numpy is installed, as it is beside transformers.
"""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from vidsieve.ops.definitions import GreedyProblem, HybridProblem, MMRProblem, TopProblem
from vidsieve.ops.limits import EXHAUSTED, TIE
from vidsieve.ops.pieces import PIECE_BYTES, STREAM_BYTES, split_pieces, unit_rows, working

BLOCK_BYTES = 24 << 20  # of a piece that is multiplied twice: stays in the cache that cores share
CORE_BYTES = 1 << 20  # of rows c of a piece that are read at every pick: stay in the cache of one core
ROWS = 32  # of S that are computed at a time, or a multiple: what a tile of a CPU's bf16 unit holds
GRAM_LIMIT = 2048  # tokens; longer segments compute rows of S as they are picked and never hold n x n

NUMPY = find_spec("numpy") is not None
if NUMPY:
    import numpy as np

    from vidsieve.ops.greedy import on_host


class _Similarities:
    """Rows of S for B segments of n tokens x (B, n, D), wanted for up to `steps` picks by relevance r (B, n).

    Held in full where most will be needed. Where few will be, a row that is asked for brings those of the tokens with
    the best scores along: products of many rows are far cheaper than of one. A segment with half of its rows gets all.
    For long segments, where S is not held, rows come one at a time.
    """

    def __init__(self, x: Tensor, norm: Tensor, r: Tensor, steps: int) -> None:
        self.x, self.norm = x, norm  # (B, n, D), (B, n)
        b, n = norm.shape
        self.segments = torch.arange(b, device=x.device)
        self.inverse: Tensor | None = None
        # Of one segment on the host, the place of each row in s, where they are written in the order they come.
        self.slot, self.brought = list(range(n)), 0
        self.held = n <= GRAM_LIMIT
        self.block = min(n, max(ROWS, steps // 4 // ROWS * ROWS))
        if not self.held:
            self.unit = unit_rows(x)  # (B, n, D)
        elif 4 * steps >= n or x.is_cuda:
            self.s = _gram(x, norm)  # (B, n, n)
            self.here = norm.new_ones(b, n, dtype=torch.bool)
        else:
            self.s = norm.new_empty(b, n, n)
            self.here = norm.new_zeros(b, n, dtype=torch.bool)

    def of(self, pick: Tensor, score: Tensor) -> Tensor:
        """Similarities of picks (A, 1), chosen by score (A, n), in the first A segments: (A, n)."""
        segments, at = self.segments[: len(pick)], pick[:, 0]
        if not self.held:
            unit = self.unit[: len(pick)]
            return (unit @ unit[segments, at, :, None])[..., 0]
        missing = segments[~self.here[segments, at]]  # (A',)
        if len(missing):
            n = score.shape[1]
            wanted = score.masked_fill(self.here[: len(pick)], -torch.inf).scatter(1, pick, torch.inf)
            likely = wanted.topk(self.block, dim=1).indices  # (A, m)
            few = 2 * (self.here[missing].sum(1) + self.block) < n
            for begun, rows in ((missing[few], likely), (missing[~few], None)):
                for piece in split_pieces([n] * len(begun), self.x.shape[2], BLOCK_BYTES):
                    self._bring(begun[piece], rows)
        return self.s[segments, at]

    def _bring(self, segments: Tensor, rows: Tensor | None) -> None:
        """Compute rows[segments] of S in `segments` (A,), ascending, or all of them."""
        begin, end = int(segments[0]), int(segments[-1]) + 1
        at: Tensor | slice = slice(begin, end) if end - begin == len(segments) else segments  # a view where it can be
        x, norm = self.x[at], self.norm[at]  # (A, n, D), (A, n)
        if rows is None:
            self.s[at], self.here[at] = _gram(x, norm), True
            return
        chosen = rows[at]  # (A, m)
        inverse = _inverse(norm)
        block = _product(self.x[segments[:, None], chosen], x).mul_(inverse.gather(1, chosen)[:, :, None])  # (A, m, n)
        block.mul_(inverse[:, None, :])
        self.s[segments[:, None], chosen] = block.contiguous()  # rows are written faster than columns
        self.here[segments[:, None], chosen] = True

    def bring_to_one(self, pick: int, score: Tensor) -> None:
        """What `of` does about a missing row, where there is one segment: score (n,)."""
        n, here = len(score), self.here[0]
        begin, end = self.brought, self.brought + self.block
        if 2 * end >= n:
            self._bring(self.segments, None)
            self.slot[:] = range(n)
            return
        wanted = score.masked_fill(here, -torch.inf)
        wanted[pick] = torch.inf
        chosen = wanted.topk(self.block).indices  # (m,)
        if self.inverse is None:
            self.inverse = _inverse(self.norm[0])
        block = _product(self.x[:, chosen], self.x)[0].mul_(self.inverse[chosen][:, None]).mul_(self.inverse)  # (m, n)
        self.s[0, begin:end] = block
        here[chosen], self.brought = True, end
        for slot, token in enumerate(chosen.tolist(), begin):
            self.slot[token] = slot


def _inverse(norm: Tensor) -> Tensor:
    return torch.where(norm > 0, norm.reciprocal(), 0)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a (B, m, D) times b (B, n, D) transposed: (B, m, n), accumulated and returned in float32 or better."""
    if a.shape[1] < b.shape[1]:
        return _product(b, a).mT  # the left one is read as it is, the right one is copied first: better the smaller
    if _rounds(a):
        # CPUs with bf16 units multiply twice as fast in bf16 as in float32, and accumulate in float32; only the
        # result is rounded. A second product minus the first result brings back what the rounding took.
        coarse = torch.bmm(a, b.mT)
        return torch.baddbmm(coarse, a, b.mT, beta=-1).to(torch.float32).add_(coarse)
    return a.to(working(a)) @ b.to(working(b)).mT


def _rounds(x: Tensor) -> bool:
    """Whether products with x (B, n, D) are off by up to 2^-16 of the lengths, as `_product` makes them."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.shape[1] >= 64


def _gram(x: Tensor, norm: Tensor) -> Tensor:
    """Cosines of x (B, n, D) with lengths `norm` within each segment: (B, n, n) in float32 or better."""
    b, n, _ = x.shape
    out = x.new_empty(b, n, n, dtype=working(x))
    inverse = _inverse(norm)
    for piece in split_pieces([n] * b, x.shape[2], BLOCK_BYTES):
        raw = _product(x[piece], x[piece])
        torch.mul(raw, inverse[piece][:, :, None], out=out[piece]).mul_(inverse[piece][:, None, :])
    return out


class _Rule(Protocol):
    """What distinguishes one greedy selection from another, for a batch of B segments of n tokens."""

    def score(self, step: int) -> Tensor:
        """How much each token would add now: (B, n)."""

    def update(self, step: int, pick: Tensor, row: Tensor) -> None:
        """Take note of picks (B, 1) with similarities row (B, n) to their segment."""

    def shrink(self, size: int) -> None:
        """Only the first `size` segments go on."""


class _ConditionalDPP:
    def __init__(self, x: Tensor, norm: Tensor, r: Tensor, steps: int) -> None:
        self.x, self.norm, self.r = x, norm, r
        self.rounds = _rounds(x)
        self.residual = (norm > 0).to(r.dtype)  # (B, n)
        self.c = r.new_empty(len(r), steps, r.shape[1])  # (B, k, n)
        self.fill = -1 - radical_inverse(r.shape[1], r.device).to(r.dtype)  # (n,)
        self.head: tuple[Tensor, Tensor] | None = None  # relevance (B, n) of the first picks, and how many (B, 1)

    def score(self, step: int) -> Tensor:
        r = self.r
        if self.head is not None:
            at_first, early = self.head
            r = torch.where(step < early, at_first, r)
        return torch.where(self.residual > EXHAUSTED, r**2 * self.residual, self.fill)

    def update(self, step: int, pick: Tensor, row: Tensor) -> None:
        residual = self.residual.gather(1, pick)  # (B, 1)
        if self.rounds:
            self._refine(pick, row, (self.residual > EXHAUSTED) & (residual > EXHAUSTED))
        c = self.c[:, :step]
        at_pick = c.gather(2, pick[:, :, None].expand(-1, step, 1))  # (B, step, 1)
        e = torch.baddbmm(row[:, None], at_pick.mT, c, alpha=-1)[:, 0]
        # An exhausted pick spans nothing new; its row would be rounding divided by rounding.
        e = torch.where(residual > EXHAUSTED, e * residual.clamp(min=EXHAUSTED).rsqrt(), 0)
        self.c[:, step] = e
        self.residual = (self.residual - e * e).clamp_(min=0)

    def _refine(self, pick: Tensor, row: Tensor, matters: Tensor) -> None:
        """Multiply anew in float32 what a pick may exhaust: twice the error of a rounded product is above that limit.

        A token that is exhausted does not come back, so duplicates are read once more, whatever there are.
        """
        near = (row > 1 - 2 * EXHAUSTED) & matters
        segment, at = near.scatter_(1, pick, False).nonzero(as_tuple=True)
        inverse = _inverse(self.norm)
        for piece in split_pieces([1] * len(at), 2 * self.x.shape[2], STREAM_BYTES):
            i, j = (segment[piece], at[piece]), (segment[piece], pick[segment[piece], 0])
            product = torch.linalg.vecdot(self.x[i].float(), self.x[j].float())
            row[i] = product * inverse[i] * inverse[j]

    def shrink(self, size: int) -> None:
        self.r, self.residual, self.c = self.r[:size], self.residual[:size], self.c[:size]
        if self.head is not None:
            self.head = self.head[0][:size], self.head[1][:size]

    def on_host(self, similarities: _Similarities, picks: list[int]) -> Tensor:
        """What `_greedy_batch` does, on a CPU: order int32 (B, n)."""
        s, here = similarities.s.numpy(), similarities.here.numpy()
        whole, slot = bool(here.all()), similarities.slot

        def refined(row: Tensor, pick: Any, residual: Any) -> Tensor:
            if self.rounds and np.count_nonzero(row.numpy() > 1 - 2 * EXHAUSTED) != len(row):  # else itself alone
                new, at = torch.from_numpy(residual > EXHAUSTED), torch.from_numpy(pick[:, None])
                self._refine(at, row, new & new.gather(1, at))
            return row

        def rows_of(segments: Any, pick: Any, scores: Any, residual: Any) -> Tensor:
            if whole or here[segments, pick].all():
                row = torch.from_numpy(s[segments, pick])
            else:
                row = similarities.of(torch.from_numpy(pick[:, None]), torch.from_numpy(scores()))
            return refined(row, pick, residual)

        def row_of(pick: int, scores: Any, residual: Any) -> Tensor:
            if not (whole or here[0, pick]):
                similarities.bring_to_one(pick, torch.from_numpy(scores()))
            row = torch.from_numpy(s[0, slot[pick]])
            return refined(row[None], np.array([pick]), residual[None])[0] if self.rounds else row

        if len(picks) == 1:
            head = None if self.head is None else (self.head[0][0], int(self.head[1]))
            alone = self.r[0], self.residual[0], self.fill, self.c[0]
            return on_host.conditional_dpp_of_one(*alone, picks[0], row_of, head)[None]
        return on_host.conditional_dpp(self.r, self.residual, self.fill, self.c, picks, rows_of, self.head)


def radical_inverse(n: int, device: torch.device) -> Tensor:
    """Of 0 to n - 1, the binary digits mirrored at the point (van der Corput): float64 (n,) in [0, 1)."""
    bit = torch.arange(max(1, (n - 1).bit_length()), device=device)
    digits = torch.arange(n, device=device)[:, None] >> bit & 1
    return (digits * 2.0 ** -(bit + 1).double()).sum(1)


class _MMR:
    def __init__(self, r: Tensor, trade: float) -> None:
        self.r, self.trade, self.closest = r, trade, torch.full_like(r, -1.0)

    def score(self, step: int) -> Tensor:
        return self.trade * self.r - (1 - self.trade) * self.closest

    def update(self, step: int, pick: Tensor, row: Tensor) -> None:
        self.closest = torch.maximum(self.closest, row)

    def shrink(self, size: int) -> None:
        self.r, self.closest = self.r[:size], self.closest[:size]


class _MaxMin:
    def __init__(self, x: Tensor) -> None:
        self.closest = _nearest_other(x)

    def score(self, step: int) -> Tensor:
        return -self.closest

    def update(self, step: int, pick: Tensor, row: Tensor) -> None:
        self.closest = row if step == 0 else torch.maximum(self.closest, row)

    def shrink(self, size: int) -> None:
        self.closest = self.closest[:size]


def _nearest_other(x: Tensor) -> Tensor:
    """Cosine of each token of x (B, n, D) to its nearest other in the segment: (B, n), a block at a time."""
    unit = unit_rows(x)
    n = x.shape[1]
    best = unit.new_full((len(x), n), -2.0)
    for i in range(0, n, GRAM_LIMIT):
        for j in range(i, n, GRAM_LIMIT):  # a block and its transpose at once
            rows, columns = best[:, i : i + GRAM_LIMIT], best[:, j : j + GRAM_LIMIT]
            block = torch.bmm(unit[:, i : i + GRAM_LIMIT], unit[:, j : j + GRAM_LIMIT].mT)  # (B, <= limit, <= limit)
            if i == j:
                block.diagonal(dim1=1, dim2=2).fill_(-2.0)
            else:
                torch.maximum(columns, block.amax(1), out=columns)
            torch.maximum(rows, block.amax(2), out=rows)
    return best


_kept_apart: list[Any] = []


def _not_traced() -> Any:
    """Get what picks by numpy as Dynamo leaves it alone: traced, it would be functions of torch, with other types.

    Made when it is first asked for, since it loads Dynamo, which takes two seconds.
    """
    if not _kept_apart:
        _kept_apart.append(torch.compiler.disable(_ConditionalDPP.on_host))  # type: ignore[no-untyped-call]
    return _kept_apart[0]


# (x (B, n, D), lengths of its rows (B, n), relevance (B, n), most picks) -> the rule
_MakeRule = Callable[[Tensor, Tensor, Tensor, int], _Rule]


def _greedy(problem: GreedyProblem, make_rule: _MakeRule) -> Tensor:
    """The skeleton that the greedy selections share: batch equal segments, pick the best, look at its row of S."""
    x, relevance, offsets, budget, *_, head = problem
    order = torch.full((len(x),), -1, dtype=torch.int32, device=x.device)
    bounds, budgets = offsets.tolist(), budget.tolist()
    early = [0] * len(budgets) if head is None else head.picks.tolist()
    cached = make_rule is _ConditionalDPP and x.device.type == "cpu"
    groups: dict[int, list[tuple[int, int, int]]] = {}
    for (begin, end), k, few in zip(pairwise(bounds), budgets, early, strict=True):
        if k:
            groups.setdefault(end - begin, []).append((k, begin, few))
    for n, segments in groups.items():
        segments.sort(key=lambda item: -item[0])  # the largest budgets first: those still picking are a prefix
        held = n <= GRAM_LIMIT
        limit = min(PIECE_BYTES, CORE_BYTES * n // segments[0][0]) if cached and held else PIECE_BYTES
        for piece in split_pieces([n] * len(segments), n if held else x.shape[1], limit):
            picks, begins, few = (list(of) for of in zip(*segments[piece], strict=True))
            index = torch.tensor(begins, device=x.device)[:, None] + torch.arange(n, device=x.device)  # (B, n)
            adjacent = begins == list(range(begins[0], begins[0] + n * len(begins), n))
            batch = x[begins[0] : begins[0] + n * len(begins)].view(-1, n, x.shape[1]) if adjacent else x[index]
            r = torch.ones(index.shape, dtype=working(x), device=x.device)
            if relevance is not None:
                r = relevance[index].to(r.dtype)
            lengths = problem.measures.norm[index].to(r.dtype)
            similarities, rule = _Similarities(batch, lengths, r, picks[0]), make_rule(batch, lengths, r, picks[0])
            if head is not None and isinstance(rule, _ConditionalDPP):
                rule.head = head.relevance[index].to(r.dtype), torch.tensor(few, device=x.device)[:, None]
            if NUMPY and cached and held and isinstance(rule, _ConditionalDPP):
                on_host = _not_traced() if "torch._dynamo" in sys.modules else _ConditionalDPP.on_host
                order[index] = on_host(rule, similarities, picks)
            else:
                order[index] = _greedy_batch(similarities, picks, rule)
    return order


def _greedy_batch(similarities: _Similarities, picks: list[int], rule: _Rule) -> Tensor:
    """Pick `picks` (descending) tokens from each of B segments of n: order int32 (B, n)."""
    order = torch.full_like(similarities.norm, -1, dtype=torch.int32)
    active = len(picks)
    for step in range(picks[0]):
        if picks[active - 1] <= step:
            active = sum(k > step for k in picks)
            rule.shrink(active)
        score = rule.score(step).masked_fill(order[:active] >= 0, -torch.inf)  # (A, n)
        best = score.amax(1, keepdim=True)
        pick = (score >= best - TIE * best.abs()).int().argmax(1, keepdim=True)  # the first of those tied, (A, 1)
        order[:active].scatter_(1, pick, step)
        if step + 1 < picks[0]:
            rule.update(step, pick, similarities.of(pick, score))
    return order


def conditional_dpp(problem: GreedyProblem) -> Tensor:
    return _greedy(problem, _ConditionalDPP)


def mmr(problem: MMRProblem) -> Tensor:
    return _greedy(problem.greedy, lambda x, norm, r, steps: _MMR(r, problem.trade))


def hybrid(problem: HybridProblem) -> Tensor:
    greedy, trade, threshold = problem
    small = greedy.offsets.diff() <= threshold
    exact = conditional_dpp(greedy._replace(budget=greedy.budget.where(small, 0), head=None))
    return torch.maximum(exact, mmr(MMRProblem(greedy._replace(budget=greedy.budget.where(~small, 0)), trade)))


def max_min(problem: GreedyProblem) -> Tensor:
    return _greedy(problem._replace(relevance=None), lambda x, norm, r, steps: _MaxMin(x))


def top(problem: TopProblem) -> Tensor:
    score, offsets, budget = problem
    position = torch.arange(len(score), device=score.device)
    segment = torch.searchsorted(offsets[1:], position, right=True)
    ranked = score.argsort(descending=True, stable=True)
    ranked = ranked[segment[ranked].argsort(stable=True)]  # by segment, then score, then position
    step = position - offsets[segment[ranked]]
    picked = torch.where(step < budget[segment[ranked]], step, -1).int()
    return torch.empty_like(picked).scatter_(0, ranked, picked)
