"""Cuts and budgets in batched torch, for any device."""

import torch
from torch import Tensor

from vidsieve.ops.definitions import ApportionProblem, NoveltyProblem, SceneCutsProblem


def segment_mean(values: Tensor, offsets: Tensor) -> Tensor:
    mean: Tensor = torch.segment_reduce(values.float(), "mean", offsets=offsets, unsafe=True)
    return mean.nan_to_num(0.0)


def scene_cuts(problem: SceneCutsProblem) -> Tensor:
    persistence, offsets, threshold, max_frames, _, even = problem
    similarity = segment_mean(persistence, offsets)  # (T,)
    total = len(similarity)
    t = torch.arange(total, device=similarity.device)
    first = (similarity < threshold) | (t == 0)
    if max_frames is not None:
        within = t - torch.where(first, t, 0).cummax(0).values
        if even:
            scene = first.cumsum(0) - 1  # (T,)
            length = torch.zeros_like(t).scatter_add_(0, scene, torch.ones_like(t))[scene]
            parts = -(-length // max_frames)
            first |= within * parts // length != (within - 1) * parts // length
        else:
            first |= within % max_frames == 0
    # The s-th segment begins at the s-th true entry of `first`; the unused rest of the T slots is empty.
    bounds = torch.full((total + 1,), total, device=t.device)
    bounds.scatter_reduce_(0, first.cumsum(0) - 1, t, "amin")
    return offsets[bounds]


def novelty(problem: NoveltyProblem) -> Tensor:
    persistence, offsets, at = problem
    persistence = persistence if at is None else persistence[at]
    return (segment_mean(1 - persistence, offsets) * offsets.diff()).clamp(min=0)


def apportion(problem: ApportionProblem) -> Tensor:
    weights, offsets, total, floor, _ = problem
    n = offsets.diff().double()
    w = n if weights is None else weights.double()
    w = (w / w.max().clamp(min=1e-300)).clamp(min=1e-9)
    occupied = (n > 0).sum()
    # In float64 from the first product on: a Python number times integers would take torch's default dtype.
    by_length = (total - occupied).double() * n / n.sum().clamp(min=1)
    least = torch.where(occupied <= total, torch.maximum(n.clamp(max=1), floor * by_length), 0.0)
    # sum_s clip(level * w_s, least_s, n_s) grows piecewise linearly in the level: slope + w_s from least_s / w_s on,
    # - w_s from n_s / w_s on. Walk the sorted breakpoints to where it reaches the total.
    breaks, by = torch.cat([least / w, n / w]).sort()
    slope = torch.cat([w, -w])[by].cumsum(0)
    gained = (slope[:-1] * breaks.diff()).cumsum(0) + least.sum()
    reached = torch.cat([least.sum()[None], gained])
    at = (reached <= total).sum() - 1
    level = breaks[at] + (total - reached[at]) / slope[at].clamp(min=1e-12)
    share = torch.minimum(torch.maximum(level * w, least), n)
    whole = (share + 1e-6).floor()
    remainder = torch.where(whole < n, ((share - whole) * 1e6).round(), -torch.inf)
    rank = remainder.argsort(descending=True, stable=True).argsort()
    return (whole + (rank < total - whole.sum())).long()
