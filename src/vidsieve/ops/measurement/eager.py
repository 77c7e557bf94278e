"""What is measured of tokens, in batched torch. Work goes in pieces of bounded memory, with no loop over tokens."""

from itertools import pairwise

import torch
from torch import Tensor

from vidsieve.ops.definitions import (
    LEAST,
    MOST,
    NOISE,
    NON_FINITE,
    NONFINITE_PROMPT,
    OUT_OF_RANGE,
    STAYS,
    ContrastProblem,
    MeasureProblem,
    Measures,
    MinMaxProblem,
    TransienceProblem,
)
from vidsieve.ops.pieces import STREAM_BYTES, split_pieces, unit_rows, working


def measure(problem: MeasureProblem) -> Measures:
    x = problem.x
    norm, cosine = _norm_and_cosine(x, problem.prompt)
    nonfinite = _nonfinite(x, norm)
    if cosine is not None:
        nonfinite.add_(cosine.isnan(), alpha=NONFINITE_PROMPT)
    persistence = None
    if problem.persistence:
        frames, centre = problem.frames, problem.centre
        persistence = _persistence(x, frames) if centre is None else _persistence_about(x, frames, centre)
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


def _persistence(x: Tensor, frames: tuple[int, ...]) -> Tensor:
    mean = _mean(x)
    still = NOISE * mean.norm()
    out = torch.zeros(len(x), dtype=torch.float32, device=x.device)
    regular = min(frames) == max(frames)
    # The frames before `begin` are done; `last` (P', D), centred, is the one just before it, `last_norm` its lengths.
    begin, last, last_norm = 0, None, None
    for piece in split_pieces(frames, x.shape[1], STREAM_BYTES if regular else 0):
        end, first = begin + sum(frames[piece]), frames[piece.start]
        now = x[begin:end].to(mean.dtype) - mean  # of one type: mixed ones are slow
        norm = torch.linalg.vector_norm(now, dim=-1)
        norm = norm.masked_fill_(norm <= still, 0)
        if last is not None and last_norm is not None:
            if len(last) != first:
                last = last.masked_fill((last_norm == 0)[:, None], 0).mean(0, keepdim=True).expand(first, -1)
                last_norm = torch.linalg.vector_norm(last, dim=-1)
            out[begin : begin + first] = _cosine(now[:first], last, norm[:first], last_norm)
        if piece.stop > piece.start + 1:
            out[begin + first : end] = _cosine(now[first:], now[:-first], norm[first:], norm[:-first])
        begin, last, last_norm = end, now[-frames[piece.stop - 1] :], norm[-frames[piece.stop - 1] :]
    return out


def _persistence_about(x: Tensor, frames: tuple[int, ...], centre: Tensor) -> Tensor:
    """The same where each frame, and the one before it, has a centre of its own: (T, D)."""
    out = torch.zeros(len(x), dtype=torch.float32, device=x.device)
    begin = 0
    for (before, now), mean in zip(pairwise(frames), centre[1:].to(working(x)), strict=True):
        middle, end = begin + before, begin + before + now
        centred = x[begin:end].to(mean.dtype) - mean
        norm = torch.linalg.vector_norm(centred, dim=-1)
        norm = norm.masked_fill_(norm <= NOISE * mean.norm(), 0)
        last, last_norm = centred[:before], norm[:before]
        if before != now:
            last = last.masked_fill((last_norm == 0)[:, None], 0).mean(0, keepdim=True).expand(now, -1)
            last_norm = torch.linalg.vector_norm(last, dim=-1)
        out[middle:end] = _cosine(centred[before:], last, norm[before:], last_norm)
        begin = middle
    return out


def _mean(x: Tensor) -> Tensor:
    """Mean of x (N, D) over its rows, accumulated in float32 or better: (D,)."""
    if x.device.type != "cpu":
        return x.mean(0, dtype=working(x))
    pieces = split_pieces([1] * len(x), x.shape[1], STREAM_BYTES)
    return torch.stack([x[piece].to(working(x)).sum(0) for piece in pieces]).sum(0) / len(x)


def _cosine(a: Tensor, b: Tensor, norm_a: Tensor, norm_b: Tensor) -> Tensor:
    """Rowwise cosine of (n, D) and (n, D): float32 (n,). A length of 0 says that the row counts as zero.

    Two zero rows are alike, a zero row is unlike any other.
    """
    dot: Tensor = torch.linalg.vecdot(a, b)
    cosine = torch.where((norm_a == 0) | (norm_b == 0), 0, dot / (norm_a * norm_b).clamp(min=1e-38))
    return cosine.masked_fill((norm_a == 0) & (norm_b == 0), 1.0).float()


def _norm_and_cosine(x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Lengths of the rows of x (N, D), and their mean cosine to those of y (M, D) if given: (N,) each."""
    norm = x.new_empty(len(x), dtype=working(x))
    # The mean of the cosines to several vectors is the projection on the mean of their unit vectors.
    direction = norm.new_zeros(x.shape[1]) if y is None else _direction(y).to(norm.dtype)
    projection = None if y is None else torch.empty_like(norm)
    rows = min(len(x), max(1, STREAM_BYTES // (4 * x.shape[1])))
    # One buffer for all pieces: fresh memory would cost more than the arithmetic.
    buffer = None if x.dtype == norm.dtype else norm.new_empty(rows, x.shape[1])
    for begin in range(0, len(x), rows):
        part = x[begin : begin + rows]
        if buffer is not None:
            part = buffer[: len(part)].copy_(part)
        torch.linalg.vector_norm(part, dim=-1, out=norm[begin : begin + rows])
        if projection is not None:
            torch.mv(part, direction, out=projection[begin : begin + rows])
    return norm, None if projection is None else (projection / norm.clamp(min=1e-30)).float()


def min_max(problem: MinMaxProblem) -> Tensor:
    scores, epsilon, _ = problem
    low, high = scores.aminmax()
    return (scores - low + epsilon) / (high - low + epsilon)


def _stays(persistence: Tensor, frames: tuple[int, ...], first: int) -> tuple[Tensor, Tensor, Tensor]:
    """How much tokens resemble their place in the frame before or after, their frames, which lie on the diagonal.

    first: the frames of the video before these.
    """
    at = torch.arange(len(persistence), device=persistence.device)
    lengths = torch.tensor(frames, device=at.device)
    frame = torch.repeat_interleave(lengths, output_size=len(at))
    within = at - (lengths.cumsum(0) - lengths)[frame]
    alike = torch.cat([lengths[1:] == lengths[:-1], lengths.new_zeros(1, dtype=torch.bool)])
    later = persistence[(at + lengths[frame]).clamp(max=len(at) - 1)].where(alike[frame], 0)
    return torch.maximum(persistence, later).clamp(0, 1), frame, within == (frame + first) % lengths[frame]


def transience(problem: TransienceProblem) -> Tensor:
    persistence, frames, floor, first = problem
    stays, _, diagonal = _stays(persistence, frames, first)
    return (1 - (1 - floor) * stays).masked_fill(diagonal, 1.0)


def contrast(problem: ContrastProblem) -> Tensor:
    persistence, frames, floor, knee, first = problem
    stays, frame, diagonal = _stays(persistence, frames, first)
    lengths = torch.tensor(frames, device=stays.device)
    mean = torch.segment_reduce(stays, "mean", lengths=lengths, unsafe=True)[frame]
    ratio = (stays + STAYS) / (mean + STAYS)
    return (1 - (1 - floor) * (ratio / knee).clamp(max=1)).masked_fill(diagonal, 1.0)
