"""Groups of pixels that repeat one before them, in float64, one group at a time; equation numbers: docs/method.md."""

import math

import torch
from torch import Tensor

from vidsieve.ops.definitions import HoldHighestProblem, RunLengthProblem
from vidsieve.ops.limits import MOST, NON_FINITE, SECTIONS, WIDTHS

Differences = list[list[list[float]]]  # of place p, frame t and an earlier frame s


def run_length(problem: RunLengthProblem) -> tuple[Tensor, Tensor, Tensor]:
    x, total = problem.x.detach().double(), problem.total
    differences = _differences(x)
    score = _walk(differences, problem.threshold if total is None else _threshold(differences, total))
    nonfinite = [0 if bool((group.abs() <= MOST).all()) else NON_FINITE for group in x.flatten(0, 1)]
    scores = torch.tensor(score, dtype=torch.float64, device=x.device).view(x.shape[:2])
    kept, source = hold_highest(HoldHighestProblem(scores, total))
    return kept, source, torch.tensor(nonfinite, dtype=torch.int32, device=x.device)


def hold_highest(problem: HoldHighestProblem) -> tuple[Tensor, Tensor]:
    score, total = problem
    places, scores = score.shape[1], score.flatten().tolist()
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    kept = sorted(i for i in ranked if scores[i] == math.inf) if total is None else sorted(ranked[:total])
    source: list[int] = []
    for i in range(len(scores)):
        source.append(kept.index(i) if i in kept else source[i - places])
    kept_tensor, source_tensor = (torch.tensor(n, dtype=torch.int64, device=score.device) for n in (kept, source))
    return kept_tensor, source_tensor


def _differences(x: Tensor) -> Differences:
    """Eq. 18."""
    frames, places, _ = x.shape
    return [[[float((x[t, p] - x[s, p]).abs().mean()) for s in range(t)] for t in range(frames)] for p in range(places)]


def _walk(differences: Differences, threshold: float) -> list[float]:
    """Eq. 19: inf for a group that is kept, for others the difference to the last kept one, and 0 where that is NaN."""
    places, frames = len(differences), len(differences[0])
    score = [math.inf] * frames * places
    for p in range(places):
        last = 0
        for t in range(1, frames):
            difference = differences[p][t][last]
            if difference > threshold:
                last = t
            else:
                score[t * places + p] = 0.0 if math.isnan(difference) else difference
    return score


def _threshold(differences: Differences, total: int) -> float:
    """Eq. 20."""
    last = (SECTIONS - 1) * WIDTHS[0]  # the bits of inf
    for width in WIDTHS:
        for section in range(SECTIONS - 1, -1, -1):
            bits = max(0, last - section * width)
            if _walk(differences, _number(bits)).count(math.inf) <= total:
                break
        last = bits
    return _number(last)


def _number(bits: int) -> float:
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))
