"""Groups of pixels that stand for those near them, in float64, one at a time; equation numbers: docs/method.md."""

import math

import torch
from torch import Tensor

from vidsieve.ops.definitions import KCenterProblem
from vidsieve.ops.k_center.blocks import BLOCK_FRAMES, Blocks
from vidsieve.ops.limits import MOST, NON_FINITE


def k_center(problem: KCenterProblem) -> tuple[Tensor, Tensor, Tensor]:
    x, total = problem.x.detach().double(), problem.total
    frames, places, _ = x.shape
    values, blocks = x.flatten(0, 1), Blocks(frames, places)
    radius = [-1.0] * (frames * places)
    for block in blocks_of(blocks):
        _traverse(values, block, blocks.most(len(block), total), radius)
    ranked = sorted(range(len(radius)), key=lambda i: (-radius[i], i))
    kept = sorted(ranked[:total])
    source = [0] * len(radius)
    for block in blocks_of(blocks):
        here = [i for i in block if i in kept]
        for i in block:  # the nearest, the earlier of equals
            nearest = i if i in here else min(here, key=lambda j: (distance(values, i, j), j))
            source[i] = kept.index(nearest)
    nonfinite = [0 if bool((group.abs() <= MOST).all()) else NON_FINITE for group in values]
    on = x.device
    return torch.tensor(kept, device=on), torch.tensor(source, device=on), torch.tensor(nonfinite, device=on).int()


def blocks_of(blocks: Blocks) -> list[list[int]]:
    """The groups of each block, in order."""
    frames, places, runs = blocks.frames, blocks.places, blocks.runs
    return [
        [t * places + p for t in times for p in range(run * places // runs, (run + 1) * places // runs)]
        for begin in range(0, frames, BLOCK_FRAMES)
        for times in [range(begin, min(begin + BLOCK_FRAMES, frames))]
        for run in range(runs)
    ]


def distance(values: Tensor, i: int, j: int) -> float:
    """Eq. 24; 0 where it is not finite."""
    found = float((values[i] - values[j]).square().sum())
    return found if math.isfinite(found) else 0.0


def _traverse(values: Tensor, block: list[int], most: int, radius: list[float]) -> None:
    """Eq. 25: from the first group of the block on, each time the one that is farthest from all before."""
    nearest = {i: distance(values, i, block[0]) for i in block[1:]}
    radius[block[0]] = math.inf
    for _ in range(most - 1):
        pick = max(nearest, key=lambda i: (nearest[i], -i))
        radius[pick] = nearest.pop(pick)
        for i in nearest:
            nearest[i] = min(nearest[i], distance(values, i, pick))
