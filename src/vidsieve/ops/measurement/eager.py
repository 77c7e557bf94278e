"""What is measured of tokens, in batched torch. Work goes in pieces of bounded memory, with no loop over tokens."""

from itertools import pairwise

import torch
from torch import Tensor

from vidsieve.ops.definitions import ContrastProblem, MeasureProblem, Measures, MinMaxProblem, TransienceProblem
from vidsieve.ops.limits import GOLDEN, LEAST, MOST, NOISE, NON_FINITE, NONFINITE_PROMPT, OUT_OF_RANGE, SILVER, STAYS
from vidsieve.ops.pieces import STREAM_BYTES, unit_rows, working


def measure(problem: MeasureProblem) -> Measures:
    x = problem.x
    norm, cosine, mean = _norm_cosine_and_mean(x, problem.prompt, problem.persistence and problem.centre is None)
    nonfinite = _nonfinite(x, norm)
    if cosine is not None:
        nonfinite.add_(cosine.isnan(), alpha=NONFINITE_PROMPT)
    persistence = None
    if mean is not None:
        persistence = _persistence(x, problem.frames, mean)
    elif problem.persistence and problem.centre is not None:
        persistence = _persistence_about(x, problem.frames, problem.centre)
    return Measures(norm, nonfinite, persistence, cosine)


def _nonfinite(x: Tensor, norm: Tensor) -> Tensor:
    fits = (norm >= LEAST) & (norm <= MOST)
    if x.device.type == "cpu":  # elsewhere a look would wait for the device
        nonfinite = norm.new_zeros(len(x), dtype=torch.int32)
        odd = (~fits).nonzero()[:, 0]
        return nonfinite.index_copy_(0, odd, _faults(x[odd], norm[odd])) if len(odd) else nonfinite
    return torch.where(fits, 0, _faults(x, norm))


def _faults(x: Tensor, norm: Tensor) -> Tensor:
    """Name the faults of rows x (n, D): int32 (n,). A square may be 0 or inf though the row is not."""
    out_of_range = torch.where((norm < LEAST) & (x == 0).all(1), 0, OUT_OF_RANGE)
    return torch.where(torch.isfinite(x).all(1), out_of_range, NON_FINITE).int()


def _direction(y: Tensor) -> Tensor:
    """The mean of the rows of y (M, D), each at length one: (D,); NaN if one is not finite."""
    nonfinite = _nonfinite(y, torch.linalg.vector_norm(y.to(working(y)), dim=-1)) > 0
    return unit_rows(y).mean(0).masked_fill(nonfinite.any(), torch.nan)


def _persistence(x: Tensor, frames: tuple[int, ...], mean: Tensor) -> Tensor:
    """Cosine of each row of x (N, D), less the `mean` (D,), to the one at its place in the frame before: (N,)."""
    still = NOISE * mean.norm()
    if min(frames) == max(frames):
        return _persistence_in_place(x.view(len(frames), frames[0], -1), mean, still)
    out = torch.zeros(len(x), dtype=torch.float32, device=x.device)
    # The frames before `begin` are done; `last` (P', D), centred, is the one just before it, `last_norm` its lengths.
    begin, last, last_norm = 0, None, None
    for size in frames:
        end = begin + size
        now, norm = _centred(x[begin:end], mean, still)
        if last is not None and last_norm is not None:
            if len(last) != size:
                last = last.masked_fill((last_norm == 0)[:, None], 0).mean(0, keepdim=True).expand(size, -1)
                last_norm = torch.linalg.vector_norm(last, dim=-1)
            out[begin:end] = _cosine(now, last, norm, last_norm)
        begin, last, last_norm = end, now, norm
    return out


def _persistence_in_place(x: Tensor, mean: Tensor, still: Tensor) -> Tensor:
    """The same of frames of one size, x (T, P, D): a strip of places at a time through all frames."""
    frames, places, dim = x.shape
    out = torch.zeros(frames, places, dtype=torch.float32, device=x.device)
    rows = max(1, STREAM_BYTES // (4 * dim))  # of a piece: so many places of so many frames
    width = -(-places // -(-places // max(1, rows // 4)))  # of strips of one width, nearly
    depth = max(1, rows // width)
    for a in range(0, places, width):
        strip = slice(a, a + width)
        last = None
        for t in range(0, frames, depth):
            now, norm = _centred(x[t : t + depth, strip], mean, still)
            if last is not None:
                out[t, strip] = _cosine(now[0], last[0], norm[0], last[1])
            if len(now) > 1:
                out[t + 1 : t + depth, strip] = _cosine(now[1:], now[:-1], norm[1:], norm[:-1])
            last = now[-1], norm[-1]
    return out.view(-1)


def _centred(x: Tensor, mean: Tensor, still: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., D) less its mean, and the lengths (...), 0 where no more than `still` is left."""
    now = x.to(mean.dtype) - mean  # of one type: mixed ones are slow
    norm = torch.linalg.vector_norm(now, dim=-1)
    return now, norm.masked_fill_(norm <= still, 0)


def _persistence_about(x: Tensor, frames: tuple[int, ...], centre: Tensor) -> Tensor:
    """The same where each frame, and the one before it, has a centre of its own: (T, D)."""
    out = torch.zeros(len(x), dtype=torch.float32, device=x.device)
    begin = 0
    for (before, now), mean in zip(pairwise(frames), centre[1:].to(working(x)), strict=True):
        middle, end = begin + before, begin + before + now
        centred, norm = _centred(x[begin:end], mean, NOISE * mean.norm())
        last, last_norm = centred[:before], norm[:before]
        if before != now:
            last = last.masked_fill((last_norm == 0)[:, None], 0).mean(0, keepdim=True).expand(now, -1)
            last_norm = torch.linalg.vector_norm(last, dim=-1)
        out[middle:end] = _cosine(centred[before:], last, norm[before:], last_norm)
        begin = middle
    return out


def _cosine(a: Tensor, b: Tensor, norm_a: Tensor, norm_b: Tensor) -> Tensor:
    """Rowwise cosine of (n, D) and (n, D): float32 (n,). A length of 0 says that the row counts as zero.

    Two zero rows are alike, a zero row is unlike any other.
    """
    dot: Tensor = torch.linalg.vecdot(a, b)
    cosine = torch.where((norm_a == 0) | (norm_b == 0), 0, dot / (norm_a * norm_b).clamp(min=1e-38))
    return cosine.masked_fill((norm_a == 0) & (norm_b == 0), 1.0).float()


def _norm_cosine_and_mean(x: Tensor, y: Tensor | None, want_mean: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Lengths of the rows of x (N, D), their mean cosine to y (M, D) if there is one, and their mean (D,) if wanted."""
    norm = x.new_empty(len(x), dtype=working(x))
    # The mean of the cosines to several vectors is the projection on the mean of their unit vectors.
    direction = norm.new_zeros(x.shape[1]) if y is None else _direction(y).to(norm.dtype)
    projection = None if y is None else torch.empty_like(norm)
    rows = min(len(x), max(1, STREAM_BYTES // (4 * x.shape[1])))
    # One buffer for all pieces: fresh memory would cost more than the arithmetic.
    buffer = None if x.dtype == norm.dtype else norm.new_empty(rows, x.shape[1])
    sums = []
    for begin in range(0, len(x), rows):
        part = x[begin : begin + rows]
        if buffer is not None:
            part = buffer[: len(part)].copy_(part)
        torch.linalg.vector_norm(part, dim=-1, out=norm[begin : begin + rows])
        if projection is not None:
            torch.mv(part, direction, out=projection[begin : begin + rows])
        if want_mean and x.device.type == "cpu":  # elsewhere one call reads all of x
            sums.append(part.sum(0))
    mean = torch.stack(sums).sum(0) / len(x) if sums else x.mean(0, dtype=working(x)) if want_mean else None
    return norm, None if projection is None else (projection / norm.clamp(min=1e-30)).float(), mean


def min_max(problem: MinMaxProblem) -> Tensor:
    scores, epsilon, _ = problem
    low, high = scores.aminmax()
    return (scores - low + epsilon) / (high - low + epsilon)


def _stays(persistence: Tensor, frames: tuple[int, ...], first: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """How much tokens resemble their place in the frame before or after, their frames, places, and which lie on the
    diagonal.

    first: the frames of the video before these.
    """
    at = torch.arange(len(persistence), device=persistence.device)
    lengths = torch.tensor(frames, device=at.device)
    frame = torch.repeat_interleave(lengths, output_size=len(at))
    within = at - (lengths.cumsum(0) - lengths)[frame]
    alike = torch.cat([lengths[1:] == lengths[:-1], lengths.new_zeros(1, dtype=torch.bool)])
    later = persistence[(at + lengths[frame]).clamp(max=len(at) - 1)].where(alike[frame], 0)
    diagonal = within == (frame + first) % lengths[frame]
    return torch.maximum(persistence, later).clamp(0, 1), frame, within, diagonal


def transience(problem: TransienceProblem) -> Tensor:
    persistence, frames, floor, first = problem
    stays, *_, diagonal = _stays(persistence, frames, first)
    return (1 - (1 - floor) * stays).masked_fill(diagonal, 1.0)


def contrast(problem: ContrastProblem) -> Tensor:
    persistence, frames, floor, knee, spread, first = problem
    stays, frame, within, diagonal = _stays(persistence, frames, first)
    lengths = torch.tensor(frames, device=stays.device)
    mean = torch.segment_reduce(stays, "mean", lengths=lengths, unsafe=True)[frame]
    ratio = (stays + STAYS) / (mean + STAYS)
    place = ((within * GOLDEN + (frame + first) * SILVER) % 2**32).to(stays.dtype) * 2.0**-32
    least = floor * (1 - spread * place)
    return (1 - (1 - least) * (ratio / knee).clamp(max=1)).masked_fill(diagonal, 1.0)
