"""Pixels of groups (T, P, C) that the tests of centres share."""

import torch
from torch import Tensor

from tests.ops.run_length.groups import groups
from vidsieve.ops import Blocks, KCenterProblem
from vidsieve.ops.k_center.reference import blocks_of
from vidsieve.ops.limits import MOST

SHAPES = [(1, 1, 1), (1, 5, 8), (2, 1, 3), (9, 1, 130), (8, 4, 16), (17, 3, 129), (2, 300, 5)]
KINDS = ("drifting", "repeating", "equal", "large", "bf16", "fp16")


def video(frames: int, places: int, width: int, kind: str = "moving", seed: int = 0) -> Tensor:
    return groups(frames, places, width, kind, seed)


def counts(x: Tensor) -> list[int]:
    """The least, the most, and counts in between."""
    frames, places, _ = x.shape
    least, most = Blocks(frames, places).count, frames * places
    return sorted({least, max(least, most // 4), max(least, most // 2), most} - ({most} if most > 300 else set()))


def check_near(
    problem: KCenterProblem, ours: tuple[Tensor, Tensor, Tensor], true: tuple[Tensor, Tensor, Tensor]
) -> None:
    """A right choice in float64: of as many groups, each other group with the nearest of its block, and the farthest of
    all no farther than in `true` but for rounding."""
    values = problem.x.detach().double().flatten(0, 1).cpu()
    frames, places, _ = problem.x.shape
    kept, source, nonfinite = (part.cpu() for part in ours)
    assert torch.equal(nonfinite, true[2].cpu())
    assert int(values.abs().max() > MOST) == int(nonfinite.any())
    assert len(kept) == problem.total == len(true[0])
    assert torch.equal(source[kept], torch.arange(len(kept)))
    slack = 1e-6 * float(values.square().sum(1).max())  # what squares in float32 lose
    farthest = [0.0, 0.0]
    for block in blocks_of(Blocks(frames, places)):
        at = torch.tensor(block)
        for place, (centres, rows) in enumerate(((kept, source), (true[0].cpu(), true[1].cpu()))):
            here = centres[torch.isin(centres, at)]
            assert len(here) >= 1
            apart = (values[at, None] - values[here]).square().sum(2)  # (n, k)
            to_source = (values[at] - values[centres[rows[at]]]).square().sum(1)
            assert (to_source <= apart.min(1).values + slack).all()
            farthest[place] = max(farthest[place], float(to_source.max()))
    assert farthest[0] <= farthest[1] * (1 + 1e-4) + 2 * slack
