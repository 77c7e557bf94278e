"""Cuts and budgets in float64, one segment at a time; equation numbers: docs/method.md."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from vidsieve.ops.definitions import ApportionProblem, NoveltyProblem, SceneCutsProblem


def segment_mean(values: Tensor, offsets: Tensor) -> Tensor:
    means = [float(values[a:b].double().mean()) if b > a else 0.0 for a, b in pairwise(offsets.tolist())]
    return torch.tensor(means, dtype=torch.float32, device=values.device)


def scene_cuts(problem: SceneCutsProblem) -> Tensor:
    persistence, offsets, threshold, max_frames, _, even = problem
    similarity = segment_mean(persistence, offsets)  # (T,)
    frames = len(similarity)
    starts = [t for t in range(frames) if t == 0 or float(similarity[t]) < threshold]
    bounds = []
    for begin, end in pairwise([*starts, frames]):
        parts = math.ceil((end - begin) / (max_frames or frames))
        each = (end - begin) / parts if even else max_frames or frames
        bounds += [begin + math.ceil(i * each) for i in range(parts)]
    bounds += [frames] * (frames + 1 - len(bounds))
    return offsets[torch.tensor(bounds, device=offsets.device)]


def novelty(problem: NoveltyProblem) -> Tensor:
    """Eq. 2."""
    persistence, offsets, at = problem
    persistence = persistence if at is None else persistence[at]
    sums = [max(0.0, float((1 - persistence[a:b].double()).sum())) for a, b in pairwise(offsets.tolist())]
    return torch.tensor(sums, dtype=torch.float32, device=persistence.device)


def apportion(problem: ApportionProblem) -> Tensor:
    """Eq. 3: bisection for the level, then largest remainders."""
    weights, offsets, total, floor, _ = problem
    caps = [b - a for a, b in pairwise(offsets.tolist())]
    occupied = sum(n > 0 for n in caps)
    by_length = [(total - occupied) * n / max(1, sum(caps)) for n in caps]
    floors = [max(min(1, n), floor * x) if total >= occupied else 0 for n, x in zip(caps, by_length, strict=True)]
    raw = [float(w) for w in (caps if weights is None else weights)]
    largest = max(raw, default=0.0) or 1.0
    w = [max(value / largest, 1e-9) for value in raw]

    def share(level: float) -> list[float]:
        return [min(max(level * a, low), n) for a, low, n in zip(w, floors, caps, strict=True)]

    low, high = 0.0, max((n / a for n, a in zip(caps, w, strict=True)), default=0.0)
    for _ in range(400):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(share(middle)) < total else (low, middle)
    shares = share(high)
    out = [math.floor(t + 1e-6) for t in shares]
    by_remainder = sorted(range(len(out)), key=lambda s: (-round(shares[s] - out[s], 6), s))
    for s in by_remainder[: total - sum(out)]:
        out[s] += 1
    return torch.tensor(out, dtype=torch.int64, device=offsets.device)
