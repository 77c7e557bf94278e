"""The operations in batched torch, for any device; the greedy selections: eager_greedy.py. Meaning: reference.py and
docs/method.md. Work goes in pieces of bounded memory, with no Python loop over tokens."""

from itertools import pairwise

import torch
from torch import Tensor

from vidsieve.ops.eager_greedy import PIECE_BYTES, STREAM_BYTES, _pieces, _unit, _working
from vidsieve.ops.eager_greedy import conditional_dpp as conditional_dpp
from vidsieve.ops.eager_greedy import hybrid as hybrid
from vidsieve.ops.eager_greedy import max_min as max_min
from vidsieve.ops.eager_greedy import mmr as mmr
from vidsieve.ops.reference import BAD_PROMPT, LEAST, MOST, NOISE, NON_FINITE, OUT_OF_RANGE, TIE, Measures

QUERIES = 64  # rows of attention computed at a time


def measure(x: Tensor, frames: tuple[int, ...], y: Tensor | None, persistence: bool, *segments: object) -> Measures:
    norm, cosine = _norm_and_cosine(x, y)
    bad = _bad(x, norm)
    if cosine is not None:
        bad.add_(cosine.isnan(), alpha=BAD_PROMPT)
    return Measures(norm, bad, _persistence(x, frames) if persistence else None, cosine)


def _bad(x: Tensor, norm: Tensor) -> Tensor:
    fits = (norm >= LEAST) & (norm <= MOST)
    if x.device.type == "cpu":  # elsewhere a look would wait for the device
        bad = norm.new_zeros(len(x), dtype=torch.int32)
        odd = (~fits).nonzero()[:, 0]
        return bad.index_copy_(0, odd, _what(x[odd], norm[odd])) if len(odd) else bad
    return torch.where(fits, 0, _what(x, norm))


def _what(x: Tensor, norm: Tensor) -> Tensor:
    """What is bad about rows x (n, D) that may not fit: int32 (n,). A square may be 0 or inf though the row is not."""
    out_of_range = torch.where((norm < LEAST) & (x == 0).all(1), 0, OUT_OF_RANGE)
    return torch.where(torch.isfinite(x).all(1), out_of_range, NON_FINITE).int()


def _direction(y: Tensor) -> Tensor:
    """The mean of the rows of y (M, D), each at length one: (D,); NaN if one is bad."""
    bad = _bad(y, torch.linalg.vector_norm(y.to(_working(y)), dim=-1)) > 0
    return _unit(y).mean(0).masked_fill(bad.any(), torch.nan)


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
    cosine: Tensor = dot / (norm_a * norm_b).clamp(min=1e-38)
    return cosine.masked_fill((norm_a == 0) & (norm_b == 0), 1.0).float()


def _norm_and_cosine(x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Lengths of the rows of x (N, D), and their mean cosine to those of y (M, D) if given: (N,) each."""
    norm = x.new_empty(len(x), dtype=_working(x))
    # The mean of the cosines to several vectors is the projection on the mean of their unit vectors.
    direction = norm.new_zeros(x.shape[1]) if y is None else _direction(y).to(norm.dtype)
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


def scene_cuts(persistence: Tensor, offsets: Tensor, threshold: float, max_frames: int | None) -> Tensor:
    similarity = segment_mean(persistence, offsets)  # (T,)
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


def novelty(persistence: Tensor, offsets: Tensor, at: Tensor | None = None) -> Tensor:
    persistence = persistence if at is None else persistence[at]
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


def merge_mean(
    x: Tensor,
    source: Tensor,
    kept: Tensor,
    weight: Tensor | None = None,
    link: Tensor | None = None,
) -> Tensor:
    # Summed in a fixed order, so that the same input gives the same bits on every run.
    ordered, by = source.sort(stable=True)
    bounds = torch.searchsorted(ordered, torch.arange(len(kept) + 1, device=x.device))
    flat = x[by].reshape(len(x), -1).to(_working(x))
    if weight is None:
        mean = torch.segment_reduce(flat, "mean", offsets=bounds, axis=0, unsafe=True)
    else:
        w = weight[by].to(flat.dtype)[:, None]
        total, of = (torch.segment_reduce(y, "sum", offsets=bounds, axis=0, unsafe=True) for y in (flat * w, w))
        mean = total / of
    return mean.reshape(len(kept), *x.shape[1:]).to(x.dtype)


def merge_among(
    x: Tensor,
    index: Tensor,
    begin: int,
    source: Tensor,
    kept: Tensor,
    weight: Tensor | None = None,
    link: Tensor | None = None,
) -> Tensor:
    mean = merge_mean(x[begin : begin + len(source)], source, kept, weight, link)
    return x.index_select(0, index).index_copy(0, torch.searchsorted(index, kept + begin), mean)


def temporal(
    x: Tensor, norm: Tensor, offsets: Tensor, frames: tuple[int, ...], at: Tensor | None
) -> tuple[Tensor, Tensor]:
    position = torch.arange(len(x), device=x.device)
    segment = torch.searchsorted(offsets[1:], position, right=True)
    chain = segment * ((max(frames) + 1) * max(frames)) + _place(frames, position if at is None else at)
    chain, order = chain.sort(stable=True)  # by segment, place and time
    before = torch.full_like(order, -1)
    before.index_copy_(0, order[1:], order[:-1].where(chain[1:] == chain[:-1], -1))
    that = before.clamp(min=0)
    dot = norm.new_empty(len(x))
    rows = max(1, PIECE_BYTES // (8 * x.shape[1]))
    for begin in range(0, len(x), rows):
        piece = slice(begin, begin + rows)
        torch.linalg.vecdot(x[piece].to(norm.dtype), x[that[piece]].to(norm.dtype), out=dot[piece])
    lengths = norm * norm[that]
    alike = (norm == norm[that]).to(norm.dtype)  # where one of them is zero: whether both are
    cosine = torch.where(lengths > 0, dot / lengths.where(lengths > 0, 1.0), alike)
    cosine = cosine.where(cosine < 1 - NOISE, 1.0).masked_fill(before < 0, -2.0)
    return before, cosine.float()


def _place(frames: tuple[int, ...], at: Tensor) -> Tensor:
    """What two tokens of a video share if they lie at the same place in frames of the same size: int64 (n,)."""
    if min(frames) == max(frames):
        return at % frames[0]
    lengths = torch.tensor(frames, device=at.device)
    size = torch.repeat_interleave(lengths, lengths, output_size=sum(frames))
    begin = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths, output_size=sum(frames))
    return size[at] * max(frames) + at - begin[at]


def runs(cosine: Tensor, before: Tensor, threshold: float, longest: int) -> tuple[Tensor, ...]:
    found = cosine < threshold
    count = found.cumsum(0)
    index = torch.nonzero_static(found, size=len(cosine))[:, 0]  # and then -1
    row = torch.where(found, count - 1, -1)
    return index, count[-1:], row, *absorbed(row, before, longest)


def absorbed(row: Tensor, before: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    n = len(row)
    at = torch.arange(n, device=row.device)
    joins = (row < 0) & (before >= 0)
    head = torch.where(joins, before, at)
    for _ in range((longest - 1).bit_length()):  # each doubles how far back it reaches
        head = head[head]
    link = row.new_full((n + 1,), -1)
    link.scatter_(0, torch.where(joins, before, n), at)  # who joins nobody goes to a place of its own
    return row[head], link[:n]


def passing(persistence: Tensor, frames: tuple[int, ...], floor: float) -> Tensor:
    at = torch.arange(len(persistence), device=persistence.device)
    lengths = torch.tensor(frames, device=at.device)
    frame = torch.repeat_interleave(lengths, output_size=len(at))
    within = at - (lengths.cumsum(0) - lengths)[frame]
    alike = torch.cat([lengths[1:] == lengths[:-1], lengths.new_zeros(1, dtype=torch.bool)])
    later = persistence[(at + lengths[frame]).clamp(max=len(at) - 1)].where(alike[frame], 0)
    stays = torch.maximum(persistence, later).clamp(0, 1)
    return (1 - (1 - floor) * stays).masked_fill(within == frame % lengths[frame], 1.0)


def compact_rows(left: Tensor, longest: int, begin: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    stays = left >= 0
    if stays.shape[1] < length:
        stays = torch.nn.functional.pad(stays, (begin, length - begin - stays.shape[1]), value=True)
    seen = stays.cumsum(1)  # (B, L)
    shift = longest - seen[:, -1:]  # (B, 1) padding of each row
    rank = torch.arange(1, longest + 1, device=left.device) - shift  # (B, M) from 1 on, what is below is padding
    return torch.searchsorted(seen, rank), (rank > 0).long(), seen + (shift - 1)


def received(
    query: Tensor, key: Tensor, columns: Tensor, seen: Tensor | None, scaling: float, softcap: float | None
) -> Tensor:
    heads, length, width = query.shape
    past = key.shape[1] - length
    key = key.float()
    place = torch.arange(past + length, device=query.device)
    mass = torch.zeros(length, device=query.device)
    for some in torch.split(columns, QUERIES):
        q = query.index_select(1, some).float() * scaling
        scores = (q.reshape(len(key), -1, width) @ key.mT).view(heads, len(some), -1)  # (H, m, past + L)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        unseen = place > past + some[:, None]  # (m, past + L)
        if seen is not None:
            unseen |= ~seen
        mass += scores.masked_fill_(unseen, -torch.inf).softmax(-1).sum((0, 1))[past:]
    return mass / (heads * len(columns))
