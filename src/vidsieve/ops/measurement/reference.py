"""What is measured of tokens, in float64, one token at a time; equation numbers: docs/method.md."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from vidsieve.ops.definitions import ContrastProblem, MeasureProblem, Measures, MinMaxProblem, TransienceProblem
from vidsieve.ops.limits import GOLDEN, LEAST, MOST, NOISE, NON_FINITE, NONFINITE_PROMPT, OUT_OF_RANGE, SILVER, STAYS


def unit_rows(x: Tensor) -> Tensor:
    """x (N, D) in float64 with rows of length one; a zero row stays zero."""
    x = x.detach().double()
    norm = x.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, x / norm.where(norm > 0, 1.0), 0.0)


def measure(problem: MeasureProblem) -> Measures:
    x, prompt = problem.x, problem.prompt
    nonfinite, cosine = _nonfinite(x), None
    if prompt is not None:
        cosine = _cosine_to(x, prompt)
        if _nonfinite(prompt).any():
            nonfinite, cosine = nonfinite + NONFINITE_PROMPT, torch.full_like(cosine, math.nan)
    norm = x.detach().double().norm(dim=-1).float()
    return Measures(
        norm, nonfinite, _persistence(x, problem.frames, problem.centre) if problem.persistence else None, cosine
    )


def _nonfinite(x: Tensor) -> Tensor:
    rows = [
        OUT_OF_RANGE * int(norm != 0 and not LEAST <= norm <= MOST) if math.isfinite(norm) else NON_FINITE
        for norm in x.detach().double().norm(dim=-1).tolist()
    ]
    return torch.tensor(rows, dtype=torch.int32, device=x.device)


def _persistence(x: Tensor, frames: tuple[int, ...], centre: Tensor | None = None) -> Tensor:
    """Eq. 1."""
    x = x.double()
    centre = x.mean(0).expand(len(frames), -1) if centre is None else centre.double()
    out = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    begin = 0
    for t, (before, now) in enumerate(pairwise(frames), 1):
        middle = begin + before
        centred = x[begin : middle + now] - centre[t]
        centred[centred.norm(dim=-1) <= NOISE * centre[t].norm()] = 0
        for i in range(now):
            this = centred[before + i]
            that = centred[i] if before == now else centred[:before].mean(0)
            a, b = float(this.norm()), float(that.norm())
            if a > 0 and b > 0:
                out[middle + i] = float(this @ that) / (a * b)
            else:
                out[middle + i] = 1.0 if a == b else 0.0
        begin = middle
    return out.float()


def _cosine_to(x: Tensor, y: Tensor) -> Tensor:
    """Eq. 4, before normalisation."""
    return (unit_rows(x) @ unit_rows(y).mT).mean(1).float()


def min_max(problem: MinMaxProblem) -> Tensor:
    """Eq. 4, the normalisation."""
    scores, epsilon, _ = problem
    low, high = float(scores.min()), float(scores.max())
    return ((scores.double() - low + epsilon) / (high - low + epsilon)).float()


def _stays(persistence: Tensor, frames: tuple[int, ...]) -> list[list[float]]:
    """How much each token of each frame resembles its place in the frame before or after: in [0, 1]."""
    out, begin = [], 0
    for now, later in pairwise([*frames, 0]):
        after = persistence[begin + now : begin + 2 * now].tolist() if now == later else [0.0] * now
        before = persistence[begin : begin + now].tolist()
        out.append([min(1.0, max(0.0, p, q)) for p, q in zip(before, after, strict=True)])
        begin += now
    return out


def transience(problem: TransienceProblem) -> Tensor:
    """Eq. 4b."""
    persistence, frames, floor, first = problem
    out = [
        1.0 if i == t % len(frame) else 1 - (1 - floor) * stays
        for t, frame in enumerate(_stays(persistence, frames), first)
        for i, stays in enumerate(frame)
    ]
    return torch.tensor(out, device=persistence.device)


def contrast(problem: ContrastProblem) -> Tensor:
    """Eq. 4c."""
    persistence, frames, floor, knee, spread, first = problem
    out = []
    for t, frame in enumerate(_stays(persistence, frames), first):
        mean = math.fsum(frame) / len(frame)
        for i, stays in enumerate(frame):
            ratio = (stays + STAYS) / (mean + STAYS)
            least = floor * (1 - spread * ((i * GOLDEN + t * SILVER) % 2**32 / 2**32))
            out.append(1.0 if i == t % len(frame) else 1 - (1 - least) * min(1.0, ratio / knee))
    return torch.tensor(out, device=persistence.device)
