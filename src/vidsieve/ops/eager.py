"""The operations in batched torch, for any device. Meaning: reference.py and docs/method.md.

Segments of equal length run as one batch, in pieces of bounded memory. There is a Python loop over picks and over
pieces, none over tokens. The grouping reads segment lengths and budgets on the host: free on CPU, one wait on a GPU.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vidsieve.ops.reference import EXHAUSTED, NOISE, TIE, Measures

PIECE_BYTES = 32 << 20  # float32 working set of one piece of a batch: bounds the peak memory
STREAM_BYTES = 2 << 20  # of a piece that is read once, element by element: stays in a core's cache
BLOCK_BYTES = 24 << 20  # of a piece that is multiplied twice: stays in the cache that cores share
GRAM_LIMIT = 2048  # tokens; longer segments compute rows of S as they are picked and never hold n x n


def _working(x: Tensor) -> torch.dtype:
    """Arithmetic is float32, or float64 for float64 input."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _unit(x: Tensor) -> Tensor:
    return normalize(x.to(_working(x)), dim=-1, eps=1e-30)


def _pieces(lengths: Sequence[int], width: int, limit: int = PIECE_BYTES) -> Iterator[slice]:
    """Consecutive runs of items whose rows of `width` float32 fit `limit` bytes (at least one item a run)."""
    begin, size = 0, 0
    for i, n in enumerate(lengths):
        if i > begin and (size + n) * width * 4 > limit:
            yield slice(begin, i)
            begin, size = i, 0
        size += n
    if begin < len(lengths):
        yield slice(begin, len(lengths))


def measure(x: Tensor, frames: tuple[int, ...], y: Tensor | None, persistence: bool) -> Measures:
    norm, cosine = _norm_and_cosine(x, y)
    if x.is_cuda or not torch.isfinite(norm).all():
        bad = (~torch.isfinite(x)).sum(1, dtype=torch.int32)
    else:  # no entry can be
        bad = x.new_zeros(len(x), dtype=torch.int32)
    return Measures(norm, bad, _persistence(x, frames) if persistence else None, cosine)


def _persistence(x: Tensor, frames: tuple[int, ...]) -> Tensor:
    mean = _mean(x)
    still = NOISE * mean.norm()
    out = torch.zeros(len(x), dtype=torch.float32, device=x.device)
    regular = min(frames) == max(frames)
    begin, last = 0, None  # the frames before `begin` are done; `last` (P', D), centred, is the one just before it
    for piece in _pieces(frames, x.shape[1], STREAM_BYTES if regular else 0):
        end = begin + sum(frames[piece])
        now = x[begin:end] - mean
        now.masked_fill_((torch.linalg.vector_norm(now, dim=-1) <= still)[:, None], 0)
        if last is not None and len(last) == frames[piece.start]:
            that = torch.cat([last, now[: -frames[piece.start]]]) if piece.stop > piece.start + 1 else last
            out[begin:end] = _cosine(now, that)
        elif last is not None:
            out[begin:end] = _cosine(now, last.mean(0, keepdim=True).expand_as(now))
        elif piece.stop > piece.start + 1:
            out[begin + frames[0] : end] = _cosine(now[frames[0] :], now[: -frames[0]])
        begin, last = end, now[-frames[piece.stop - 1] :]
    return out


def _mean(x: Tensor) -> Tensor:
    """Mean of x (N, D) over its rows, accumulated in float32 or better: (D,)."""
    if x.device.type != "cpu":
        return x.mean(0, dtype=_working(x))
    pieces = _pieces([1] * len(x), x.shape[1], STREAM_BYTES)
    return torch.stack([x[piece].to(_working(x)).sum(0) for piece in pieces]).sum(0) / len(x)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Rowwise cosine of (n, D) and (n, D): float32 (n,). Two zero rows are alike, a zero row is unlike any other."""
    norm_a, norm_b = torch.linalg.vector_norm(a, dim=-1), torch.linalg.vector_norm(b, dim=-1)
    dot: Tensor = torch.linalg.vecdot(a, b)
    cosine: Tensor = dot / (norm_a * norm_b).clamp(min=1e-30)
    return cosine.masked_fill((norm_a == 0) & (norm_b == 0), 1.0).float()


def _norm_and_cosine(x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Lengths of the rows of x (N, D), and their mean cosine to those of y (M, D) if given: (N,) each."""
    norm = x.new_empty(len(x), dtype=_working(x))
    # The mean of the cosines to several vectors is the projection on the mean of their unit vectors.
    direction = norm.new_zeros(x.shape[1]) if y is None else _unit(y).mean(0).to(norm.dtype)
    projection = None if y is None else torch.empty_like(norm)
    rows = min(len(x), max(1, STREAM_BYTES // (4 * x.shape[1])))
    buffer = norm.new_empty(rows, x.shape[1])  # one for all pieces: fresh memory would cost more than the arithmetic
    for begin in range(0, len(x), rows):
        part = buffer[: len(x) - begin].copy_(x[begin : begin + rows])
        torch.linalg.vector_norm(part, dim=-1, out=norm[begin : begin + rows])
        if projection is not None:
            torch.mv(part, direction, out=projection[begin : begin + rows])
    return norm, None if projection is None else (projection / norm.clamp(min=1e-30)).float()


def segment_mean(values: Tensor, offsets: Tensor) -> Tensor:
    mean: Tensor = torch.segment_reduce(values.float(), "mean", offsets=offsets, unsafe=True)
    return mean.nan_to_num(0.0)


def scene_cuts(similarity: Tensor, offsets: Tensor, threshold: float, max_frames: int | None) -> Tensor:
    total = len(similarity)
    t = torch.arange(total, device=similarity.device)
    first = (similarity < threshold) | (t == 0)
    if max_frames is not None:
        scene = first.cumsum(0) - 1  # (T,)
        length = torch.zeros_like(t).scatter_add_(0, scene, torch.ones_like(t))[scene]
        within = t - torch.where(first, t, 0).cummax(0).values
        parts = -(-length // max_frames)
        first |= within * parts // length != (within - 1) * parts // length
    # The s-th segment begins at the s-th true entry of `first`; the unused rest of the T slots is empty.
    bounds = torch.full((total + 1,), total, device=t.device)
    bounds.scatter_reduce_(0, first.cumsum(0) - 1, t, "amin")
    return offsets[bounds]


def novelty(persistence: Tensor, offsets: Tensor) -> Tensor:
    return (segment_mean(1 - persistence, offsets) * offsets.diff()).clamp(min=0)


def apportion(weights: Tensor | None, offsets: Tensor, total: int) -> Tensor:
    n = offsets.diff().double()
    w = n if weights is None else weights.double()
    w = (w / w.max().clamp(min=1e-300)).clamp(min=1e-9)
    floor = torch.where((n > 0).sum() <= total, n.clamp(max=1), 0.0)
    # sum_s clip(level * w_s, floor_s, n_s) grows piecewise linearly in the level: slope + w_s from floor_s / w_s on,
    # - w_s from n_s / w_s on. Walk the sorted breakpoints to where it reaches the total.
    breaks, by = torch.cat([floor / w, n / w]).sort()
    slope = torch.cat([w, -w])[by].cumsum(0)
    gained = (slope[:-1] * breaks.diff()).cumsum(0) + floor.sum()
    reached = torch.cat([floor.sum()[None], gained])
    at = (reached <= total).sum() - 1
    level = breaks[at] + (total - reached[at]) / slope[at].clamp(min=1e-12)
    share = torch.minimum(torch.maximum(level * w, floor), n)
    whole = (share + 1e-6).floor()
    remainder = torch.where(whole < n, ((share - whole) * 1e6).round(), -torch.inf)
    rank = remainder.argsort(descending=True, stable=True).argsort()
    return (whole + (rank < total - whole.sum())).long()


class _Similarities:
    """Rows of S for B segments of n tokens x (B, n, D), wanted for up to `steps` picks by relevance r (B, n).

    Held in full where most will be needed. Where few will be, the first that is asked for brings those of the tokens
    with the best scores along: products of many rows are far cheaper than of one. A segment that asks for another gets
    all of its own, and flat relevance tells nothing of what will be asked for. For long segments, where S is not held,
    rows come one at a time.
    """

    def __init__(self, x: Tensor, norm: Tensor, r: Tensor, steps: int) -> None:
        self.x, self.norm = x, norm  # (B, n, D), (B, n)
        b, n = norm.shape
        self.segments = torch.arange(b, device=x.device)
        self.held = n <= GRAM_LIMIT
        self.block = steps + max(4, steps // 3)
        if not self.held:
            self.unit = _unit(x)  # (B, n, D)
        elif 6 * steps >= n or x.is_cuda or r.amin() == r.amax():
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
            likely = score.scatter(1, pick, torch.inf).topk(min(self.block, score.shape[1]), dim=1).indices  # (A, m)
            first = ~self.here[missing].any(1)
            for begun, wanted in ((missing[first], likely), (missing[~first], None)):
                for piece in _pieces([self.norm.shape[1]] * len(begun), self.x.shape[2], BLOCK_BYTES):
                    self._bring(begun[piece], wanted)
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
        self.s[segments[:, None], chosen] = block.mul_(inverse[:, None, :])
        self.here[segments[:, None], chosen] = True


def _inverse(norm: Tensor) -> Tensor:
    return torch.where(norm > 0, norm.reciprocal(), 0)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a (B, m, D) times b (B, n, D) transposed: (B, m, n), accumulated and returned in float32 or better."""
    if a.dtype == torch.bfloat16 and a.device.type == "cpu" and b.shape[1] >= 64:
        # CPUs with bf16 units multiply twice as fast in bf16 as in float32, and accumulate in float32; only the
        # result is rounded. A second product minus the first result brings back what the rounding took.
        coarse = a @ b.mT
        return torch.baddbmm(coarse, a, b.mT, beta=-1).to(torch.float32).add_(coarse)
    return a.to(_working(a)) @ b.to(_working(b)).mT


def _gram(x: Tensor, norm: Tensor) -> Tensor:
    """Cosines of x (B, n, D) with lengths `norm` within each segment: (B, n, n) in float32 or better."""
    b, n, _ = x.shape
    out = x.new_empty(b, n, n, dtype=_working(x))
    inverse = _inverse(norm)
    for piece in _pieces([n] * b, x.shape[2], BLOCK_BYTES):
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
    def __init__(self, norm: Tensor, r: Tensor, steps: int) -> None:
        self.r = r
        self.residual = (norm > 0).to(r.dtype)  # (B, n)
        self.c = r.new_empty(len(r), steps, r.shape[1])  # (B, k, n)

    def score(self, step: int) -> Tensor:
        return torch.where(self.residual > EXHAUSTED, self.r**2 * self.residual, self.r - 2)

    def update(self, step: int, pick: Tensor, row: Tensor) -> None:
        residual = self.residual.gather(1, pick)  # (B, 1)
        c = self.c[:, :step]
        at_pick = c.gather(2, pick[:, :, None].expand(-1, step, 1))  # (B, step, 1)
        e = torch.baddbmm(row[:, None], at_pick.mT, c, alpha=-1)[:, 0]
        # An exhausted pick spans nothing new; its row would be rounding divided by rounding.
        e = torch.where(residual > EXHAUSTED, e * residual.clamp(min=EXHAUSTED).rsqrt(), 0)
        self.c[:, step] = e
        self.residual = (self.residual - e * e).clamp_(min=0)

    def shrink(self, size: int) -> None:
        self.r, self.residual, self.c = self.r[:size], self.residual[:size], self.c[:size]


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
    unit = _unit(x)
    n = x.shape[1]
    best = unit.new_full((len(x), n), -2.0)
    for i in range(0, n, GRAM_LIMIT):
        for j in range(0, n, GRAM_LIMIT):
            block = unit[:, i : i + GRAM_LIMIT] @ unit[:, j : j + GRAM_LIMIT].mT  # (B, <= limit, <= limit)
            if i == j:
                block.diagonal(dim1=1, dim2=2).fill_(-2.0)
            best[:, i : i + GRAM_LIMIT] = torch.maximum(best[:, i : i + GRAM_LIMIT], block.amax(2))
    return best


# (x (B, n, D), lengths of its rows (B, n), relevance (B, n), most picks) -> the rule
_MakeRule = Callable[[Tensor, Tensor, Tensor, int], _Rule]


def _greedy(
    x: Tensor, relevance: Tensor | None, offsets: Tensor, budget: Tensor, norm: Tensor, make_rule: _MakeRule
) -> Tensor:
    """The skeleton that the greedy selections share: batch equal segments, pick the best, look at its row of S."""
    order = torch.full((len(x),), -1, dtype=torch.int32, device=x.device)
    bounds, budgets = offsets.tolist(), budget.tolist()
    groups: dict[int, list[tuple[int, int]]] = {}
    for (begin, end), k in zip(pairwise(bounds), budgets, strict=True):
        if k:
            groups.setdefault(end - begin, []).append((k, begin))
    for n, segments in groups.items():
        segments.sort(key=lambda item: -item[0])  # the largest budgets first: those still picking are a prefix
        held = n <= GRAM_LIMIT
        for piece in _pieces([n] * len(segments), n if held else x.shape[1]):
            picks = [k for k, _ in segments[piece]]
            begins = [begin for _, begin in segments[piece]]
            index = torch.tensor(begins, device=x.device)[:, None] + torch.arange(n, device=x.device)  # (B, n)
            adjacent = begins == list(range(begins[0], begins[0] + n * len(begins), n))
            batch = x[begins[0] : begins[0] + n * len(begins)].view(-1, n, x.shape[1]) if adjacent else x[index]
            r = torch.ones(index.shape, dtype=_working(x), device=x.device)
            if relevance is not None:
                r = relevance[index].to(r.dtype)
            lengths = norm[index].to(r.dtype)
            similarities = _Similarities(batch, lengths, r, picks[0])
            order[index] = _greedy_batch(similarities, picks, make_rule(batch, lengths, r, picks[0]))
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


def conditional_dpp(
    x: Tensor, relevance: Tensor, offsets: Tensor, budget: Tensor, longest: int, total: int, norm: Tensor
) -> Tensor:
    return _greedy(x, relevance, offsets, budget, norm, lambda _, norm, r, steps: _ConditionalDPP(norm, r, steps))


def mmr(
    x: Tensor, relevance: Tensor, offsets: Tensor, budget: Tensor, longest: int, total: int, norm: Tensor, trade: float
) -> Tensor:
    return _greedy(x, relevance, offsets, budget, norm, lambda x, norm, r, steps: _MMR(r, trade))


def hybrid(
    x: Tensor, relevance: Tensor, offsets: Tensor, budget: Tensor, longest: int, total: int, norm: Tensor,
    trade: float, threshold: int,
) -> Tensor:  # fmt: skip
    small = offsets.diff() <= threshold
    exact = conditional_dpp(x, relevance, offsets, budget.where(small, 0), longest, total, norm)
    return torch.maximum(exact, mmr(x, relevance, offsets, budget.where(~small, 0), longest, total, norm, trade))


def max_min(x: Tensor, offsets: Tensor, budget: Tensor, longest: int, total: int, norm: Tensor) -> Tensor:
    return _greedy(x, None, offsets, budget, norm, lambda x, norm, r, steps: _MaxMin(x))


def nearest_kept(x: Tensor, offsets: Tensor, kept: Tensor) -> Tensor:
    source = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
    bounds = offsets.tolist()
    first = torch.searchsorted(kept, offsets).tolist()  # rows of `kept` that fall into each segment
    for (begin, end), (a, b) in zip(pairwise(bounds), pairwise(first), strict=True):
        if a == b:
            continue
        target = _unit(x[kept[a:b]])  # (k, D)
        rows = max(1, PIECE_BYTES // (4 * x.shape[1]))
        for at in range(begin, end, rows):
            stop = min(at + rows, end)
            similarity = _unit(x[at:stop]) @ target.mT  # (n, k)
            best = similarity.amax(1, keepdim=True)
            tied = similarity >= best - TIE * best.abs()
            source[at:stop] = a + tied.int().argmax(1)
    source[kept] = torch.arange(len(kept), device=x.device)
    return source


def min_max(scores: Tensor, epsilon: float) -> Tensor:
    low, high = scores.aminmax()
    return (scores - low + epsilon) / (high - low + epsilon)


def compact(order: Tensor, offsets: Tensor, budget: Tensor, longest: int, total: int) -> tuple[Tensor, Tensor]:
    picked = order >= 0
    source = torch.where(picked, picked.cumsum(0) - 1, -1)
    kept = source.new_zeros(total + 1)  # and one for what is not picked
    kept.scatter_(0, source.where(picked, total), torch.arange(len(order), device=order.device))
    return kept[:total], source


def top(score: Tensor, offsets: Tensor, budget: Tensor) -> Tensor:
    position = torch.arange(len(score), device=score.device)
    segment = torch.searchsorted(offsets[1:], position, right=True)
    ranked = score.argsort(descending=True, stable=True)
    ranked = ranked[segment[ranked].argsort(stable=True)]  # by segment, then score, then position
    step = position - offsets[segment[ranked]]
    picked = torch.where(step < budget[segment[ranked]], step, -1).int()
    return torch.empty_like(picked).scatter_(0, ranked, picked)


def merge_mean(x: Tensor, source: Tensor, kept: int) -> Tensor:
    # Summed in a fixed order, so that the same input gives the same bits on every run.
    ordered, by = source.sort(stable=True)
    bounds = torch.searchsorted(ordered, torch.arange(kept + 1, device=x.device))
    flat = x[by].reshape(len(x), -1).to(_working(x))
    mean = torch.segment_reduce(flat, "mean", offsets=bounds, axis=0, unsafe=True)
    return mean.reshape(kept, *x.shape[1:]).to(x.dtype)
