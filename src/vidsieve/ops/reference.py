"""The truth: every operation in float64, one token at a time, with the equation numbers of docs/method.md.

Slow on purpose. Nothing here is shared with the implementations that are tested against it, except the two constants
that belong to the definition of the methods.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

# A token whose squared distance to the span of the picks is below this share of its squared length adds nothing that
# bf16 features could tell from rounding: it is exhausted, and ranks behind every token that is not.
EXHAUSTED = 1e-5
# Scores within this share of the best are a tie, and a tie goes to the earlier token: so rounding cannot decide between
# duplicates. A share, because relevance may be small everywhere and enters squared.
TIE = 1e-6
# What centring leaves of a token that equals the mean is rounding, not a direction: below this share of the mean's
# length it counts as zero.
NOISE = 1e-5
# A token is zero or of a length in between: float32 then holds its square, that of a difference of two, and that of
# what NOISE leaves of it, features wide as they are. `bad` says which are not, and which hold NaN or inf.
LEAST, MOST = 1e-12, 1e18
NON_FINITE, OUT_OF_RANGE, BAD_PROMPT = (
    1,
    2,
    4,
)  # in `bad`; the last where the cosine to the prompt is what is not finite


class Measures(NamedTuple):
    """What one pass over the features finds out: see `ops.measure`."""

    norm: Tensor
    bad: Tensor
    persistence: Tensor | None = None
    cosine: Tensor | None = None
    products: Tensor | None = None


def _unit(x: Tensor) -> Tensor:
    """x (N, D) in float64 with rows of length one; a zero row stays zero."""
    x = x.detach().double()
    norm = x.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, x / norm.where(norm > 0, 1.0), 0.0)


def _first_best(score: Tensor) -> int:
    best = score.max()
    return int((score >= best - TIE * best.abs()).nonzero()[0])


def _segments(offsets: Tensor, budget: Tensor) -> list[tuple[int, int, int]]:
    bounds = offsets.tolist()
    return [(begin, end, k) for (begin, end), k in zip(pairwise(bounds), budget.tolist(), strict=True) if k]


def measure(x: Tensor, frames: tuple[int, ...], y: Tensor | None, persistence: bool, *segments: object) -> Measures:
    bad = _bad(x)
    cosine = None if y is None else _cosine_to(x, y)
    if y is not None and cosine is not None and _bad(y).any():
        bad, cosine = bad + BAD_PROMPT, torch.full_like(cosine, math.nan)
    norm = x.detach().double().norm(dim=-1).float()
    return Measures(norm, bad, _persistence(x, frames) if persistence else None, cosine)


def _bad(x: Tensor) -> Tensor:
    rows = [
        OUT_OF_RANGE * int(norm != 0 and not LEAST <= norm <= MOST) if math.isfinite(norm) else NON_FINITE
        for norm in x.detach().double().norm(dim=-1).tolist()
    ]
    return torch.tensor(rows, dtype=torch.int32, device=x.device)


def _persistence(x: Tensor, frames: tuple[int, ...]) -> Tensor:
    """Eq. 1."""
    x = x.double()
    centred = x - x.mean(0)
    centred[centred.norm(dim=-1) <= NOISE * x.mean(0).norm()] = 0
    out = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    begin = 0
    for before, now in pairwise(frames):
        middle = begin + before
        for i in range(now):
            this = centred[middle + i]
            that = centred[begin + i] if before == now else centred[begin:middle].mean(0)
            a, b = float(this.norm()), float(that.norm())
            if a > 0 and b > 0:
                out[middle + i] = float(this @ that) / (a * b)
            else:
                out[middle + i] = 1.0 if a == b else 0.0
        begin = middle
    return out.float()


def _cosine_to(x: Tensor, y: Tensor) -> Tensor:
    """Eq. 4, before normalisation."""
    return (_unit(x) @ _unit(y).mT).mean(1).float()


def segment_mean(values: Tensor, offsets: Tensor) -> Tensor:
    means = [float(values[a:b].double().mean()) if b > a else 0.0 for a, b in pairwise(offsets.tolist())]
    return torch.tensor(means, dtype=torch.float32, device=values.device)


def scene_cuts(persistence: Tensor, offsets: Tensor, threshold: float, max_frames: int | None) -> Tensor:
    similarity = segment_mean(persistence, offsets)  # (T,)
    frames = len(similarity)
    starts = [t for t in range(frames) if t == 0 or float(similarity[t]) < threshold]
    bounds = []
    for begin, end in pairwise([*starts, frames]):
        parts = math.ceil((end - begin) / (max_frames or frames))
        bounds += [begin + math.ceil(i * (end - begin) / parts) for i in range(parts)]
    bounds += [frames] * (frames + 1 - len(bounds))
    return offsets[torch.tensor(bounds, device=offsets.device)]


def novelty(persistence: Tensor, offsets: Tensor, at: Tensor | None = None) -> Tensor:
    """Eq. 2."""
    persistence = persistence if at is None else persistence[at]
    sums = [max(0.0, float((1 - persistence[a:b].double()).sum())) for a, b in pairwise(offsets.tolist())]
    return torch.tensor(sums, dtype=torch.float32, device=persistence.device)


def apportion(weights: Tensor | None, offsets: Tensor, total: int) -> Tensor:
    """Eq. 3: bisection for the level, then largest remainders."""
    caps = [b - a for a, b in pairwise(offsets.tolist())]
    floors = [min(1, n) for n in caps] if total >= sum(n > 0 for n in caps) else [0] * len(caps)
    raw = [float(w) for w in (caps if weights is None else weights)]
    largest = max(raw, default=0.0) or 1.0
    w = [max(value / largest, 1e-9) for value in raw]

    def share(level: float) -> list[float]:
        return [min(max(level * a, low), n) for a, low, n in zip(w, floors, caps, strict=True)]

    low, high = 0.0, max(n / a for n, a in zip(caps, w, strict=True))
    for _ in range(400):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(share(middle)) < total else (low, middle)
    shares = share(high)
    out = [math.floor(t + 1e-6) for t in shares]
    by_remainder = sorted(range(len(out)), key=lambda s: (-round(shares[s] - out[s], 6), s))
    for s in by_remainder[: total - sum(out)]:
        out[s] += 1
    return torch.tensor(out, dtype=torch.int64, device=offsets.device)


def conditional_dpp(x: Tensor, relevance: Tensor, offsets: Tensor, budget: Tensor, *bounds: object) -> Tensor:
    """Eq. 5-8: Chen et al. 2018, algorithm 1, on S; the condition weighs the choice (eq. 7)."""
    order = torch.full((len(x),), -1, dtype=torch.int32, device=x.device)
    for begin, end, k in _segments(offsets, budget):
        unit, r = _unit(x[begin:end]), relevance[begin:end].double()
        similarity = unit @ unit.mT  # (n, n)
        residual = (unit.norm(dim=-1) > 0).double()  # (n,)
        rows: list[Tensor] = []  # c of eq. 6, one (n,) a pick
        open_ = torch.ones(end - begin, dtype=torch.bool, device=x.device)
        for step in range(k):
            gain = torch.where(residual > EXHAUSTED, r**2 * residual, r - 2)  # eq. 7
            j = _first_best(gain.masked_fill(~open_, -math.inf))
            order[begin + j], open_[j] = step, False
            if residual[j] > EXHAUSTED:
                e = similarity[j].clone()
                for c in rows:
                    e -= c[j] * c
                e /= residual[j].sqrt()  # eq. 6
                rows.append(e)
                residual = (residual - e**2).clamp(min=0)  # eq. 8
    return order


def mmr(
    x: Tensor, relevance: Tensor, offsets: Tensor, budget: Tensor, longest: int, total: int, known: Measures,
    trade: float,
) -> Tensor:  # fmt: skip
    """Eq. 9."""
    order = torch.full((len(x),), -1, dtype=torch.int32, device=x.device)
    for begin, end, k in _segments(offsets, budget):
        unit, r = _unit(x[begin:end]), relevance[begin:end].double()
        closest = torch.full_like(r, -1.0)
        open_ = torch.ones(end - begin, dtype=torch.bool, device=x.device)
        for step in range(k):
            score = trade * r - (1 - trade) * closest
            j = _first_best(score.masked_fill(~open_, -math.inf))
            order[begin + j], open_[j] = step, False
            closest = torch.maximum(closest, unit @ unit[j])
    return order


def hybrid(
    x: Tensor, relevance: Tensor, offsets: Tensor, budget: Tensor, longest: int, total: int, known: Measures,
    trade: float, threshold: int,
) -> Tensor:  # fmt: skip
    small = offsets.diff() <= threshold
    exact = conditional_dpp(x, relevance, offsets, budget.where(small, 0))
    return torch.maximum(exact, mmr(x, relevance, offsets, budget.where(~small, 0), longest, total, known, trade))


def max_min(x: Tensor, offsets: Tensor, budget: Tensor, *bounds: object) -> Tensor:
    """Eq. 10."""
    order = torch.full((len(x),), -1, dtype=torch.int32, device=x.device)
    for begin, end, k in _segments(offsets, budget):
        unit = _unit(x[begin:end])
        similarity = unit @ unit.mT
        closest = similarity.fill_diagonal_(-2.0).max(dim=1).values  # of each to its nearest other
        open_ = torch.ones(end - begin, dtype=torch.bool, device=x.device)
        for step in range(k):
            j = _first_best((-closest).masked_fill(~open_, -math.inf))
            order[begin + j], open_[j] = step, False
            row = unit @ unit[j]
            closest = row if step == 0 else torch.maximum(closest, row)
    return order


def nearest_kept(x: Tensor, offsets: Tensor, kept: Tensor) -> Tensor:
    """Eq. 11."""
    source = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
    bounds = offsets.tolist()
    for begin, end in pairwise(bounds):
        rows = ((kept >= begin) & (kept < end)).nonzero()[:, 0]
        if len(rows):
            unit = _unit(x[begin:end])
            similarity = unit @ unit[kept[rows] - begin].mT  # (n, k)
            for i in range(end - begin):
                source[begin + i] = rows[_first_best(similarity[i])]
            source[kept[rows]] = rows
    return source


def min_max(scores: Tensor, epsilon: float) -> Tensor:
    """Eq. 4, the normalisation."""
    low, high = float(scores.min()), float(scores.max())
    return ((scores.double() - low + epsilon) / (high - low + epsilon)).float()


def compact(order: Tensor, *segments: object) -> tuple[Tensor, Tensor]:
    kept = [i for i, step in enumerate(order.tolist()) if step >= 0]
    source = torch.full((len(order),), -1, dtype=torch.int64, device=order.device)
    for row, i in enumerate(kept):
        source[i] = row
    return torch.tensor(kept, dtype=torch.int64, device=order.device), source


def top(score: Tensor, offsets: Tensor, budget: Tensor) -> Tensor:
    order = torch.full((len(score),), -1, dtype=torch.int32, device=score.device)
    for begin, end, k in _segments(offsets, budget):
        ranked = sorted(range(begin, end), key=lambda i: (-float(score[i]), i))
        for step, i in enumerate(ranked[:k]):
            order[i] = step
    return order


def merge_mean(
    x: Tensor,
    source: Tensor,
    kept: Tensor,
    weight: Tensor | None = None,
    link: Tensor | None = None,
) -> Tensor:
    """Eq. 12, and 15 where tokens have weights."""
    w = torch.ones(len(x), dtype=torch.float64, device=x.device) if weight is None else weight.double()
    weighted = x.double() * w.view(-1, *[1] * (x.ndim - 1))
    means = [weighted[source == row].sum(0) / w[source == row].sum() for row in range(len(kept))]
    return torch.stack(means).to(x.dtype)


def merge_among(
    x: Tensor,
    index: Tensor,
    begin: int,
    source: Tensor,
    kept: Tensor,
    weight: Tensor | None = None,
    link: Tensor | None = None,
) -> Tensor:
    """Eq. 12, and 15 where tokens have weights, amid tokens that stay as they are."""
    merged = x.clone()
    merged[begin + kept] = merge_mean(x[begin : begin + len(source)], source, kept, weight, link)
    return merged[index]


def temporal(
    x: Tensor, norm: Tensor, offsets: Tensor, frames: tuple[int, ...], at: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The token before each, and the cosine to it: eq. 14."""
    unit = _unit(x)
    places = [(size, place) for size in frames for place in range(size)]  # of every token of the whole video
    where = range(len(x)) if at is None else at.tolist()
    before = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
    cosine = torch.full((len(x),), -2.0, device=x.device)
    for begin, end in pairwise(offsets.tolist()):
        latest: dict[tuple[int, int], int] = {}
        for i in range(begin, end):
            j = latest.get(places[where[i]])
            latest[places[where[i]]] = i
            if j is None:
                continue
            before[i] = j
            if bool(unit[i].any()) and bool(unit[j].any()):
                c = float(unit[i] @ unit[j])
                cosine[i] = c if c < 1 - NOISE else 1.0
            else:
                cosine[i] = float(bool(unit[i].any()) == bool(unit[j].any()))
    return before, cosine


def runs(cosine: Tensor, before: Tensor, threshold: float, longest: int) -> tuple[Tensor, ...]:
    """Eq. 14."""
    found = (cosine < threshold).nonzero().flatten()
    row = torch.full((len(cosine),), -1, dtype=torch.int64, device=cosine.device)
    row[found] = torch.arange(len(found), device=cosine.device)
    index = torch.cat([found, row.new_zeros(len(cosine) - len(found))])
    return index, row.new_tensor([len(found)]), row, *absorbed(row, before, longest)


def absorbed(row: Tensor, before: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """The run of eq. 14 that each token belongs to, and who follows it there."""
    source: list[int] = []
    link = [-1] * len(row)
    for i, (own, j) in enumerate(zip(row.tolist(), before.tolist(), strict=True)):
        source.append(own if own >= 0 or j < 0 else source[j])
        if own < 0 <= j:
            link[j] = i
    return torch.tensor(source, device=row.device), torch.tensor(link, device=row.device)


def passing(persistence: Tensor, frames: tuple[int, ...], floor: float) -> Tensor:
    """Eq. 4b."""
    out = torch.empty(len(persistence), device=persistence.device)
    begin = 0
    for t, (now, later) in enumerate(pairwise([*frames, 0])):
        for i in range(now):
            after = float(persistence[begin + now + i]) if now == later else 0.0
            stays = min(1.0, max(0.0, float(persistence[begin + i]), after))
            out[begin + i] = 1.0 if i == t % now else 1 - (1 - floor) * stays
        begin += now
    return out


def compact_rows(left: Tensor, longest: int, begin: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    index = torch.zeros(len(left), longest, dtype=torch.int64, device=left.device)
    valid = torch.zeros_like(index)
    slot = torch.zeros(len(left), length, dtype=torch.int64, device=left.device)
    for row, columns in enumerate(left):
        stays = torch.ones(length, dtype=torch.bool, device=left.device)
        stays[begin : begin + len(columns)] = columns >= 0
        at = stays.nonzero()[:, 0]
        new = torch.arange(longest - len(at), longest, device=at.device)
        index[row, new] = at
        valid[row, new] = 1
        slot[row, at] = new
    return index, valid, slot


def log_det(x: Tensor, relevance: Tensor, kept: Tensor) -> float:
    """log det of L restricted to `kept`, eq. 5; -inf where it is singular."""
    unit = _unit(x[kept]) * relevance[kept].double()[:, None]
    return float(torch.linalg.slogdet(unit @ unit.mT).logabsdet)


def received(
    query: Tensor, key: Tensor, columns: Tensor, seen: Tensor | None, scaling: float, softcap: float | None
) -> Tensor:
    """Eq. 16."""
    heads, length, _ = query.shape
    past, share = key.shape[1] - length, heads // len(key)
    mass = torch.zeros(length, dtype=torch.float64, device=query.device)
    for head in range(heads):
        for column in columns.tolist():
            score = key[head // share, : past + column + 1].double() @ query[head, column].double() * scaling
            if softcap is not None:
                score = softcap * torch.tanh(score / softcap)
            if seen is not None:
                score[~seen[: past + column + 1]] = -torch.inf
            mass[: column + 1] += score.softmax(0)[past:]
    return (mass / (heads * len(columns))).float()
